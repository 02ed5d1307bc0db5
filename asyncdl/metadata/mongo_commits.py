"""How commits become all or nothing on MongoDB: in a transaction, or, on a standalone server, as a change set.

Either way one document, the log, counts commits and events, and is written by every commit: so commits have one order, and
an event becomes visible in the order of its number.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

from asyncdl.drivers.mongo import MongoDatabase
from asyncdl.drivers.mongo_calls import MongoTransaction, Write
from asyncdl.drivers.mongo_units import MongoUnit
from asyncdl.errors import AsyncDLError, ConstraintError
from asyncdl.metadata.changes import AppendEvent, Change
from asyncdl.metadata.mongo_changes import Collection, Document, Effect, Key, Plan, needs, plan
from asyncdl.metadata.records import EventRecord
from asyncdl.metadata.wakeup import topics_of
from asyncdl.together import finished

T = TypeVar("T")

STORE = "_asyncdl_store"
LOG = "log"

_TOGETHER = 64
"""Commits in one group."""
_LIGHT = 1_000_000
"""Characters in a group of several: what is heavier goes on its own."""
RECORDS: tuple[Collection, ...] = ("components", "events", "jobs", "cursors", "intents")


def collection(name: str) -> str:
    """Return the full name of a collection of ours."""
    return f"_asyncdl_{name}"


@dataclass(frozen=True, slots=True)
class Committed:
    """What a commit came to: its events, and the log after it (numbers of commits, of all and by topic)."""

    events: list[EventRecord]
    log: Document


Changes = Sequence[Change]
Outcome = Committed | Exception
"""What became of one commit of a group: its condition may not hold."""


@dataclass(eq=False, slots=True)
class _Waiting:
    """A commit that is waited for."""

    changes: Changes
    outcome: asyncio.Future[Committed]


class Commits(ABC):
    """A protocol of commits.

    One group of them at a time is on its way: they would only meet in the log, and one of them would have to start again. Those
    that are asked for meanwhile go together as the next group, each still all or nothing on its own.
    """

    def __init__(self, database: MongoDatabase) -> None:
        self._database = database
        self._queue: deque[_Waiting] = deque()
        self._working: asyncio.Task[None] | None = None

    async def commit(self, changes: Changes) -> Committed:
        """Apply changes, all or none. Who cancels it waits until nothing of it is under way."""
        waiting = _Waiting(changes, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work(), name="asyncdl: committing")
        try:
            return await asyncio.shield(waiting.outcome)
        except asyncio.CancelledError:
            if waiting in self._queue:
                self._queue.remove(waiting)
            else:
                with suppress(AsyncDLError):
                    await finished(waiting.outcome)
            raise

    async def _work(self) -> None:
        group: list[_Waiting] = []
        try:
            while self._queue:
                group = self._next_group()
                await self._settle_outcomes(group)
        finally:  # else everything has been settled: the loop is closing
            for each in (*group, *self._queue):
                each.outcome.cancel()
            self._queue.clear()

    def _next_group(self) -> list[_Waiting]:
        group = [self._queue.popleft()]
        size = _size(group[0].changes)
        while self._queue and len(group) < _TOGETHER:
            size += _size(self._queue[0].changes)
            if size > _LIGHT:
                break
            group.append(self._queue.popleft())
        return group

    async def _settle_outcomes(self, group: list[_Waiting]) -> None:
        outcomes: Sequence[Outcome]
        try:
            outcomes = await self._make([each.changes for each in group])
        except ConstraintError as error:
            if len(group) > 1:  # only one of them is to blame
                for each in group:
                    await self._settle_outcomes([each])
                return
            outcomes = [error]
        except Exception as error:
            outcomes = [_again(error) for _ in group]
        for each, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Exception):
                each.outcome.set_exception(outcome)
            else:
                each.outcome.set_result(outcome)

    @abstractmethod
    async def _make(self, group: Sequence[Changes]) -> list[Outcome]:
        """Commit those of a group whose conditions hold, one after the other; raises when it committed none."""

    @abstractmethod
    async def settle(self) -> None:
        """Make what was committed visible, before reading."""

    @abstractmethod
    async def snapshot(self, read: Callable[[MongoTransaction | None], Awaitable[set[T]]]) -> set[T]:
        """Return what several reads find together, as of one moment, or more than that; never less."""

    async def log(self) -> Document:
        """Return the log."""
        found = await self._database.find_one(STORE, {"_id": LOG})
        return found or {"commit": 0, "seq": 0, "topics": {}}

    async def read(self, group: Sequence[Changes]) -> dict[Key, Document]:
        """Return what is to be known before a group is planned."""
        read: dict[Key, Document] = {}

        async def look(name: Collection, where: Document, fields: dict[str, int]) -> None:
            for each in await self._database.find(collection(name), where, fields=fields):
                read[name, each["_id"]] = each

        await together(look(*query) for query in needs(chain.from_iterable(group)).queries())
        return read


def planned(
    group: Sequence[Changes], read: Mapping[Key, Document], seq: int
) -> tuple[Plan, list[list[EventRecord] | Exception]]:
    """Plan a group on what was read; return for each its events, or why its conditions do not hold."""
    found = Plan(read, seq)
    return found, [_plan_one(changes, found) for changes in group]


def _plan_one(changes: Changes, on: Plan) -> list[EventRecord] | Exception:
    before, first = on.copy(), len(on.events)
    try:
        for change in changes:
            plan(change, on)
    except Exception as error:
        on.back_to(before)
        return error
    return on.events[first:]


def with_log(outcomes: Iterable[list[EventRecord] | Exception], log: Document) -> list[Outcome]:
    """Return what became of the commits of a group that left this log."""
    return [each if isinstance(each, Exception) else Committed(each, log) for each in outcomes]


def held(group: Sequence[Changes], outcomes: Sequence[Any]) -> list[Changes]:
    """Return those of a group whose conditions hold."""
    pairs = zip(group, outcomes, strict=True)
    return [changes for changes, outcome in pairs if not isinstance(outcome, Exception)]


async def together(calls: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Make calls at once, wait for all of them, and raise what the first that failed did."""
    for each in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(each, BaseException):
            raise each


