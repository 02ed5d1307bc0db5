"""A bound on what is under way at once, which may change meanwhile."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Window:
    """Lets so many in at once; others stand in line."""

    def __init__(self) -> None:
        self._size = 0
        self._inside = 0
        self._line: deque[asyncio.Future[None]] = deque()

    def resize(self, size: int) -> None:
        """Let so many in from now on; those inside stay."""
        self._size = size
        self._admit()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait, in line, for a place, and hold it."""
        if self._line or self._inside >= self._size:
            turn = asyncio.get_running_loop().create_future()
            self._line.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # admitted in the same turn of the loop
                    self._inside -= 1
                    self._admit()
                raise
        else:
            self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            self._admit()

    def _admit(self) -> None:
        while self._line and self._inside < self._size:
            turn = self._line.popleft()
            if not turn.done():
                self._inside += 1
                turn.set_result(None)
