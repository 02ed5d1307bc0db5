"""Completion: knowing when all that an event asked for has been done.

An event is complete once no unfinished job, and no event that is still to be planned, was caused by it, nor is it.
One task watches for all who wait.
"""

from __future__ import annotations

import asyncio
import bisect
import logging
from collections.abc import Awaitable, Callable, Sequence

from asyncdl import codec
from asyncdl.errors import ClosedError, StoreError
from asyncdl.events.types import ComponentAdded
from asyncdl.jobs.scheduler import CURSOR, PLANNED_TYPES
from asyncdl.metadata.base import JobFilter, MetadataStore
from asyncdl.metadata.records import GOING_ON, UNFINISHED, ComponentRecord
from asyncdl.together import raise_if_cancelled

logger = logging.getLogger("asyncdl.jobs")


class Completion:
    """Watches the log and the jobs for those who wait for events' work to end.

    Parameters
    ----------
    settled
        Tells whether it is known of every write what became of it: its recovery is an event like any other.
    """

    def __init__(self, metadata: MetadataStore, settled: Callable[[], Awaitable[bool]]) -> None:
        self._metadata = metadata
        self._settled = settled
        self._waiting: dict[asyncio.Future[None], tuple[int, int] | None] = {}
        self._asked = asyncio.Event()
        self._closed = False

    async def run(self) -> None:
        """Watch until cancelled; reads nothing while nobody waits."""
        seen = 0
        while True:
            await self._asked.wait()
            if not self._waiting:
                self._asked.clear()
                continue
            try:
                await self._look()
            except StoreError:
                raise_if_cancelled()
                logger.exception("cannot look for completed work; trying again")
                await asyncio.sleep(0.5)
                continue  # no other commit need come
            seen = await self._metadata.wait_for_commits(seen, "completion")

    async def _look(self) -> None:
        asked = dict(self._waiting)  # who asks while we read is looked at next time
        idle = None in asked.values() and await self._settled()  # first: a recovery after it has its event looked at
        if idle:
            idle = not await self._metadata.pending_causes(CURSOR, PLANNED_TYPES, GOING_ON)
        ranges = _Ranges([])
        if any(events is not None for events in asked.values()):
            ranges = _Ranges(await self._metadata.pending_causes(CURSOR, PLANNED_TYPES))
        for future, events in asked.items():
            done = idle if events is None else not ranges.overlap(*events)
            if done:
                self._waiting.pop(future, None)
                if not future.done():
                    future.set_result(None)

    async def wait(self, first: int, last: int) -> None:
        """Wait until everything that these events asked for has been done, and what that asked for, to the end."""
        await self._wait((first, last))

    async def wait_idle(self) -> None:
        """Wait until nothing is left to be done, but for what is paused."""
        await self._wait(None)

    async def _wait(self, events: tuple[int, int] | None) -> None:
        if self._closed:
            raise ClosedError("the datalayer is closed")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = events
        self._asked.set()
        self._metadata.wake()
        try:
            await future
        finally:
            self._waiting.pop(future, None)

    def close(self) -> None:
        """Let all who wait know that nobody watches any more; their work stays in the log."""
        self._closed = True
        for future in list(self._waiting):
            if not future.done():
                future.set_exception(ClosedError("the datalayer was closed while its work was waited for; it goes on when "
                                                 "the datalayer is next opened"))  # fmt: skip


async def set_up_range(metadata: MetadataStore, records: Sequence[ComponentRecord]) -> tuple[int, int]:
    """Return the range of events whose work completes components that are not complete yet; (0, 0): all are.

    An event may be gone from the log; the jobs that it led to are not.
    """
    pending = [record for record in records if record.status == "pending"]
    if not pending:
        return 0, 0
    names, uuids = [each.identifier for each in pending], {each.uuid for each in pending}
    added = await metadata.events(0, types=[ComponentAdded.__name__], topics=names, limit=100_000)
    found = [(each.seq, each.seq) for each in added if codec.loads(each.payload)["uuid"] in uuids]
    for uuid in uuids:
        found += [(job.first, job.last) for job in await metadata.jobs(JobFilter(states=UNFINISHED, target=uuid))]
    return min((first for first, _ in found), default=0), max((last for _, last in found), default=0)


class _Ranges:
    """Closed intervals of integers, merged, for asking many times whether one overlaps."""

    def __init__(self, ranges: list[tuple[int, int]]) -> None:
        self._first: list[int] = []
        self._last: list[int] = []
        for first, last in sorted(ranges):
            if self._last and first <= self._last[-1]:
                self._last[-1] = max(self._last[-1], last)
            else:
                self._first.append(first)
                self._last.append(last)

    def overlap(self, first: int, last: int) -> bool:
        at = bisect.bisect_right(self._first, last) - 1
        return at >= 0 and self._last[at] >= first
