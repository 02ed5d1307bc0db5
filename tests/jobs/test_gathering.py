"""Small batches that go to a model together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

import asyncdl
from asyncdl import Listener, Model, Table
from asyncdl.compute.base import ComputeFuture, ModelCall, ModelTask
from asyncdl.compute.futures import TaskFuture
from asyncdl.errors import ClosedError, ModelOutputError, WorkerLostError
from asyncdl.jobs.gathering import Gathering, gathers
from tests import models
from tests.conftest import rows_of

pytestmark = pytest.mark.anyio


class Backend:
    """Computes ``x + 1``, once it may; an input that is an exception fails the whole batch."""

    def __init__(self) -> None:
        self.opens = asyncio.Event()
        self.batches: list[list[Any]] = []
        self.cancelled = 0

    def submit(self, task: ModelTask) -> ComputeFuture:
        return TaskFuture(asyncio.ensure_future(self._compute(task.inputs)))

    async def _compute(self, inputs: Sequence[Any]) -> list[Any]:
        self.batches.append(list(inputs))
        try:
            await self.opens.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        for each in inputs:
            if isinstance(each, Exception):
                raise each
        return [x + 1 for x in inputs]


@pytest.fixture
async def backend():
    return Backend()


@pytest.fixture
async def gathering(backend):
    gathering = Gathering(backend.submit, lambda: 1)
    yield gathering
    await gathering.aclose()


def task(*inputs: Any, uuid: str = "m", **call: Any) -> ModelTask:
    return ModelTask(f"{inputs}", ModelCall(uuid, batch=True, **call), list(inputs))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def busy(gathering, backend, **call: Any) -> ComputeFuture:
    """Return a batch that keeps others waiting, until the backend opens."""
    first = gathering.submit(task(0, **call))
    await settle()
    assert backend.batches == [[0]]
    return first


async def test_what_comes_in_one_moment_or_while_there_is_no_room_goes_together(gathering, backend) -> None:
    first = [gathering.submit(task(0)), gathering.submit(task(1, 2))]
    await settle()
    later = [gathering.submit(task(n, n)) for n in range(3, 6)]
    await settle()
    assert backend.batches == [[0, 1, 2]]
    backend.opens.set()
    assert [await each for each in [*first, *later]] == [[1], [2, 3], [4, 4], [5, 5], [6, 6]]
    assert backend.batches == [[0, 1, 2], [3, 3, 4, 4, 5, 5]]
    assert all(0 < each.took < 60 for each in later)


async def test_models_and_calls_are_kept_apart(gathering, backend) -> None:
    backend.opens.set()
    found = [gathering.submit(task(1)), gathering.submit(task(2, kwargs={"a": 1})), gathering.submit(task(3, uuid="n"))]
    assert [await each for each in found] == [[2], [3], [4]]
    assert sorted(backend.batches) == [[1], [2], [3]]


async def test_no_more_go_together_than_are_good_for_the_model(gathering, backend) -> None:
    await busy(gathering, backend)
    many = [gathering.submit(task(*range(60))) for _ in range(5)]
    heavy = [gathering.submit(task(bytes(1 << 20), uuid="heavy", rate_limit=1.0)) for _ in range(40)]
    await settle()
    backend.opens.set()
    for each in many:
        assert await each == list(range(1, 61))
    assert max(len(each) for each in backend.batches) <= 256
    assert len(backend.batches) > 2
    for each in heavy:
        with pytest.raises(TypeError):  # the backend's own, on bytes
            await each
    assert 1 < max(len(each) for each in backend.batches if bytes(1 << 20) in each) <= 32


@pytest.mark.parametrize("error", [ModelOutputError("3 outputs for 4 inputs"), WorkerLostError("it died")])
async def test_when_all_fail_each_is_tried_alone(gathering, backend, error) -> None:
    first = await busy(gathering, backend)
    good, bad, other = (gathering.submit(task(*inputs)) for inputs in ((1, 2), (3, error), (4,)))
    await settle()
    backend.opens.set()
    assert await first == [1]
    assert (await good, await other) == ([2, 3], [5])
    with pytest.raises(type(error), match=str(error)):
        await bad
    assert backend.batches[1:] == [[1, 2, 3, error, 4], [1, 2], [3, error], [4]]


async def test_another_error_is_told_to_all(gathering, backend) -> None:
    first, second = gathering.submit(task(1)), gathering.submit(task(ClosedError("closed")))
    backend.opens.set()
    for each in (first, second):
        with pytest.raises(ClosedError):
            await each
    assert len(backend.batches) == 1


async def test_who_is_cancelled_is_left_out_and_takes_nobody_along(gathering, backend) -> None:
    first = await busy(gathering, backend)
    waiting, gone = gathering.submit(task(1)), gathering.submit(task(2))
    assert gone.cancel()
    assert gone.done()
    assert not gone.cancel()
    backend.opens.set()
    assert await first == [1]
    assert await waiting == [2]
    assert backend.batches == [[0], [1]]
    with pytest.raises(asyncio.CancelledError):
        await gone


async def test_a_batch_goes_on_while_anybody_waits_for_it(gathering, backend) -> None:
    first, second = gathering.submit(task(1)), gathering.submit(task(2))
    await settle()
    first.cancel()
    await settle()
    assert backend.cancelled == 0
    second.cancel()
    await settle()
    assert backend.cancelled == 1
    third = gathering.submit(task(3))  # there is room again
    backend.opens.set()
    assert await third == [4]


async def test_closing_cancels_what_waits_and_what_is_under_way(gathering, backend) -> None:
    first = await busy(gathering, backend)
    waiting = gathering.submit(task(1))
    await settle()
    new = gathering.submit(task(2))  # its batch has not begun
    await gathering.aclose()
    assert [each.done() for each in (first, waiting, new)] == [True] * 3
    assert backend.cancelled == 1
    assert backend.batches == [[0]]


@pytest.mark.parametrize(
    ("call", "most"),
    [
        ({"placement": "loop", "max_concurrency": 3}, 3),
        ({"placement": "loop", "max_concurrency": 3, "at_most": 2}, 2),
        ({"placement": "loop", "max_concurrency": 9, "rate_limit": 1.5}, 2),
        ({"rate_limit": 0.1}, 1),
        ({"at_most": 7}, 1),
    ],
)
async def test_as_many_at_once_as_the_model_and_its_limits_allow(gathering, backend, call, most) -> None:
    found = []
    for n in range(12):
        found.append(gathering.submit(task(n, **call)))
        await settle()
    assert len(backend.batches) == most
    backend.opens.set()
    assert [await each for each in found] == [[n + 1] for n in range(12)]
    assert len(backend.batches) == most + 1


def test_what_goes_alone() -> None:
    assert gathers(task(1))
    assert not gathers(ModelTask("", ModelCall("m"), [1]))  # the model takes one at a time
    assert not gathers(task(1, one_by_one=False))  # one bad row would be everybody's
    assert not gathers(task(*range(1000)))
    assert not gathers(task())


@pytest.mark.parametrize("on", ["thread", "process", "loop"])
async def test_rows_that_come_one_by_one_reach_a_busy_model_together(tmp_path, on) -> None:
    function = models.how_many_together_coroutine if on == "loop" else models.how_many_together
    options = {"max_concurrency": 1} if on == "loop" else {"on": on}
    gate = tmp_path / "gate"
    uris = {
        "databackend": f"sqlite:///{tmp_path / 'app.db'}",
        "artifact_store": f"filesystem://{tmp_path / 'artifacts'}",
    }
    async with asyncdl.connect(**uris, threads=1, processes=1) as db:
        await db.add(Table("texts", {"id": "int64", "text": "string"}))
        model = Model("together", function, batch=True, **options)
        await db.add(Listener("together", model=model, key="text", select=db["texts"]), wait=True)
        for n in range(40):
            await db.execute(db["texts"].insert({"id": n, "text": str(gate)}))
        gate.touch()  # until here the first ones were being computed
        await db.wait_idle(60)
        outputs = dict(await rows_of(db, db["texts"].outputs("together").select("id", "together")))
        assert sorted(outputs) == list(range(40))
        calls = sum(1 / each for each in outputs.values())
        assert calls < 20, outputs