def _again(error: Exception) -> Exception:
    """Return an error of its own for each of those who wait."""
    again = copy(error)
    again.__cause__ = error.__cause__
    return again.with_traceback(error.__traceback__)


def _size(changes: Changes) -> int:
    """Return about how many characters changes are."""
    records = (getattr(each, "record", each) for each in changes)
    return sum(
        len(value)
        for each in records
        for name in ("payload", "data", "state", "error")
        if isinstance(value := getattr(each, name, None), str)
    )


class _RefusedError(Exception):
    """Some of a group's commits are not to be made, and the log has counted their events: the transaction is undone.

    It cannot count back: whoever follows the log's changes would have seen a number that is never given.
    """

    def __init__(self, outcomes: list[Outcome]) -> None:
        self.outcomes = outcomes


class TransactionCommits(Commits):
    """Commits as transactions, on a replica set or a sharded cluster.

    Each begins with writing the log, so that of two at once one is undone by the server, and starts again on what the other
    left: none reads what another is about to change.
    """

    async def _make(self, group: Sequence[Changes]) -> list[Outcome]:
        """Commit in one transaction."""
        body = self._body(group)

        async def attempt(tx: MongoTransaction) -> list[Outcome]:
            return await body(tx, _nothing)

        async with self._database.turn:
            try:
                return await self._database.transact(attempt)
            except _RefusedError as refused:
                outcomes = refused.outcomes
        rest = held(group, outcomes)
        again = iter(await self._make(rest) if rest else ())
        return [outcome if isinstance(outcome, Exception) else next(again) for outcome in outcomes]

    async def join(self, unit: MongoUnit, changes: Changes) -> Committed:
        """Apply changes in the transaction of a databackend, which is committed."""
        try:
            [outcome] = await unit.commit(self._body([changes]))
        except _RefusedError as refused:
            [outcome] = refused.outcomes
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _body(
        self, group: Sequence[Changes]
    ) -> Callable[[MongoTransaction, Callable[[], Awaitable[None]]], Awaitable[list[Outcome]]]:
        """Return what applies a group in a transaction, after other work in it."""
        everything = list(chain.from_iterable(group))
        appended = sum(isinstance(each, AppendEvent) for each in everything)
        counts = {"commit": 1, "seq": appended} | {f"topics.{topic}": 1 for topic in topics_of(everything)}

        queries = list(needs(everything).queries())

        async def body(tx: MongoTransaction, work: Callable[[], Awaitable[None]]) -> list[Outcome]:
            log, found = await self._database.update_and_find(
                *(STORE, {"_id": LOG}, {"$inc": counts}),
                [(collection(name), where, fields) for name, where, fields in queries],
                tx=tx,
            )
            read = {
                (name, each["_id"]): each for (name, _, _), rows in zip(queries, found, strict=True) for each in rows
            }
            await work()
            left, outcomes = planned(group, read, log["seq"] - appended)
            if left.seq != log["seq"] or all(isinstance(each, Exception) for each in outcomes):
                raise _RefusedError(with_log(outcomes, log))
            writes: dict[str, list[Write]] = {}
            for effect in left.effects():
                writes.setdefault(effect.collection, []).append(_write(effect))
            for name, those in writes.items():
                self._database.write_last(collection(name), those, tx)
            return with_log(outcomes, log)

        return body

    async def settle(self) -> None:
        """Do nothing: a transaction is visible when it is committed."""

    async def snapshot(self, read: Callable[[MongoTransaction | None], Awaitable[set[T]]]) -> set[T]:
        """Return what several reads of one transaction find."""
        return await self._database.transact(read)


async def _nothing() -> None:
    pass


def _write(effect: Effect) -> Write:
    where = {"_id": effect.key}
    match effect.kind:
        case "put":
            return Write("replace", where, effect.what)
        case "set":
            return Write("update", where, {"$set": effect.what})
        case "drop":
            return Write("delete", where)
        case "prune":
            return Write("delete_many", {"_id": {"$lte": effect.key}})
