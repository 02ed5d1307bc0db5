"""The conformance suite of compute backends.

Derive a class named ``Test...`` from `ComputeBackendTests`, implement its hook, and pytest runs the suite against your
backend. It needs the pytest plugin of anyio, on asyncio.
"""

from __future__ import annotations

import asyncio
import gc
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import cloudpickle
import numpy as np
import pytest

from asyncdl.compute.base import ComputeBackend, ModelCall, ModelTask, Placement, RowError
from asyncdl.errors import ClosedError, ModelError, ModelOutputError

PLACEMENTS: tuple[Placement, ...] = ("loop", "thread", "process")
_numbers = count()


def increment(x: int) -> int:
    """Return the next number."""
    return x + 1


def describe(x: Any, y: Any = None, *, unit: str = "") -> str:
    """Return all arguments in one string."""
    return f"{x} {y}{unit}"


def picky(x: Any) -> Any:
    """Raise an exception like the one that is passed."""
    if isinstance(x, BaseException):
        raise type(x)(*x.args)
    return x


def picky_batch(rows: Sequence[Any]) -> list[Any]:
    """Fail as a whole when one row does."""
    return [picky(row) for row in rows]


class Scaler:
    """A model with state and methods."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def predict(self, rows: Sequence[int]) -> Any:
        """Return an array."""
        return np.array(rows) * self.factor


def as_generator(rows: Sequence[int]) -> Iterator[int]:
    """Yield the outputs."""
    for row in rows:
        yield row + 1


NOT_OUTPUTS: dict[str, Callable[[Sequence[Any]], Any]] = {
    "too few": lambda rows: rows[1:],
    "too many": lambda rows: [*rows, 0],
    "endless": lambda _: count(),
    "none": lambda _: None,
    "string": lambda rows: "x" * len(rows),
    "bytes": lambda rows: b"x" * len(rows),
    "mapping": dict.fromkeys,
    "set": set,
    "scalar": lambda _: np.array(5),
}


def coroutine_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same function, as one for the event loop."""

    async def asynchronous(*args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        return function(*args, **kwargs)

    return asynchronous


class Models:
    """A loader of models held in a dictionary, that counts its loads."""

    def __init__(self) -> None:
        self.models: dict[str, Any] = {}
        self.loads: list[str] = []
        self.failures: dict[str, BaseException] = {}

    async def __call__(self, call: ModelCall) -> Any:
        """Return the object."""
        return await self._find(call)

    async def payload(self, call: ModelCall) -> bytes:
        """Return the object pickled."""
        payload: bytes = cloudpickle.dumps(await self._find(call))
        return payload

    def fetch(self) -> None:
        """Return nothing: a dictionary is in one process."""

    async def _find(self, call: ModelCall) -> Any:
        self.loads.append(call.uuid)
        await asyncio.sleep(0)
        if call.uuid in self.failures:
            raise self.failures[call.uuid]
        return self.models[call.uuid]

    def task(self, model: Any, inputs: Sequence[Any], placement: Placement = "thread", **others: Any) -> ModelTask:
        """Return a task for a model, which is made a coroutine function where it has to be one."""
        uuid = others.pop("uuid", None) or f"model-{next(_numbers)}"
        self.models[uuid] = coroutine_function(model) if placement == "loop" and "method" not in others else model
        return ModelTask(f"task-{next(_numbers)}", ModelCall(uuid, placement=placement, **others), inputs)


class ComputeBackendTests(ABC):
    """What holds for each compute backend."""

    @abstractmethod
    async def make(self) -> ComputeBackend:
        """Return a backend, not opened."""

    @pytest.fixture
    def models(self) -> Models:
        """Return the loader that `backend` is opened with."""
        return Models()

    @pytest.fixture
    async def backend(self, models: Models) -> AsyncIterator[ComputeBackend]:
        """Yield an opened backend."""
        backend = await self.make()
        await backend.open(models)
        yield backend
        await backend.aclose()

    @pytest.fixture(params=PLACEMENTS)
    def placement(self, request: pytest.FixtureRequest) -> Placement:
        """Return where the model runs."""
        placement: Placement = request.param
        return placement

    async def test_outputs_are_in_order(self, backend: ComputeBackend, models: Models, placement: Placement) -> None:
        """There is one output for each input, in their order, in each of many batches."""
        futures = [
            backend.submit(models.task(increment, range(at, at + 50), placement, uuid="one"))
            for at in range(0, 500, 50)
        ]
        outputs = [output for future in futures for output in await future]
        assert outputs == list(range(1, 501))
        assert all(future.done() for future in futures)

    async def test_no_inputs(self, backend: ComputeBackend, models: Models, placement: Placement) -> None:
        """An empty batch has no outputs, and calls nothing."""
        assert await backend.submit(models.task(increment, [], placement)) == []
        assert await backend.submit(models.task(picky_batch, [], placement, batch=True)) == []

    @pytest.mark.parametrize(
        ("signature", "row", "output"),
        [("single", 1, "1 Nonekm"), ("args", (1, 2), "1 2km"), ("kwargs", {"y": 2, "x": 1}, "1 2km")],
    )
    async def test_signatures(
        self, backend: ComputeBackend, models: Models, placement: Placement, signature: Any, row: Any, output: str
    ) -> None:
        """An input is passed as one argument, as several, or by keyword; the call's own keywords are added."""
        task = models.task(describe, [row, row], placement, signature=signature, kwargs={"unit": "km"})
        assert await backend.submit(task) == [output, output]

    @pytest.mark.parametrize("placement", ["thread", "process"])
    async def test_method_returning_an_array(
        self, backend: ComputeBackend, models: Models, placement: Placement
    ) -> None:
        """A method may be called; an array's rows are outputs."""
        task = models.task(Scaler(3), [1, 2, 3], placement, method="predict", batch=True)
        outputs = await backend.submit(task)
        assert outputs == [3, 6, 9]
        assert isinstance(outputs[0], np.integer)

    async def test_generator_as_outputs(self, backend: ComputeBackend, models: Models, placement: Placement) -> None:
        """What a batch function yields are its outputs."""
        assert await backend.submit(models.task(as_generator, [1, 2], placement, batch=True)) == [2, 3]

    @pytest.mark.parametrize("batch", [False, True])
    async def test_one_bad_row(
        self, backend: ComputeBackend, models: Models, placement: Placement, *, batch: bool
    ) -> None:
        """A failing row leaves a description, and the others their outputs."""
        rows = [1, ValueError("bad luck"), 3, KeyError("k"), 5]
        outputs = await backend.submit(models.task(picky_batch if batch else picky, rows, placement, batch=batch))
        assert [outputs[0], outputs[2], outputs[4]] == [1, 3, 5]
        first, second = outputs[1], outputs[3]
        assert isinstance(first, RowError)
        assert (first.type, first.message) == ("ValueError", "bad luck")
        assert "in picky\n" in first.traceback
        assert "asyncdl/compute/" not in first.traceback.replace("testing/compute", "")
        assert isinstance(second, RowError)
        assert second.type == "KeyError"
        assert "bad luck" not in second.traceback

    @pytest.mark.parametrize("error", [SystemExit(3), StopIteration("s"), RecursionError(), MemoryError()])
    async def test_exceptions_that_end_things(
        self, backend: ComputeBackend, models: Models, placement: Placement, error: BaseException
    ) -> None:
        """A model may raise what it likes: it ends its row and nothing else."""
        outputs = await backend.submit(models.task(picky, [1, error, 2], placement))
        assert [outputs[0], outputs[2]] == [1, 2]
        assert isinstance(outputs[1], RowError)

    @pytest.mark.parametrize("what", NOT_OUTPUTS)
    async def test_wrong_outputs(
        self, backend: ComputeBackend, models: Models, placement: Placement, what: str
    ) -> None:
        """A batch function that does not return one output for each input fails the batch."""
        future = backend.submit(models.task(NOT_OUTPUTS[what], [1, 2, 3], placement, batch=True))
        with pytest.raises(ModelOutputError, match="3 inputs"):
            await future

    async def test_model_that_cannot_be_loaded(
        self, backend: ComputeBackend, models: Models, placement: Placement
    ) -> None:
        """A failed load fails the batch, naming its cause, and is tried again for the next."""
        task = models.task(increment, [1], placement)
        models.failures[task.call.uuid] = OSError("no such model")
        with pytest.raises(ModelError, match="no such model"):
            await backend.submit(task)
        models.failures.clear()
        assert await backend.submit(task) == [2]

    async def test_method_that_is_not_there(self, backend: ComputeBackend, models: Models) -> None:
        """A model without the method fails the batch."""
        with pytest.raises(ModelError, match="transform"):
            await backend.submit(models.task(Scaler(1), [1], method="transform"))

    async def test_loads_once_until_forgotten(
        self, backend: ComputeBackend, models: Models, placement: Placement
    ) -> None:
        """Concurrent tasks share one load; after `forget` the model is loaded again."""
        task = models.task(increment, [1], placement)
        for loads in (1, 2):
            futures = [backend.submit(task) for _ in range(20)]
            assert [await future for future in futures] == [[2]] * 20
            assert models.loads == [task.call.uuid] * loads
            backend.forget(task.call.uuid)
        models.models[task.call.uuid] = coroutine_function(str) if placement == "loop" else str
        assert await backend.submit(task) == ["1"]

    async def test_awaited_repeatedly(self, backend: ComputeBackend, models: Models, placement: Placement) -> None:
        """Any number of awaits, at once and later, give the same; cancelling one cancels only that."""
        future = backend.submit(models.task(increment, [1], placement))

        async def wait() -> list[Any]:
            return await future

        waits = [asyncio.create_task(wait()) for _ in range(3)]
        await asyncio.sleep(0)
        waits[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits[0]
        assert await asyncio.gather(*waits[1:]) == [[2], [2]]
        assert await future == [2]
        assert not future.cancel()

    async def test_failure_awaited_repeatedly(self, backend: ComputeBackend, models: Models) -> None:
        """Each await of a failed task raises."""
        future = backend.submit(models.task(NOT_OUTPUTS["none"], [1], batch=True))
        for _ in range(2):
            with pytest.raises(ModelOutputError):
                await future
        assert future.done()

    async def test_cancelled(self, backend: ComputeBackend, models: Models, placement: Placement) -> None:
        """A cancelled task is done, and awaiting it raises."""
        future = backend.submit(models.task(increment, [1], placement))
        assert future.cancel()
        assert future.done()
        assert not future.cancel()
        for _ in range(2):
            with pytest.raises(asyncio.CancelledError):
                await future
        assert await backend.submit(models.task(increment, [1], placement)) == [2]

    async def test_nobody_awaits(self, backend: ComputeBackend, models: Models, placement: Placement) -> None:
        """Failures and cancellations that nobody waits for make no noise."""
        complaints: list[Mapping[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        tasks = [models.task(NOT_OUTPUTS["none"], [1], placement, batch=True) for _ in range(3)]
        futures = [backend.submit(task) for task in tasks]
        futures[0].cancel()
        with pytest.raises(ModelOutputError):
            await futures[-1]
        await backend.aclose()
        del futures
        gc.collect()
        await asyncio.sleep(0)
        asyncio.get_running_loop().set_exception_handler(None)
        assert complaints == [], complaints

    async def test_closing_cancels(self, backend: ComputeBackend, models: Models, placement: Placement) -> None:
        """What has not finished when the backend is closed is cancelled; then it takes nothing more."""
        futures = [backend.submit(models.task(increment, range(10), placement)) for _ in range(50)]
        await backend.aclose()
        await backend.aclose()
        assert all(future.done() for future in futures)
        with pytest.raises(asyncio.CancelledError):
            await futures[-1]
        with pytest.raises(ClosedError):
            backend.submit(models.task(increment, [1], placement))

    async def test_not_opened(self, models: Models) -> None:
        """Before it is opened a backend takes nothing, and can be closed."""
        backend = await self.make()
        with pytest.raises(ClosedError):
            backend.submit(models.task(increment, [1]))
        backend.forget("nothing")
        await backend.aclose()

    async def test_parallelism(self, backend: ComputeBackend) -> None:
        """At least one batch is worth having under way."""
        assert backend.parallelism >= 1
        assert backend.url
