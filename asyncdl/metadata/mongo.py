"""The metadata store on MongoDB."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar
from uuid import uuid4

from asyncdl.drivers.mongo import MongoDatabase
from asyncdl.drivers.mongo_calls import Document, MongoTransaction, Sort
from asyncdl.drivers.mongo_units import MongoUnit
from asyncdl.errors import ClosedError, ConfigurationError, DuplicateKeyError, StoreError
from asyncdl.metadata.base import JobFilter, MetadataStore, Topic
from asyncdl.metadata.changes import Change
from asyncdl.metadata.clock import StoreClock
from asyncdl.metadata.mongo_changesets import ChangeSetCommits
from asyncdl.metadata.mongo_commits import LOG, STORE, Commits, TransactionCommits, collection
from asyncdl.metadata.records import UNFINISHED, ComponentRecord, EventRecord, IntentRecord, JobRecord, JobState
from asyncdl.metadata.wakeup import Wakeup
from asyncdl.together import raise_if_cancelled

SCHEMA_VERSION = 1

_POLL = 0.05
"""Seconds between two looks for commits of other processes, where there is no change stream."""
_AGAIN = 1.0
"""Seconds after which a change stream that failed is tried again."""
_SCHEMA, _BELL = "schema", "bell"
_INDEXES: dict[str, Sequence[Sequence[tuple[str, int]]]] = {
    "components": ([("type_id", 1), ("identifier", 1), ("version", 1)], [("children", 1)]),
    "events": (),
    "jobs": (
        [("state", 1), ("priority", -1), ("created", 1), ("_id", 1)],
        [("created", 1), ("_id", 1)],
        [("target", 1)],
    ),
    "cursors": (),
    "intents": (),
    "commits": (),
    "parts": (),
}

R = TypeVar("R", ComponentRecord, EventRecord, JobRecord, IntentRecord)


class MongoMetadataStore(MetadataStore):
    """Records in collections of one MongoDB database, ``_asyncdl_*``.

    On a replica set a commit is a transaction, and one change stream tells of other processes' commits. On a standalone
    server it is a change set (`ChangeSetCommits`), and other processes' are looked for.

    Parameters
    ----------
    database
        The database; it may be shared with an artifact store.
    watches
        Whether what other processes commit is noticed.
    """

    def __init__(self, database: MongoDatabase, *, watches: bool = True) -> None:
        self.database = database
        self.url = database.url
        self._commits: Commits = TransactionCommits(database)
        self.clock = StoreClock(database.time)
        self._wakeup = Wakeup()
        self._told: dict[Topic, int] = {}
        self._head = 0
        self._watching: asyncio.Task[None] | None = None
        self._watches = watches
        self._open = False

    async def open(self) -> None:
        """Connect; create or check the schema; watch for other processes' commits."""
        if self._open:
            return
        await self.database.open()
        try:
            await self._migrate()
            await self.clock.set()
            # Also on what is a replica set by now: it may have stood alone when it was written to last.
            standalone = ChangeSetCommits(self.database)
            await standalone.open()
            self._commits = TransactionCommits(self.database) if self.database.transactional else standalone
            self.database.gate = (STORE, LOG) if self.database.transactional else None
            self._notice(await self._commits.log())
        except BaseException:
            await self.database.aclose()
            raise
        self._open = True
        if self._watches:
            self._watching = asyncio.create_task(self._watch(), name="asyncdl: watching for commits")

    async def _migrate(self) -> None:
        found = await self.database.find_one(STORE, {"_id": _SCHEMA})  # first: nothing else is known of another version
        if found is None:
            await asyncio.gather(
                self.database.create(STORE),
                *(self.database.create(collection(name), *indexes) for name, indexes in _INDEXES.items()),
            )
            log = {"$setOnInsert": {"commit": 0, "seq": 0, "topics": {}}}
            made = {"$setOnInsert": {"version": SCHEMA_VERSION, "identity": uuid4().hex}}
            with contextlib.suppress(DuplicateKeyError):  # another process makes them
                await self.database.update(STORE, {"_id": LOG}, log, upsert=True)
            with contextlib.suppress(DuplicateKeyError):
                await self.database.update(STORE, {"_id": _SCHEMA}, made, upsert=True)
            found = await self.database.find_one(STORE, {"_id": _SCHEMA})
        if found is None or found["version"] != SCHEMA_VERSION:
            version = None if found is None else found["version"]
            raise ConfigurationError(
                f"{self.url} has the metadata schema {version}, and this asyncdl writes {SCHEMA_VERSION}: "
                "install the asyncdl that made it, or a newer one"
            )
        self.identity = found["identity"]

    async def aclose(self) -> None:
        """Stop watching and close the connections."""
        if not self._open:
            return
        self._open = False
        self._wakeup.wake()  # who waits for commits learns that none will come
        try:
            if self._watching is not None:
                self._watching.cancel()
                if self.database.transactional:
                    # The stream waits in the server until something changes, and a thread with it: so something does.
                    with contextlib.suppress(StoreError):
                        await self.database.update(STORE, {"_id": _BELL}, {"$inc": {"rings": 1}}, upsert=True)
                await asyncio.wait([self._watching])
        finally:
            await self.database.aclose()

    def _check(self) -> None:
        if not self._open:
            raise ClosedError(f"the metadata store {self.url} is not open")

    def joins(self, databackend: Any) -> bool:
        """Return whether a databackend is in this database, on this connection, and the server has transactions."""
        return getattr(databackend, "database", None) is self.database and self.database.transactional

    def elsewhere(self) -> Callable[[Any], MetadataStore]:
        """Return what makes this store on a databackend's database in another process."""
        return _elsewhere

    # writing

    async def commit(self, *changes: Change, joining: Any = None) -> list[EventRecord]:
        """Apply changes, all or none, and return the events among them."""
        self._check()
        stamped = self.stamped(changes)
        if joining is None:
            if not changes:
                return []
            committed = await self._commits.commit(stamped)
        elif isinstance(joining, MongoUnit) and isinstance(self._commits, TransactionCommits):
            committed = await self._commits.join(joining, stamped)
        else:
            raise TypeError("a MongoDB metadata store joins the transactions of its own database, on a replica set")
        self._notice(committed.log)
        return committed.events

    # waking

    def wake(self) -> None:
        """Wake every `wait_for_commits` of this process."""
        self._wakeup.wake()

    async def wait_for_commits(self, seen: int, topic: Topic = "anything") -> int:
        """Wait until something has been committed since ``seen``."""
        self._check()
        token = await self._wakeup.wait(seen, topic)
        self._check()
        return token

    def _notice(self, log: Mapping[str, Any]) -> None:
        """Wake those whom the commits concern that the log counts and that were not told of yet: each commit once."""
        self._head = max(self._head, log.get("seq", 0))
        new: set[Topic] = set()
        for topic, number in log.get("topics", {}).items():
            if number > self._told.get(topic, 0):
                self._told[topic] = number
                new.add(topic)
        self._wakeup.wake(new)

    async def _watch(self) -> None:
        stream = self._follow if self.database.transactional else self._poll
        while True:
            try:
                await stream()
            except StoreError:  # a store that is away for a while is noticed by those who use it
                raise_if_cancelled()
            await asyncio.sleep(_AGAIN)

    async def _poll(self) -> None:
        while True:
            self._notice(await self._commits.log())
            await asyncio.sleep(_POLL)

    async def _follow(self) -> None:
        async with contextlib.aclosing(self.database.watch(STORE, [LOG, _BELL])) as changes:
            async for change in changes:
                if not self._open:
                    return
                if change is None:  # at first, and now and then: should a change be missed, it is not for long
                    self._notice(await self._commits.log())
                elif change["operationType"] == "update":
                    updated = change["updateDescription"]["updatedFields"]
                    topics = {name.removeprefix("topics."): n for name, n in updated.items() if "topics." in name}
                    self._notice({"topics": topics, "seq": updated.get("seq", 0)})
                else:
                    self._notice(change.get("fullDocument", {}))

    # reading

    async def _find(
        self, name: str, where: Document, kind: type[R], key: str, *, sort: Sort, limit: int | None = None
    ) -> list[R]:
        self._check()
        if limit is not None and limit <= 0:
            return []
        await self._commits.settle()
        found = await self.database.find(collection(name), {**where, "gone": None}, sort=sort, limit=limit or 0)
        names = [each.name for each in fields(kind)]
        return [kind(*(each["_id" if name == key else name] for name in names)) for each in found]

    async def components(
        self,
        *,
        type_id: str | None = None,
        identifier: str | None = None,
        version: int | None = None,
        uuids: Collection[str] | None = None,
    ) -> list[ComponentRecord]:
        """Return the records that match all that is given."""
        given = {"type_id": type_id, "identifier": identifier, "version": version}
        where: Document = {name: value for name, value in given.items() if value is not None}
        if uuids is not None:
            where["_id"] = {"$in": list(uuids)}
        return await self._components(where)

    async def _components(self, where: Document) -> list[ComponentRecord]:
        order = [("type_id", 1), ("identifier", 1), ("version", 1)]
        return await self._find("components", where, ComponentRecord, "uuid", sort=order)

    async def parents(self, uuid: str) -> list[ComponentRecord]:
        """Return the components that refer to this one directly."""
        return await self._components({"children": uuid})

    async def children(self, uuid: str) -> list[ComponentRecord]:
        """Return the components that this one refers to directly."""
        self._check()
        await self._commits.settle()
        found = await self.database.find_one(collection("components"), {"_id": uuid, "gone": None})
        return [] if found is None else await self.components(uuids=found["children"])

    async def artifacts(self, uuid: str | None = None) -> set[str]:
        """Return the hashes that a component, or any, refers to."""
        self._check()
        await self._commits.settle()
        where: Document = {"gone": None} if uuid is None else {"_id": uuid, "gone": None}
        found = await self.database.find(collection("components"), where, fields={"artifacts": 1})
        return {sha256 for each in found for sha256 in each["artifacts"]}

    async def events(
        self,
        after: int,
        *,
        types: Collection[str] = (),
        topics: Collection[str] = (),
        limit: int = 1000,
        up_to: int | None = None,
    ) -> list[EventRecord]:
        """Return the events after a position, in order."""
        where: Document = {"_id": {"$gt": after} if up_to is None else {"$gt": after, "$lte": up_to}}
        if types:
            where["type"] = {"$in": list(types)}
        if topics:
            where["topic"] = {"$in": list(topics)}
        return await self._find("events", where, EventRecord, "seq", sort=[("_id", 1)], limit=limit)

    async def last_event(self) -> int:
        """Return the largest ``seq`` that is visible."""
        self._check()
        await self._commits.settle()
        found = await self.database.find_one(collection("events"), {}, fields={"_id": 1}, sort=[("_id", -1)])
        return 0 if found is None else int(found["_id"])

    async def known_head(self) -> int:
        """Return the last event's number, as of the newest state of the log that this process has seen."""
        self._check()
        return self._head

    async def cursor(self, name: str) -> int | None:
        """Return where a named cursor stands."""
        self._check()
        await self._commits.settle()
        found = await self.database.find_one(collection("cursors"), {"_id": name, "gone": None})
        return None if found is None else int(found["seq"])

    async def cursors(self) -> dict[str, int]:
        """Return where each named cursor stands."""
        self._check()
        await self._commits.settle()
        found = await self.database.find(collection("cursors"), {"gone": None})
        return {each["_id"]: int(each["seq"]) for each in found}

    async def pending_causes(
        self, cursor: str, types: Collection[str] = (), states: Collection[JobState] = UNFINISHED
    ) -> list[tuple[int, int]]:
        """Return the (first, last) of unfinished jobs and unread events."""
        self._check()

        async def read(tx: MongoTransaction | None) -> set[tuple[int, int]]:
            passed = await self.database.find_one(collection("cursors"), {"_id": cursor, "gone": None}, tx=tx)
            unread: Document = {"_id": {"$gt": 0 if passed is None else passed["seq"]}}
            if types:
                unread["type"] = {"$in": list(types)}
            causes = {"$group": {"_id": {"first": "$first", "last": "$last"}}}
            waiting = {"state": {"$in": list(states)}}
            events = await self.database.aggregate(collection("events"), [{"$match": unread}, causes], tx=tx)
            jobs = await self.database.aggregate(collection("jobs"), [{"$match": waiting}, causes], tx=tx)
            return {(int(each["_id"]["first"]), int(each["_id"]["last"])) for each in (*events, *jobs)}

        return list(await self._commits.snapshot(read))

    async def jobs(self, where: JobFilter = JobFilter()) -> list[JobRecord]:  # noqa: B008 - an immutable value
        """Return jobs, oldest first."""
        equal = {name: getattr(where, name) for name in ("target", "kind", "owner")}
        query: Document = {name: value for name, value in equal.items() if value is not None}
        if where.states:
            query["state"] = {"$in": list(where.states)}
        if where.ids:
            query["_id"] = {"$in": list(where.ids)}
        if where.covers is not None:
            first = where.covers if where.first is None else where.first
            query |= {"first": {"$lte": where.covers}, "last": {"$gte": first}}
        if where.due is not None:
            query["not_before"] = {"$lte": where.due}
        return await self._find("jobs", query, JobRecord, "id", sort=[("created", 1), ("_id", 1)], limit=where.limit)

    async def claimable(self, now: float, *, limit: int, besides: Collection[str] = ()) -> Sequence[JobRecord]:
        """Return jobs that could be claimed now."""
        due = {"state": "pending", "not_before": {"$lte": now}}
        where: Document = {"$or": [due, {"state": "running", "lease": {"$lte": now}}]}
        if besides:
            where["target"] = {"$nin": list(besides)}
        order = [("priority", -1), ("created", 1), ("_id", 1)]
        return await self._find("jobs", where, JobRecord, "id", sort=order, limit=limit)

    async def next_due(self, now: float) -> float | None:
        """Return when the next job becomes claimable by the passing of time."""
        self._check()
        await self._commits.settle()
        later = {"state": "pending", "not_before": {"$gt": now}}
        at = {"$cond": [{"$eq": ["$state", "pending"]}, "$not_before", "$lease"]}
        pipeline: list[Document] = [
            {"$match": {"$or": [later, {"state": "running", "lease": {"$gt": now}}]}},
            {"$group": {"_id": None, "at": {"$min": at}}},
        ]
        found = await self.database.aggregate(collection("jobs"), pipeline)
        return float(found[0]["at"]) if found else None

    async def intents(self) -> list[IntentRecord]:
        """Return the announced writes, oldest first."""
        return await self._find("intents", {}, IntentRecord, "id", sort=[("created", 1), ("_id", 1)])


def _elsewhere(databackend: Any) -> MongoMetadataStore:
    return MongoMetadataStore(databackend.database, watches=False)
