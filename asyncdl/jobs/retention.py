"""Retention: deleting old events that nobody will ask for any more.

An event stays while a named subscription has not dealt with it, the scheduler has not planned it, a job is unfinished that it,
or an earlier one, has caused (a running job looks up what happened since it read its rows), or it is younger than is said.

A cursor stands at the last one deleted, and moves in the commit of each deletion: so readers learn of it, and of two
processes one gets through. The first of these commits publishes an `EventsTrimmed`: who looks only for the newest events of a
kind (the scheduler, for components) sees by it that others may have gone.
"""

from __future__ import annotations

import asyncio
import logging

from asyncdl.errors import ConflictError, StoreError
from asyncdl.events.log import SUBSCRIBER, TRIMMED
from asyncdl.events.types import EventsTrimmed
from asyncdl.jobs.scheduler import CURSOR, PLANNED_TYPES
from asyncdl.metadata.base import MetadataStore
from asyncdl.metadata.changes import Change, DeleteEvents, MoveCursor
from asyncdl.together import raise_if_cancelled

logger = logging.getLogger("asyncdl.jobs")

_EVERY = 60.0
STEP = 2000
"""Events deleted in one commit: so few that others' commits hardly wait for it."""


class Retention:
    """Deletes old events.

    Parameters
    ----------
    keep
        Seconds for which events stay.
    """

    def __init__(self, metadata: MetadataStore, keep: float) -> None:
        self._metadata = metadata
        self._keep = keep

    async def run(self) -> None:
        """Delete what is old, now and then, until cancelled."""
        while True:
            try:
                await self.trim(self._metadata.clock.now())
            except ConflictError:
                logger.debug("another process deletes old events")
            except StoreError:
                raise_if_cancelled()
                logger.exception("cannot delete old events; trying again later")
            await asyncio.sleep(_EVERY)

    async def trim(self, now: float) -> int:
        """Delete what may go at a time; return the largest ``seq`` that has been deleted.

        Raises
        ------
        ConflictError
            Another process deletes them.
        """
        trimmed = await self._metadata.cursor(TRIMMED) or 0
        up_to = await self._old(trimmed, await self._held(), now - self._keep)
        going = await self._metadata.events(trimmed, up_to=up_to, limit=2)
        if not going or [each.type for each in going] == [EventsTrimmed.__name__]:
            return trimmed  # what tells of the last time does not have another time told of
        told: list[Change] = [EventsTrimmed(up_to=up_to).change()]
        while trimmed < up_to:
            step = min(trimmed + STEP, up_to)
            await self._metadata.commit(DeleteEvents(step), MoveCursor(TRIMMED, step, expected=trimmed), *told)
            trimmed, told = step, []
            await asyncio.sleep(0)
        return trimmed

    async def _held(self) -> int:
        """Return the largest ``seq`` up to which nobody needs the events."""
        last = await self._metadata.last_event()
        cursors = await self._metadata.cursors()
        held = [seq for name, seq in cursors.items() if name.startswith(SUBSCRIBER)]
        causes = await self._metadata.pending_causes(CURSOR, PLANNED_TYPES)
        return min([last - 1, *held, *(first - 1 for first, _ in causes)])

    async def _old(self, trimmed: int, held: int, limit: float) -> int:
        """Return the largest ``seq``, up to ``held``, before which everything is older than a time: by bisection."""
        low, high = trimmed, held
        while low < high:
            middle = (low + high) // 2
            found = await self._metadata.events(middle, up_to=high, limit=1)
            if found and found[0].created < limit:
                low = found[0].seq
            else:
                high = middle
        return low
