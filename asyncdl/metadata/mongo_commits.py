"""How commits become all or nothing on MongoDB: in a transaction, or, on a standalone server, as a change set.

Either way one document, the log, counts commits and events, and is written by every commit: so commits have one order, and
an event becomes visible in the order of its number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from asyncdl.drivers.mongo import MongoDatabase, MongoTransaction, Write
from asyncdl.drivers.mongo_units import MongoUnit
from asyncdl.metadata.base import AppendEvent, Change, EventRecord
from asyncdl.metadata.mongo_changes import Collection, Document, Effect, Key, Plan, needs, plan
from asyncdl.metadata.wakeup import topics_of

T = TypeVar("T")

STORE = "_asyncdl_store"
LOG = "log"
RECORDS: tuple[Collection, ...] = ("components", "events", "jobs", "cursors", "intents")


def collection(name: str) -> str:
    """Return the full name of a collection of ours."""
    return f"_asyncdl_{name}"


@dataclass(frozen=True, slots=True)
class Committed:
    """What a commit came to: its events, and the log after it (numbers of commits, of all and by topic)."""

    events: list[EventRecord]
    log: Document


class Commits(ABC):
    """A protocol of commits."""

    def __init__(self, database: MongoDatabase) -> None:
        self._database = database
        # One at a time in this process: they would only meet in the log, and one of them would have to start again.
        self._turn = database.turn

    @abstractmethod
    async def commit(self, changes: Sequence[Change]) -> Committed:
        """Apply changes, all or none."""

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

    async def _plan(self, changes: Sequence[Change], seq: int, tx: MongoTransaction | None = None) -> Plan:
        """Plan changes on what is there; raises where a condition does not hold."""
        read: dict[Key, Document] = {}
        for name, where, fields in needs(changes).queries():
            for each in await self._database.find(collection(name), where, fields=fields, tx=tx):
                read[name, each["_id"]] = each
        planned = Plan(read, seq)
        for change in changes:
            plan(change, planned)
        return planned


class TransactionCommits(Commits):
    """Commits as transactions, on a replica set or a sharded cluster.

    Each begins with writing the log, so that of two at once one is undone by the server, and starts again on what the other
    left: none reads what another is about to change.
    """

    async def commit(self, changes: Sequence[Change]) -> Committed:
        """Apply changes in one transaction."""
        body = self._body(changes)

        async def attempt(tx: MongoTransaction) -> Committed:
            return await body(tx, _nothing)

        async with self._turn:
            return await self._database.transact(attempt)

    async def join(self, unit: MongoUnit, changes: Sequence[Change]) -> Committed:
        """Apply changes in the transaction of a databackend, which is committed."""
        return await unit.commit(self._body(changes))

    def _body(
        self, changes: Sequence[Change]
    ) -> Callable[[MongoTransaction, Callable[[], Awaitable[None]]], Awaitable[Committed]]:
        """Return what applies changes in a transaction, after other work in it."""
        appended = sum(isinstance(each, AppendEvent) for each in changes)
        counts = {"commit": 1, "seq": appended} | {f"topics.{topic}": 1 for topic in topics_of(changes)}

        async def body(tx: MongoTransaction, work: Callable[[], Awaitable[None]]) -> Committed:
            log = await self._database.find_and_update(STORE, {"_id": LOG}, {"$inc": counts}, upsert=True, tx=tx)
            assert log is not None, "it is made where it is missing"  # noqa: S101 - tells mypy
            await work()
            planned = await self._plan(changes, log["seq"] - appended, tx)
            writes: dict[str, list[Write]] = {}
            for effect in planned.effects():
                writes.setdefault(effect.collection, []).append(_write(effect))
            for name, those in writes.items():
                await self._database.write(collection(name), those, tx=tx)
            return Committed(planned.events, log)

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
