"""Waking the readers of the event log."""

from __future__ import annotations

import asyncio


class Wakeup:
    """A counter of commits that can be awaited; none is missed between looking and waiting."""

    def __init__(self) -> None:
        self._count = 1
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Count one more, and wake all who wait."""
        self._count += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, seen: int) -> int:
        """Wait until the count differs from ``seen``, and return it."""
        while self._count == seen:
            await self._changed.wait()
        return self._count
