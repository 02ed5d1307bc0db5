"""Which batches go to a Dask cluster together.

A Dask task costs client, scheduler and worker about a millisecond each, whatever is in it. So batches of one model that
stand in line for their place, and take only some milliseconds each, go as one task: a bundle. Bundles are for work that waits
anyway; they are never so large that a thread of the workers has nothing to do.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from asyncdl.compute.base import ModelCall

SMALL = 100_000
"""Bytes of pickled inputs up to which a batch goes with others."""

_ENOUGH = 0.03
"""Seconds of work in a bundle, beside which the cost of a Dask task does not count."""
_LEAST = 0.0001
"""Seconds that a batch is taken to last at least."""
_MOST_BYTES = 500_000
_NEWEST = 0.25
"""How much the newest batch counts in an average."""


Answer = tuple[float | None, bytes]
"""The seconds that a batch took on its worker, if they were measured, and what the worker answered."""


@dataclass(slots=True)
class Pace:
    """How long a model's batches take on a worker, and how many bytes their pickled inputs have: moving averages."""

    seconds: float | None = None
    size: float = 0.0

    def took(self, seconds: float) -> None:
        """Take in how long a batch took."""
        self.seconds = seconds if self.seconds is None else self.seconds + _NEWEST * (seconds - self.seconds)

    def sent(self, size: int) -> None:
        """Take in how large a batch was."""
        self.size += _NEWEST * (size - self.size)


def bundle_size(pace: Pace, waiting: int, threads: int) -> int:
    """Return how many batches go together.

    Parameters
    ----------
    waiting
        How many there are, for this many ``threads``: each gets its share before one gets more.
    """
    if pace.seconds is None or pace.size > SMALL:
        return 1
    enough = min(_ENOUGH / max(pace.seconds, _LEAST), _MOST_BYTES / max(pace.size, 1.0))
    share = -(-waiting // max(threads, 1))
    return max(1, min(int(enough), share))


class Traveller(Protocol):
    """Who stands in line."""

    aboard: Any


def goes_alone(call: ModelCall) -> bool:
    """Return whether a model's batches never go with others: they take long, or wait on the worker for a limit."""
    return call.long or call.at_most is not None or call.rate_limit is not None


@dataclass(eq=False, slots=True)
class Load:
    """A batch that waits for its answer: first here, for its place, then for the worker.

    Parameters
    ----------
    parcel
        How a worker gets the model.
    prefer
        The worker that it had better go to.
    alone
        Whether it goes with no other.
    """

    key: str
    flight: Traveller
    parcel: bytes
    inputs: Any
    pace: Pace
    prefer: str | None
    alone: bool
    answer: asyncio.Future[Answer] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    taken: bool = False

    @property
    def kind(self) -> tuple[bytes, str | None]:
        """What batches have in common that may go together."""
        return self.parcel, self.prefer

    def succeed(self, answer: Answer) -> None:
        """End the wait, if there still is one."""
        if not self.answer.done():
            self.answer.set_result(answer)

    def fail(self, error: BaseException) -> None:
        """End the wait with an exception, if there still is one."""
        if not self.answer.done():
            self.answer.set_exception(error)


class Line:
    """Lets so many bundles be under way at once; batches stand in line for them.

    Parameters
    ----------
    send
        Sends a bundle on its way; `left` is called when it is over.
    """

    def __init__(self, send: Callable[[Line, list[Load]], object]) -> None:
        self._send = send
        self._size = 0
        self._threads = 0
        self._inside = 0
        self._waiting: deque[Load] = deque()
        self._alike: defaultdict[tuple[bytes, str | None], deque[Load]] = defaultdict(deque)
        self._admitting = False

    def resize(self, size: int, threads: int) -> None:
        """Let so many in from now on, for so many threads; those inside stay."""
        self._size, self._threads = size, threads
        self._admit_soon()

    def join(self, load: Load) -> None:
        """Put a batch at the end of the line; one that nobody waits for any more loses its place by itself."""
        self._waiting.append(load)
        if not load.alone:
            self._alike[load.kind].append(load)
        self._admit_soon()

    def left(self) -> None:
        """Take notice that a bundle is over."""
        self._inside -= 1
        self._admit_soon()

    def _admit_soon(self) -> None:
        # Not at once: those who come in this turn of the loop are seen together, and shared out among the threads.
        if not self._admitting and self._waiting:
            self._admitting = True
            asyncio.get_running_loop().call_soon(self._admit)

    def _admit(self) -> None:
        self._admitting = False
        while self._inside < self._size and (first := self._next()) is not None:
            self._inside += 1
            self._send(self, [first] if first.alone else self._bundle(first))

    def _next(self) -> Load | None:
        while self._waiting:
            load = self._waiting.popleft()
            if not load.taken and not load.answer.done():
                return load
        return None

    def _bundle(self, first: Load) -> list[Load]:
        alike = self._alike[first.kind]
        size = bundle_size(first.pace, len(alike), self._threads)
        bundle: list[Load] = []
        while alike and len(bundle) < size:
            load = alike.popleft()  # in the same order as in the line: the first is among them
            if not load.answer.done():
                load.taken = True
                bundle.append(load)
        if not alike:
            del self._alike[first.kind]
        return bundle
