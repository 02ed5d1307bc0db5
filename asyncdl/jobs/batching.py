"""How many rows to take at once, and how far to read ahead."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import Any

SMALLEST, LARGEST = 16, 8192
_FIRST = 256
_TARGET = 0.1
_BYTES = 32 * 1024 * 1024
_QUICK = 0.02


class BatchSize:
    """Grows and shrinks towards batches of a tenth of a second, and of 32 MB at most.

    Long enough that the costs of a batch vanish, short enough that memory stays small and a shutdown soon comes to the end
    of the one that runs.

    Parameters
    ----------
    at_least
        Where there is no gain in fewer (a coroutine model's concurrency).
    at_most
        Where there is none in more (a model's rate limit).
    """

    def __init__(self, at_least: int = 1, at_most: int = LARGEST) -> None:
        self._most = min(at_most, LARGEST)
        self._floor = min(max(SMALLEST, at_least), self._most)
        self._ceiling = self._most
        self.size = min(max(_FIRST, self._floor), self._ceiling)

    def took(self, rows: int, seconds: float) -> None:
        """Learn from a batch's duration: by being fast, one that was not full says nothing."""
        if seconds > _TARGET * 2:
            self.size = max(self.size // 2, min(self._floor, self._ceiling))
        elif seconds < _TARGET / 2 and rows >= self.size:
            self.size = min(self.size * (4 if seconds < _TARGET / 8 else 2), self._ceiling)

    def weighed(self, column: Sequence[Any]) -> None:
        """Learn from the values of a batch: a sample of them tells how many fit into the memory that one may take."""
        sample = column[:: max(len(column) // 16, 1)]
        if sample:
            average = sum(map(_weight, sample)) / len(sample)
            self._ceiling = min(max(SMALLEST, min(LARGEST, int(_BYTES / average))), self._most)
            self.size = min(self.size, self._ceiling)


def _weight(value: Any) -> int:
    return int(getattr(value, "nbytes", 0)) or sys.getsizeof(value)


class ReadAhead:
    """Lets a reader run ahead of the writer by some batches: by none, while the model takes next to no time.

    A thread that reads rows gives up the GIL for each row, and has to wait for it whenever another thread computes. While a
    model is quick, reading beside it costs more than it gains; reading beside the database's writing does not.

    Parameters
    ----------
    most
        How many batches to be ahead at most: asked anew, because workers may come.
    """

    def __init__(self, most: Callable[[], int], *, at_once: bool) -> None:
        self._most = most
        self._permitted = most() if at_once else 1
        self._permits = asyncio.Semaphore(self._permitted)

    async def may_read(self) -> None:
        """Wait until another batch may be read."""
        await self._permits.acquire()

    def writing(self) -> None:
        """Say that a batch is being written."""
        self._permits.release()

    def computed(self, seconds: float) -> None:
        """Learn how long the model took for a batch."""
        if seconds > _QUICK and self._permitted < self._most():
            self._permitted += 1
            self._permits.release()
