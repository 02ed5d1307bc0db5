"""Commits on a standalone MongoDB server, which has no transactions: change sets.

A commit is one document in ``_asyncdl_commits``, named by the next number. Inserting it is what makes the commit: it is
there or it is not, and of two with one number the second is refused. Then its effects are applied, by whoever comes first;
applying them again, or at the same time, or late, changes nothing:

- Each document carries the number of the commit that wrote it last (``_v``), and an effect of an older one passes it over.
  So that this holds of a document that is gone too, a tombstone stays in its place for an hour.
- The log counts the commits that are applied. It is written last, so what it counts has been applied as a whole.

A commit's conditions are checked, and its effects planned, when the commits before it have been applied, and it then takes the
number behind theirs: if another took it meanwhile, it starts again. Events become visible in the order of their numbers,
for at any time at most the last commit is not applied yet, and it applies its events in order, and last.

Note for implementers: a process that was stopped, and goes on after so long that tombstones are gone, must not write what it
was about to: see `_too_late`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar
from uuid import uuid4

from asyncdl.drivers.mongo import Document, MongoDatabase, MongoTransaction, Write
from asyncdl.errors import (
    AsyncDLError,
    ConstraintError,
    DuplicateKeyError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from asyncdl.metadata.base import Change
from asyncdl.metadata.mongo_changes import Effect, Plan
from asyncdl.metadata.mongo_commits import LOG, RECORDS, STORE, Commits, Committed, collection
from asyncdl.metadata.wakeup import topics_of

T = TypeVar("T")

COMMITS, PARTS = collection("commits"), collection("parts")

_INLINE = 8_000_000
"""Bytes of effects in one document; more are laid beside it, one by one."""
_LARGEST = 15 * 2**20
"""Bytes of a record: below MongoDB's 16 MiB, so that an effect that was accepted can be applied."""
_SMALL = 200_000
"""Bytes of an effect that fits into any record that is not over `_LARGEST`."""
_LATE = 600.0
"""Seconds after which what was read is too old to be acted on."""
_KEPT = 3600
"""Seconds for which tombstones stay."""
_STUBS = 86_400
"""Seconds for which the numbers of commits stay taken, though their effects are cleared away before."""
_CLEARED_BEHIND = 100
_OUTAGE = 15.0
_LOOKS = 20
"""Times that reads are made again in order to be of one moment."""


