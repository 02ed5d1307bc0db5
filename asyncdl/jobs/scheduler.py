"""The scheduler: reads the event log, and turns what happened into jobs, exactly once."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext

import msgspec

from asyncdl import codec
from asyncdl.components.fingerprint import reference_of
from asyncdl.components.registry import Registry, priority_of
from asyncdl.components.schedule import nothing
from asyncdl.errors import ConflictError
from asyncdl.events.types import (
    ComponentAdded,
    ComponentEvent,
    ComponentTuned,
    Event,
    EventsTrimmed,
    JobCancelled,
    JobFailed,
    JobSucceeded,
    OutputsWritten,
)
from asyncdl.jobs.needs import HELD, Needs, let_go, needs_of, trained_on
from asyncdl.jobs.pages import merge, plan_page
from asyncdl.jobs.planner import (
    FEW_FIRST,
    PER_PRIORITY,
    PLANNED,
    Installation,
    InstalledListener,
    InstalledModel,
    InstalledTrigger,
    Plan,
)
from asyncdl.metadata.base import JobFilter, MetadataStore
from asyncdl.metadata.changes import Change, MoveCursor, PrioritizeJobs, PutJob
from asyncdl.metadata.records import UNFINISHED, ComponentRecord, EventRecord, JobRecord

logger = logging.getLogger("asyncdl.jobs")

CURSOR = "scheduler"
_NOTHING = reference_of(nothing)
_PAGE = 500
PLANNED_TYPES = sorted(
    {each.__name__ for base in (*PLANNED, ComponentTuned) for each in (base, *base.__subclasses__())}
)
"""The names of the events that are dealt with; the others are passed over, and need no commit of the cursor."""
_OUTPUTS, _END = OutputsWritten.__name__, JobSucceeded.__name__
_LAG = 0.1
"""Seconds for which the cursor may lie behind a job's outputs that nothing follows from, while the job goes on."""
_COMPONENTS = sorted(
    each.__name__ for each in (*ComponentEvent.__subclasses__(), EventsTrimmed, JobFailed, JobCancelled)
)
"""What says that the components may be others, or stand otherwise: also that such an event may have been deleted before it
was seen here."""
_MOST_AHEAD = 100_000
_READ = sorted({*PLANNED_TYPES, *_COMPONENTS, _END})


Taking = Callable[[Sequence[JobRecord]], AbstractAsyncContextManager[Sequence[Change]]]


def _nobody(jobs: Sequence[JobRecord]) -> AbstractAsyncContextManager[Sequence[Change]]:
    return nullcontext(())


