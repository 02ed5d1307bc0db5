"""MongoDB's queries as pipelines: pure functions of a query and of where outputs are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asyncdl.databackend.documents import Call, DocumentPlan
from asyncdl.databackend.requests import Built, Catalog
from asyncdl.databackend.tables import OutputTable
from asyncdl.errors import QueryError

VALUES = frozenset({"count_documents", "estimated_document_count", "distinct"})
"""What gives one value, and no documents."""
KEY = "_id"

_BY_ROW = {"$match", "$project", "$set", "$addFields", "$unset", "$lookup"}
_MATCHED = "_asyncdl_output"
_PLACE = "_asyncdl_place"


@dataclass(frozen=True, slots=True)
class Step:
    """One call, as it was recorded."""

    name: str
    args: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _State:
    """A pipeline being put together."""

    stages: list[dict[str, Any]] = field(default_factory=list)
    key: tuple[str, ...] = (KEY,)
    by_row: bool = True
    decoded: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Find:
    """A find with what is asked of its cursor: in whatever order it is said, sorted, skipped, limited, then projected."""

    where: Mapping[str, Any] = field(default_factory=dict)
    fields: Any = None
    sort: list[Any] = field(default_factory=list)
    skip: int = 0
    limit: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


def build(collection: str, steps: Sequence[Step], catalog: Catalog) -> Built:
    """Return the plan of a query, and its key."""
    state, at, call = _State(), 0, None
    while at < len(steps):
        step = steps[at]
        if step.name in {"find", "find_one", "sort", "skip", "limit"}:
            found, at = _gathered(steps, at)
            call = _as_call(found, step.name) if not state.stages and at == len(steps) else None
            _append_find(found, state, one=step.name == "find_one")
            continue
        at += 1
        if step.name in VALUES:
            return _value(collection, step, state, first=at == 1)
        _APPEND[step.name](step, state, catalog)
        call = None
    if not steps:
        call = Call("find", ({}, None))
    plan = DocumentPlan(collection, tuple(state.stages), state.by_row, call, state.decoded)
    if call is None and state.options:
        plan = DocumentPlan(
            collection,
            plan.stages,
            plan.by_row,
            Call("aggregate", (list(state.stages),), state.options),
            plan.decoded,
        )
    return Built(plan, state.key)


def _gathered(steps: Sequence[Step], at: int) -> tuple[_Find, int]:
    """Return the find that begins at a step, and where it ends."""
    if steps[at].name not in {"find", "find_one"}:
        found = _Find()
    else:
        where, fields = (*steps[at].args, None)[:2]
        found = _Find(where, fields, options=dict(steps[at].options))
        sort = found.options.pop("sort", None)  # type: ignore[attr-defined]
        if sort:
            found.sort = (
                [[sort, 1]]
                if isinstance(sort, str)
                else [list(each) for each in (sort.items() if isinstance(sort, Mapping) else sort)]
            )
        found.skip, found.limit = found.options.pop("skip", 0), found.options.pop("limit", 0)  # type: ignore[attr-defined]
        at += 1
    while at < len(steps) and steps[at].name in {"sort", "skip", "limit"}:
        setattr(found, steps[at].name, steps[at].args[0])
        at += 1
    return found, at


def _as_call(found: _Find, name: str) -> Call:
    options: dict[str, Any] = dict(found.options)
    if found.sort:
        options["sort"] = [tuple(each) for each in found.sort]
    if found.skip:
        options["skip"] = found.skip
    if found.limit and name != "find_one":
        options["limit"] = found.limit
    return Call("find_one" if name == "find_one" else "find", (found.where, found.fields), options)


def _append_find(found: _Find, state: _State, *, one: bool) -> None:
    if found.where:
        state.stages.append({"$match": found.where})
    if found.sort:
        state.stages.append({"$sort": dict(map(tuple, found.sort))})
        state.by_row = False
    if found.skip:
        state.stages.append({"$skip": found.skip})
        state.by_row = False
    limit = 1 if one else found.limit
    if limit:
        state.stages.append({"$limit": limit})
        state.by_row = False
    if found.fields:
        fields = found.fields
        if not isinstance(fields, Mapping):
            fields = dict.fromkeys(fields, 1)
        if _inclusive(fields):  # what identifies the documents stays with them, unless it is refused
            fields = {**dict.fromkeys(state.key[1:], 1), **fields}
        state.stages.append({"$project": dict(fields)})
        state.key = () if any(name in fields and not fields[name] for name in state.key) else state.key
    state.options |= {name: value for name, value in found.options.items() if name in {"collation", "hint", "comment"}}


def _inclusive(fields: Mapping[str, Any]) -> bool:
    return any(bool(value) for name, value in fields.items() if name != KEY and not isinstance(value, Mapping))


def _value(collection: str, step: Step, state: _State, *, first: bool) -> Built:
    if first:
        return Built(DocumentPlan(collection, (), True, Call(step.name, step.args, step.options)), ())
    stages = list(state.stages)
    if step.name == "count_documents":
        stages += [{"$match": step.args[0]}, {"$count": "count"}]
    else:
        stages += [{"$match": step.args[1]}, {"$unwind": {"path": f"${step.args[0]}", "preserveNullAndEmptyArrays": False}},
                   {"$group": {"_id": f"${step.args[0]}"}}]  # fmt: skip
    return Built(DocumentPlan(collection, tuple(stages), False, Call(f"piped {step.name}")), ())


def _aggregate(step: Step, state: _State, catalog: Catalog) -> None:
    for stage in step.args[0]:
        state.stages.append(dict(stage))
        (operator,) = stage or {"": None}
        if operator not in _BY_ROW:
            state.by_row = False
        if operator not in _BY_ROW | {"$sort", "$limit", "$skip", "$sample"} or _touches(stage, state.key):
            state.key = ()
    state.options |= step.options


def _touches(stage: Mapping[str, Any], key: Sequence[str]) -> bool:
    """Return whether a stage gives a field of the key another value, or none."""
    ((operator, what),) = stage.items()
    if operator == "$unset":
        return bool({what} & set(key)) if isinstance(what, str) else bool(set(what) & set(key))
    if operator == "$project" and isinstance(what, Mapping):
        if any(name in what and what[name] not in (1, True) for name in key):
            return True
        return _inclusive(what) and any(name not in what for name in key[1:])
    return operator in {"$set", "$addFields"} and isinstance(what, Mapping) and any(name in what for name in key)


def _outputs(step: Step, state: _State, catalog: Catalog) -> None:
    for identifier in step.args:
        output = catalog.outputs(identifier)
        _check_key(identifier, output, state.key)
        if output.datatype is None:
            state.stages.append({"$match": {"$expr": False}})
        else:
            state.stages += _lookup(output)
            state.stages += _joined(output)
            if output.datatype.startswith(("pickle", "datatype", "date", "timestamp")):
                state.decoded[identifier] = output.datatype
        if output.flatten:
            state.key = (*state.key, output.position)


def _check_key(identifier: str, output: OutputTable, key: Sequence[str]) -> None:
    if not key:
        raise QueryError(
            f"outputs({identifier!r}): nothing identifies these documents any more; keep _id as it is before"
        )
    lacking = [name for name in output.key if name not in key]
    if lacking:
        upstream = lacking[0].removesuffix("_position")
        raise QueryError(
            f"the outputs of {identifier!r} belong to the elements of {upstream!r}; join with those first: "
            f".outputs({upstream!r}, {identifier!r})"
        )


def output_key(output: OutputTable) -> Any:
    """Return the expression for the id that a document's output has."""
    if tuple(output.key) == (KEY,):
        return f"${KEY}"
    return {name: f"${name}" for name in output.key}


