"""Queries of MongoDB: the methods of its driver, recorded as data.

``db["docs"].find({"year": {"$gt": 2000}}).sort("year", -1)`` is a value that can be compared, stored and sent; nothing here does
I/O. `asyncdl.query.mongo_build` makes pipelines of it.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import msgspec

from asyncdl import codec
from asyncdl.databackend.requests import Built, Catalog
from asyncdl.errors import AsyncDLError, QueryError
from asyncdl.names import check_component_identifier, check_table
from asyncdl.query.mongo_build import VALUES, Step, build
from asyncdl.query.mongo_writes import MongoWrites

VERSION = 1
LANGUAGE = "mongodb"
_ROWS = frozenset({"find", "sort", "skip", "limit", "aggregate", "outputs", "missing_outputs", "ids", "like"})
_STEPS = _ROWS | VALUES | {"find_one"}
_LIMIT = 1000


class MongoQuery(MongoWrites):
    """Documents of a collection, or what is asked of them.

    Offers what a collection of motor's does. Queries are immutable; what `find` and the others take is copied. After `outputs`,
    a further `find` filters the documents with their outputs.
    """

    __slots__ = ("_collection", "_steps")

    _collection: str
    _steps: tuple[Step, ...]

    def __init__(self, collection: str, steps: Sequence[Step] = ()) -> None:
        object.__setattr__(self, "_collection", check_table(collection))
        object.__setattr__(self, "_steps", tuple(steps))

    # what the datalayer asks

    def tables(self) -> frozenset[str]:
        """Return the collections that it reads, those that a pipeline looks up in included."""
        found = {self._collection}
        for step in self._steps:
            if step.name == "aggregate":
                found |= _looked_up(step.args[0])
        return frozenset(found)

    def listeners(self) -> frozenset[str]:
        """Return the identifiers of the listeners whose outputs it reads."""
        return frozenset(
            each for step in self._steps if step.name in {"outputs", "missing_outputs"} for each in step.args
        )

    def root(self) -> str:
        """Return the collection that it starts from."""
        return self._collection

    def output_roots(self) -> frozenset[tuple[str, str | None]]:
        """Return each listener whose outputs are read, with the collection that they belong to."""
        return frozenset((each, self._collection) for each in self.listeners())

    def build(self, catalog: Catalog) -> Built:
        """Return the `DocumentPlan` for it, and the fields that identify its documents; raises `QueryError`."""
        return build(self._collection, self._steps, catalog)

    def equals(self, other: object) -> bool:
        """Return whether another query asks for the same."""
        return isinstance(other, MongoQuery) and self.dump() == other.dump()

    @property
    def gives(self) -> str:
        """What executing it returns: ``"rows"`` (a cursor), ``"row"`` (a document or None), or a ``"value"``."""
        last = self._steps[-1].name if self._steps else "find"
        return "value" if last in VALUES else "row" if last == "find_one" else "rows"

    # reading

    def _then(self, name: str, *args: Any, **options: Any) -> MongoQuery:
        if self.gives != "rows":
            raise QueryError(f"{self!r} gives a value, of which {name}() cannot be asked")
        step = Step(name, _copied(name, args), _copied(name, options) if options else {})
        query = object.__new__(MongoQuery)  # the collection's name has been checked
        object.__setattr__(query, "_collection", self._collection)
        object.__setattr__(query, "_steps", (*self._steps, step))
        return query

    def find(self, filter: Any = None, projection: Any = None, **options: Any) -> MongoQuery:
        """Return the documents that match, with the fields of the projection."""
        _check_filter("find", filter)
        return self._then("find", filter or {}, projection, **options)

    def find_one(self, filter: Any = None, projection: Any = None, **options: Any) -> MongoQuery:
        """Return the first document that matches; anything but a mapping is its ``_id``. Executed: it, or None."""
        where = filter if isinstance(filter, Mapping) else {} if filter is None else {"_id": filter}
        return self._then("find_one", where, projection, **options)

    def sort(self, key_or_list: Any, direction: int | None = None) -> MongoQuery:
        """Return the documents in an order."""
        if isinstance(key_or_list, str):
            order: Any = [[key_or_list, 1 if direction is None else direction]]
        elif isinstance(key_or_list, Mapping):
            order = [list(each) for each in key_or_list.items()]
        else:
            order = [[each, 1] if isinstance(each, str) else list(each) for each in key_or_list]
        if not order or not all(len(each) == 2 and isinstance(each[0], str) for each in order):
            raise QueryError(f"sort() takes a key and a direction, or a list of them, not {key_or_list!r:.100}")
        return self._then("sort", order)

    def skip(self, skip: int) -> MongoQuery:
        """Leave out as many documents."""
        return self._then("skip", _natural("skip", skip))

    def limit(self, limit: int) -> MongoQuery:
        """Return at most as many documents; 0: all."""
        return self._then("limit", abs(_natural("limit", limit)))

    def aggregate(self, pipeline: Sequence[Mapping[str, Any]], **options: Any) -> MongoQuery:
        """Return what a pipeline makes of the documents."""
        if isinstance(pipeline, Mapping) or not all(isinstance(each, Mapping) for each in pipeline):
            raise QueryError("aggregate() takes a list of stages, each a mapping")
        for stage in pipeline:
            if {"$out", "$merge"} & set(stage):
                raise QueryError("aggregate() cannot write: $out and $merge would be followed by no listener")
        return self._then("aggregate", list(pipeline), **options)

    def count_documents(self, filter: Any = None, **options: Any) -> MongoQuery:
        """Return how many documents match."""
        _check_filter("count_documents", filter)
        return self._then("count_documents", filter or {}, **options)

    def estimated_document_count(self, **options: Any) -> MongoQuery:
        """Return how many documents the collection's statistics say that there are."""
        if self._steps:
            raise QueryError("estimated_document_count() is asked of a collection itself")
        return self._then("estimated_document_count", **options)

    def distinct(self, key: str, filter: Any = None, **options: Any) -> MongoQuery:
        """Return the different values of a key, among the documents that match."""
        _check_filter("distinct", filter)
        return self._then("distinct", key, filter or {}, **options)

    # what the datalayer adds

    def outputs(self, *identifiers: str) -> MongoQuery:
        """Return the documents joined with listeners' outputs, each in a field named by the listener.

        Documents without an output, or with an error instead, are left out. A listener that flattens gives a document for each
        element, numbered in ``<identifier>_position``.
        """
        if not identifiers or len(set(identifiers)) != len(identifiers):
            raise QueryError("outputs() needs the identifiers of listeners, each once: docs.outputs('length')")
        for each in identifiers:
            check_component_identifier(each, "a listener")
        return self._then("outputs", *identifiers)

    def missing_outputs(self, identifier: str) -> MongoQuery:
        """Return the documents that a listener has no output for, those that it failed on included."""
        check_component_identifier(identifier, "a listener")
        return self._then("missing_outputs", identifier)

    def ids(self) -> MongoQuery:
        """Return only what identifies the documents."""
        return self._then("ids")

    def like(self, document: Any, *, vector_index: str, n: int = 10) -> MongoQuery:
        """Return the ``n`` documents nearest to one, best first, with their ``_score``."""
        check_component_identifier(vector_index, "a vector index")
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise QueryError(f"like(n={n!r}): n is how many documents are wanted, at least 1")
        return self._then("like", document, vector_index=vector_index, n=n)

    # storing

    def dump(self) -> bytes:
        """Return it as JSON; equal queries have equal bytes."""
        steps = [
            [step.name, codec.to_plain(list(step.args)), codec.to_plain(dict(step.options))] for step in self._steps
        ]
        return msgspec.json.encode({
            "language": LANGUAGE, "version": VERSION, "collection": self._collection, "steps": steps
        })  # fmt: skip

    @classmethod
    def load(cls, stored: Any) -> MongoQuery:
        """Return the query whose decoded JSON this is, every step checked as if it were recorded now.

        Raises
        ------
        QueryError
            It is none, or one of another version.
        """
        if stored.get("version") != VERSION:
            raise QueryError(
                f"this query was stored in version {stored.get('version')!r}; this asyncdl reads {VERSION}"
            )
        steps, query = stored.get("steps"), None
        if not isinstance(steps, list) or len(steps) > _LIMIT:
            raise QueryError(f"a stored query has a list of at most {_LIMIT} steps")
        try:
            query = cls(stored.get("collection"))
            for name, args, options in steps:
                if name not in _STEPS:
                    raise QueryError(f"queries have no step {name!r}")
                query = getattr(query, name)(*codec.from_plain(args), **codec.from_plain(options))
        except AsyncDLError as error:
            raise QueryError(f"a stored query cannot be loaded: {error}") from error
        except (TypeError, ValueError) as error:
            raise QueryError(f"this is no stored query: {error}") from error
        return query

    # what Python asks

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("queries are immutable")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("queries are immutable")

    def __eq__(self, other: object) -> bool:
        return self.equals(other)

    def __hash__(self) -> int:
        return hash(self.dump())

    def __repr__(self) -> str:
        return f"{self._collection}{''.join(map(_shown, self._steps))}"

    def __iter__(self) -> NoReturn:
        raise TypeError(f"a query has no documents until it is executed: `async for row in await db.execute({self!r})`")

    def __copy__(self) -> MongoQuery:
        return self

    def __deepcopy__(self, memo: object) -> MongoQuery:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _load, (self.dump(),)


