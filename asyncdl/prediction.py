"""Predicting: installed models, asked directly.

Callers that ask at the same time are answered together. Each model has a lane: a call waits there until the loop has come to all
that called in the same moment, and then one look at the metadata store serves them all. For a model that takes batches, so
many batches go out as are worth having under way; what comes meanwhile gathers, and is the next batch. Inputs of any other
model gain nothing from waiting for each other, and are computed one by one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from asyncdl.components.model import Model, Signature
from asyncdl.components.registry import not_ready
from asyncdl.compute.base import ComputeFuture, ModelCall, ModelTask, RowError
from asyncdl.compute.futures import completed
from asyncdl.errors import ClosedError, ComponentNotFoundError, ComponentNotReadyError, ModelError, WorkerLostError
from asyncdl.jobs.work import Stores
from asyncdl.together import end

BATCH = 256
"""Inputs of concurrent callers in one batch, at most."""

_Asked = tuple[str | None, str, Signature]
"""A model's uuid (None: its newest version), its identifier, and how one input is passed."""


@dataclass(eq=False)
class _Caller:
    """Someone who waits for a model's output for one input."""

    input: Any
    answer: asyncio.Future[Any]
    batch: tuple[ComputeFuture, Sequence[_Caller]] | None = None
    """The batch that it is in, and with whom, once that is under way."""

    def leave(self) -> None:
        """Cancel the batch if nobody waits for it any more."""
        if self.batch is not None and all(each.answer.done() for each in self.batch[1]):
            self.batch[0].cancel()


@dataclass(eq=False)
class _Lane:
    """Those who asked one model, in the order in which they came."""

    waiting: list[_Caller] = field(default_factory=list)
    running: set[asyncio.Task[None]] = field(default_factory=set)

    def take(self, most: int) -> list[_Caller]:
        """Return those who are first, without those who have gone away."""
        here = [each for each in self.waiting if not each.answer.done()]
        self.waiting = here[most:]
        return here[:most]


