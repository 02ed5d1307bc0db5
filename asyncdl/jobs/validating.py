"""Validating a model: its outputs on datasets, measured."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from asyncdl import codec
from asyncdl.components.model import Model, columns_of, signature_of
from asyncdl.components.registry import not_ready
from asyncdl.components.states import ModelState
from asyncdl.components.training import is_coroutine_function
from asyncdl.components.validation import Metric, Validation
from asyncdl.compute.base import ComputeFuture, ModelCall, ModelTask, RowError
from asyncdl.compute.futures import completed
from asyncdl.errors import ComponentNotFoundError, ComponentNotReadyError, ConflictError, ModelError
from asyncdl.events.types import ModelValidated
from asyncdl.jobs.rows import grouped, pages_of_dataset, values
from asyncdl.jobs.work import Work
from asyncdl.metadata.changes import AdvanceJob, SetComponentState
from asyncdl.metadata.records import ComponentRecord

_ATTEMPTS = 20


class ValidatingWork(Work):
    """One validation of one version of a model."""

    async def run(self) -> None:
        """Measure the model, and keep the result with it."""
        uuid = codec.loads(self._job.payload)["model"]
        found = {each.uuid: each for each in await self._stores.metadata.components(uuids=[self._job.target, uuid])}
        if len(found) < 2:
            raise ComponentNotFoundError(f"the model or the validation of job {self._job.id} has been removed")
        if found[uuid].status != "ready":
            raise ComponentNotReadyError(not_ready(found[uuid]), failed=found[uuid].status == "failed")
        validation = await self._stores.registry.load(found[self._job.target])
        assert isinstance(validation, Validation)  # noqa: S101 - so it was planned
        metrics: dict[str, float] = {}
        for dataset in validation.datasets:
            targets, outputs = await self._outputs(validation, str(dataset.uuid), found[uuid])
            for metric in validation.metrics:
                name = (
                    metric.identifier if len(validation.datasets) == 1 else f"{dataset.identifier}/{metric.identifier}"
                )
                metrics[name] = await self._measured(metric, targets, outputs)
        await self._keep(found[uuid], validation.identifier, metrics)

    async def _outputs(
        self, validation: Validation, dataset: str, record: ComponentRecord
    ) -> tuple[list[Any], list[Any]]:
        """Return a dataset's targets, and the model's outputs; a bounded number of pages is under way at once."""
        registry = self._stores.registry
        model = await registry.load(record)
        assert isinstance(model, Model)  # noqa: S101 - so it was planned
        key, target = validation.key
        call = registry.call(model, record, signature_of(key))
        columns = tuple(dict.fromkeys((*columns_of(key), target)))
        targets: list[Any] = []
        outputs: list[Any] = []
        window: deque[ComputeFuture] = deque()
        [kept] = await self._stores.metadata.components(uuids=[dataset])
        folds: Sequence[Any] = ["valid"] if _has_folds(kept) else ["train"]
        try:
            async for page in pages_of_dataset(self._stores, kept, folds):
                rows = values(page, columns)
                targets += grouped(rows, columns, target)
                window.append(self._submit(call, _inputs(key, rows, columns)))
                if len(window) > self._stores.compute.parallelism:
                    outputs += await self._next(window, model)
            while window:
                outputs += await self._next(window, model)
        finally:
            for future in window:
                future.cancel()
        return targets, outputs

    def _submit(self, call: ModelCall, inputs: list[Any]) -> ComputeFuture:
        self._batches += 1
        key = f"asyncdl-{self._job.id}-{self._batches}-{self._job.attempts}"
        return self._stores.compute.submit(ModelTask(key, call, inputs))

    _batches = 0

    async def _next(self, window: deque[ComputeFuture], model: Model) -> list[Any]:
        found = await window[0]
        window.popleft()
        for output in found:
            if isinstance(output, RowError):
                raise ModelError(f"{model} failed on a row: {output.type}: {output.message}\n{output.traceback}")
        self._done += len(found)
        await self._stores.metadata.commit(AdvanceJob(self._job.id, self._owner, self._done, None, "validating"))
        return found

    async def _measured(self, metric: Metric, targets: list[Any], outputs: list[Any]) -> float:
        [record] = await self._stores.metadata.components(uuids=[str(metric.uuid)])
        source = msgspec.json.decode(record.data)["fields"]["object"]
        call = ModelCall(
            uuid=record.uuid,
            artifact=source["v"] if source["$"] == "artifact" else None,
            reference=source["v"] if source["$"] == "reference" else None,
            signature="args",
            kwargs=dict(metric.kwargs),
            placement="loop" if is_coroutine_function(metric.object) else "thread",
        )
        [value] = await completed(self._submit(call, [(targets, outputs)]))
        if isinstance(value, RowError):
            raise ModelError(f"{metric} failed: {value.type}: {value.message}\n{value.traceback}")
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise ModelError(f"{metric} returned {value!r}, which is not a number") from error

    async def _keep(self, record: ComponentRecord, validation: str, metrics: dict[str, float]) -> None:
        event = ModelValidated(
            identifier=record.identifier,
            uuid=record.uuid,
            version=record.version,
            validation=validation,
            metrics=metrics,
        ).change(self._job.first, self._job.last)
        for _ in range(_ATTEMPTS):
            state = ModelState.of(record)
            new = replace(state, validations={**state.validations, validation: metrics})
            try:
                await self._stores.metadata.commit(
                    AdvanceJob(self._job.id, self._owner, self._done, self._done, "validated"),
                    SetComponentState(record.uuid, new.dumps(), expected=record.state),
                    event,
                )
            except ConflictError as error:  # another validation was kept meanwhile
                conflict = error
                records = await self._stores.metadata.components(uuids=[record.uuid])
                if not records:
                    raise ComponentNotFoundError(f"the model of job {self._job.id} has been removed") from error
                record = records[0]
            else:
                return
        raise conflict


def _has_folds(dataset: ComponentRecord) -> bool:
    fields = msgspec.json.decode(dataset.data)["fields"]
    return bool(fields["valid_fraction"]["v"])


def _inputs(key: Any, rows: Sequence[tuple[Any, ...]], columns: Sequence[str]) -> list[Any]:
    """Return what a model is given for each row, as a listener gives it."""
    if isinstance(key, str):
        return grouped(rows, columns, key)
    inputs = grouped(rows, columns, columns_of(key))
    if isinstance(key, tuple):
        return inputs
    return [dict(zip(key, each, strict=True)) for each in inputs]
