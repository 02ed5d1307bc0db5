"""Turns at a few places, such as threads, that leave none for somebody who asks for few.

The next place goes to the one of those waiting who holds the fewest; among these, to the one whose last turn, or coming, was
first. So a model that many batches wait for does not hold up another's. (It is round robin, and not fair in time: nobody knows
how long a batch will take.)
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from itertools import count


class Turns:
    """Places that are taken and given back, in one event loop.

    Parameters
    ----------
    places
        How many there are.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._held: Counter[str] = Counter()
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}
        """Who waits, by name; only while no place is free, and no line is empty."""
        self._round: dict[str, int] = {}
        """When each of those who wait or hold a place had a turn last, or came."""
        self._moment = count()

    async def take(self, whose: str) -> None:
        """Wait for a place."""
        if self._free:
            self._seat(whose)
            return
        self._round.setdefault(whose, next(self._moment))
        turn = asyncio.get_running_loop().create_future()
        self._lines.setdefault(whose, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(whose, turn)
            else:
                self.give_back(whose)  # it came in the same moment
            raise

    def give_back(self, whose: str) -> None:
        """Let the next one have the place."""
        self._free += 1
        self._held[whose] -= 1
        self._forget(whose)
        while self._free and self._lines:
            following = min(self._lines, key=lambda each: (self._held[each], self._round[each]))
            turn = self._lines[following][0]
            if not turn.cancelled():
                self._seat(following)
                turn.set_result(None)
            self._leave(following, turn)

    def _seat(self, whose: str) -> None:
        self._free -= 1
        self._held[whose] += 1
        self._round[whose] = next(self._moment)

    def _leave(self, whose: str, turn: asyncio.Future[None]) -> None:
        line = self._lines.get(whose, ())
        if turn in line:
            self._lines[whose].remove(turn)
            if not line:
                del self._lines[whose]
                self._forget(whose)

    def _forget(self, whose: str) -> None:
        if not self._held[whose]:
            del self._held[whose]
            if whose not in self._lines:
                del self._round[whose]
