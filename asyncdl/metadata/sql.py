"""The metadata store on SQL databases."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import bindparam as P  # noqa: N812 - a parameter, as in ":name"
from sqlalchemy import func, insert, literal_column, or_, select, union
from sqlalchemy.schema import CreateIndex, CreateTable

from asyncdl.drivers.sql import Outcome, Row, SQLDatabase, SQLTransaction, Statement
from asyncdl.errors import ClosedError, ConfigurationError, ConflictError, DuplicateKeyError, StoreError
from asyncdl.metadata import base
from asyncdl.metadata.base import Change, ComponentRecord, EventRecord, IntentRecord, JobFilter, JobRecord, MetadataStore
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
from asyncdl.metadata.wakeup import Wakeup

_POLL = 0.05
"""Seconds between two looks for commits of other processes, where the database cannot notify."""


class SQLMetadataStore(MetadataStore):
    """Records in tables of one SQL database, ``_asyncdl_*``.

    Parameters
    ----------
    database
        The database; it may be shared with a databackend, whose transactions `commit` then joins.
    """

    def __init__(self, database: SQLDatabase) -> None:
        self.database = database
        self.url = database.url
        self._changes = ChangeCompiler(database)
        self._wakeup = Wakeup()
        self._watching: asyncio.Task[None] | None = None
        self._open = False

    async def open(self) -> None:
        """Connect; create or check the schema; watch for other processes' commits."""
        await self.database.open()
        try:
            await self._migrate()
        except BaseException:
            await self.database.aclose()
            raise
        self._open = True
        self._watching = asyncio.create_task(self._watch(), name="asyncdl: watching for commits")

    async def _migrate(self) -> None:
        tables = [Statement(str(CreateTable(table, if_not_exists=True).compile(dialect=self.database.dialect)))
                  for table in metadata.sorted_tables]  # fmt: skip
        indexes = [
            Statement(str(CreateIndex(index, if_not_exists=True).compile(dialect=self.database.dialect)))
            for table in metadata.sorted_tables
            for index in sorted(table.indexes, key=lambda index: str(index.name))
        ]
        async with self.database.transaction() as tx:
            await tx.run(*tables, *indexes)
            [found] = await tx.run(self._select("schema", lambda: select(schema.c.version), {}))
            if not found.rows:
                version = self.database.statement("put_schema", lambda: insert(schema), {"version": SCHEMA_VERSION})
                await tx.commit(version)
            elif found.rows[0][0] != SCHEMA_VERSION:
                raise ConfigurationError(
                    f"{self.url} has the metadata schema {found.rows[0][0]}, and this asyncdl writes {SCHEMA_VERSION}: "
                    "install the asyncdl that made it, or a newer one"
                )

    async def aclose(self) -> None:
        """Stop watching and close the connections."""
        if not self._open:
            return
        self._open = False
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        await self.database.aclose()

    def joins(self, databackend: Any) -> bool:
        """Return whether the databackend is on the same database object."""
        return getattr(databackend, "database", None) is self.database

    # writing

    async def commit(self, *changes: Change, joining: SQLTransaction | None = None) -> list[EventRecord]:
        """Apply changes, all or none, and return the events among them."""
        if not self._open:
            raise ClosedError(f"the metadata store {self.url} is not open")
        appended: list[tuple[int, base.AppendEvent]] = []
        statements: list[Statement] = []
        for change in changes:
            if isinstance(change, base.AppendEvent):
                appended.append((len(statements), change))
            statements.extend(self._changes.statements(change))
        if joining is not None:
            outcomes = await joining.commit(*statements)
        else:
            try:
                outcomes = await self.database.write(*statements)
            except DuplicateKeyError as error:  # two at once: the unique constraint saw what the condition could not
                raise ConflictError(str(error)) from error
        self._wakeup.wake()
        return [self._event(change, outcomes[at]) for at, change in appended]

    @staticmethod
    def _event(change: base.AppendEvent, outcome: Outcome) -> EventRecord:
        seq = int(outcome.rows[0][0])
        return EventRecord(
            seq, change.type, change.topic, change.payload, change.created, change.first or seq, change.last or seq
        )

    # waking

    def wake(self) -> None:
        """Wake every `wait_for_commits` of this process."""
        self._wakeup.wake()

    async def wait_for_commits(self, seen: int) -> int:
        """Wait until something has been committed since ``seen``."""
        return await self._wakeup.wait(seen)

    async def _watch(self) -> None:
        version = None
        while True:
            with contextlib.suppress(StoreError):  # a store that is away for a while is noticed by those who use it
                found = await self.database.version()
                if found != version:
                    version = found
                    self._wakeup.wake()
            await asyncio.sleep(_POLL)

    # reading

    def _select(self, name: str, build: Any, values: dict[str, Any]) -> Statement:
        return self.database.statement(name, build, values, fetch=True)

    async def _rows(self, name: str, build: Any, values: dict[str, Any]) -> list[Row]:
        if not self._open:
            raise ClosedError(f"the metadata store {self.url} is not open")
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
        many = list(uuids or ())
        values |= {f"uuid{n}": uuid for n, uuid in enumerate(many)}

        def build() -> Any:
            query = select(components).order_by(components.c.type_id, components.c.identifier, components.c.version)
            for key, value in given.items():
                if value is not None:
                    query = query.where(components.c[key] == P(key))
            if uuids is not None:
                query = query.where(or_(literal_column("1=0"), *(components.c.uuid == P(f"uuid{n}") for n in range(len(many)))))
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
        values |= {f"type{n}": name for n, name in enumerate(types)}
        values |= {f"topic{n}": topic for n, topic in enumerate(topics)}
        if up_to is not None:
            values["up_to"] = up_to

        def build() -> Any:
            query = select(events).where(events.c.seq > P("after")).order_by(events.c.seq).limit(P("limit"))
            if types:
                query = query.where(or_(*(events.c.type == P(f"type{n}") for n in range(len(types)))))
            if topics:
                query = query.where(or_(*(events.c.topic == P(f"topic{n}") for n in range(len(topics)))))
            if up_to is not None:
                query = query.where(events.c.seq <= P("up_to"))
            return query

        rows = await self._rows(f"events{len(types)},{len(topics)},{up_to is None}", build, values)
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
        rows = await self._rows("cursor", lambda: select(cursors.c.seq).where(cursors.c.name == P("key")), {"key": name})
        return int(rows[0][0]) if rows else None

    async def pending_causes(self, after: int) -> list[tuple[int, int]]:
        """Return the (first, last) of unfinished jobs and unread events."""

        def build() -> Any:
            own = func.coalesce(func.nullif(events.c.first, literal_column("0")), events.c.seq)
            end = func.coalesce(func.nullif(events.c.last, literal_column("0")), events.c.seq)
            waiting = select(jobs.c.first, jobs.c.last).where(
                jobs.c.state.in_([literal_column(f"'{state}'") for state in base.UNFINISHED])
            )
            return union(waiting, select(own, end).where(events.c.seq > P("after")))

        return [(int(first), int(last)) for first, last in await self._rows("causes", build, {"after": after})]

    async def jobs(self, where: JobFilter = JobFilter()) -> list[JobRecord]:  # noqa: B008 - an immutable value
        """Return jobs, oldest first."""
        values: dict[str, Any] = {"limit": where.limit}
        values |= {f"state{n}": state for n, state in enumerate(where.states)}
        values |= {f"id{n}": job for n, job in enumerate(where.ids)}
        equal = {key: getattr(where, key) for key in ("target", "kind", "owner") if getattr(where, key) is not None}
        values |= equal
        if where.covers is not None:
            values["covers"] = where.covers

        def build() -> Any:
            query = select(jobs).order_by(jobs.c.created, jobs.c.id).limit(P("limit"))
            for key in equal:
                query = query.where(jobs.c[key] == P(key))
            if where.states:
                query = query.where(or_(*(jobs.c.state == P(f"state{n}") for n in range(len(where.states)))))
            if where.ids:
                query = query.where(or_(*(jobs.c.id == P(f"id{n}") for n in range(len(where.ids)))))
            if where.covers is not None:
                query = query.where(jobs.c.first <= P("covers"), jobs.c.last >= P("covers"))
            return query

        return [JobRecord(*row) for row in await self._rows(f"jobs{'/'.join(values)}", build, values)]

    async def claimable(self, now: float, *, limit: int) -> Sequence[JobRecord]:
        """Return jobs that could be claimed now."""

        def build() -> Any:
            order = (jobs.c.priority.desc(), jobs.c.created, jobs.c.id)
            return select(jobs).where(claimable()).order_by(*order).limit(P("limit"))

        return [JobRecord(*row) for row in await self._rows("claimable", build, {"now": now, "limit": limit})]

    async def next_due(self, now: float) -> float | None:
        """Return when the next job becomes claimable by the passing of time."""

        def build() -> Any:
            later = select(jobs.c.not_before.label("at")).where(
                jobs.c.state == literal_column("'pending'"), jobs.c.not_before > P("now")
            )
            leases = select(jobs.c.lease.label("at")).where(jobs.c.state == literal_column("'running'"))
            return select(func.min(union(later, leases).subquery().c.at))

        rows = await self._rows("next_due", build, {"now": now})
        return None if rows[0][0] is None else float(rows[0][0])

    async def intents(self) -> list[IntentRecord]:
        """Return the announced writes, oldest first."""
        rows = await self._rows("intents", lambda: select(intents).order_by(intents.c.created), {})
        return [IntentRecord(*row) for row in rows]
