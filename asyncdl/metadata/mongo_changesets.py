"""Commits on a standalone MongoDB server, which has no transactions: change sets.

A commit is one document in ``_asyncdl_commits``, named by the next number. Inserting it is what makes the commit: it is
there or it is not, and of two with one number the second is refused. Then its effects are applied, by its author or, should
that die, by whoever comes next; applying them again, or at the same time, or late, changes nothing:

- Each document carries the number of the commit that wrote it last (``_v``), and an effect of an older one passes it over.
  So that this holds of a document that is gone too, a tombstone stays in its place for an hour.
- The log counts the commits that are applied. It is written last, so what it counts has been applied as a whole.

The server may be killed between any two of these writes, and forget those that it has not journaled yet. So each step waits for
the journal before the next one builds on it: nothing is applied that is not journaled as a change set, and nothing counted that
is not journaled as applied. Only the count itself may be forgotten: then it is made again.

A commit's conditions are checked, and its effects planned, when the commits before it have been applied, and it then takes the
number behind theirs: if another took it meanwhile, it starts again. Events become visible in the order of their numbers,
for the commits are applied in the order of theirs, and each applies its events in order, and last.

Note for implementers: a process that was stopped, and goes on after so long that tombstones are gone, must not write what it
was about to: see `_too_late`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar
from uuid import uuid4

from asyncdl.drivers.mongo import MongoDatabase
from asyncdl.drivers.mongo_calls import Document, MongoTransaction, Write
from asyncdl.errors import (
    ConstraintError,
    DuplicateKeyError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from asyncdl.metadata.mongo_changes import Effect
from asyncdl.metadata.mongo_commits import (
    LOG,
    RECORDS,
    STORE,
    Changes,
    Commits,
    Outcome,
    collection,
    held,
    planned,
    together,
    with_log,
)
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
_PATIENCE = 1
"""Times that one looks again for whether a commit's author has applied it, before one does."""
_LOOKS = 20
"""Times that reads are made again in order to be of one moment."""


@dataclass(frozen=True, slots=True)
class _Accepted:
    """A change set that was accepted."""

    outcomes: list[Outcome]
    change_set: Document


class ChangeSetCommits(Commits):
    """Commits as change sets."""

    def __init__(self, database: MongoDatabase) -> None:
        super().__init__(database)
        self._last: Document | None = None  # the log, as our last commit left it, as long as nobody else's is known of

    async def open(self) -> None:
        """Apply what was left, and clear away what is old."""
        log = await self.settled()
        for name in RECORDS:
            await self._database.delete(collection(name), _older("gone", _KEPT))
        await self._database.delete(PARTS, _older("at", _KEPT))
        await self._clear(log["commit"])

    async def _clear(self, applied: int) -> None:
        old = {"_id": {"$lt": applied - _CLEARED_BEHIND}}
        await self._database.update(COMMITS, old | {"effects": {"$ne": None}}, {"$unset": {"effects": ""}}, many=True)
        await self._database.delete(COMMITS, old | _older("at", _STUBS))

    # committing

    async def _make(self, group: Sequence[Changes]) -> list[Outcome]:
        """Insert a change set, and apply it."""
        attempt = _Attempt(self._database, self, group)
        begun = time.monotonic()
        last, self._last = self._last, None
        while (accepted := await self._tried(attempt, last, begun)) is None:
            last = None
        # Else it is committed, and whoever comes next applies it.
        with suppress(StoreError):
            if accepted.change_set:
                await self._apply(accepted.change_set)
                self._last = accepted.change_set["log"]
                if accepted.change_set["_id"] % _CLEARED_BEHIND == 0:
                    await self._clear(accepted.change_set["_id"])
        return accepted.outcomes

    @staticmethod
    async def _tried(attempt: _Attempt, last: Document | None, begun: float) -> _Accepted | None:
        try:
            return await attempt.make(last)
        except (StoreUnavailableError, StoreTimeoutError):
            if time.monotonic() - begun > _OUTAGE:
                raise
        await asyncio.sleep(0.1)
        return None

    # applying

    async def settle(self) -> None:
        """Apply what was committed and is not applied yet."""
        await self.settled()

    async def log(self) -> Document:
        """Return the log, applied and durable."""
        return await self.settled()

    async def settled(self) -> Document:
        """Return the log, with every commit applied that was there when this was called."""
        looks = 0
        while True:
            begun = time.time()
            head, log = await self._heads()
            if head <= log["commit"]:
                return log
            looks += 1
            if looks <= _PATIENCE:  # its author applies it, unless that died
                await asyncio.sleep(0.005)
            else:
                await self._take_up(log["commit"], begun)

    async def _heads(self) -> tuple[int, Document]:
        """Return the newest commit's number, and the log, which is read after it."""
        both: list[Document] = [
            {"$sort": {"_id": -1}},
            {"$limit": 1},
            {"$project": {"_id": 1}},
            {"$unionWith": {"coll": STORE, "pipeline": [{"$match": {"_id": LOG}}]}},
        ]
        found = await self._database.aggregate(COMMITS, both)
        log = found.pop() if found and found[-1]["_id"] == LOG else {"commit": 0, "seq": 0, "topics": {}}
        return (found[0]["_id"] if found else 0), log

    async def _take_up(self, applied: int, begun: float) -> None:
        """Apply the commits behind a number, which others made."""
        after: Document = {"_id": {"$gt": applied}}
        for change_set in await self._database.find(COMMITS, after, sort=[("_id", 1)], limit=_CLEARED_BEHIND):
            # Seen is not journaled: a server that is killed forgets it, and what would have been applied of it is in the way.
            mark = {"_id": change_set["_id"], "by": change_set["by"]}
            if _too_late(begun) or not await self._database.update(COMMITS, mark, {"$inc": {"seen": 1}}):
                return
            await self._apply(change_set)

    async def _apply(self, change_set: Document) -> None:
        """Apply a change set that is journaled, and those before it applied."""
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
        events = writes.pop(collection("events"), [])
        await together(self._write(name, those) for name, those in writes.items())
        if events:
            await self._write(collection("events"), events)
        log = {"_id": LOG, **change_set["log"]}
        await self._write(STORE, [_write(number, "put", LOG, log)], local=True)  # forgotten, it is counted again
        if parts:
            await self._database.delete(PARTS, {"_id": {"$in": parts}})

    async def _write(self, name: str, writes: Sequence[Write], *, local: bool = False) -> None:
        try:
            await self._database.write(name, writes, local=local)
        except DuplicateKeyError:  # another process, at the same, made the document first
            await self._database.write(name, writes, local=local)

    async def snapshot(self, read: Callable[[MongoTransaction | None], Awaitable[set[T]]]) -> set[T]:
        """Return what several reads find while nothing is committed; of all of them, where commits never stop."""
        found: set[T] = set()
        for _ in range(_LOOKS):
            before = (await self.settled())["commit"]
            now = await read(None)
            if (await self.settled())["commit"] == before:
                return now
            found |= now
        return found