class Predictor:
    """Has installed models called, on the compute backend."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._lanes: dict[_Asked, _Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        """Answer no more: whoever waits gets a `ClosedError`."""
        await end(self._tasks)
        for lane in self._lanes.values():  # whose tasks were cancelled before their first step
            _fail(lane.waiting, _closed())
        self._lanes.clear()

    async def predict(self, model: str | Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return a model's output for one input, computed together with what others ask at the same time."""
        signature, given = one_input(args, kwargs)
        asked = _asked(model, signature)
        lane = self._lanes.get(asked)
        if lane is None:
            lane = self._lanes[asked] = _Lane()
            self._spawn(self._serve(asked, lane))  # it begins when all that run now have had their turn
        caller = _Caller(given, asyncio.get_running_loop().create_future())
        lane.waiting.append(caller)
        try:
            return await caller.answer
        except asyncio.CancelledError:
            caller.leave()
            raise

    async def predict_many(
        self, model: str | Model, inputs: Iterable[Any] | AsyncIterable[Any], size: int
    ) -> AsyncIterator[Any]:
        """Yield a model's outputs, in order."""
        found, _ = await self.find(model, "single")
        pinned: _Asked = (found.uuid, found.identifier, "single")  # one version from the first input to the last
        window: list[asyncio.Future[list[Any]]] = []
        try:
            async for batch in _batches(inputs, size):
                window.append(asyncio.ensure_future(self._compute(pinned, batch)))
                if len(window) > self._stores.compute.parallelism:
                    for output in await window.pop(0):
                        yield _output(found, output)
            while window:
                for output in await window.pop(0):
                    yield _output(found, output)
        finally:
            await end(window)

    async def find(self, model: str | Model, signature: Signature) -> tuple[Model, ModelCall]:
        """Return a model that is installed (of a name: its newest version), and how it is called for one input.

        Raises
        ------
        ComponentNotFoundError
        """
        return await self._find(_asked(model, signature))

    async def _find(self, asked: _Asked) -> tuple[Model, ModelCall]:
        """Return a model that is installed, and how it is called."""
        uuid, identifier, signature = asked
        registry = self._stores.registry
        if uuid is None:
            record = await registry.usable(identifier)
        else:
            records = await self._stores.metadata.components(uuids=[uuid])
            if not records:
                raise ComponentNotFoundError(f"model {identifier!r} has been removed")
            record = records[0]
            if record.status != "ready":
                raise ComponentNotReadyError(not_ready(record), failed=record.status == "failed")
        model = await registry.load(record)
        assert isinstance(model, Model)  # noqa: S101 - records of this type become models
        return model, registry.call(model, record, signature)

    async def _compute(self, asked: _Asked, batch: list[Any]) -> list[Any]:
        _, call = await self._find(asked)
        return await completed(self._submit(call, batch))

    def _submit(self, call: ModelCall, inputs: list[Any]) -> ComputeFuture:
        return self._stores.compute.submit(ModelTask(f"asyncdl-predict-{uuid4().hex}", call, inputs))

    # callers that are answered together

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name="asyncdl: predictions")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _serve(self, asked: _Asked, lane: _Lane) -> None:
        """Answer all who wait in a lane, and close it."""
        try:
            while lane.waiting:
                await self._serve_once(asked, lane)
        finally:
            del self._lanes[asked]  # in the step that found nobody waiting: nobody can have come since
            _fail(lane.waiting, _closed())

    async def _serve_once(self, asked: _Asked, lane: _Lane) -> None:
        try:
            model, call = await self._find(asked)
        except Exception as error:  # whatever it is, it is told to those who asked
            _fail(lane.take(len(lane.waiting)), error)
            return
        if not call.batch:
            for caller in lane.take(len(lane.waiting)):
                self._send(model, call, [caller])
            return
        most = call.max_concurrency if call.placement == "loop" else self._stores.compute.parallelism
        if len(lane.running) >= most:
            await asyncio.wait(lane.running, return_when=asyncio.FIRST_COMPLETED)
            return  # the model may be another one now
        if callers := lane.take(BATCH):
            task = self._send(model, call, callers)
            lane.running.add(task)
            task.add_done_callback(lane.running.discard)

    def _send(self, model: Model, call: ModelCall, callers: list[_Caller]) -> asyncio.Task[None]:
        task = self._spawn(self._answer(model, call, callers))
        task.add_done_callback(lambda _: _fail(callers, _closed()))  # a task that never began runs no `finally`
        return task

    async def _answer(self, model: Model, call: ModelCall, callers: Sequence[_Caller]) -> None:
        """Compute one batch, and give each caller what is theirs; when all of them go away, it is cancelled."""
        try:
            future = self._submit(call, [each.input for each in callers])
            for each in callers:
                each.batch = future, callers
            for caller, output in zip(callers, await completed(future), strict=True):
                _tell(caller, model, output)
        except (ModelError, WorkerLostError) as error:  # the whole batch's, but perhaps of one input's making
            if len(callers) == 1:
                _fail(callers, error)
            else:
                left = [each for each in callers if not each.answer.done()]
                await asyncio.gather(*(self._answer(model, call, [each]) for each in left))
        except Exception as error:  # nobody else would hear of it
            _fail(callers, error)


def _asked(model: str | Model, signature: Signature) -> _Asked:
    return (model.uuid, model.identifier, signature) if isinstance(model, Model) else (None, model, signature)


def _tell(caller: _Caller, model: Model, output: Any) -> None:
    if caller.answer.done():  # cancelled
        return
    try:
        caller.answer.set_result(_output(model, output))
    except ModelError as error:
        caller.answer.set_exception(error)


def _fail(callers: Sequence[_Caller], error: Exception) -> None:
    for each in callers:
        if not each.answer.done():
            each.answer.set_exception(error)


def _closed() -> ClosedError:
    return ClosedError("the datalayer was closed while a model computed")


def one_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Signature, Any]:
    """Return how one input is passed, and the input.

    Raises
    ------
    ModelError
        It is passed by position and by keyword.
    """
    if args and kwargs:
        raise ModelError("predict takes a model's input by position or by keyword, not both")
    if kwargs:
        return "kwargs", kwargs
    return ("single", args[0]) if len(args) == 1 else ("args", args)


def _output(model: Model, output: Any) -> Any:
    if isinstance(output, RowError):
        raise ModelError(f"{model} failed on an input: {output.type}: {output.message}\n{output.traceback}")
    return output


async def _batches(inputs: Iterable[Any] | AsyncIterable[Any], size: int) -> AsyncIterator[list[Any]]:
    batch: list[Any] = []
    async for each in inputs if isinstance(inputs, AsyncIterable) else _each(inputs):
        batch.append(each)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


async def _each(inputs: Iterable[Any]) -> AsyncIterator[Any]:
    for each in inputs:
        yield each