class ChangeSetCommits(Commits):
    """Commits as change sets."""

    def __init__(self, database: MongoDatabase) -> None:
        super().__init__(database)
        self._durable: tuple[str, int] | None = None  # the last commits that are known to outlive a crash of the server

    async def open(self) -> None:
        """Apply what was left, and clear away what is old."""
        log = await self._settled()
        for name in RECORDS:
            await self._database.delete(collection(name), _older("gone", _KEPT))
        await self._database.delete(PARTS, _older("at", _KEPT))
        await self._clear(log["commit"])

    async def _clear(self, applied: int) -> None:
        old = {"_id": {"$lt": applied - _CLEARED_BEHIND}}
        await self._database.update(COMMITS, old | {"effects": {"$ne": None}}, {"$unset": {"effects": ""}}, many=True)
        await self._database.delete(COMMITS, old | _older("at", _STUBS))

    # committing

    async def commit(self, changes: Sequence[Change]) -> Committed:
        """Insert a change set, and apply it."""
        async with self._turn:
            attempt = _Attempt(self._database, self._settled, self._plan, changes)
            begun = time.monotonic()
            while (committed := await self._tried(attempt, begun)) is None:
                pass
            self._durable = (attempt.name, committed.log["commit"])
            with suppress(StoreUnavailableError, StoreTimeoutError):  # it is committed; whoever comes next applies it
                await self.settle()
                if committed.log["commit"] % _CLEARED_BEHIND == 0:
                    await self._clear(committed.log["commit"])
            return committed

    @staticmethod
    async def _tried(attempt: _Attempt, begun: float) -> Committed | None:
        try:
            return await attempt.make()
        except (StoreUnavailableError, StoreTimeoutError):
            if time.monotonic() - begun > _OUTAGE:
                raise
        await asyncio.sleep(0.1)
        return None

    # applying

    async def settle(self) -> None:
        """Apply what was committed and is not applied yet."""
        await self._settled()

    async def log(self) -> Document:
        """Return the log, applied and durable."""
        return await self._settled()

    async def _settled(self) -> Document:
        """Return the log, with every commit applied that was there when this was called."""
        while True:
            begun = time.time()
            head, log = await asyncio.gather(
                self._database.find_one(COMMITS, {}, fields={"by": 1}, sort=[("_id", -1)]), super().log()
            )
            if head is None:
                return log
            if head["_id"] <= log["commit"]:
                await self._made_durable((head["by"], log["commit"]))
                return log
            change_set = await self._database.find_one(COMMITS, {"_id": head["_id"]})
            if change_set is not None and not _too_late(begun):
                await self._apply(change_set)

    async def _made_durable(self, seen: tuple[str, int]) -> None:
        """Wait for the journal before something new is shown: a number must not be seen, lost, and given again."""
        if seen != self._durable:
            await self._database.update(STORE, {"_id": LOG}, {"$max": {"commit": 0}})  # changes nothing, and waits
            self._durable = seen

    async def _apply(self, change_set: Document) -> None:
        number, parts = change_set["_id"], change_set.get("parts", [])
        effects = list(change_set.get("effects", ()))
        if parts:
            found = await self._database.find(PARTS, {"_id": {"$in": parts}}, sort=[("at", 1)])
            if len(found) < len(parts):
                return  # they go when they have been applied
            by_name = {each["_id"]: each["effect"] for each in found}
            effects = [by_name[each] if isinstance(each, str) else each for each in effects]
        writes: dict[str, list[Write]] = {}
        for kind, name, key, what in effects:
            writes.setdefault(collection(name), []).append(_write(number, kind, key, what))
        log = {"_id": LOG, **change_set["log"]}
        for name, those in (*writes.items(), (STORE, [_write(number, "put", LOG, log)])):
            await self._write(name, those)
        if parts:
            await self._database.delete(PARTS, {"_id": {"$in": parts}})

    async def _write(self, name: str, writes: Sequence[Write]) -> None:
        # Without waiting for the journal: what it lost would be applied again, for the change set is in it.
        try:
            await self._database.write(name, writes, local=True)
        except DuplicateKeyError:  # another process, at the same, made the document first
            await self._database.write(name, writes, local=True)

    async def snapshot(self, read: Callable[[MongoTransaction | None], Awaitable[set[T]]]) -> set[T]:
        """Return what several reads find while nothing is committed; of all of them, where commits never stop."""
        found: set[T] = set()
        for _ in range(_LOOKS):
            before = (await self._settled())["commit"]
            now = await read(None)
            if (await self._settled())["commit"] == before:
                return now
            found |= now
        return found


