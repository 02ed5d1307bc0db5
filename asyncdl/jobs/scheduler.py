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
from asyncdl.components.registry import Registry
from asyncdl.components.schedule import nothing
from asyncdl.errors import ConflictError
from asyncdl.events.types import ComponentEvent, Event, JobCancelled, JobFailed
from asyncdl.jobs.needs import HELD, Needs, let_go, needs_of, trained_on
from asyncdl.jobs.planner import (
    PLANNED,
    Installation,
    InstalledListener,
    InstalledModel,
    InstalledTrigger,
    Plan,
    merge,
    plan,
)
from asyncdl.metadata.base import ComponentRecord, JobRecord, MetadataStore, MoveCursor, PutJob

logger = logging.getLogger("asyncdl.jobs")

CURSOR = "scheduler"
_NOTHING = reference_of(nothing)
_PAGE = 500
PLANNED_TYPES = sorted({each.__name__ for base in PLANNED for each in (base, *base.__subclasses__())})
"""The names of the events that are planned; the others are passed over, and need no commit of the cursor."""
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

    async def _look_at_components(self, upto: int) -> None:
        """Read again what is installed if any component was added, became ready, failed, or went."""
        if self._known < 0 or await self._metadata.events(self._known, types=_COMPONENTS, limit=1):
            records = await self._metadata.components()
            self._needs = await asyncio.to_thread(needs_of, records)  # it decodes queries
            self._installation = await self._installed(records)
        self._known = upto

    async def _installed(self, records: Sequence[ComponentRecord]) -> Installation:
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
            for record, state in await self._registry.listeners()
        ]
        triggers = [
            InstalledTrigger(record.uuid, found["table"], found["on"], record.created)
            for record, found in await self._registry.declared("trigger")
        ]
        schedules = await self._registry.declared("schedule")
        return Installation(
            listeners,
            triggers,
            [record.uuid for record, found in schedules if found["object"] != _NOTHING],
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
            priority=10 if each.ids else 0,  # a few rows go before a whole table
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
