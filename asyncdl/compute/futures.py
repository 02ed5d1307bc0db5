"""What `submit` returns, and what is loaded once for all who ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any, Generic, TypeVar

from asyncdl.compute.base import ComputeFuture, ModelCall
from asyncdl.errors import ModelError
from asyncdl.together import is_ours

T = TypeVar("T")


class Answered(ComputeFuture):
    """A future whose outputs are put into ``result``, by whoever computes them."""

    def __init__(self) -> None:
        self.result: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._begun = time.perf_counter()
        self._ended: float | None = None

    def __await__(self) -> Generator[Any, None, list[Any]]:
        return asyncio.shield(self.result).__await__()

    def done(self) -> bool:
        """Return whether it has finished, failed or been cancelled."""
        return self.result.done()

    @property
    def took(self) -> float:
        """The seconds from its making to its end, or so far."""
        return (time.perf_counter() if self._ended is None else self._ended) - self._begun

    def fail(self, error: BaseException) -> None:
        """Say why there are no outputs."""
        if not self.result.done():
            self.result.set_exception(error)
            self.result.exception()  # whether anybody awaits it is the caller's affair: no warning


async def completed(future: ComputeFuture) -> list[Any]:
    """Wait for a batch; it is cancelled with its waiter."""
    try:
        return await future
    except BaseException:
        future.cancel()
        raise


class TaskFuture(Answered):
    """The future of a batch that an asyncio task sees to."""

    def __init__(self, task: asyncio.Task[list[Any]]) -> None:
        # A future of its own beside the task: a cancellation holds at once, even if a model's code will not hear of it.
        super().__init__()
        self._task = task
        task.add_done_callback(self._finished)

    def cancel(self) -> bool:
        """Cancel the task; return whether the batch had not finished."""
        if self.result.done():
            return False
        self.result.cancel()
        self._task.cancel()
        return True

    def _finished(self, task: asyncio.Task[list[Any]]) -> None:
        self._ended = time.perf_counter()
        error = None if task.cancelled() else task.exception()
        if self.result.done():
            return
        if task.cancelled():
            self.result.cancel()
        elif error is not None:
            self.fail(error)
        else:
            self.result.set_result(task.result())


class Loads(Generic[T]):
    """Loads something once for each model, however many ask; a failure is not kept."""

    def __init__(
        self, load: Callable[[ModelCall], Awaitable[T]], spawn: Callable[[Coroutine[Any, Any, T]], asyncio.Task[T]]
    ) -> None:
        self._load = load
        self._spawn = spawn
        self._loads: dict[str, asyncio.Task[T]] = {}

    async def get(self, call: ModelCall) -> T:
        """Return what is loaded.

        Raises
        ------
        ModelError
            It could not be loaded.
        """
        load = self._loads.get(call.uuid)
        if load is None:
            load = self._loads[call.uuid] = self._spawn(self._loading(call))
            load.add_done_callback(partial(self._loaded, call.uuid))
        return await asyncio.shield(load)

    async def _loading(self, call: ModelCall) -> T:
        try:
            return await self._load(call)
        except ModelError:
            raise
        except BaseException as error:  # also the SystemExit of a module that is imported
            if is_ours(error):
                raise
            raise ModelError(f"model {call.uuid} cannot be loaded: {type(error).__name__}: {error}") from error

    def _loaded(self, uuid: str, load: asyncio.Task[T]) -> None:
        failed = load.cancelled() or load.exception() is not None
        if failed and self._loads.get(uuid) is load:
            del self._loads[uuid]

    def forget(self, uuid: str) -> None:
        """Drop what was loaded for a model; who waits for it still gets it."""
        self._loads.pop(uuid, None)
