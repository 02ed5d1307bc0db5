"""The metadata store on SQL databases."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any
from uuid import uuid4

from sqlalchemy import bindparam as P  # noqa: N812 - a parameter, as in ":name"
from sqlalchemy import func, insert, literal_column, select, union
from sqlalchemy.schema import CreateIndex, CreateTable

from asyncdl.drivers.sql import Outcome, Row, SQLDatabase, SQLTransaction, Statement
from asyncdl.errors import ClosedError, ConfigurationError, ConflictError, DuplicateKeyError
from asyncdl.metadata.base import JobFilter, MetadataStore, Topic
from asyncdl.metadata.changes import AppendEvent, Change, ClaimJob, MoveCursor
from asyncdl.metadata.clock import StoreClock
from asyncdl.metadata.records import UNFINISHED, ComponentRecord, EventRecord, IntentRecord, JobRecord, JobState
from asyncdl.metadata.sql_changes import ChangeCompiler, claimable
from asyncdl.metadata.sql_tables import (
    SCHEMA_VERSION,
    artifacts,
    components,
    cursors,
    events,
    intents,
    jobs,
    links,
    metadata,
    schema,
)
from asyncdl.metadata.wakeup import TOPICS, Wakeup, topics_of
from asyncdl.together import end

_GATES = "gates"
"""The lock that claims share, and that who closes a gate has alone."""


class SQLMetadataStore(MetadataStore):
    """Records in tables of one SQL database, ``_asyncdl_*``.

    Parameters
    ----------
    database
        The database; it may be shared with a databackend, whose transactions `commit` then joins.
    watches
        Whether what other processes commit is noticed.
    """

    def __init__(self, database: SQLDatabase, *, watches: bool = True) -> None:
        self.database = database
        self.url = database.url
        self.clock = StoreClock(self._time)
        self._changes = ChangeCompiler(database)
        self._wakeup = Wakeup()
        self._name = uuid4().hex
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
        except BaseException:
            await self.database.aclose()
            raise
        self._open = True
        if self._watches:
            self._watching = asyncio.create_task(self._watch(), name="asyncdl: watching for commits")

    async def _migrate(self) -> None:
        ddl = self.database.ddl
        async with self.database.transaction() as tx:
            tx.defer(*self.database.lock("schema"))
            # The version first: nothing else is known of the tables of another one.
            await tx.run(ddl(CreateTable(schema, if_not_exists=True)))
            [found] = await tx.run(self._select("schema", lambda: select(schema.c.version), {}))
            if not found.rows:
                for table in metadata.sorted_tables:
                    tx.defer(ddl(CreateTable(table, if_not_exists=True)))
                    indexes = sorted(table.indexes, key=lambda index: str(index.name))
                    tx.defer(*(ddl(CreateIndex(index, if_not_exists=True)) for index in indexes))
                tx.defer(*self.database.provisions())
                identity = uuid4().hex
                made = {"version": SCHEMA_VERSION, "identity": identity}
                await tx.commit(self.database.statement("put_schema", lambda: insert(schema), made))
                self.identity = identity
                return
            [version] = found.rows[0]
            if version != SCHEMA_VERSION:
                raise ConfigurationError(
                    f"{self.url} has the metadata schema {version}, and this asyncdl writes {SCHEMA_VERSION}: "
                    "install the asyncdl that made it, or a newer one"
                )
            [found] = await tx.run(self._select("identity", lambda: select(schema.c.identity), {}))
            [self.identity] = found.rows[0]

    async def aclose(self) -> None:
        """Stop watching and close the connections."""
        if not self._open:
            return
        self._open = False
        self._wakeup.wake()  # who waits for commits learns that none will come
        try:
            if self._watching is not None:
                await end([self._watching])
        finally:
            await self.database.aclose()

    def _check(self) -> None:
        if not self._open:
            raise ClosedError(f"the metadata store {self.url} is not open")

    def _of_ours(self, lock: str) -> str:
        """Return the name of a lock: where a database has several schemas, others may hold a metadata store, too."""
        return f"{lock} {self.identity}"

    def _announced(self, topics: Iterable[Topic]) -> tuple[Statement, ...]:
        return self.database.announce(" ".join([self.identity, self._name, *sorted(topics)]))

    async def _time(self) -> float:
        return float((await self.database.fetch(self.database.clock))[0][0])

    def joins(self, databackend: Any) -> bool:
        """Return whether the databackend is on the same database object."""
        return getattr(databackend, "database", None) is self.database

    def elsewhere(self) -> Callable[[Any], MetadataStore]:
        """Return what makes this store on a databackend's database in another process."""
        return _elsewhere

    # writing

    async def commit(self, *changes: Change, joining: SQLTransaction | None = None) -> list[EventRecord]:
        """Apply changes, all or none, and return the events among them."""
        self._check()
        appended: list[tuple[int, AppendEvent]] = []
        # One commit after the other where the database would let them run together: so conditions hold until the end, and
        # events become visible in the order of their numbers.
        statements: list[Statement] = [*self.database.lock(self._of_ours("commit"))] if changes else []
        if any(isinstance(each, MoveCursor) and each.seq < 0 for each in changes):
            # Claims under way end before a gate is closed.
            statements.extend(self.database.exclude(self._of_ours(_GATES)))
        for change in self.stamped(changes):
            if isinstance(change, AppendEvent):
                appended.append((len(statements), change))
            statements.extend(self._changes.statements(change))
        topics = topics_of(changes)
        if changes:
            statements.extend(self._announced(topics))
        if joining is not None:
            outcomes = await joining.commit(*statements)
        else:
            try:
                outcomes = await self.database.write(*statements)
            except DuplicateKeyError as error:  # two at once: the unique constraint saw what the condition could not
                raise ConflictError(str(error)) from error
        self._wakeup.wake(topics)
        return [self._event(change, outcomes[at]) for at, change in appended]

    async def claim(self, *claims: ClaimJob) -> set[str]:
        """Begin those of some attempts whose conditions hold; beside the commits, where locked rows can be passed over."""
        self._check()
        if not claims or not self.database.share(self._of_ours(_GATES)):
            return await super().claim(*claims)
        async with self.database.transaction() as tx:
            begun = await self.claim_within(tx, *claims)
            await tx.commit(*self._announced(["anything"]) if begun else ())
        if begun:
            self._wakeup.wake(["anything"])
        return begun

    async def claim_within(self, tx: SQLTransaction, *claims: ClaimJob) -> set[str]:
        """Begin attempts in a transaction that does nothing else.

        It shares the lock that who closes a gate needs for itself, and takes it first. What it waits for then is nothing: so it
        stands in nobody's way for long, and cannot be part of a deadlock.
        """
        tx.defer(*self.database.share(self._of_ours(_GATES)))
        shut = await self._closed(tx, {claim.gate for claim in claims if claim.gate is not None})
        tries = {claim.id: claim for claim in claims if claim.gate not in shut}
        if not tries:
            return set()
        ids = _numbered("id", tries)

        def free() -> Any:
            query = select(jobs.c.id, jobs.c.attempts).where(_among(jobs.c.id, ids), claimable())
            return query.with_for_update(skip_locked=True)

        [found] = await tx.run(self._select(f"free{len(ids)}", free, ids | {"now": claims[0].now}))
        begun = {job for job, attempts in found.rows if tries[job].attempts in (None, attempts)}
        if begun:
            tx.defer(self._changes.begin(claims[0], _numbered("id", begun), len(begun)))
        return begun

    async def _closed(self, tx: SQLTransaction, gates: Collection[str]) -> set[str]:
        names = _numbered("gate", gates)

        def build() -> Any:
            return select(cursors.c.name).where(_among(cursors.c.name, names), cursors.c.seq < literal_column("0"))

        if not names:
            return set()
        [found] = await tx.run(self._select(f"closed{len(names)}", build, names))
        return {str(name) for [name] in found.rows}

    @staticmethod
    def _event(change: AppendEvent, outcome: Outcome) -> EventRecord:
        seq = int(outcome.rows[0][0])
        return EventRecord(
            seq, change.type, change.topic, change.payload, change.created, change.first or seq, change.last or seq
        )

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

    async def _watch(self) -> None:
        async with contextlib.aclosing(self.database.changes()) as changes:  # type: ignore[type-var]
            async for announced in changes:
                identity, name, *topics = announced.split() or [self.identity, ""]  # nothing: it is not known what
                if identity == self.identity and name != self._name:
                    self._wakeup.wake([each for each in TOPICS if each in topics] or TOPICS)

    # reading

    def _select(self, name: str, build: Any, values: dict[str, Any]) -> Statement:
        return self.database.statement(name, build, values, fetch=True)

    async def _rows(self, name: str, build: Any, values: dict[str, Any]) -> list[Row]:
        self._check()
        statement = self._select(name, build, values)
        return await self.database.fetch(statement.sql, statement.params)

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
        values: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        wanted = _numbered("uuid", uuids or ())
        values |= wanted

        def build() -> Any:
            query = select(components).order_by(components.c.type_id, components.c.identifier, components.c.version)
            for key, value in given.items():
                if value is not None:
                    query = query.where(components.c[key] == P(key))
            if uuids is not None:
                query = query.where(_among(components.c.uuid, wanted) if wanted else literal_column("1=0"))
            return query

        name = f"components{'/'.join(sorted(values))}{uuids is None}"
        return [ComponentRecord(*row) for row in await self._rows(name, build, values)]

    async def parents(self, uuid: str) -> list[ComponentRecord]:
        """Return the components that refer to this one directly."""

        def build() -> Any:
            return select(components).join(links, links.c.parent == components.c.uuid).where(links.c.child == P("key"))

        return [ComponentRecord(*row) for row in await self._rows("parents", build, {"key": uuid})]

    async def children(self, uuid: str) -> list[ComponentRecord]:
        """Return the components that this one refers to directly."""

        def build() -> Any:
            return select(components).join(links, links.c.child == components.c.uuid).where(links.c.parent == P("key"))

        return [ComponentRecord(*row) for row in await self._rows("children", build, {"key": uuid})]

    async def artifacts(self, uuid: str | None = None) -> set[str]:
        """Return the hashes that a component, or any, refers to."""
        if uuid is None:
            rows = await self._rows("all_artifacts", lambda: select(artifacts.c.sha256).distinct(), {})
        else:
            rows = await self._rows(
                "artifacts", lambda: select(artifacts.c.sha256).where(artifacts.c.component == P("key")), {"key": uuid}
            )
        return {str(row[0]) for row in rows}

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
        values: dict[str, Any] = {"after": after, "limit": limit}
        kinds, places = _numbered("type", types), _numbered("topic", topics)
        values |= kinds | places
        if up_to is not None:
            values["up_to"] = up_to

        def build() -> Any:
            query = select(events).where(events.c.seq > P("after")).order_by(events.c.seq).limit(P("limit"))
            if kinds:
                query = query.where(_among(events.c.type, kinds))
            if places:
                query = query.where(_among(events.c.topic, places))
            if up_to is not None:
                query = query.where(events.c.seq <= P("up_to"))
            return query

        rows = await self._rows(f"events{len(kinds)},{len(places)},{up_to is None}", build, values)
        return [
            EventRecord(seq, kind, topic, payload, created, first or seq, last or seq)
            for seq, kind, topic, payload, created, first, last in rows
        ]

    async def last_event(self) -> int:
        """Return the largest ``seq`` that is visible."""
        rows = await self._rows("last_event", lambda: select(func.max(events.c.seq)), {})
        return int(rows[0][0] or 0)

    async def cursor(self, name: str) -> int | None:
        """Return where a named cursor stands."""
        rows = await self._rows(
            "cursor", lambda: select(cursors.c.seq).where(cursors.c.name == P("key")), {"key": name}
        )
        return int(rows[0][0]) if rows else None

    async def cursors(self) -> dict[str, int]:
        """Return where each named cursor stands."""
        rows = await self._rows("cursors", lambda: select(cursors.c.name, cursors.c.seq), {})
        return {str(name): int(seq) for name, seq in rows}

    async def pending_causes(
        self, cursor: str, types: Collection[str] = (), states: Collection[JobState] = UNFINISHED
    ) -> list[tuple[int, int]]:
        """Return the (first, last) of unfinished jobs and unread events."""
        kinds = _numbered("type", types)
        values: dict[str, Any] = {"key": cursor} | kinds

        def build() -> Any:
            own = func.coalesce(func.nullif(events.c.first, literal_column("0")), events.c.seq)
            end = func.coalesce(func.nullif(events.c.last, literal_column("0")), events.c.seq)
            waiting = select(jobs.c.first, jobs.c.last).where(
                jobs.c.state.in_([literal_column(f"'{state}'") for state in states])
            )
            read = select(cursors.c.seq).where(cursors.c.name == P("key")).scalar_subquery()
            unread = select(own, end).where(events.c.seq > func.coalesce(read, literal_column("0")))
            if kinds:
                unread = unread.where(_among(events.c.type, kinds))
            return union(waiting, unread)

        found = await self._rows(f"causes{len(kinds)}{'/'.join(states)}", build, values)
        return [(int(first), int(last)) for first, last in found]

    async def jobs(self, where: JobFilter = JobFilter()) -> list[JobRecord]:  # noqa: B008 - an immutable value
        """Return jobs, oldest first."""
        values: dict[str, Any] = {"limit": where.limit}
        states, ids = _numbered("state", where.states), _numbered("id", where.ids)
        values |= states | ids
        equal = {key: getattr(where, key) for key in ("target", "kind", "owner") if getattr(where, key) is not None}
        values |= equal
        if where.covers is not None:
            values["covers"] = where.covers
            values["first"] = where.covers if where.first is None else where.first
        if where.due is not None:
            values["due"] = where.due

        def build() -> Any:
            query = select(jobs).order_by(jobs.c.created, jobs.c.id).limit(P("limit"))
            for key in equal:
                query = query.where(jobs.c[key] == P(key))
            if states:
                query = query.where(_among(jobs.c.state, states))
            if ids:
                query = query.where(_among(jobs.c.id, ids))
            if where.covers is not None:
                query = query.where(jobs.c.first <= P("covers"), jobs.c.last >= P("first"))
            if where.due is not None:
                query = query.where(jobs.c.not_before <= P("due"))
            return query

        return [JobRecord(*row) for row in await self._rows(f"jobs{'/'.join(values)}", build, values)]

    async def claimable(self, now: float, *, limit: int, besides: Collection[str] = ()) -> Sequence[JobRecord]:
        """Return jobs that could be claimed now."""
        others = _numbered("target", besides)

        def build() -> Any:
            order = (jobs.c.priority.desc(), jobs.c.created, jobs.c.id)
            query = select(jobs).where(claimable()).order_by(*order).limit(P("limit"))
            return query.where(~_among(jobs.c.target, others)) if others else query

        found = await self._rows(f"claimable{len(others)}", build, {"now": now, "limit": limit, **others})
        return [JobRecord(*row) for row in found]

    async def next_due(self, now: float) -> float | None:
        """Return when the next job becomes claimable by the passing of time."""

        def build() -> Any:
            later = select(jobs.c.not_before.label("at")).where(
                jobs.c.state == literal_column("'pending'"), jobs.c.not_before > P("now")
            )
            leases = select(jobs.c.lease.label("at")).where(
                jobs.c.state == literal_column("'running'"), jobs.c.lease > P("now")
            )
            return select(func.min(union(later, leases).subquery().c.at))

        rows = await self._rows("next_due", build, {"now": now})
        return None if rows[0][0] is None else float(rows[0][0])

    async def intents(self) -> list[IntentRecord]:
        """Return the announced writes, oldest first."""
        rows = await self._rows("intents", lambda: select(intents).order_by(intents.c.created, intents.c.id), {})
        return [IntentRecord(*row) for row in rows]


def _numbered(prefix: str, values: Collection[str]) -> dict[str, str]:
    """Return values as named parameters; the last fills up to a power of two: few statements are compiled."""
    filled = list(values)
    filled += filled[-1:] * ((1 << max(len(filled) - 1, 0).bit_length()) - len(filled))
    return {f"{prefix}{n}": value for n, value in enumerate(filled)}


def _among(column: Any, parameters: Collection[str]) -> Any:
    # IN, and no chain of ORs: SQLite refuses expressions more than 1000 deep
    return column.in_([P(name) for name in parameters])


def _elsewhere(databackend: Any) -> SQLMetadataStore:
    return SQLMetadataStore(databackend.database, watches=False)
