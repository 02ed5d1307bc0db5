"""The scheduler: reads the event log, and turns what happened into jobs, exactly once."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Sequence

import msgspec

from asyncdl import codec
from asyncdl.components.fingerprint import reference_of
from asyncdl.components.registry import Registry, priority_of
from asyncdl.components.schedule import nothing
from asyncdl.errors import ConflictError
from asyncdl.events.types import ComponentEvent, ComponentTuned, Event, JobCancelled, JobFailed
from asyncdl.jobs.needs import HELD, Needs, let_go, needs_of, trained_on
from asyncdl.jobs.planner import (
    FEW_FIRST,
    PER_PRIORITY,
    PLANNED,
    Installation,
    InstalledListener,
    InstalledModel,
    InstalledTrigger,
    Plan,
    merge,
    plan,
)
from asyncdl.metadata.base import (
    UNFINISHED,
    ComponentRecord,
    EventRecord,
    JobFilter,
    JobRecord,
    MetadataStore,
    MoveCursor,
    PrioritizeJobs,
    PutJob,
)

logger = logging.getLogger("asyncdl.jobs")

CURSOR = "scheduler"
_NOTHING = reference_of(nothing)
_PAGE = 500
PLANNED_TYPES = sorted(
    {each.__name__ for base in (*PLANNED, ComponentTuned) for each in (base, *base.__subclasses__())}
)
"""The names of the events that are dealt with; the others are passed over, and need no commit of the cursor."""
_COMPONENTS = sorted(each.__name__ for each in (*ComponentEvent.__subclasses__(), JobFailed, JobCancelled))
"""The names of the events after which the installed components may be others, or stand otherwise."""


class Scheduler:
    """Moves one cursor on the log, which all processes share.

    Jobs and the cursor's move are one commit: of several schedulers one wins each page, and the others read on.
    """

    def __init__(self, metadata: MetadataStore, registry: Registry, *, max_attempts: int) -> None:
        self._metadata = metadata
        self._registry = registry
        self._max_attempts = max_attempts
        self._installation = Installation()
        self._needs = Needs()
        self._known = -1
        """The position in the log as of which it was read."""
        self._position: int | None = None
        self._priorities: dict[str, int] = {}
        """Of the installed listeners, by uuid."""

    async def run(self) -> None:
        """Schedule until cancelled."""
        seen = 0
        self._position = None  # after a failure: from what is stored
        while True:
            seen = await self._metadata.wait_for_commits(seen, "events")
            while await self.step():
                pass

    async def step(self) -> bool:
        """Plan one page of events; return whether there was one."""
        if self._position is None:
            self._position = await self._metadata.cursor(CURSOR) or 0
        position = self._position
        records = await self._metadata.events(position, types=PLANNED_TYPES, limit=_PAGE)
        if not records:
            return False
        await self._look_at_components(records[-1].seq)
        happened = [(Event.from_record(record), record.first, record.last) for record in records]
        asked = [each for event, first, last in happened for each in plan(event, self._installation, first, last)]
        await self._prioritize(records)
        jobs = [PutJob(self._job(each)) for each in merge(filter(None, map(self._needs.hold, asked)))]
        moved = await let_go(self._metadata, self._needs, [event for event, _, _ in happened])
        try:
            await self._metadata.commit(*jobs, *moved, MoveCursor(CURSOR, records[-1].seq, expected=position))
        except ConflictError:
            logger.debug(
                "another process has scheduled the events after %d, or moved a job that was held back", position
            )
            self._position, self._known = None, -1
        else:
            self._position = records[-1].seq
        return True

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

    async def _look_at_components(self, upto: int) -> None:
        """Read again what is installed if any component was added, became ready, failed, or went."""
        if self._known < 0 or await self._metadata.events(self._known, types=_COMPONENTS, limit=1):
            records = await self._metadata.components()
            self._needs = await asyncio.to_thread(needs_of, records)  # it decodes queries
            self._installation = await self._installed(records)
        self._known = upto

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
            )
            for record, state in found
        ]
        triggers = [
            InstalledTrigger(record.uuid, declared["table"], declared["on"], record.created)
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
            created=time.time(),
            max_attempts=self._max_attempts,
            not_before=time.time() + HELD if "waits" in payload else 0.0,
            state="upstream_failed" if each.failed else "pending",
            error=each.failed or None,
            priority=self._priority(each.target, few=bool(each.ids)),
        )


def _models(records: Sequence[ComponentRecord]) -> list[InstalledModel]:
    newest = {each.identifier: each for each in records if each.type_id == "model"}
    found = []
    for each in newest.values():
        data = msgspec.json.decode(each.data)
        untrained = each.status != "ready" and trained_on(data["fields"]) is not None
        validation = data["fields"].get("validation", {"$": "value"})
        by = data["children"]["/".join(validation["v"])] if validation["$"] == "component" else None
        found.append(InstalledModel(each.uuid, each.identifier, untrained, by))
    return found
