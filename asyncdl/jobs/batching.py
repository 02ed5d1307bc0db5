"""How many rows to take at once, and how far to read ahead."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import Any

SMALLEST, LARGEST = 16, 8192
_FIRST = 256
_TARGET, _MOVING = 0.1, 1.0
"""Seconds of the model's, and of reading and writing."""
BYTES = 32 * 1024 * 1024
"""Of the inputs of a batch, at most."""
_QUICK = 0.02


class BatchSize:
    """Grows and shrinks towards batches on which the model spends a tenth of a second, and of 32 MB at most.

    Long enough that the costs of a batch vanish, short enough that memory stays small and a shutdown soon comes to the end
    of the one that runs.

    Parameters
    ----------
    at_least
        Where there is no gain in fewer (a coroutine model's concurrency).
    at_most
        Where there is none in more (a model's rate limit).
    target
        Another time for the model to spend on one.
    first
        How many rows to begin with.
    """

    def __init__(
        self, at_least: int = 1, at_most: int = LARGEST, *, target: float = _TARGET, first: int = _FIRST
    ) -> None:
        self._target = target
        self._most = min(at_most, LARGEST)
        self._floor = min(max(SMALLEST, at_least), self._most)
        self._ceiling = self._most
        self.size = min(max(first, self._floor), self._ceiling)

    def took(self, rows: int, computing: float, moving: float = 0.0) -> None:
        """Learn from a batch: by being fast, one that was not full says nothing.

        Parameters
        ----------
        computing
            Seconds that the model took.
        moving
            Seconds of reading and writing. Much of them is a batch's own, whatever its size, so they ask for larger ones
            for much longer: smaller ones would make a database that is slow, or busy, only more so.
        """
        if computing > self._target * 2 or moving > _MOVING * 2:
            self.size = max(self.size // 2, min(self._floor, self._ceiling))
        elif computing < self._target / 2 and moving < _MOVING / 2 and rows >= self.size:
            far = computing < self._target / 8 and moving < _MOVING / 8
            self.size = min(self.size * (4 if far else 2), self._ceiling)

    def weighed(self, weight: float) -> None:
        """Learn from what an average value of a batch weighs: it tells how many fit into the memory that one may take."""
        if weight:
            self._ceiling = min(max(SMALLEST, min(LARGEST, int(BYTES / weight))), self._most)
            self.size = min(self.size, self._ceiling)


def weight_of(column: Sequence[Any]) -> float:
    """Return the bytes of an average value, by a sample of them; 0.0 for none."""
    sample = column[:: max(len(column) // 16, 1)]
    return sum(map(_weight, sample)) / len(sample) if sample else 0.0


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

    def widen(self) -> None:
        """Let it run ahead as far as it may, at once: it reads little."""
        for _ in range(self._most() - self._permitted):
            self._permitted += 1
            self._permits.release()

    def computed(self, seconds: float) -> None:
        """Learn how long the model took for a batch."""
        if seconds > _QUICK and self._permitted < self._most():
            self._permitted += 1
            self._permits.release()
