"""Compute that runs errands in this process, so that a test can have things happen in the middle of one."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import cloudpickle

from asyncdl.compute.base import ComputeFuture, Errand, ModelCall, ModelTask
from asyncdl.compute.dask_sites import ErrandFailedError, Sites, site_error, site_reply
from asyncdl.compute.futures import TaskFuture
from asyncdl.compute.local import LocalComputeBackend

Hook = Callable[[Errand], Awaitable[None]]


class ErrandsHere(LocalComputeBackend):
    """What a Dask worker does with an errand, on connections of its own.

    Attributes
    ----------
    computed
        Called when an errand's model has computed, and nothing is written yet.
    times
        How often each is run: as Dask does whose worker dies before it answers.
    ended
        What became of the errands.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sites = Sites("here")
        self.computed: Hook | None = None
        self.times = 1
        self.ended: list[Any] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    def runs_errands(self, call: ModelCall) -> bool:
        return True

    def submit(self, task: ModelTask) -> ComputeFuture:
        if task.errand is None:
            return super().submit(task)
        running = asyncio.create_task(self._run(task, pickle.loads(cloudpickle.dumps(task.errand))))
        self._tasks.add(running)
        running.add_done_callback(self._done)
        return TaskFuture(asyncio.create_task(self._shielded(running)))

    def _done(self, running: asyncio.Task[Any]) -> None:
        self._tasks.discard(running)
        running.exception()  # whether anybody waits for it or not

    @staticmethod
    async def _shielded(running: asyncio.Task[Any]) -> list[Any]:
        return await asyncio.shield(running)  # a worker that nobody can stop any more

    async def _run(self, task: ModelTask, errand: Errand) -> list[Any]:
        async def compute(inputs: Sequence[Any]) -> list[Any]:
            outputs = await LocalComputeBackend.submit(self, ModelTask(task.key, task.call, inputs))
            if self.computed is not None:
                await self.computed(errand)
            return outputs

        outputs: list[Any] = []
        try:
            for _ in range(self.times):
                outputs = await self.sites.run(errand, "client", compute)
        except ErrandFailedError as error:
            self.ended.append(error.__cause__)
            raise site_error(*site_reply(error)) from None
        self.ended += outputs
        return outputs

    async def settled(self) -> None:
        """Wait until no errand runs any more."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def aclose(self) -> None:
        await self.settled()
        await self.sites.aclose()
        await super().aclose()
