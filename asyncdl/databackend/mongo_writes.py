"""The user's writes on MongoDB: each tells exactly which documents it concerned.

What is written is found first, then written by its ids: in one transaction nobody comes in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from asyncdl.databackend.documents import DocumentWrite, Operation, kind_of
from asyncdl.databackend.mongo_outputs import parts
from asyncdl.databackend.mongo_values import MongoValues
from asyncdl.databackend.requests import WriteKind, Written
from asyncdl.databackend.tables import Key
from asyncdl.drivers.mongo_calls import MongoTransaction
from asyncdl.drivers.mongo_documents import MongoDocuments, new_id
from asyncdl.drivers.mongo_units import MongoUnit
from asyncdl.errors import DuplicateKeyError, InvalidRowError, QueryError

KEY = "_id"
_MANY = frozenset({"update_many", "delete_many"})
_FOUND = frozenset({"find_one_and_update", "find_one_and_replace", "find_one_and_delete"})
_KNOWN = 20_000
"""Ids that an intent names; a write of more is recomputed as a whole, should its process die in it."""


class _Outcome:
    """What writes have come to so far."""

    def __init__(self) -> None:
        self.ids: dict[WriteKind, list[Key]] = {}
        self.counts: dict[str, Any] = {}
        self.document: Any = None

    def add(self, kind: WriteKind, ids: Sequence[Key]) -> None:
        self.ids.setdefault(kind, []).extend(ids)

    def count(self, **counts: Any) -> None:
        for name, value in counts.items():
            if value is not None:
                self.counts[name] = self.counts.get(name, 0) + value

    def written(self) -> Written:
        done = [(kind, ids) for kind, ids in self.ids.items() if ids]
        return Written([each for _, ids in done for each in ids], None, done, self.document, self.counts)


class MongoWriter:
    """Carries out writes on a unit of work."""

    def __init__(self, documents: MongoDocuments, values: MongoValues) -> None:
        self._documents = documents
        self._values = values

    def with_ids(self, request: DocumentWrite) -> DocumentWrite:
        """Return a write whose new documents have ids."""
        operations = [
            replace(each, what=[_with_id(one) for one in each.what]) if kind_of(each) == "insert" else each
            for each in request.operations
        ]
        return replace(request, operations=operations)

    async def concerned(self, request: DocumentWrite) -> list[Key] | None:
        """Return the ids of the documents that a write will concern, None where that cannot be told, or they are too many."""
        found: list[Key] = []
        if len(request.operations) > 1 and any(kind_of(each) != "insert" for each in request.operations):
            return None
        for each in request.operations:
            if kind_of(each) == "insert":
                found += [one[KEY] for one in each.what]
            elif each.options.get("upsert"):
                return None
            else:
                found += await self._ids(request.table, each, None, limit=_KNOWN + 1)
        return found if len(found) <= _KNOWN else None

    async def _ids(self, table: str, each: Operation, tx: MongoTransaction | None, *, limit: int = 0) -> list[Key]:
        assert each.where is not None  # noqa: S101 - it is no insert
        options = {name: each.options[name] for name in ("collation", "hint") if name in each.options}
        if each.method in _MANY:
            rows = await self._documents.find(table, each.where, {KEY: 1}, tx=tx, limit=limit, **options)
            return [row[KEY] for row in rows]
        if each.options.get("sort"):
            options["sort"] = [tuple(one) for one in each.options["sort"]]
        row = await self._documents.find_one(table, each.where, {KEY: 1}, tx=tx, **options)
        return [] if row is None else [row[KEY]]

    async def write(self, request: DocumentWrite, columns: Mapping[str, str], unit: MongoUnit) -> Written:
        """Make writes, in order."""
        outcome, table = _Outcome(), request.table
        for each in self.with_ids(request).operations:
            if kind_of(each) == "insert":
                self._insert(table, each, columns, unit, outcome)
            else:
                encoded = self._encoded(each, columns)
                await unit.run(lambda tx, encoded=encoded: self._change(table, encoded, tx, outcome))  # type: ignore[misc]
        return outcome.written()

    def _insert(
        self, table: str, each: Operation, columns: Mapping[str, str], unit: MongoUnit, outcome: _Outcome
    ) -> None:
        ids = [one[KEY] for one in each.what]
        if len(ids) > 1:
            seen: dict[Any, int] = {}
            for at, key in enumerate(map(repr, ids)):
                if seen.setdefault(key, at) != at:
                    raise DuplicateKeyError(f"documents {seen[key]} and {at} have the same _id {ids[at]!r}")
        documents = [
            self._values.encode_document(columns, one, f"document {at}") if columns else one
            for at, one in enumerate(each.what)
        ]
        unit.defer(lambda tx: self._documents.insert(table, documents, tx))
        outcome.add("insert", ids)
        outcome.count(inserted_count=len(ids))

    def _encoded(self, each: Operation, columns: Mapping[str, str]) -> Operation:
        if not columns or not isinstance(each.what, Mapping):
            return each
        what = "the update"
        if not any(name.startswith("$") for name in each.what):
            return replace(each, what=self._values.encode_document(columns, dict(each.what), "the replacement"))
        changed = {
            operator: self._values.encode_document(columns, dict(changes), what)
            if operator in {"$set", "$setOnInsert"} and isinstance(changes, Mapping)
            else changes
            for operator, changes in each.what.items()
        }
        return replace(each, what=changed)

    async def _change(self, table: str, each: Operation, tx: MongoTransaction | None, outcome: _Outcome) -> None:
        ids = await self._ids(table, each, tx)
        if not ids:
            if each.options.get("upsert"):
                await self._upsert(table, each, tx, outcome)
            else:
                outcome.count(**{_counted(each): 0})
            return
        options = {name: value for name, value in each.options.items() if name not in {"upsert", "sort"}}
        args = () if each.what is None else (each.what,)
        many = each.method in _MANY
        for some in parts(ids) if many and tx is None else [ids]:
            where: Any = each.where
            if not many:
                where = {"$and": [each.where, {KEY: some[0]}]}
            elif tx is None:
                where = {"$and": [each.where, {KEY: {"$in": some}}]}
            result = await self._documents.write(table, each.method, (where, *args), options, tx)
            _take(each, result, outcome)
        outcome.add(kind_of(each), ids)

    async def _upsert(self, table: str, each: Operation, tx: MongoTransaction | None, outcome: _Outcome) -> None:
        assert each.where is not None  # noqa: S101 - it is no insert
        given = each.where.get(KEY)
        known = KEY in each.where and not isinstance(given, Mapping)
        key, what = (given, each.what) if known else _keyed(each.what)
        options = {name: value for name, value in each.options.items() if name != "sort"}
        result = await self._documents.write(table, each.method, (each.where, what), options, tx)
        if each.method in _FOUND:
            outcome.document = result
        else:
            outcome.count(matched_count=0, modified_count=0)
            key = result.upserted_id
        outcome.counts.setdefault("upserted_ids", []).append(key)
        outcome.add("insert", [key])


def _with_id(document: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(document) if KEY in document else {KEY: new_id(), **document}
    if isinstance(found[KEY], list) or found[KEY] is None:
        raise InvalidRowError(f"the _id {found[KEY]!r:.100} cannot be one")
    return found


def _keyed(what: Any) -> tuple[Any, Any]:
    """Return a new id, and an update or replacement by which a document that it inserts gets it; its own, if it has one."""
    key = new_id()
    if not isinstance(what, Mapping):
        return key, [*what, {"$set": {KEY: {"$ifNull": [f"${KEY}", key]}}}]
    if not any(name.startswith("$") for name in what):
        return what.get(KEY, key), {KEY: key, **what}
    inserted = what.get("$setOnInsert", {})
    return inserted.get(KEY, key), {**what, "$setOnInsert": {KEY: key, **inserted}}


def _counted(each: Operation) -> str:
    return "deleted_count" if kind_of(each) == "delete" else "matched_count"


def _take(each: Operation, result: Any, outcome: _Outcome) -> None:
    if each.method in _FOUND:
        outcome.document = result
    elif kind_of(each) == "delete":
        outcome.count(deleted_count=result.deleted_count)
    else:
        outcome.count(matched_count=result.matched_count, modified_count=result.modified_count)


def check_request(request: Any) -> DocumentWrite:
    """Return a write of documents; raises `QueryError` for one in another language."""
    if not isinstance(request, DocumentWrite):
        raise QueryError("a MongoDB databackend takes MongoDB's own writes: db['docs'].insert_many([...])")
    return request
