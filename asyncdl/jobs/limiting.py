"""Compute, with the limits of models that hold in all processes together.

Around whatever compute backend: what has no limit passes through, small batches of one model together (`asyncdl.jobs.gathering`).
A coroutine model whose calls the backend counts itself is told how many it may have under way, and costs no more for each of
them. Elsewhere the batches are counted. Calls with a rate limit go one by one, each when its time has come; their retries are
calls like the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import uuid4

from asyncdl.compute.base import (
    ComputeBackend,
    ComputeFuture,
    ModelCall,
    ModelLoader,
    ModelTask,
    Placement,
    RowError,
)
from asyncdl.compute.futures import TaskFuture, completed
from asyncdl.errors import ClosedError, StoreError
from asyncdl.jobs.gathering import Gathering, gathers
from asyncdl.jobs.rates import Rate
from asyncdl.jobs.shares import Shares
from asyncdl.metadata.base import MetadataStore
from asyncdl.together import PATIENCE, end, raise_if_cancelled

logger = logging.getLogger("asyncdl.jobs")

_PARTS = 16
"""Batches of coroutine calls that a limit is divided among where only batches are counted."""


class LimitedCompute(ComputeBackend):
    """A compute backend whose models' limits are kept.

    Parameters
    ----------
    inner
        The backend that computes.
    lease
        Seconds after which the calls of a process that gave no sign of life do not count any more.
    """

    def __init__(self, inner: ComputeBackend, metadata: MetadataStore, lease: float) -> None:
        self.inner = inner
        self.url = inner.url
        self._metadata = metadata
        self._lease = lease
        self._owner = uuid4().hex
        self._shares: dict[str, Shares] = {}
        self._rates: dict[str, Rate] = {}
        self._keeping: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._gathering = Gathering(self._start, lambda: inner.parallelism)
        self._closed = False

    async def open(self, loader: ModelLoader) -> None:
        """Open the backend."""
        await self.inner.open(loader)

    async def aclose(self) -> None:
        """Close the backend, and let others have what this process was allowed."""
        self._closed = True
        await self._gathering.aclose()
        await end(self._tasks)
        await self.inner.aclose()
        await end(self._keeping.values())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                for shares in self._shares.values():
                    with contextlib.suppress(StoreError):  # then others find it dead
                        await shares.give_back()
        self._shares.clear()

    def forget(self, uuid: str) -> None:
        """Drop a model's object."""
        self._gathering.forget(uuid)
        self.inner.forget(uuid)

    @property
    def parallelism(self) -> int:
        """How many batches are worth having under way at once."""
        return self.inner.parallelism

    @property
    def loops(self) -> int:
        """How many event loops coroutine models run on."""
        return self.inner.loops

    def runs_errands(self, call: ModelCall) -> bool:
        """Return whether a task may have an errand: not where its calls go one by one."""
        return call.rate_limit is None and self.inner.runs_errands(call)

    def reachable_at(self, placement: Placement) -> str | None:
        """Return where what runs a task reaches this process."""
        return self.inner.reachable_at(placement)

    def submit(self, task: ModelTask) -> ComputeFuture:
        """Start a task as soon as there is room, and its model's limits allow it."""
        return self._gathering.submit(task) if gathers(task) and not self._closed else self._start(task)

    def _start(self, task: ModelTask) -> ComputeFuture:
        if task.call.at_most is None and task.call.rate_limit is None:
            return self.inner.submit(task)
        if self._closed:
            raise ClosedError(f"the compute backend {self.url!r} is not open")
        if task.call.rate_limit is None and task.call.placement == "loop":
            shares = self._share(task.call)
            if self.inner.allow(task.call.name, shares.for_backend):
                future = self.inner.submit(task)
                if isinstance(future, TaskFuture):
                    shares.want_until(future.result, 1 if task.call.batch else task.size)
                return future
        return TaskFuture(self._spawn(self._run(task)))

    @contextlib.asynccontextmanager
    async def turn(self, call: ModelCall) -> AsyncIterator[None]:
        """Wait until one more call of a model is allowed, and count it for as long as the block lasts; it is made elsewhere."""
        async with self._place(call):
            if call.rate_limit is not None:
                await self._rate(call.name).turn(call.rate_limit)
            yield

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work, name="asyncdl: calls with a limit")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run(self, task: ModelTask) -> list[Any]:
        if task.call.rate_limit is not None:
            return await self._paced(task)
        shares = self._share(task.call)
        if task.call.placement != "loop":
            async with shares.places(1):
                return await self._compute(task)
        calls = 1 if task.call.batch else max(task.size, 1)
        async with shares.places(min(-(-shares.limit // _PARTS), calls)) as granted:
            # counted where it runs, apart from the calls of other batches
            call = replace(task.call, max_concurrency=granted, name=f"{task.call.name}:{task.key}")
            return await self._compute(replace(task, call=call))

    async def _compute(self, task: ModelTask) -> list[Any]:
        return await completed(self.inner.submit(task))

    # limits on calls at once

    def _share(self, call: ModelCall) -> Shares:
        name = call.name
        shares = self._shares.get(name)
        if shares is None:
            allow, under_way = partial(self.inner.allow, name), partial(self.inner.under_way, name)
            shares = Shares(self._metadata, name, self._owner, self._lease, allow, under_way)
            self._shares[name] = shares
        shares.limit_to(call.at_most or 1)
        if name not in self._keeping or self._keeping[name].done():
            keeping = asyncio.get_running_loop().create_task(shares.run(), name=f"asyncdl: a share of model {name}")
            self._keeping[name] = keeping
            keeping.add_done_callback(partial(self._kept, name))
        return shares

    def _kept(self, name: str, keeping: asyncio.Task[None]) -> None:
        if self._keeping.get(name) is keeping:
            del self._keeping[name]
        if not keeping.cancelled() and (error := keeping.exception()) is not None:
            logger.error("the share of model %r is not kept up any more", name, exc_info=error)

    @contextlib.asynccontextmanager
    async def _place(self, call: ModelCall) -> AsyncIterator[None]:
        if call.at_most is None:
            yield
            return
        async with self._share(call).places(1):
            yield

    # limits on calls in a second

    async def _paced(self, task: ModelTask) -> list[Any]:
        """Compute a batch call by call."""
        if task.call.batch:
            outputs = await self._call(task, 0, task.inputs, retries=0) if task.inputs else []
            alone = len(task.inputs) < 2 and not task.call.retries
            if alone or not _all_failed(outputs):
                return outputs
        outputs = [None] * len(task.inputs)
        rows = iter(enumerate(task.inputs))

        async def work() -> None:
            for at, row in rows:
                [outputs[at]] = await self._call(task, at + 1, [row], retries=task.call.retries)

        on_loop = task.call.placement == "loop"
        width = task.call.max_concurrency if on_loop else self.inner.parallelism
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(width, len(task.inputs))):
                    group.create_task(work())
        except BaseExceptionGroup as failures:
            raise_if_cancelled()
            raise failures.exceptions[0] from None
        return outputs

    async def _call(self, task: ModelTask, number: int, inputs: Sequence[Any], retries: int) -> list[Any]:
        """Call the model, and again after a failure that is worth it, each time when it may be."""
        call = replace(task.call, retries=0, one_by_one=False, at_most=None, rate_limit=None)
        for attempt in range(retries + 1):
            async with self.turn(task.call):
                outputs = await self._compute(ModelTask(f"{task.key}.{number}.{attempt}", call, inputs))
            failed = outputs[0] if outputs else None
            if not isinstance(failed, RowError) or attempt == retries or not call.retries_kinds(failed.kinds):
                return outputs
            await asyncio.sleep(call.pause(attempt))
        return outputs

    def _rate(self, name: str) -> Rate:
        rate = self._rates.get(name)
        if rate is None:
            rate = self._rates[name] = Rate(self._metadata, name)
        return rate


def _all_failed(outputs: Sequence[Any]) -> bool:
    return bool(outputs) and all(isinstance(each, RowError) for each in outputs)
