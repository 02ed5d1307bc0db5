"""The scheduler: reads the event log, and turns what happened into jobs, exactly once."""

from __future__ import annotations

import logging
import time
import uuid

from asyncdl import codec
from asyncdl.components.registry import Registry
from asyncdl.errors import ConflictError
from asyncdl.events.types import ComponentEvent, Event
from asyncdl.jobs.planner import PLANNED, InstalledListener, Plan, merge, plan
from asyncdl.metadata.base import EventRecord, JobRecord, MetadataStore, MoveCursor, PutJob

logger = logging.getLogger("asyncdl.jobs")

CURSOR = "scheduler"
_PAGE = 500
_PLANNED = {each.__name__ for base in PLANNED for each in (base, *base.__subclasses__())}


class Scheduler:
    """Moves one cursor on the log, which all processes share.

    Jobs and the cursor's move are one commit: of several schedulers one wins each page, and the others read on.
    """

    def __init__(self, metadata: MetadataStore, registry: Registry, *, max_attempts: int) -> None:
        self._metadata = metadata
        self._registry = registry
        self._max_attempts = max_attempts
        self._listeners: list[InstalledListener] | None = None
        self._reached = 0

    async def run(self) -> None:
        """Schedule until cancelled."""
        seen = 0
        while True:
            seen = await self._metadata.wait_for_commits(seen)
            while await self.step():
                pass

    async def step(self) -> bool:
        """Plan one page of events; return whether there was one."""
        cursor = await self._metadata.cursor(CURSOR) or 0
        records = await self._metadata.events(cursor, limit=_PAGE)
        if not records:
            return False
        elsewhere = cursor != self._reached  # another process planned the events between, perhaps of components
        if self._listeners is None or elsewhere or any(_concerns_components(record) for record in records):
            self._listeners = await self._installed()
        plans: list[Plan] = []
        for record in records:
            if record.type in _PLANNED:
                plans += plan(Event.from_record(record), self._listeners, record.first, record.last)
        jobs = [PutJob(self._job(each)) for each in merge(plans)]
        try:
            await self._metadata.commit(*jobs, MoveCursor(CURSOR, records[-1].seq, expected=cursor))
        except ConflictError:
            logger.debug("another process has scheduled the events after %d", cursor)
        else:
            self._reached = records[-1].seq
        return True

    async def _installed(self) -> list[InstalledListener]:
        return [
            InstalledListener(record.uuid, record.identifier, state.root, state.tables, state.listeners, state.active)
            for record, state in await self._registry.listeners()
        ]

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
            priority=10 if each.ids else 0,  # a few rows go before a whole table
        )


def _concerns_components(record: EventRecord) -> bool:
    return record.type in {each.__name__ for each in ComponentEvent.__subclasses__()}