def _lookup(output: OutputTable) -> list[dict[str, Any]]:
    """Return the stages that put a document's output, if there is one, into a list beside it."""
    single = tuple(output.key) == (KEY,)
    local = KEY if single else _PLACE
    place = [] if single else [{"$set": {_PLACE: output_key(output)}}]
    lookup = {"from": output.name, "localField": local, "foreignField": KEY, "as": _MATCHED}
    return [*place, {"$lookup": lookup}]


def _joined(output: OutputTable) -> list[dict[str, Any]]:
    value = f"${_MATCHED}.value"
    hidden = [_MATCHED] if tuple(output.key) == (KEY,) else [_MATCHED, _PLACE]
    stages: list[dict[str, Any]] = [
        {"$match": {f"{_MATCHED}._error": None, _MATCHED: {"$ne": []}}},
        {"$set": {_MATCHED: {"$first": f"${_MATCHED}"}}},
        {"$set": {output.identifier: value}},
        {"$unset": hidden},
    ]
    if output.flatten:
        stages.append({"$unwind": {"path": f"${output.identifier}", "includeArrayIndex": output.position}})
    return stages


def missing(output: OutputTable, *, tried: bool) -> list[dict[str, Any]]:
    """Return the stages that keep the documents without an output; with ``tried``, those with an error are not kept."""
    hidden = [_MATCHED] if tuple(output.key) == (KEY,) else [_MATCHED, _PLACE]
    lacks: dict[str, Any] = {_MATCHED: []}
    if not tried:
        lacks = {"$or": [lacks, {f"{_MATCHED}._error": {"$type": "string"}}]}
    return [*_lookup(output), {"$match": lacks}, {"$unset": hidden}]


def _missing_outputs(step: Step, state: _State, catalog: Catalog) -> None:
    output = catalog.outputs(step.args[0])
    _check_key(step.args[0], output, state.key)
    if output.datatype is not None:
        state.stages += missing(output, tried=False)


def _ids(step: Step, state: _State, catalog: Catalog) -> None:
    if not state.key:
        raise QueryError("ids(): nothing identifies these documents any more; keep _id as it is before")
    state.stages.append({"$project": dict.fromkeys(state.key, 1)})


def _like(step: Step, state: _State, catalog: Catalog) -> None:
    raise QueryError("vector search is not available in this version of asyncdl")


_APPEND = {
    "aggregate": _aggregate,
    "outputs": _outputs,
    "missing_outputs": _missing_outputs,
    "ids": _ids,
    "like": _like,
}
