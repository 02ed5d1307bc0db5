"""Predicting: installed models, asked directly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any
from uuid import uuid4

from asyncdl.components.model import Model, Signature
from asyncdl.compute.base import ModelTask, RowError
from asyncdl.errors import ComponentNotFoundError, ModelError
from asyncdl.jobs.work import Stores


class Predictor:
    """Has installed models called, on the compute backend."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    async def predict(self, model: str | Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return a model's output for one input."""
        found = await self._find(model)
        [output] = await self._compute(found, *_one_input(args, kwargs))
        return _output(found, output)

    async def predict_many(
        self, model: str | Model, inputs: Iterable[Any] | AsyncIterable[Any], size: int
    ) -> AsyncIterator[Any]:
        """Yield a model's outputs, in order."""
        found = await self._find(model)
        window: list[asyncio.Future[list[Any]]] = []
        try:
            async for batch in _batches(inputs, size):
                window.append(asyncio.ensure_future(self._compute(found, "single", batch)))
                if len(window) > self._stores.compute.parallelism:
                    for output in await window.pop(0):
                        yield _output(found, output)
            while window:
                for output in await window.pop(0):
                    yield _output(found, output)
        finally:
            for future in window:
                future.cancel()
            if window:
                await asyncio.wait(window)

    async def _find(self, model: str | Model) -> Model:
        if isinstance(model, Model) and model.uuid is not None:
            return model
        registry = self._stores.registry
        identifier = model.identifier if isinstance(model, Model) else model
        found = await registry.load(await registry.find("model", identifier))
        assert isinstance(found, Model)  # noqa: S101 - records of this type become models
        return found

    async def _compute(self, model: Model, signature: Signature, batch: list[Any]) -> list[Any]:
        records = await self._stores.metadata.components(uuids=[str(model.uuid)])
        if not records:
            raise ComponentNotFoundError(f"{model} has been removed")
        call = self._stores.registry.call(model, records[0], signature)
        future = self._stores.compute.submit(ModelTask(f"asyncdl-predict-{uuid4().hex}", call, batch))
        try:
            return await future
        except asyncio.CancelledError:
            future.cancel()
            raise


def _one_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Signature, list[Any]]:
    if args and kwargs:
        raise ModelError("predict takes a model's input by position or by keyword, not both")
    if kwargs:
        return "kwargs", [kwargs]
    return ("single", [args[0]]) if len(args) == 1 else ("args", [args])


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
