"""Small inserts of many tasks, merged: what waits while one is written is written with the next, as one.

A commit costs the same for one row as for fifty, and so does the work that follows from its event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from asyncdl.databackend.requests import WriteRequest, Written
from asyncdl.errors import ClosedError, StoreTimeoutError, StoreUnavailableError
from asyncdl.metadata.records import EventRecord

Result = tuple[Written, list[EventRecord]]

_ROWS = 1000
"""Rows that are written together at most."""
_SMALL = 100
"""Rows up to which an insert is worth merging."""


@dataclass(slots=True, eq=False)
class _Waiting:
    request: WriteRequest
    done: asyncio.Future[Result]


class GroupedInserts:
    """Merges inserts into one table that come while another is under way; one that comes alone is written at once.

    Each caller gets the ids of its own rows, and the events of the group, which tell of them. If the group is refused, each
    of its inserts is tried by itself: so nobody gets another's error. A caller who goes away before his turn writes nothing.

    Parameters
    ----------
    write
        Writes one request, with its events, all or nothing.
    decided
        Called when it has been decided what becomes of an insert whose caller went away while it was written.
    """

    def __init__(
        self, write: Callable[[WriteRequest], Awaitable[Result]], decided: Callable[[], None] = lambda: None
    ) -> None:
        self._write = write
        self._decided = decided
        self._waiting: dict[str, list[_Waiting]] = {}
        self._under_way: dict[str, list[_Waiting]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @staticmethod
    def takes(request: WriteRequest) -> bool:
        """Return whether a request is a small insert."""
        return request.kind == "insert" and 0 < len(request.rows) <= _SMALL

    async def write(self, request: WriteRequest) -> Result:
        """Write an insert, by itself or with others."""
        waiting = _Waiting(request, asyncio.get_running_loop().create_future())
        if request.table in self._waiting:
            self._waiting[request.table].append(waiting)
        else:
            self._waiting[request.table] = [waiting]
            task = asyncio.create_task(self._run(request.table), name=f"asyncdl: inserts into {request.table}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await waiting.done

    @property
    def settled(self) -> bool:
        """Whether no insert is under way whose caller has gone away."""
        return not any(map(_left, self._under_way.values()))

    async def aclose(self) -> None:
        """Wait until what is under way has been written."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _run(self, table: str) -> None:
        """Write groups until nobody waits."""
        try:
            while group := self._next(table):
                self._under_way[table] = group
                await self._write_group(group)
                if _left(group):
                    self._decided()
        finally:
            self._under_way.pop(table, None)
            for each in self._waiting.pop(table, []):  # this task was cancelled: the event loop ends
                each.done.cancel()

    def _next(self, table: str) -> list[_Waiting]:
        waiting = [each for each in self._waiting[table] if not each.done.done()]
        count = rows = 0
        for each in waiting:
            rows += len(each.request.rows)
            if rows > _ROWS:
                break
            count += 1
        self._waiting[table] = waiting[count:]
        return waiting[:count]

    async def _write_group(self, group: list[_Waiting]) -> None:
        if len(group) == 1:
            await self._write_one(group[0])
            return
        rows = [row for each in group for row in each.request.rows]
        try:
            written, events = await self._write(replace(group[0].request, rows=rows))
        except (ClosedError, StoreUnavailableError, StoreTimeoutError) as error:
            for each in group:  # it may have been written: nothing is tried twice
                _settle(each.done, error)
        except Exception:
            for each in group:
                await self._write_one(each)
        else:
            at = 0
            for each in group:
                end = at + len(each.request.rows)
                _settle(each.done, (Written(written.ids[at:end]), events))
                at = end

    async def _write_one(self, waiting: _Waiting) -> None:
        if waiting.done.done():
            return
        try:
            _settle(waiting.done, await self._write(waiting.request))
        except Exception as error:
            _settle(waiting.done, error)


def _left(group: Sequence[_Waiting]) -> bool:
    """Return whether a caller has gone away."""
    return any(each.done.cancelled() for each in group)


def _settle(done: asyncio.Future[Result], result: Result | Exception) -> None:
    if done.done():  # its caller has gone
        return
    if isinstance(result, Exception):
        done.set_exception(result)
    else:
        done.set_result(result)