class Scheduler:
    """Moves one cursor on the log, which all processes share.

    Jobs and the cursor's move are one commit: of several schedulers one wins each page, and the others read on. Of a job that
    writes batch after batch, from which nothing follows, the cursor's moves are few: nobody can wait for them before it ends.

    Parameters
    ----------
    taking
        Given new jobs, a block in which they are committed, and what is to be committed with them: a worker of this process
        that has nothing to do claims one at once, and begins with it after the block.
    """

    def __init__(
        self, metadata: MetadataStore, registry: Registry, *, max_attempts: int, taking: Taking = _nobody
    ) -> None:
        self._metadata = metadata
        self._registry = registry
        self._max_attempts = max_attempts
        self._taking = taking
        self._installation = Installation()
        self._needs = Needs()
        self._known = -1
        """The position in the log as of which it was read."""
        self._position: int | None = None
        """Up to here the log has been read; None: it is to be asked."""
        self._stored = 0
        """Where the cursor stands."""
        self._behind = False
        """Whether it has not passed all planned events up to there: nothing followed from them."""
        self._moved = (0.0, (0, 0))
        """When it was moved, by `time.monotonic`, and the causes of the last event that it passed."""
        self._priorities: dict[str, int] = {}
        """Of the installed listeners, by uuid."""

    async def run(self) -> None:
        """Schedule until cancelled."""
        seen = 0
        self._position, self._behind = None, False  # after a failure: from what is stored
        while True:
            seen = await self._wait(seen)
            while await self.step():
                pass

    async def _wait(self, seen: int) -> int:
        """Wait for events, or until the cursor must not lie behind any longer; then move it."""
        if self._position is None or not self._behind:
            return await self._metadata.wait_for_commits(seen, "events")
        try:
            async with asyncio.timeout(max(self._moved[0] + _LAG - time.monotonic(), 0)):
                return await self._metadata.wait_for_commits(seen, "events")
        except TimeoutError:
            await self._move(self._position, [], self._moved[1])
            return seen

    async def step(self) -> bool:
        """Plan one page of events; return whether there may be another: else a commit will tell of it."""
        if self._position is None:
            self._position = self._stored = await self._metadata.cursor(CURSOR) or 0
        while True:
            records = await self._metadata.events(self._position, types=_READ, limit=_PAGE)
            if not records:
                return False
            if not await self._look_at_components(self._position, records):
                break  # else what changed may be behind this page, and belongs to it
        happened = [(Event.from_record(record), record.first, record.last) for record in records]
        asked = plan_page(happened, self._installation, await self._ahead(records))
        plans = filter(None, map(self._needs.hold, asked))
        await self._prioritize(records)
        changes: list[Change] = [PutJob(self._job(each)) for each in merge(plans)]
        changes += await let_go(self._metadata, self._needs, [event for event, _, _ in happened])
        if changes or not self._may_lie_behind(records):
            await self._move(records[-1].seq, changes, (records[-1].first, records[-1].last))
        else:
            self._position = records[-1].seq
            self._behind = self._behind or any(record.type != _END for record in records)
        return self._position is None or len(records) == _PAGE

    async def _ahead(self, records: Sequence[EventRecord]) -> list[Event]:
        """Return the events behind a page that say what was added: what is installed is known as of after them."""
        if len(records) < _PAGE:
            return []
        found = await self._metadata.events(records[-1].seq, types=[ComponentAdded.__name__], limit=_MOST_AHEAD)
        return [Event.from_record(each) for each in found]

    def _may_lie_behind(self, records: Sequence[EventRecord]) -> bool:
        """Return whether the cursor may wait with passing events from which nothing follows."""
        planned = [record for record in records if record.type != _END]
        if len(planned) < len(records):  # a job has ended: who waits for it waits for what it told of, too
            return not planned and not self._behind
        moved, causes = self._moved
        same = all(record.type == _OUTPUTS and (record.first, record.last) == causes for record in planned)
        return same and time.monotonic() < moved + _LAG

    async def _move(self, to: int, changes: Sequence[Change], causes: tuple[int, int]) -> None:
        self._behind = False
        made = [each.record for each in changes if isinstance(each, PutJob)]
        try:
            async with self._taking(made) as claims:
                await self._metadata.commit(*changes, *claims, MoveCursor(CURSOR, to, expected=self._stored))
        except ConflictError:
            logger.debug("another process has scheduled the events after %d, or moved a held-back job", self._stored)
            self._position = None
            if not all(isinstance(each, PutJob) for each in changes):
                self._known = -1  # what it was let go by may stand otherwise
        else:
            self._position = self._stored = to
            self._moved = (time.monotonic(), causes)

    async def _prioritize(self, records: list[EventRecord]) -> None:
        """Give the jobs of listeners that got another priority theirs: all that were planned before, none is planned meanwhile.

        Should the cursor not be moved after that, it is done again, to the same end.
        """
        tuned = {codec.loads(each.payload)["uuid"] for each in records if each.type == ComponentTuned.__name__}
        for target in tuned & set(self._priorities):
            found = await self._metadata.jobs(JobFilter(states=UNFINISHED, target=target, limit=1_000_000))
            wanted = {job.id: self._priority(target, few=bool(codec.loads(job.payload)["ids"])) for job in found}
            others = [(job.id, wanted[job.id]) for job in found if job.priority != wanted[job.id]]
            for at in range(0, len(others), _PAGE):
                await self._metadata.commit(PrioritizeJobs(dict(others[at : at + _PAGE])))

    def _priority(self, target: str, *, few: bool) -> int:
        return PER_PRIORITY * self._priorities.get(target, 0) + (FEW_FIRST if few else 0)

    async def _look_at_components(self, since: int, records: Sequence[EventRecord]) -> bool:
        """Read again what is installed if any component was added, became ready, failed, or went; return whether it was."""
        changed = self._known < 0 or any(record.type in _COMPONENTS and record.seq > self._known for record in records)
        if not changed and self._known < since:  # another process planned what came between
            changed = bool(await self._metadata.events(self._known, types=_COMPONENTS, limit=1))
        if changed:
            known = await self._metadata.last_event()
            installed = await self._metadata.components()
            self._needs = await asyncio.to_thread(needs_of, installed)  # it decodes queries
            self._installation = await self._installed(installed)
            self._known = known
        else:
            self._known = max(self._known, records[-1].seq)
        return changed

    async def _installed(self, records: Sequence[ComponentRecord]) -> Installation:
        found = await self._registry.listeners()
        self._priorities = {record.uuid: priority_of(record) for record, _ in found}
        listeners = [
            InstalledListener(
                record.uuid,
                record.identifier,
                state.root,
                state.tables,
                state.listeners,
                state.active,
                record.status == "ready",
                record.version,
                record.status == "failed",
            )
            for record, state in found
        ]
        triggers = [
            InstalledTrigger(record.uuid, record.identifier, declared["table"], declared["on"])
            for record, declared in await self._registry.declared("trigger")
        ]
        schedules = await self._registry.declared("schedule")
        return Installation(
            listeners,
            triggers,
            [record.uuid for record, declared in schedules if declared["object"] != _NOTHING],
            _models(records),
            [each.uuid for each in records if each.type_id == "dataset" and each.status != "ready"],
            {uuid: self._needs.dependents(uuid) for uuid in self._needs.unready},
        )

    def _job(self, each: Plan) -> JobRecord:
        payload = {"ids": list(each.ids), "since": each.since, **each.arguments}
        return JobRecord(
            id=uuid.uuid4().hex,
            kind=each.kind,
            target=each.target,
            payload=codec.dumps(payload).decode(),
            first=each.first,
            last=each.last,
            created=self._metadata.clock.now(),
            max_attempts=self._max_attempts,
            not_before=self._metadata.clock.now() + HELD if "waits" in payload else 0.0,
            state="upstream_failed" if each.failed else "pending",
            error=each.failed or None,
            priority=self._priority(each.target, few=bool(each.ids)),
        )


def _models(records: Sequence[ComponentRecord]) -> list[InstalledModel]:
    models = [each for each in records if each.type_id == "model"]
    newest = {each.identifier: each.uuid for each in models}  # they come in the order of their versions
    found = []
    for each in models:
        data = msgspec.json.decode(each.data)
        untrained = each.status != "ready" and trained_on(data["fields"]) is not None
        validation = data["fields"].get("validation", {"$": "value"})
        by = data["children"]["/".join(validation["v"])] if validation["$"] == "component" else None
        found.append(InstalledModel(each.uuid, each.identifier, untrained, by, newest[each.identifier] == each.uuid))
    return found
