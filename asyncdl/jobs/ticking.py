"""What fires schedules: in every worker, and each time once.

A cursor of each schedule stands at the time at which it fired last, in microseconds; who moves it, fires.
"""

from __future__ import annotations

import asyncio
import contextlib

from asyncdl.components.registry import Registry
from asyncdl.components.schedule import Schedule
from asyncdl.errors import ConflictError
from asyncdl.events.types import ScheduleFired
from asyncdl.metadata.base import MetadataStore
from asyncdl.metadata.changes import AppendEvent, Change, MoveCursor
from asyncdl.metadata.records import ComponentRecord

_LONGEST = 60.0
"""Seconds after which the clock is looked at again: it may have been set."""


class Ticking:
    """Fires schedules."""

    def __init__(self, metadata: MetadataStore, registry: Registry) -> None:
        self._metadata = metadata
        self._registry = registry

    async def run(self) -> None:
        """Fire until cancelled."""
        while True:
            seen = await self._metadata.wait_for_commits(0, "components")  # as of now: what comes later is looked at
            due = await self.fire(self._metadata.clock.now())
            await self._until(due, seen)

    async def _until(self, due: float | None, seen: int) -> None:
        """Wait until a time, or until the schedules may be others."""
        wait = _LONGEST if due is None else min(max(due - self._metadata.clock.now(), 0.0), _LONGEST)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._metadata.wait_for_commits(seen, "components")

    async def fire(self, now: float) -> float | None:
        """Fire what is due; return when the next is, None if nothing will be."""
        newest: dict[str, ComponentRecord] = {
            record.identifier: record for record in await self._metadata.components(type_id="schedule")
        }
        times = []
        for record in newest.values():
            schedule = await self._registry.load(record)
            assert isinstance(schedule, Schedule)  # noqa: S101 - records of this type become schedules
            await self._fire(schedule, record, now)
            times.append(schedule.next(now, record.created))
        return min(times, default=None)

    async def _fire(self, schedule: Schedule, record: ComponentRecord, now: float) -> None:
        at = schedule.last(now, record.created)
        if at is None:
            return
        name, tick = f"schedule:{record.uuid}", int(at * 1e6)
        before = await self._metadata.cursor(name) or 0
        if before >= tick:
            return
        fired = ScheduleFired(identifier=record.identifier, uuid=record.uuid, at=at)
        changes: list[Change] = [MoveCursor(name, tick, expected=before), fired.change()]
        if schedule.publish is not None:
            changes.append(AppendEvent(**schedule.publish, created=now))
        try:
            await self._metadata.commit(*changes)
        except ConflictError:
            return  # another process was first
