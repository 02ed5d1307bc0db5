"""How many rows to take at once."""

from __future__ import annotations

SMALLEST, LARGEST = 16, 4096
_FIRST = 256
_TARGET = 0.1


class BatchSize:
    """Grows and shrinks towards batches of a tenth of a second.

    Long enough that the costs of a batch vanish, short enough that memory stays small and a shutdown soon comes to the
    end of the one that runs.

    Parameters
    ----------
    at_least
        Where there is no gain in fewer (a coroutine model's concurrency).
    """

    def __init__(self, at_least: int = 1) -> None:
        self._floor = min(max(SMALLEST, at_least), LARGEST)
        self.size = max(_FIRST, self._floor)

    def took(self, rows: int, seconds: float) -> None:
        """Learn from a batch."""
        if seconds > _TARGET * 2:  # too long, even if it was not full
            self.size = max(self.size // 2, self._floor)
        elif seconds < _TARGET / 2 and rows >= self.size:
            self.size = min(self.size * 2, LARGEST)
