"""Coroutine functions on the event loop.

A model has a lane: so many calls at once, over all of its batches. A call is no task of its own; a batch has at most as
many tasks as it may have calls under way, and each takes one row after the other, so that a row costs little more than
the waking of a task.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any

from asyncdl.compute.base import ModelCall, RowError
from asyncdl.compute.calling import Function, outputs_of, per_input, row_error
from asyncdl.errors import ModelError
from asyncdl.together import is_ours

Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]

_SLICE = 0.005


class Pace:
    """Gives the rest of the loop its turn.

    Hundreds of calls may begin, or end, in one turn of the loop, each with a little work before it first waits; nobody
    else runs before all of them have. So when a turn has lasted for some milliseconds the others stand in line, and so
    many of them go on in each of the next turns as fit in: twice as many when there was time left, half when not.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._until: float | None = None
        self._line: deque[asyncio.Future[None]] = deque()
        self._at_once = 16
        self._woken = 0

    def spent(self) -> bool:
        """Return whether this turn of the loop has lasted long enough."""
        if self._until is None:
            self._begin()
            return False
        return self._loop.time() > self._until

    async def turn(self) -> None:
        """Stand in line for a turn with time left."""
        place = self._loop.create_future()
        self._line.append(place)
        await place

    def _begin(self) -> None:
        self._until = self._loop.time() + _SLICE
        self._loop.call_soon(self._next)  # what is called soon is called in the next turn

    def _next(self) -> None:
        if self.spent():
            self._at_once = max(1, self._at_once // 2)
        elif self._woken == self._at_once:
            self._at_once *= 2
        self._until = None
        self._woken = min(self._at_once, len(self._line))
        for _ in range(self._woken):
            place = self._line.popleft()
            if not place.done():
                place.set_result(None)
        if self._woken:
            self._begin()


class _Batch:
    """Rows of which calls are under way."""

    def __init__(self, function: Function, inputs: Sequence[Any]) -> None:
        self.function = function
        self.rows: Iterator[tuple[int, Any]] = iter(enumerate(inputs))
        self.untaken = self.unfinished = len(inputs)
        self.outputs: list[Any] = [None] * len(inputs)
        self.finished: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self.workers: set[asyncio.Task[None]] = set()
        self.coming = 0
        """Workers that have not begun yet: each will take a row."""
        self.in_line = False

    def done(self, index: int, output: Any) -> None:
        self.outputs[index] = output
        self.unfinished -= 1
        if not self.unfinished and not self.finished.done():
            self.finished.set_result(self.outputs)


class Lane:
    """One model's calls.

    Parameters
    ----------
    limit
        Calls under way at once.
    pace
        Shared by all that runs on the loop.
    spawn
        Makes a task that somebody owns.
    """

    def __init__(self, limit: int, pace: Pace, spawn: Spawn) -> None:
        self._free = limit
        self._limit = limit
        self._pace = pace
        self._spawn = spawn
        self._waiting: deque[_Batch] = deque()

    @property
    def idle(self) -> bool:
        """Whether no call is under way."""
        return self._free == self._limit

    @property
    def under_way(self) -> int:
        """How many calls are under way."""
        return self._limit - self._free

    def resize(self, limit: int) -> None:
        """Have so many calls under way at once from now on; those that are under way go on to their end."""
        self._free += limit - self._limit
        self._limit = limit
        self._fill()

    async def run(self, function: Function, call: ModelCall, inputs: Sequence[Any]) -> list[Any]:
        """Return the function's outputs for a batch, a `RowError` for each row that it failed on.

        Raises
        ------
        ModelOutputError
            A batch function returned something else than one output for each input.
        ModelError
            A batch function did not answer in time.
        """
        each = per_input(function, call)
        if not call.batch:
            return await self._each(_persistent(each, call, TimeoutError), inputs)
        whole = _whole(_persistent(each, call, ModelError))
        parts = await self._each(whole, [inputs] if inputs else [])
        if parts and isinstance(parts[0], RowError) and not call.one_by_one:
            return parts * len(inputs)
        if parts and isinstance(parts[0], RowError) and len(inputs) > 1:
            parts = await self._each(whole, [[row] for row in inputs])
        outputs: list[Any] = []
        for part in parts:
            if isinstance(part, ModelError):
                raise part
            outputs += [part] if isinstance(part, RowError) else part
        return outputs

    async def _each(self, function: Function, inputs: Sequence[Any]) -> list[Any]:
        if not inputs:
            return []
        batch = _Batch(function, inputs)
        self._waiting.append(batch)
        batch.in_line = True
        self._fill()
        try:
            return await batch.finished
        finally:
            if batch.in_line:
                self._waiting.remove(batch)
            for worker in batch.workers:
                worker.cancel()

    def _fill(self) -> None:
        """Begin as many calls as there is room for, of the batch that has waited longest first."""
        while self._free > 0 and self._waiting:
            batch = self._waiting[0]
            wanted = 0 if batch.finished.done() else batch.untaken - batch.coming
            hired = max(min(self._free, wanted), 0)
            for _ in range(hired):
                self._free -= 1
                batch.coming += 1
                worker = self._spawn(self._work(batch))
                batch.workers.add(worker)
                worker.add_done_callback(partial(self._ended, batch))
            if hired >= wanted:
                self._waiting.popleft()
                batch.in_line = False

    def _ended(self, batch: _Batch, worker: asyncio.Task[None]) -> None:
        batch.workers.discard(worker)
        self._free += 1
        self._fill()

    async def _work(self, batch: _Batch) -> None:
        """Call the function with one row after the other, as long as the batch has any."""
        batch.coming -= 1
        while True:
            if self._free < 0:  # fewer are allowed by now: what is left goes on when there is room
                if not batch.in_line:
                    self._waiting.appendleft(batch)
                    batch.in_line = True
                return
            index, row = next(batch.rows, (-1, None))
            if index < 0:
                return
            batch.untaken -= 1
            if self._pace.spent():
                await self._pace.turn()
            try:
                output = await batch.function(row)
            except BaseException as error:  # a model may raise anything
                if is_ours(error):
                    raise
                output = row_error(error)
            if batch.finished.cancelled():  # and the model would not hear of it
                return
            batch.done(index, output)


def _persistent(function: Function, call: ModelCall, late: type[Exception]) -> Function:
    """Return the function with the call's timeout and retries; when time is up it raises ``late``."""
    if call.timeout is None and not call.retries:
        return function

    async def once(row: Any) -> Any:
        try:
            async with asyncio.timeout(call.timeout) as deadline:
                return await function(row)
        except TimeoutError:
            if not deadline.expired():  # the model's own
                raise
            raise late(f"the model did not answer within {call.timeout:g} s") from None

    async def persistent(row: Any) -> Any:
        for retry in range(call.retries):
            try:
                return await once(row)
            except BaseException as error:
                if is_ours(error) or not call.retries_after(error):
                    raise
            await asyncio.sleep(call.pause(retry))
        return await once(row)

    return persistent


def _whole(function: Function) -> Function:
    """Return a batch function that returns, as a value, the error that a whole batch fails with."""

    async def whole(inputs: Sequence[Any]) -> list[Any] | ModelError:
        try:
            return outputs_of(await function(list(inputs)), len(inputs))
        except ModelError as error:
            return error

    return whole
