"""When a model with a rate limit may be called next, in all processes together.

A cursor in the metadata store stands at the time, in microseconds, from which on the next call may begin: the virtual
scheduling of the generic cell rate algorithm (ITU-T I.371). A process moves it for some calls at once, as many as wait but for
no more than a tenth of a second, and has them begin at equal distances from where it stood. What it does not use is lost.
"""

from __future__ import annotations

import asyncio
import math

from asyncdl.components.cursors import rate_of
from asyncdl.errors import ConflictError
from asyncdl.metadata.base import MetadataStore
from asyncdl.metadata.changes import MoveCursor

_BLOCK = 0.1
"""Seconds for which calls are reserved at once."""
_STALE = 0.5
"""Seconds after which what was reserved is not used any more."""


class Rate:
    """Tells the calls of one model, in this process, when they may begin."""

    def __init__(self, metadata: MetadataStore, name: str) -> None:
        self._metadata = metadata
        self._cursor = rate_of(name)
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._left = 0
        self._next = 0.0
        """When the next call may begin, by the loop's clock."""

    async def turn(self, rate: float) -> None:
        """Wait, in line, until a call may begin.

        Parameters
        ----------
        rate
            Calls in a second.
        """
        loop = asyncio.get_running_loop()
        self._waiting += 1
        try:
            async with self._turn:
                if not self._left or loop.time() > self._next + max(_STALE, 1 / rate):
                    await self._reserve(rate)
                # a timer may be early by its resolution
                while (wait := self._next - loop.time()) > 0:  # noqa: ASYNC110 - time is what it waits for
                    await asyncio.sleep(wait)
                self._left -= 1
                self._next = loop.time() + 1 / rate  # after a late one, no faster
        finally:
            self._waiting -= 1

    async def _reserve(self, rate: float) -> None:
        self._left = 0
        while True:
            free = await self._metadata.cursor(self._cursor) or 0
            now = int(self._metadata.clock.now() * 1e6)
            calls = max(1, min(self._waiting, int(rate * _BLOCK)))
            begin = max(now, free)
            end = begin + math.ceil(calls * 1e6 / rate)
            try:
                await self._metadata.commit(MoveCursor(self._cursor, end, expected=free))
            except ConflictError:
                continue
            self._left = calls
            clock = asyncio.get_running_loop().time()
            wait = max(begin - int(self._metadata.clock.now() * 1e6), 0) / 1e6
            self._next = clock + max(wait, min(self._next - clock, 1 / rate))
            return
