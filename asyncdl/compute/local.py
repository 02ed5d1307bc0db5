"""Compute in this process and its children."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine
from typing import Any, TypeVar

from asyncdl.compute.base import ComputeBackend, ComputeFuture, ModelCall, ModelLoader, ModelTask, Placement
from asyncdl.compute.calling import Stop, run, target
from asyncdl.compute.closing import Closing
from asyncdl.compute.coroutines import Lane, Pace
from asyncdl.compute.futures import Loads, TaskFuture
from asyncdl.compute.gil import prompt_switching
from asyncdl.compute.pool import Child
from asyncdl.compute.workers import Workers, in_time
from asyncdl.errors import ClosedError, ModelError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MOST_THREADS = 4


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalComputeBackend(ComputeBackend):
    """Runs plain functions on threads or in child processes, and coroutine functions on the event loop.

    Parameters
    ----------
    threads, processes
        Batches of plain functions under way at once. Default: as many as this process may use processors, but at most
        4 threads: more help only functions that release the GIL, and with each that does not the loop waits longer.
    grace
        Seconds that `aclose` waits for what cannot be interrupted: a thread within a model's call, a coroutine that
        catches its cancellation. After them it is left behind (threads are daemons and keep no process from ending).
    """

    url = "local"

    def __init__(self, threads: int | None = None, processes: int | None = None, *, grace: float = 5.0) -> None:
        self._threads = threads if threads is not None else min(processors(), _MOST_THREADS)
        self._processes = processes if processes is not None else processors()
        if self._threads < 1 or self._processes < 1:
            raise ValueError(f"threads and processes must be positive, not {threads} and {processes}")
        self._grace = grace
        self._running: _Running | None = None

    async def open(self, loader: ModelLoader) -> None:
        """Get ready; threads and processes are started when there is work for them."""
        if self._running is None:
            self._running = _Running(loader, self._threads, self._processes)

    async def aclose(self) -> None:
        """Cancel what is queued or runs, and end all threads and processes; closing twice is allowed."""
        if self._running is not None:
            running, self._running = self._running, None
            await running.aclose(self._grace)

    def submit(self, task: ModelTask) -> ComputeFuture:
        """Start a task as soon as there is room."""
        if self._running is None:
            raise ClosedError("the compute backend 'local' is not open")
        return self._running.submit(task)

    def forget(self, uuid: str) -> None:
        """Drop a model here and in all children; batches under way keep theirs."""
        if self._running is not None:
            self._running.forget(uuid)

    def reachable_at(self, placement: Placement) -> str | None:
        """Return where a child process reaches this one; threads, and the event loop, are in it."""
        return "127.0.0.1" if placement == "process" else None

    def allow(self, name: str, calls: int) -> bool:
        """Bound the calls of a coroutine model with a limit."""
        if self._running is not None:
            self._running.allow(name, calls)
        return True

    def under_way(self, name: str) -> int:
        """Return how many calls are under way of those that `allow` bounds."""
        return self._running.under_way(name) if self._running is not None else 0

    @property
    def parallelism(self) -> int:
        """How many batches are worth having under way at once."""
        return max(self._threads, self._processes)


class _Running:
    """What exists between `open` and `aclose`."""

    def __init__(self, loader: ModelLoader, threads: int, processes: int) -> None:
        self._loader = loader
        self._models: Loads[Any] = Loads(self._load, self._spawn)
        self._closing = Closing()
        self._payloads: Loads[bytes] = Loads(loader.payload, self._spawn)
        self._threads = Workers("asyncdl-model", threads, _Interruptible)
        self._children = Workers("asyncdl-process", processes, Child)
        self._long_threads = Workers("asyncdl-long-model", threads, _Interruptible)
        self._long_children = Workers("asyncdl-long-process", processes, Child)
        self._pace = Pace()
        self._lanes: dict[str, Lane] = {}
        self._allowed: dict[str, int] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._futures: set[TaskFuture] = set()

    def submit(self, task: ModelTask) -> ComputeFuture:
        run_it = {"loop": self._on_loop, "thread": self._on_thread, "process": self._in_process}[task.call.placement]
        future = TaskFuture(self._spawn(run_it(task), name=f"asyncdl: {task.key}"))
        self._futures.add(future)
        future.result.add_done_callback(lambda _: self._futures.discard(future))
        return future

    def forget(self, uuid: str) -> None:
        self._models.forget(uuid)
        self._payloads.forget(uuid)
        for children in (self._children, self._long_children):
            children.tell(lambda child: child.forget(uuid))
        if uuid in self._lanes and self._lanes[uuid].idle:
            del self._lanes[uuid]

    def allow(self, name: str, calls: int) -> None:
        self._allowed[name] = calls
        if name in self._lanes:
            self._lanes[name].resize(calls)

    def under_way(self, name: str) -> int:
        return self._lanes[name].under_way if name in self._lanes else 0

    async def aclose(self, grace: float) -> None:
        for future in list(self._futures):
            future.cancel()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            _, stubborn = await asyncio.wait(self._tasks, timeout=grace)
            if stubborn:
                logger.warning(
                    "%d calls of coroutine models ignore their cancellation and are left behind", len(stubborn)
                )
        everybody = (self._threads, self._children, self._long_threads, self._long_children)
        await asyncio.gather(*(each.aclose(grace) for each in everybody))
        await self._closing.aclose(grace)

    async def _load(self, call: ModelCall) -> Any:
        model = await self._loader(call)
        self._closing.remember(model)
        return model

    def _spawn(self, work: Coroutine[Any, Any, T], name: str | None = None) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _on_loop(self, task: ModelTask) -> list[Any]:
        function = target(await self._models.get(task.call), task.call)
        name = task.call.lane
        lane = self._lanes.get(name)
        if lane is None:
            limit = self._allowed.get(name, task.call.max_concurrency)
            lane = self._lanes[name] = Lane(limit, self._pace, self._spawn)
        try:
            return await lane.run(function, task.call, task.inputs)
        finally:
            if task.call.at_most is not None and name not in self._allowed and lane.idle:
                self._lanes.pop(name, None)  # of this batch alone

    async def _on_thread(self, task: ModelTask) -> list[Any]:
        function = target(await self._models.get(task.call), task.call)

        def work(stop: Stop) -> list[Any]:
            with prompt_switching():
                return run(function, task.call, task.inputs, stop)

        threads = self._long_threads if task.call.long else self._threads
        async with threads.lease(task.call.uuid) as worker:
            try:
                return await in_time(threads, worker, work, task.call.timeout)
            except TimeoutError:
                hint = (
                    "a thread cannot be stopped within a call, and may go on for a while; run such a model in a process"
                )
                raise ModelError(f"{_late(task)}: {hint}") from None

    async def _in_process(self, task: ModelTask) -> list[Any]:
        call, inputs = task.call, task.inputs
        payload = await self._payloads.get(call)
        children = self._long_children if call.long else self._children
        async with children.lease(call.uuid) as worker:
            # In two steps: starting an interpreter and importing the model's packages is not the batch's time.
            await worker.run(lambda child: child.load(call, payload))
            try:
                return await in_time(children, worker, lambda child: child.call(call, inputs), call.timeout)
            except TimeoutError:
                raise ModelError(f"{_late(task)}: its process was killed") from None


def _late(task: ModelTask) -> str:
    return f"model {task.call.uuid} did not finish a batch of {len(task.inputs)} within {task.call.timeout:g} s"


class _Interruptible(Stop):
    """A thread's `Resource`: it ends at the next row."""

    __slots__ = ()

    def begin(self) -> None:
        self.requested = False

    def interrupt(self) -> None:
        self.requested = True

    def close(self) -> None:
        pass
