"""Listeners' outputs on MongoDB: a document for each source row, whose ``_id`` is the row's key.

With ``flatten`` its value is the list. So a list is replaced as a whole, by one write. A key of several columns is a document of
them, and the root row's id stands beside it, indexed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any

from asyncdl.databackend.mongo_values import MongoValues
from asyncdl.databackend.tables import Key, Outputs, OutputTable, Row
from asyncdl.drivers.mongo_calls import MongoTransaction
from asyncdl.drivers.mongo_documents import MongoDocuments
from asyncdl.errors import DatatypeError, QueryError

KEY, ROOT, VALUE, AS_OF, ERROR = "_id", "_root", "value", "_as_of", "_error"
_IDS = 5000
_ORDERED = {"int", "str", "ObjectId"}
"""Types of ids that Python and MongoDB put in the same order."""
_FEW = 64
"""Ids that are looked for one by one."""


def parts(items: Sequence[Any], size: int = _IDS) -> Iterator[list[Any]]:
    """Yield items in lists of at most ``size``."""
    for at in range(0, len(items), size):
        yield list(items[at : at + size])


class MongoOutputs:
    """Reads and writes one listener's outputs."""

    def __init__(self, documents: MongoDocuments, values: MongoValues, table: OutputTable) -> None:
        self._documents = documents
        self._values = values
        self.table = table
        self.single = tuple(table.key) == (KEY,)
        self.root = KEY if self.single else ROOT
        if table.root != (KEY,):
            raise QueryError(f"the outputs of {table.identifier!r} belong to rows that are identified by {table.root}")

    def ids(self, keys: Sequence[Sequence[Any]]) -> list[Any]:
        """Return the ids that the outputs of keys, given by column, have."""
        if self.single:
            return list(keys[0]) if keys else []
        return [dict(zip(self.table.key, row, strict=True)) for row in zip(*keys, strict=True)]

    def id_of(self, key: Row) -> Any:
        """Return the id that the output of a key has."""
        return key[0] if self.single else dict(zip(self.table.key, key, strict=True))

    async def create(self) -> None:
        """Create the collection and its index where they are missing."""
        indexes = [] if self.single else [[(ROOT, 1)]]
        await self._documents.create(self.table.name, *indexes)

    def documents_of(self, results: Outputs, as_of: int) -> list[dict[str, Any]]:
        """Return results as they are stored; raises `DatatypeError`."""
        ids = self.ids(results.keys)
        values = self._encoded(results)
        if results.errors:
            errors = list(map(results.errors.get, range(len(results))))
            values = [None if error is not None else value for value, error in zip(values, errors, strict=True)]
        else:
            errors = []
        if self.single and not errors:
            return [{KEY: key, VALUE: value, AS_OF: as_of, ERROR: None} for key, value in zip(ids, values, strict=True)]
        roots = results.keys[0] if results.keys else ()
        found = []
        for key, root, value, error in zip(ids, roots, values, errors or repeat(None), strict=False):
            each = {KEY: key, VALUE: value, AS_OF: as_of, ERROR: error}
            if not self.single:
                each[ROOT] = root
            found.append(each)
        return found

    def _encoded(self, results: Outputs) -> Sequence[Any]:
        datatype, identifier = self.table.datatype, self.table.identifier
        assert datatype is not None  # noqa: S101 - there is a table

        def describe(at: int) -> str:
            return f"the output of {identifier!r} for row {results.key(at)!r}"

        if not self.table.flatten:
            values: Sequence[Any] = results.values
            if results.errors:
                values = [None if at in results.errors else each for at, each in enumerate(results.values)]
            return self._values.encode(datatype, values, describe)
        found: list[Any] = []
        for at, each in enumerate(results.values):
            if at in results.errors:
                found.append(None)
            else:
                found.append(list(self._values.encode(datatype, list(each), lambda _, at=at: describe(at))))  # type: ignore[misc]
        return found

    def encode_error(self, value: Any) -> Exception | None:
        """Return why a value cannot be stored, None if it can."""
        assert self.table.datatype is not None  # noqa: S101 - there is a table
        try:
            stored = self._values.encode(
                self.table.datatype, [value], lambda _: f"an output of {self.table.identifier!r}"
            )
            self._documents.check({VALUE: stored[0]})
        except DatatypeError as error:
            return error
        return None

    async def put(
        self, stored: Sequence[dict[str, Any]], as_of: int, replaced: Sequence[Key] | None, tx: MongoTransaction | None
    ) -> None:
        """Write stored outputs; what is there of these ids with a larger stamp stays."""
        name = self.table.name
        if replaced:
            written = [each[KEY] for each in stored]
            for some in parts(replaced):
                old: dict[str, Any] = {self.root: {"$in": some}, AS_OF: {"$lte": as_of}}
                if self.single:
                    kept = set(map(_hashed, written))
                    old[KEY] = {"$in": [each for each in some if _hashed(each) not in kept]}
                elif written:
                    old[KEY] = {"$nin": written}
                if old[self.root]["$in"]:
                    await self._documents.delete(name, old, tx)
        if not stored:
            return
        if tx is None or len(stored) < _FEW:
            await self._documents.put_newer(name, stored, AS_OF, tx)
            return
        there = await self._stamps([each[KEY] for each in stored], tx)
        new = [each for each in stored if _hashed(each[KEY]) not in there] if there else stored
        older = [each for each in stored if there.get(_hashed(each[KEY]), as_of + 1) <= as_of] if there else []
        await self._documents.put(name, new, older, tx)

    async def _stamps(self, ids: Sequence[Any], tx: MongoTransaction) -> dict[Any, int]:
        """Return the stamps of those of these output ids (made hashable) that are there."""
        name, among = self.table.name, between(ids)
        if among is not None and await self._documents.find_one(name, among, {KEY: 1}, tx=tx) is None:
            return {}  # as in a backfill, nearly always
        there: dict[Any, int] = {}
        for some in parts(ids):
            found = await self._documents.find(name, {KEY: {"$in": some}}, {AS_OF: 1}, tx=tx)
            there |= {_hashed(each[KEY]): each[AS_OF] for each in found}
        return there

    async def present(self, ids: Sequence[Any]) -> set[Any]:
        """Return those of these output ids (made hashable) that are there, and maybe others that are between them."""
        among = between(ids)
        if among is not None:
            rows = await self._documents.find(self.table.name, among, {KEY: 1}, limit=2 * len(ids))
            if len(rows) < 2 * len(ids):  # else there are many that belong to no row
                return {_hashed(each[KEY]) for each in rows}
        found: set[Any] = set()
        for some in parts(ids):
            rows = await self._documents.find(self.table.name, {KEY: {"$in": some}}, {KEY: 1})
            found.update(_hashed(each[KEY]) for each in rows)
        return found

    async def is_empty(self) -> bool:
        """Return whether there are none."""
        return await self._documents.find_one(self.table.name, {}, {KEY: 1}) is None

    async def current(self, ids: Sequence[Key], as_of: int) -> set[Key]:
        """Return the root ids all of whose outputs are of ``as_of`` or later."""
        found: set[Key] = set()
        for some in parts(ids):
            if self.single:
                where = {KEY: {"$in": some}, AS_OF: {"$gte": as_of}}
                rows = await self._documents.find(self.table.name, where, {KEY: 1})
            else:
                group = {"$group": {KEY: f"${ROOT}", AS_OF: {"$min": f"${AS_OF}"}}}
                pipeline: list[Mapping[str, Any]] = [
                    {"$match": {ROOT: {"$in": some}}},
                    group,
                    {"$match": {AS_OF: {"$gte": as_of}}},
                ]
                rows = await self._documents.aggregate(self.table.name, pipeline)
            known = {_hashed(each): each for each in some}
            found.update(known[_hashed(each[KEY])] for each in rows)
        return found

    async def failed(self, limit: int) -> list[tuple[Key, str]]:
        """Return root ids and errors."""
        group = {"$group": {KEY: f"${self.root}", ERROR: {"$min": f"${ERROR}"}}}
        pipeline: list[Mapping[str, Any]] = [{"$match": {ERROR: {"$type": "string"}}}]
        if not self.single:
            pipeline.append(group)
        pipeline += [{"$sort": {KEY: 1}}, {"$limit": limit}]
        return [(each[KEY], each[ERROR]) for each in await self._documents.aggregate(self.table.name, pipeline)]


def between(ids: Sequence[Any]) -> dict[str, Any] | None:
    """Return the condition that an id lies between the least and the greatest of these; None where that is not for us to tell.

    A range of ids is read many times faster than as many single ids; so it is what is asked for, where ids are many.
    """
    kinds = set(map(type, ids))
    if len(ids) < _FEW or len(kinds) != 1 or kinds.pop().__name__ not in _ORDERED:
        return None
    return {KEY: {"$gte": min(ids), "$lte": max(ids)}}


def _hashed(value: Any) -> Any:
    """Return an id as something that can be looked for in a set: equal where MongoDB has them equal."""
    if isinstance(value, dict):
        return tuple((name, _hashed(each)) for name, each in value.items())
    if isinstance(value, list):
        return ("list", *map(_hashed, value))
    return ("bool", value) if isinstance(value, bool) else value


hashed = _hashed