def _load(text: bytes) -> MongoQuery:
    return MongoQuery.load(msgspec.json.decode(text))


def _shown(step: Step) -> str:
    given = [reprlib.repr(each) for each in step.args]
    while given and given[-1] in {"None", "{}"}:
        given.pop()
    given += [f"{name}={reprlib.repr(value)}" for name, value in step.options.items()]
    return f".{step.name}({', '.join(given)})"


def _copied(name: str, value: Any) -> Any:
    try:
        return codec.copied(value)
    except AsyncDLError as error:
        raise QueryError(f"{name}() cannot be recorded: {error}") from error


def _check_filter(name: str, value: Any) -> None:
    if value is not None and not isinstance(value, Mapping):
        raise QueryError(f"{name}() takes a filter, such as {{'year': 2000}}, not {value!r:.100}")


def _natural(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or (name == "skip" and value < 0):
        raise QueryError(f"{name}() takes a number, not {value!r:.100}")
    return value


def _looked_up(value: Any) -> set[str]:
    """Return the collections that stages name in ``from`` or ``coll``."""
    found: set[str] = set()
    if isinstance(value, list):
        for each in value:
            found |= _looked_up(each)
    elif isinstance(value, dict):
        for name, each in value.items():
            if name in {"$lookup", "$graphLookup"} and isinstance(each, dict) and isinstance(each.get("from"), str):
                found.add(each["from"])
            if name == "$unionWith":
                found |= {each} if isinstance(each, str) else {each.get("coll", "")} - {""}
            found |= _looked_up(each)
    return found