class _Attempt:
    """A group of commits on its way to being accepted, as one."""

    def __init__(self, database: MongoDatabase, commits: ChangeSetCommits, group: Sequence[Changes]) -> None:
        self._database = database
        self._commits = commits
        self._group = group
        self.name = uuid4().hex
        self._tried: _Accepted | None = None  # what may have been accepted: the connection broke before the answer

    async def make(self, last: Document | None) -> _Accepted | None:
        """Take the next number for the change set; return None when another took it.

        Parameters
        ----------
        last
            The log, where it is known without looking. If it is not the last any more, the number will be taken.
        """
        begun = time.time()
        before = last or await self._commits.settled()
        if self._tried is not None and before["commit"] >= self._tried.change_set["_id"]:
            # Only now: as long as the number is free, it may be that our change set is still on its way to it.
            tried, self._tried = self._tried, None
            mine = {"_id": tried.change_set["_id"], "by": self.name}
            if await self._database.find_one(COMMITS, mine, fields={"_id": 1}) is not None:
                return tried
        if self._tried is None:
            refused = await self._prepare(before, begun)
            if refused is not None or self._tried is None:
                return refused
        return await self._send(self._tried)

    async def _prepare(self, before: Document, begun: float) -> _Accepted | None:
        """Plan the change set; return what came of the group if there is nothing to commit in it."""
        plan, outcomes = planned(self._group, await self._commits.read(self._group), before["seq"])
        if all(isinstance(each, Exception) for each in outcomes):
            # None holds; unless what was read was half of one state and half of another.
            now = await self._commits.settled()
            return _Accepted(with_log(outcomes, now), {}) if now["commit"] == before["commit"] else None
        number = before["commit"] + 1
        topics = before["topics"] | dict.fromkeys(topics_of(chain.from_iterable(held(self._group, outcomes))), number)
        log = {"commit": number, "seq": plan.seq, "topics": topics}
        effects, parts = await self._laid_out(plan.effects(), number)
        if not _too_late(begun):
            change_set = {"_id": number, "effects": effects, "parts": parts, "log": log}
            self._tried = _Accepted(with_log(outcomes, log), change_set)
        return None

    async def _send(self, tried: _Accepted) -> _Accepted | None:
        what = {name: value for name, value in tried.change_set.items() if name != "_id"}
        try:
            await self._database.update(
                COMMITS,
                {"_id": tried.change_set["_id"], "by": self.name},
                {"$setOnInsert": what, "$currentDate": {"at": True}},  # the server's time, which all share
                upsert=True,
            )
        except DuplicateKeyError:
            self._tried = None
            if what["parts"]:
                await self._database.delete(PARTS, {"_id": {"$in": what["parts"]}})
            return None
        return tried

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
