"""A listener's select on MongoDB: read in pages, by ids, and compared with the outputs that are there.

A page is bounded by its last key, on the index of ``_id``. What is missing is told by reading the outputs' ids beside the rows',
where most rows are to be read anyway; where most have outputs, ids are compared first, and only what is missing is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from asyncdl.databackend.documents import DocumentPlan
from asyncdl.databackend.mongo_outputs import KEY, MongoOutputs, hashed, parts
from asyncdl.databackend.mongo_values import MongoValues
from asyncdl.databackend.tables import Key, OutputTable, Row, as_key
from asyncdl.drivers.mongo_calls import MongoTransaction
from asyncdl.drivers.mongo_documents import MongoDocuments

_KINDS = (
    ("null",),
    ("double", "int", "long", "decimal"),
    ("string", "symbol"),
    ("object",),
    ("binData",),
    ("objectId",),
    ("bool",),
    ("date",),
    ("timestamp",),
    ("regex",),
    ("maxKey",),
)
"""BSON's types in the order in which values of different types are sorted: a comparison finds those of one type alone."""
_LOOK = 5000
"""Ids that are compared at once, where most have outputs."""
_MATCHED, _PLACE = "_asyncdl_output", "_asyncdl_place"


class MongoScanner:
    """Reads a select."""

    def __init__(
        self,
        documents: MongoDocuments,
        values: MongoValues,
        plan: DocumentPlan,
        key: tuple[str, ...],
        decoded: Mapping[str, str],
    ) -> None:
        self._documents = documents
        self._values = values
        self._plan = plan
        self._key = key
        self._decoded = decoded

    async def _rows(self, pipeline: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[Row]:
        found = await self._documents.aggregate(self._plan.collection, pipeline)
        self._values.decode(self._decoded, found)
        key = self._key
        for each in found:
            if type(each[KEY]) is dict:
                each[KEY] = as_key(each[KEY])
        if len(key) == 1 and len(columns) == 1 and "." not in columns[0]:
            name, column = key[0], columns[0]
            return [(each[name], each.get(column)) for each in found]
        take = [_taker(column) for column in columns]
        return [(*(each[name] for name in key), *(one(each) for one in take)) for each in found]

    def _project(self, columns: Sequence[str]) -> dict[str, Any]:
        names = list(dict.fromkeys([*self._key, *(each.partition(".")[0] for each in columns)]))
        return {"$project": dict.fromkeys(names, 1)}

    def _page(self, after: Row | None, limit: int, columns: Sequence[str]) -> list[Mapping[str, Any]]:
        stages: list[Mapping[str, Any]] = list(self._plan.stages)
        order = {"$sort": dict.fromkeys(self._key, 1)}
        later: list[Mapping[str, Any]] = [] if after is None else [{"$match": behind(self._key, after)}]
        if self._plan.by_row:
            front: list[Mapping[str, Any]] = []
            if after is not None:
                front = later if len(self._key) == 1 else [{"$match": _from(KEY, after[0])}]
            stages = [*front, {"$sort": {KEY: 1}}, *stages, *(later if len(self._key) > 1 else [])]
        else:
            stages += [*later, order]
        return [*stages, {"$limit": limit}, self._project(columns)]

    async def scan(
        self, columns: Sequence[str], after: Row | None, limit: int, missing: MongoOutputs | None
    ) -> list[Row]:
        """Return the next rows in the order of the key: at most ``limit``, and as many if there are."""
        width = len(self._key)
        if missing is None:
            return await self._rows(self._page(after, limit, columns), columns)
        found: list[Row] = []
        sparse = ended = False
        while len(found) < limit and not ended:
            look, taken = (_LOOK, ()) if sparse else (limit, columns)
            rows = await self._rows(self._page(after, look, taken), taken)
            lacking = await self._lacking(rows, missing)
            wanted = lacking[: limit - len(found)]
            if len(wanted) < len(lacking):
                after = wanted[-1][:width]
            else:
                after, ended = rows[-1][:width] if rows else after, len(rows) < look
            found += await self._filled(wanted, columns) if sparse else wanted
            sparse = len(lacking) < len(rows) // 2
        return found

    async def _lacking(self, rows: list[Row], missing: MongoOutputs) -> list[Row]:
        if not rows:
            return rows
        ids = [missing.id_of(row[: len(self._key)]) for row in rows]
        there = await missing.present(ids)
        if not there:
            return rows
        return [row for row, key in zip(rows, ids, strict=True) if hashed(key) not in there]

    async def _filled(self, rows: list[Row], columns: Sequence[str]) -> list[Row]:
        """Return the rows of these keys with their columns, those that are still there, in order."""
        width = len(self._key)
        roots = list({hashed(row[0]): row[0] for row in rows}.values())
        found = {hashed(list(row[:width])): row for row in await self.fetch(columns, roots)}
        return [found[key] for row in rows if (key := hashed(list(row[:width]))) in found]

    async def fetch(self, columns: Sequence[str], ids: Sequence[Key]) -> list[Row]:
        """Return the rows that come from these documents."""
        found: list[Row] = []
        for some in parts(ids):
            found += await self._rows([*self._of(some), self._project(columns)], columns)
        return found

    def _of(self, ids: Sequence[Key]) -> list[Mapping[str, Any]]:
        own = {"$match": {KEY: {"$in": list(ids)}}}
        return [own, *self._plan.stages] if self._plan.by_row else [*self._plan.stages, own]

    async def count(self, missing: MongoOutputs | None) -> int:
        """Return how many rows there are, without an output or an error if that is asked."""
        stages = list(self._plan.stages)
        if missing is not None and not await missing.is_empty():
            stages += _without(missing.table)
        rows = await self._documents.aggregate(self._plan.collection, [*stages, {"$count": "count"}])
        return int(rows[0]["count"]) if rows else 0

    async def orphans(
        self, outputs: MongoOutputs, ids: Sequence[Key] | None, tx: MongoTransaction | None = None
    ) -> dict[Any, Key]:
        """Return the ids of the outputs that have no row, each with that of its root row."""
        found: dict[Any, Key] = {}
        fields, sort = {KEY: 1, outputs.root: 1}, [(KEY, 1)]
        name, last = outputs.table.name, None
        if ids is not None:
            for some in parts(ids):
                rows = await self._documents.find(name, {outputs.root: {"$in": some}}, fields, tx=tx)
                await self._look_for(outputs, rows, found, tx)
            return found
        while True:
            where: Mapping[str, Any] = {} if last is None else behind((KEY,), (last,))
            rows = await self._documents.find(name, where, fields, tx=tx, sort=sort, limit=_LOOK)
            await self._look_for(outputs, rows, found, tx)
            if len(rows) < _LOOK:
                return found
            last = rows[-1][KEY]

    async def _look_for(
        self,
        outputs: MongoOutputs,
        rows: Sequence[Mapping[str, Any]],
        found: dict[Any, Key],
        tx: MongoTransaction | None,
    ) -> None:
        if not rows:
            return
        roots = list({hashed(each[outputs.root]): each[outputs.root] for each in rows}.values())
        there: set[Any] = set()
        for some in parts(roots):
            keys = [*self._of(some), {"$project": dict.fromkeys(self._key, 1)}]
            sources = await self._documents.aggregate(self._plan.collection, keys, tx=tx)
            there.update(hashed(outputs.id_of(tuple(each[name] for name in self._key))) for each in sources)
        for each in rows:
            if hashed(each[KEY]) not in there:
                found[hashed(each[KEY])] = each[outputs.root]

    async def sweep(self, outputs: MongoOutputs, roots: Sequence[Key], tx: MongoTransaction | None) -> list[Key]:
        """Delete the outputs of these root rows that have no row, and return the ids of those that had some."""
        gone: dict[Any, Key] = {}
        for some in parts(roots):
            rows = await self._documents.find(
                outputs.table.name, {outputs.root: {"$in": some}}, {KEY: 1, outputs.root: 1}, tx=tx
            )
            found: dict[Any, Key] = {}
            await self._look_for(outputs, rows, found, tx)
            dead = [each[KEY] for each in rows if hashed(each[KEY]) in found]
            if dead:
                await self._documents.delete(outputs.table.name, {KEY: {"$in": dead}}, tx)
            gone |= {hashed(root): root for root in found.values()}
        return list(gone.values())


def _without(table: OutputTable) -> list[dict[str, Any]]:
    """Return the stages that leave the rows that have neither output nor error."""
    single = tuple(table.key) == (KEY,)
    place = [] if single else [{"$set": {_PLACE: {name: f"${name}" for name in table.key}}}]
    local = KEY if single else _PLACE
    lookup = {"from": table.name, "localField": local, "foreignField": KEY, "as": _MATCHED}
    return [*place, {"$lookup": lookup}, {"$match": {_MATCHED: []}}]


def _later(value: Any, *, itself: bool) -> list[Mapping[str, Any]]:
    """Return the types that are sorted behind a value's, as conditions on ``_id``."""
    kind = _place(value)
    later = [name for names in _KINDS[kind + 1 :] for name in names]
    return [{KEY: {"$gte" if itself else "$gt": value}}, *([{KEY: {"$type": later}}] if later else [])]


def _place(value: Any) -> int:
    names: dict[str, int] = {
        "NoneType": 0, "int": 1, "float": 1, "Int64": 1, "Decimal": 1, "Decimal128": 1, "str": 2, "dict": 3, "DocumentKey": 3,
        "bytes": 4, "Binary": 4, "UUID": 4, "ndarray": 4, "ObjectId": 5, "bool": 6, "datetime": 7, "DatetimeMS": 7,
        "Timestamp": 8, "Regex": 9,
    }  # fmt: skip
    return names.get(type(value).__name__, 4)


def _from(name: str, value: Any) -> dict[str, Any]:
    return {"$or": _later(value, itself=True)}


def behind(key: Sequence[str], after: Row) -> dict[str, Any]:
    """Return the condition that a key comes after one: compared column by column."""
    if len(key) == 1:
        return {"$or": _later(after[0], itself=False)}
    same = dict(zip(key, after, strict=True))
    deeper = [{**{name: same[name] for name in key[:at]}, key[at]: {"$gt": after[at]}} for at in range(1, len(key))]
    return {"$or": [*_later(after[0], itself=False), *deeper]}


def _taker(column: str) -> Callable[[Mapping[str, Any]], Any]:
    path = column.split(".")

    def take(document: Mapping[str, Any]) -> Any:
        if column in document:
            return document[column]
        return _dig(document, path)

    return take


def _dig(value: Any, path: Sequence[str]) -> Any:
    """Return what a path leads to, None where it leads nowhere; through a list, the list of what it leads to."""
    for at, name in enumerate(path):
        if isinstance(value, Mapping):
            value = value.get(name)
        elif isinstance(value, list):
            if name.isdecimal():
                value = value[int(name)] if int(name) < len(value) else None
            else:
                inner = [_dig(each, path[at:]) for each in value]
                return [each for each in inner if each is not None]
        else:
            return None
    return value
