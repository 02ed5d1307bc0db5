"""Streaming: a model's output for one input, piece by piece, as the model yields it.

A stream is a task of ours that runs the model's generator, and hands piece after piece to whoever iterates; it goes at their
pace, one piece ahead. It runs in this process, whatever the compute backend: a generator function on a thread, an asynchronous
one on the event loop.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from asyncdl.components.loading import InstalledModelLoader
from asyncdl.components.model import Model
from asyncdl.compute.base import ModelCall
from asyncdl.compute.calling import Function, Stop, per_input, row_error
from asyncdl.compute.closing import Closing
from asyncdl.compute.workers import Workers
from asyncdl.errors import AsyncDLError, ClosedError, ModelError
from asyncdl.jobs.limiting import LimitedCompute
from asyncdl.prediction import Predictor, one_input
from asyncdl.together import end, is_ours

_THREADS = 16
"""Streams of generator functions that can be under way at once: each holds a thread while its model works."""
_GRACE = 5.0
_END = object()


class _NoStop(Stop):
    """A thread's `Resource`: a generator can be left between two pieces only, and there it is."""

    __slots__ = ()

    def begin(self) -> None:
        pass

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        pass


class Streams:
    """Runs installed models that yield."""

    def __init__(self, predictor: Predictor, loader: InstalledModelLoader, limits: LimitedCompute) -> None:
        self._predictor = predictor
        self._limits = limits
        self._loader = loader
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = Closing()
        self._threads: Workers[_NoStop] | None = None

    async def stream(self, model: str | Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AsyncIterator[Any]:
        """Yield a model's output for one input in pieces."""
        signature, given = one_input(args, kwargs)
        found, call = await self._predictor.find(model, signature)
        loaded = await self._loader(call)
        self._closing.remember(loaded)
        function = yielding(loaded, call, found)
        send, receive = anyio.create_memory_object_stream[Any](0)
        task = self._spawn(self._pump(found, call, function, given, send))
        try:
            with receive:
                async for piece in receive:
                    yield piece
            await asyncio.wait({task})
            if task.cancelled():
                raise ClosedError(f"the datalayer was closed while {found} was streaming")
            task.result()
        finally:
            await end([task])

    async def aclose(self) -> None:
        """End all streams: whoever iterates gets a `ClosedError`."""
        await end(self._tasks)
        if self._threads is not None:
            await self._threads.aclose(_GRACE)
        await self._closing.aclose(_GRACE)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name="asyncdl: a stream")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _pump(
        self, model: Model, call: ModelCall, function: Function, given: Any, send: MemoryObjectSendStream[Any]
    ) -> None:
        with send:
            try:
                async with self._limits.turn(call):
                    await self._yielded(function(given), call.uuid, send)
            except anyio.BrokenResourceError:  # whoever iterated has left
                pass
            except AsyncDLError:
                raise
            except BaseException as error:  # a model may raise anything
                if is_ours(error):
                    raise
                failed = row_error(error)
                raise ModelError(
                    f"{model} failed while it streamed: {failed.type}: {failed.message}\n{failed.traceback}"
                ) from error

    async def _yielded(self, pieces: Any, model: str, send: MemoryObjectSendStream[Any]) -> None:
        if not inspect.isasyncgen(pieces):
            await self._from_thread(pieces, model, send)
            return
        async with aclosing(pieces):
            async for piece in pieces:
                await send.send(piece)

    async def _from_thread(self, pieces: Iterator[Any], model: str, send: MemoryObjectSendStream[Any]) -> None:
        if self._threads is None:
            self._threads = Workers("asyncdl-stream", _THREADS, _NoStop)
        async with self._threads.lease(model) as worker:
            try:
                while (piece := await worker.run(lambda _: next(pieces, _END))) is not _END:
                    await send.send(piece)
            finally:
                worker.tell(lambda _: cast("Any", pieces).close())


def yielding(model: Any, call: ModelCall, component: Model) -> Function:
    """Return the generator function of one input: the object's ``stream``, or what is called for predictions.

    Raises
    ------
    ModelError
        Neither is one.
    """
    for method in ("stream", call.method):
        function = getattr(model, method, None) if method else model
        inner = getattr(function, "__call__", None)  # noqa: B004 - of an object that can be called
        for each in (function, inner):
            if inspect.isasyncgenfunction(each) or inspect.isgeneratorfunction(each):
                return per_input(cast("Function", function), replace(call, batch=False))
    raise ModelError(
        f"{component} does not stream: neither a method `stream` of its object nor what it calls is a generator function"
    )
