"""The store's clock: the one by which the processes that share a metadata store agree on when a lease ends.

Their own clocks may differ by hours. So each asks the store what time it is, and then counts seconds for itself.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial

_GOOD = 0.1
"""Seconds within which an answer is good enough not to ask again."""
_TRIES = 3

# What counts seconds however the clock is set, also those in which the machine sleeps; else, the clock itself.
_counted: Callable[[], float] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.time
)


class StoreClock:
    """What time it is for the store.

    Parameters
    ----------
    ask
        Returns the store's time, in seconds since 1970.
    """

    def __init__(self, ask: Callable[[], Awaitable[float]]) -> None:
        self._ask = ask
        self._began = time.time() - _counted()  # until it has been set

    async def set(self) -> None:
        """Ask the store; to be repeated now and then, since no two clocks run alike."""
        best = float("inf")
        for _ in range(_TRIES):
            before = _counted()
            found = await self._ask()
            took = _counted() - before
            if took < best:
                best = took
                self._began = found - before - took / 2
            if best < _GOOD:
                return

    def now(self) -> float:
        """Return the store's time, in seconds since 1970, without asking."""
        return self._began + _counted()
