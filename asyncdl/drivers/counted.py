"""What several share: opened by the first of them, closed by the last."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager, nullcontext


class Counted(ABC):
    """A database that several stores open, each for itself."""

    def __init__(self) -> None:
        self._openers = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening = asyncio.Lock()
        self._make_room()

    async def open(self) -> None:
        """Connect; opening twice is counted, and closed by as many `aclose`."""
        loop = asyncio.get_running_loop()
        if (
            self._openers == 0 and self._loop is not loop
        ):  # a lock belongs to the first loop in which somebody waited for it
            self._loop = loop
            self._opening = asyncio.Lock()
            self._make_room()
        async with self._opening:
            if self._openers == 0:
                await self._connect()
            self._openers += 1

    async def aclose(self) -> None:
        """Close every connection once the last opener has closed, and transactions under way have ended."""
        async with self._opening:
            if self._openers > 1:
                self._openers -= 1
            elif self._openers == 1:
                async with self._quiet():
                    self._openers = 0
                    await self._dispose()

    @abstractmethod
    def _make_room(self) -> None:
        """Make what those who use the database wait at, locks and semaphores: for each event loop that it is opened in."""

    @abstractmethod
    async def _connect(self) -> None:
        """Connect; what fails leaves nothing open."""

    @abstractmethod
    async def _dispose(self) -> None:
        """Close everything."""

    def _quiet(self) -> AbstractAsyncContextManager[object]:
        """Wait until no transaction is under way, and let none begin in this block."""
        return nullcontext()