class _Attempt:
    """One commit on its way to being accepted."""

    def __init__(
        self,
        database: MongoDatabase,
        settled: Callable[[], Awaitable[Document]],
        plan: Callable[[Sequence[Change], int], Awaitable[Plan]],
        changes: Sequence[Change],
    ) -> None:
        self._database = database
        self._settled = settled
        self._plan = plan
        self._changes = changes
        self.name = uuid4().hex
        self._tried: Committed | None = None  # what may have been accepted: the connection broke before the answer

    async def make(self) -> Committed | None:
        """Take the next number for the change set; return None when another took it."""
        if self._tried is not None:
            mine = {"_id": self._tried.log["commit"], "by": self.name}
            if await self._database.find_one(COMMITS, mine, fields={"_id": 1}) is not None:
                return self._tried
            self._tried = None
        begun = time.time()
        before = await self._settled()
        try:
            planned = await self._plan(self._changes, before["seq"])
        except AsyncDLError:
            if (await self._settled())["commit"] != before["commit"]:
                return None  # what was read was half of one state and half of another
            raise
        number = before["commit"] + 1
        topics = before["topics"] | dict.fromkeys(topics_of(self._changes), number)
        log = {"commit": number, "seq": planned.seq, "topics": topics}
        effects, parts = await self._laid_out(planned.effects(), number)
        if _too_late(begun):
            return None
        self._tried = Committed(planned.events, log)
        what = {"effects": effects, "parts": parts, "log": log}
        try:
            await self._database.update(
                COMMITS,
                {"_id": number, "by": self.name},
                {"$setOnInsert": what, "$currentDate": {"at": True}},  # the server's time, which all share
                upsert=True,
            )
        except DuplicateKeyError:
            self._tried = None
            if parts:
                await self._database.delete(PARTS, {"_id": {"$in": parts}})
            return None
        return self._tried

    async def _laid_out(self, effects: Sequence[Effect], number: int) -> tuple[list[Any], list[str]]:
        """Return effects as they stand in the change set: the large ones of many as the names of documents beside it."""
        sizes = [_size(each) for each in effects]
        for effect, size in zip(effects, sizes, strict=True):
            await self._check(effect, size)
        listed: list[Any] = [[each.kind, each.collection, each.key, each.what] for each in effects]
        parts: list[str] = []
        if sum(sizes) > _INLINE:
            for at, size in enumerate(sizes):
                if size > _SMALL:
                    part = f"{self.name}.{number}.{at}"
                    what = {"$set": {"effect": listed[at]}, "$currentDate": {"at": True}}
                    await self._database.update(PARTS, {"_id": part}, what, upsert=True)
                    listed[at] = part
                    parts.append(part)
        return listed, parts

    async def _check(self, effect: Effect, size: int) -> None:
        """Refuse what would make a document too large: once accepted, it could never be applied."""
        if effect.kind == "set" and size > _SMALL:
            rest: list[Document] = [{"$match": {"_id": effect.key}}, {"$unset": list(effect.what)}]
            measured = [*rest, {"$project": {"size": {"$bsonSize": "$$ROOT"}}}]
            found = await self._database.aggregate(collection(effect.collection), measured)
            size += found[0]["size"] if found else 0
        if size > _LARGEST:
            raise ConstraintError(
                f"{self._database.url}: {effect.collection} {effect.key!r} would be {size} bytes large; "
                f"MongoDB holds {_LARGEST} in a record"
            )


def _write(number: int, kind: str, key: Any, what: Any) -> Write:
    """Return an effect as a write that passes over a document that a later commit has written."""
    is_later = {"$gte": ["$_v", number]}
    match kind:
        case "put":
            new: Any = {"$literal": {**what, "_v": number}}
        case "set":
            return Write("update", {"_id": key, "_v": {"$not": {"$gte": number}}}, {"$set": {**what, "_v": number}})
        case "drop":
            new = {"_id": {"$literal": key}, "_v": {"$literal": number}, "gone": "$$NOW"}
        case _:  # an event that comes back, written by who was late, is behind every reader, and goes with the next
            return Write("delete_many", {"_id": {"$lte": key}})
    return Write("upsert", {"_id": key}, [{"$replaceWith": {"$cond": [is_later, "$$ROOT", new]}}])


def _size(effect: Effect) -> int:
    """Return about how many bytes an effect takes: at least those of its texts."""
    total = 0
    for value in effect.what.values():
        for each in value if isinstance(value, list) else [value]:
            total += 64 + (len(each.encode("utf-8", "surrogatepass")) if isinstance(each, str) else 0)
    return total


def _older(name: str, seconds: int) -> Document:
    """Return the condition that a time is longer ago, by the server's clock."""
    return {name: {"$type": "date"}, "$expr": {"$lt": [f"${name}", {"$subtract": ["$$NOW", seconds * 1000]}]}}


def _too_late(begun: float) -> bool:
    """Return whether this process was asleep since, or its clock was set."""
    return not -1 < time.time() - begun < _LATE
