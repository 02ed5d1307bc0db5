"""Changes as SQL statements: each change becomes one or a few statements whose row counts carry its condition."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import singledispatchmethod
from typing import Any

from sqlalchemy import Table, and_, bindparam, case, delete, exists, func, insert, literal_column, or_, select, update

from asyncdl.drivers.sql import SQLDatabase, Statement
from asyncdl.errors import ComponentInUseError, LeaseLostError
from asyncdl.metadata import changes, records
from asyncdl.metadata.sql_tables import artifacts, components, cursors, events, intents, jobs, links

P = bindparam


def _columns(table: Table, *, without: frozenset[str] = frozenset()) -> list[str]:
    return [column.name for column in table.columns if column.name not in without]


class ChangeCompiler:
    """Compiles changes for one database."""

    def __init__(self, database: SQLDatabase) -> None:
        self._database = database

    def _statement(self, name: str, build: Callable[[], Any], values: dict[str, Any], **options: Any) -> Statement:
        return self._database.statement(name, build, values, **options)

    def _insert_if(self, name: str, table: Table, values: dict[str, Any], free: Any, conflict: str) -> Statement:
        """Insert a row where a condition holds, expecting it to."""

        def build() -> Any:
            # typed parameters: in a SELECT list PostgreSQL cannot infer them
            row = select(*(P(column.name, type_=column.type) for column in table.columns)).where(free)
            return insert(table).from_select(_columns(table), row)

        return self._statement(name, build, values, expect=1, conflict=conflict)

    @singledispatchmethod
    def statements(self, change: Any) -> Iterator[Statement]:
        """Yield the statements of a change; those of an event return its row."""
        raise TypeError(f"not a change: {change!r}")

    @statements.register
    def _(self, change: changes.PutComponent) -> Iterator[Statement]:
        record = change.record
        same = and_(
            components.c.type_id == P("type_id"),
            components.c.identifier == P("identifier"),
            components.c.version == P("version"),
        )
        yield self._insert_if(
            "put_component",
            components,
            asdict(record),
            ~exists().where(or_(components.c.uuid == P("uuid"), same)),
            f"{record.type_id} {record.identifier!r} version {record.version} is installed already",
        )
        for child in dict.fromkeys(change.children):
            yield self._insert_if(
                "put_link",
                links,
                {"parent": record.uuid, "child": child},
                exists().where(components.c.uuid == P("child")),
                f"component {child}, which {record.type_id} {record.identifier!r} refers to, is not installed any more",
            )
        for sha256 in dict.fromkeys(change.artifacts):
            values = {"component": record.uuid, "sha256": sha256}
            yield self._statement("put_artifact", lambda: insert(artifacts), values)

    @statements.register
    def _(self, change: changes.SetComponentStatus) -> Iterator[Statement]:
        yield self._statement(
            "set_status",
            lambda: (
                update(components)
                .where(components.c.uuid == P("key"))
                .where(or_(P("any", type_=components.c.version.type) == 1, components.c.status == P("expected")))
                .values(status=P("new"))
            ),
            {
                "key": change.uuid,
                "new": change.status,
                "any": int(change.expected is None),
                "expected": change.expected or "",
            },
            expect=1,
            conflict=f"component {change.uuid} was removed, or its status changed by another process",
        )

    @statements.register
    def _(self, change: changes.SetComponentState) -> Iterator[Statement]:
        yield self._statement(
            "set_state",
            lambda: (
                update(components)
                .where(components.c.uuid == P("key"))
                .where(or_(P("any", type_=components.c.version.type) == 1, components.c.state == P("expected")))
                .values(state=P("new"))
            ),
            {
                "key": change.uuid,
                "new": change.state,
                "any": int(change.expected is None),
                "expected": change.expected or "",
            },
            expect=1,
            conflict=f"component {change.uuid} was removed, or its state changed by another process",
        )

    @statements.register
    def _(self, change: changes.SetComponentData) -> Iterator[Statement]:
        yield self._statement(
            "set_data",
            lambda: update(components).where(components.c.uuid == P("key")).values(data=P("new")),
            {"key": change.uuid, "new": change.data},
            expect=1,
            conflict=f"component {change.uuid} was removed",
        )

    @statements.register
    def _(self, change: changes.LinkArtifacts) -> Iterator[Statement]:
        yield self._statement(
            "touch_component",
            lambda: update(components).where(components.c.uuid == P("key")).values(version=components.c.version),
            {"key": change.uuid},
            expect=1,
            conflict=f"component {change.uuid} is not installed any more",
        )
        for sha256 in dict.fromkeys([*change.unlinked, *change.linked]):  # what was linked would be a duplicate
            yield self._statement(
                "drop_artifact",
                lambda: delete(artifacts).where(artifacts.c.component == P("key"), artifacts.c.sha256 == P("name")),
                {"key": change.uuid, "name": sha256},
            )
        for sha256 in dict.fromkeys(change.linked):
            values = {"component": change.uuid, "sha256": sha256}
            yield self._statement("put_artifact", lambda: insert(artifacts), values)

    @statements.register
    def _(self, change: changes.DeleteComponent) -> Iterator[Statement]:
        values = {"key": change.uuid}
        yield self._statement("drop_links", lambda: delete(links).where(links.c.parent == P("key")), values)
        yield self._statement(
            "drop_artifacts", lambda: delete(artifacts).where(artifacts.c.component == P("key")), values
        )
        yield self._statement(
            "drop_component",
            lambda: (
                delete(components)
                .where(components.c.uuid == P("key"))
                .where(~exists().where(links.c.child == components.c.uuid))
            ),
            values,
            expect=1,
            conflict=f"component {change.uuid} has been removed already, or another component refers to it",
            error=ComponentInUseError,
        )

    @statements.register
    def _(self, change: changes.AppendEvent) -> Iterator[Statement]:
        yield self._statement(
            "append_event",
            lambda: (
                insert(events)
                .values({name: P(name) for name in _columns(events, without=frozenset({"seq"}))})
                .returning(events.c.seq)
            ),
            asdict(change),
            fetch=True,
        )

    @statements.register
    def _(self, change: changes.PutJob) -> Iterator[Statement]:
        yield self._insert_if(
            "put_job",
            jobs,
            asdict(change.record),
            ~exists().where(jobs.c.id == P("id")),
            f"there is a job {change.record.id} already",
        )

    @statements.register
    def _(self, change: changes.ClaimJob) -> Iterator[Statement]:
        yield self._statement(
            "claim_job",
            lambda: (
                update(jobs)
                .where(jobs.c.id == P("key"))
                .where(claimable())
                .where(or_(P("any", type_=jobs.c.attempts.type) == 1, jobs.c.attempts == P("expected")))
                .where(~exists().where(cursors.c.name == P("gate"), cursors.c.seq < literal_column("0")))
                .values(_begun())
            ),
            _attempt(change)
            | {
                "key": change.id,
                "any": int(change.attempts is None),
                "expected": change.attempts or 0,
                "gate": change.gate or "",
            },
            expect=1,
            conflict=f"job {change.id} was claimed by another worker, or is not to be begun now",
        )

    def begin(self, claim: changes.ClaimJob, ids: dict[str, str], count: int) -> Statement:
        """Return the statement that begins attempts of jobs that are known to be free, as one claim has it."""
        return self._statement(
            f"begin{len(ids)}",
            lambda: update(jobs).where(jobs.c.id.in_([P(name) for name in ids])).values(_begun()),
            ids | _attempt(claim),
            expect=count,
        )

    @statements.register
    def _(self, change: changes.PrioritizeJobs) -> Iterator[Statement]:
        for job, priority in change.priorities.items():
            yield self._statement(
                "prioritize_job",
                lambda: update(jobs).where(jobs.c.id == P("key")).values(priority=P("new_priority")),
                {"key": job, "new_priority": priority},
            )

    @statements.register
    def _(self, change: changes.RenewLeases) -> Iterator[Statement]:
        for job in change.ids:
            yield self._statement(
                "renew_lease",
                lambda: update(jobs).where(_held()).values(lease=P("new_lease")),
                {"key": job, "holder": change.owner, "new_lease": change.lease},
            )

    @statements.register
    def _(self, change: changes.AdvanceJob) -> Iterator[Statement]:
        yield self._statement(
            "advance_job",
            lambda: (
                update(jobs)
                .where(_held())
                .values(
                    done=P("done"),
                    total=P("total"),
                    stage=P("stage"),
                    payload=case((_new_payload().is_(None), jobs.c.payload), else_=_new_payload()),
                )
            ),
            {
                "key": change.id,
                "holder": change.owner,
                "done": change.done,
                "total": change.total,
                "stage": change.stage,
                "new": change.payload,
            },
            **_lease_lost(change.id),
        )

    @statements.register
    def _(self, change: changes.HoldJob) -> Iterator[Statement]:
        yield self._statement(
            "hold_job",
            lambda: update(jobs).where(_held()).values(stage=jobs.c.stage),
            {"key": change.id, "holder": change.owner},
            **_lease_lost(change.id),
        )

    @statements.register
    def _(self, change: changes.FinishJob) -> Iterator[Statement]:
        yield self._statement(
            "finish_job",
            lambda: (
                update(jobs)
                .where(_held())
                .values(
                    state=P("new_state"),
                    owner=None,
                    lease=0.0,
                    error=P("error"),
                    not_before=P("not_before"),
                    attempts=jobs.c.attempts - P("refund"),
                    finished=P("finished"),
                )
            ),
            {
                "key": change.id,
                "holder": change.owner,
                "new_state": change.state,
                "error": change.error,
                "not_before": change.not_before,
                "refund": int(change.refund),
                "finished": None if change.state in records.UNFINISHED else change.now,
            },
            **_lease_lost(change.id),
        )

    @statements.register
    def _(self, change: changes.SetJobState) -> Iterator[Statement]:
        again = change.state == "pending"
        states = "".join(f":{state}:" for state in change.among)
        yield self._statement(
            f"set_job_state{states}{again}",
            lambda: (
                update(jobs)
                .where(jobs.c.id == P("key"))
                .where(jobs.c.state.in_([literal_column(f"'{state}'") for state in change.among]))
                .values(
                    state=P("new_state"),
                    owner=None,
                    lease=0.0,
                    not_before=P("not_before"),
                    error=P("error"),
                    finished=P("finished"),
                    **({"attempts": 0} if again else {}),
                )
            ),
            {
                "key": change.id,
                "new_state": change.state,
                "error": change.error,
                "not_before": change.now if again else 0.0,
                "finished": None if change.state in records.UNFINISHED else change.now,
            },
            expect=1,
            conflict=f"job {change.id} is not in one of the states {', '.join(change.among)}",
        )

    @statements.register
    def _(self, change: changes.MoveCursor) -> Iterator[Statement]:
        values = {"name": change.name, "seq": change.seq}
        moved = {"key": change.name, "new": change.seq}
        conflict = f"the cursor {change.name!r} was moved by another process"
        if change.expected:
            yield self._statement(
                "move_cursor",
                lambda: (
                    update(cursors)
                    .where(cursors.c.name == P("key"), cursors.c.seq == P("expected"))
                    .values(seq=P("new"))
                ),
                moved | {"expected": change.expected},
                expect=1,
                conflict=conflict,
            )
            return
        if change.expected is None:
            yield self._statement("drop_cursor", lambda: delete(cursors).where(cursors.c.name == P("key")), moved)
        else:
            yield self._statement(
                "drop_new_cursor",
                lambda: delete(cursors).where(cursors.c.name == P("key"), cursors.c.seq == literal_column("0")),
                moved,
            )
        free = ~exists().where(cursors.c.name == P("name"))
        yield self._insert_if("put_cursor", cursors, values, free, conflict)

    @statements.register
    def _(self, change: changes.DeleteCursor) -> Iterator[Statement]:
        yield self._statement(
            "drop_cursor", lambda: delete(cursors).where(cursors.c.name == P("key")), {"key": change.name}
        )

    @statements.register
    def _(self, change: changes.PutIntent) -> Iterator[Statement]:
        yield self._statement("put_intent", lambda: insert(intents), asdict(change.record))

    @statements.register
    def _(self, change: changes.DeleteIntent) -> Iterator[Statement]:
        yield self._statement(
            "drop_intent",
            lambda: delete(intents).where(intents.c.id == P("key")),
            {"key": change.id},
            expect=1,
            conflict=f"the intent {change.id} was settled by another process",
        )

    @statements.register
    def _(self, change: changes.DeleteEvents) -> Iterator[Statement]:
        yield self._statement(
            "drop_events",
            lambda: delete(events).where(events.c.seq <= P("key"), events.c.seq < _newest()),
            {"key": change.up_to},
        )


def claimable() -> Any:
    """Return the condition on a job that may be claimed at ``:now``."""
    due = and_(jobs.c.state == literal_column("'pending'"), jobs.c.not_before <= P("now"))
    abandoned = and_(jobs.c.state == literal_column("'running'"), jobs.c.lease <= P("now"))
    return or_(due, abandoned)


def _begun() -> dict[str, Any]:
    return {
        "state": "running",
        "owner": P("new_owner"),
        "lease": P("new_lease"),
        "started": P("now"),
        "attempts": jobs.c.attempts + literal_column("1"),
    }


def _attempt(claim: changes.ClaimJob) -> dict[str, Any]:
    return {"new_owner": claim.owner, "new_lease": claim.lease, "now": claim.now}


def _new_payload() -> Any:
    return P("new", type_=jobs.c.payload.type)


def _newest() -> Any:
    # in a derived table: MySQL does not delete from a table that the condition reads
    newest = select(func.max(events.c.seq).label("seq")).subquery()
    return select(newest.c.seq).scalar_subquery()


def _held() -> Any:
    return and_(jobs.c.id == P("key"), jobs.c.owner == P("holder"), jobs.c.state == literal_column("'running'"))


def _lease_lost(job: str) -> dict[str, Any]:
    message = f"job {job} was taken over by another worker, or cancelled"
    return {"expect": 1, "conflict": message, "error": LeaseLostError}
