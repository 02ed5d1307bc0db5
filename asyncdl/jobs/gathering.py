"""Batches of a few rows that go to a model together.

Rows that are inserted one at a time reach a model one at a time, also one that takes batches, and is many times as fast with
them. Of each such model as many batches go out as are worth having under way at once; what comes meanwhile gathers, and goes
out as one. So nobody waits while there is room, and under load a model gets the batches that it is best at. Servers of models
call it dynamic batching.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from uuid import uuid4

from asyncdl.compute.base import ComputeFuture, ModelCall, ModelTask
from asyncdl.compute.futures import Answered, completed
from asyncdl.errors import ModelError, WorkerLostError
from asyncdl.jobs.batching import BYTES, BatchSize, weight_of
from asyncdl.together import end

_FEW = 64
"""Inputs up to which a batch goes with others."""
_MOST = 256
"""Inputs that go together."""


def gathers(task: ModelTask) -> bool:
    """Return whether a batch may go with others: it is small, and what fails in it is taken row by row."""
    return task.call.batch and task.call.one_by_one and task.errand is None and 0 < len(task.inputs) <= _FEW


class Part(Answered):
    """A batch that may go with others, and the future of its own outputs."""

    def __init__(self, task: ModelTask) -> None:
        super().__init__()
        self.task = task
        self.weight = weight_of(task.inputs) * len(task.inputs)
        self.joint: asyncio.Task[None] | None = None
        """What it goes in, and with whom, once it does."""
        self.others: Sequence[Part] = ()
        self.result.add_done_callback(self._end)

    def cancel(self) -> bool:
        """Take it out; what it is in is cancelled once nobody waits for that any more."""
        if not self.result.cancel():
            return False
        if self.joint is not None and all(each.done() for each in self.others):
            self.joint.cancel()
        return True

    def _end(self, _: asyncio.Future[list[Any]]) -> None:
        self._ended = time.perf_counter()


@dataclass(eq=False)
class _Lane:
    """What goes to one model."""

    size: BatchSize = field(default_factory=lambda: BatchSize(at_most=_MOST, first=_FEW))
    waiting: list[Part] = field(default_factory=list)
    running: set[asyncio.Task[None]] = field(default_factory=set)
    called: bool = False
    """Whether it is about to be looked at."""

    def take(self) -> list[Part]:
        """Return the first batches that can go together: those of one call, as many as are good for the model."""
        here = [each for each in self.waiting if not each.done()]
        together: list[Part] = []
        inputs = weight = 0.0
        for part in here:
            call = here[0].task.call
            inputs, weight = inputs + len(part.task.inputs), weight + part.weight
            if together and (part.task.call != call or inputs > self._most(call, weight / inputs)):
                break
            together.append(part)
        self.waiting = here[len(together) :]
        return together

    def took(self, call: ModelCall, inputs: int, seconds: float) -> None:
        """Learn from a batch, also from one that failed: perhaps it took too long."""
        if not _is_limited(call):  # else most of that is not the model's time
            self.size.took(inputs, seconds)

    def _most(self, call: ModelCall, weight: float) -> float:
        if _is_limited(call):  # then each call is dear, and how long it takes is not known
            return min(_MOST, BYTES / max(weight, 1.0))
        self.size.weighed(weight)
        return self.size.size


class Gathering:
    """Submits batches, small ones together.

    Parameters
    ----------
    submit
        Starts a batch.
    width
        How many batches are worth having under way on threads, processes or workers at once.
    """

    def __init__(self, submit: Callable[[ModelTask], ComputeFuture], width: Callable[[], int]) -> None:
        self._submit = submit
        self._width = width
        self._lanes: dict[str, _Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, task: ModelTask) -> ComputeFuture:
        """Start a batch, alone or with what else comes in this moment, or wait for others to end."""
        part = Part(task)
        lane = self._lanes.setdefault(task.call.uuid, _Lane())
        lane.waiting.append(part)
        self._call(lane)
        return part

    def forget(self, uuid: str) -> None:
        """Drop what is known of a model."""
        if uuid in self._lanes and not self._lanes[uuid].waiting:
            del self._lanes[uuid]

    async def aclose(self) -> None:
        """Cancel all that waits, and all that is under way."""
        for lane in self._lanes.values():
            for part in lane.waiting:
                part.cancel()
        await end(self._tasks)
        self._lanes.clear()

    def _call(self, lane: _Lane) -> None:
        if not lane.called:
            lane.called = True
            asyncio.get_running_loop().call_soon(self._look, lane)

    def _look(self, lane: _Lane) -> None:
        """Send what waits, as long as there is room."""
        lane.called = False
        while lane.waiting and len(lane.running) < self._at_once(lane.waiting[0].task.call):
            if parts := lane.take():
                joint = self._spawn(self._run(lane, parts))
                lane.running.add(joint)
                joint.add_done_callback(lane.running.discard)
                joint.add_done_callback(lambda _: self._call(lane))
                joint.add_done_callback(partial(_end, parts))
                for part in parts:
                    part.joint, part.others = joint, parts

    def _at_once(self, call: ModelCall) -> int:
        most = call.max_concurrency if call.placement == "loop" else self._width()
        if call.at_most is not None:
            most = min(most, call.at_most)
        if call.rate_limit is not None:
            most = min(most, math.ceil(call.rate_limit))
        return max(most, 1)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name="asyncdl: batches that go together")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run(self, lane: _Lane, parts: Sequence[Part]) -> None:
        """Compute some batches as one, and give each its own outputs."""
        inputs = [each for part in parts for each in part.task.inputs]
        begun = time.perf_counter()
        try:
            task = parts[0].task if len(parts) == 1 else _joined(parts, inputs)
            outputs = iter(await completed(self._submit(task)))
        except (ModelError, WorkerLostError) as error:  # the whole batch's, but perhaps of one part's making
            if len(parts) == 1:
                parts[0].fail(error)
            else:
                await asyncio.gather(*(self._run(lane, [each]) for each in parts if not each.done()))
        except Exception as error:  # nobody else would hear of it
            for part in parts:
                part.fail(error)
        else:
            for part in parts:
                own = [next(outputs) for _ in part.task.inputs]
                if not part.done():
                    part.result.set_result(own)
        finally:
            lane.took(parts[0].task.call, len(inputs), time.perf_counter() - begun)


def _is_limited(call: ModelCall) -> bool:
    return call.at_most is not None or call.rate_limit is not None


def _end(parts: Sequence[Part], joint: asyncio.Task[None]) -> None:
    """Leave none waiting: of a joint batch that was cancelled, perhaps before it began, or failed where it should not."""
    error = None if joint.cancelled() else joint.exception()
    for part in parts:
        if isinstance(error, Exception):
            part.fail(error)
        else:
            part.cancel()


def _joined(parts: Sequence[Part], inputs: list[Any]) -> ModelTask:
    return replace(parts[0].task, key=f"asyncdl-{uuid4().hex}", inputs=inputs)
