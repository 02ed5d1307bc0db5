"""Coroutine functions on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from asyncdl.compute import coroutines
from asyncdl.compute.base import ModelCall, ModelTask
from asyncdl.compute.coroutines import Lane, Pace
from asyncdl.compute.local import LocalComputeBackend
from asyncdl.errors import ModelError
from asyncdl.testing.compute import Models, picky_batch

pytestmark = pytest.mark.anyio


def coroutine_task(models: Models, function: Callable[..., Any], inputs: Any, **others: Any) -> ModelTask:
    models.models[function.__qualname__] = function
    return ModelTask("key", ModelCall(function.__qualname__, placement="loop", **others), inputs)


async def test_never_more_calls_than_allowed(backend: LocalComputeBackend, models: Models) -> None:
    running, most = 0, 0

    async def model(x: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(x % 5):
            await asyncio.sleep(0)
        running -= 1
        return x

    tasks = [coroutine_task(models, model, range(100), max_concurrency=7) for _ in range(10)]
    futures = [backend.submit(task) for task in tasks]
    futures[3].cancel()
    for future in futures[:3] + futures[4:]:
        assert await future == list(range(100))
    assert most == 7


async def test_all_allowed_calls_run_at_once(backend: LocalComputeBackend, models: Models) -> None:
    all_there = asyncio.Barrier(300)

    async def model(x: int) -> int:
        async with all_there:
            return x

    futures = [
        backend.submit(coroutine_task(models, model, range(100), max_concurrency=300)),
        backend.submit(coroutine_task(models, model, range(200), max_concurrency=300)),
    ]
    assert [len(await future) for future in futures] == [100, 200]


async def test_retries_count_calls(backend: LocalComputeBackend, models: Models) -> None:
    calls = dict.fromkeys(range(4), 0)

    async def model(x: int) -> int:
        calls[x] += 1
        if calls[x] <= x:
            raise ConnectionError(f"attempt {calls[x]}")
        return x

    outputs = await backend.submit(coroutine_task(models, model, range(4), retries=2, backoff=0.001))
    assert outputs[:3] == [0, 1, 2]
    assert (outputs[3].type, outputs[3].message) == ("ConnectionError", "attempt 3")
    assert calls == {0: 1, 1: 2, 2: 3, 3: 3}


async def test_late_call_is_its_rows_error(backend: LocalComputeBackend, models: Models) -> None:
    async def model(x: int) -> int:
        if x == 1:
            await asyncio.Event().wait()
        if x == 2:
            raise TimeoutError("my own")
        return x

    outputs = await backend.submit(coroutine_task(models, model, range(4), timeout=0.01))
    assert [outputs[0], outputs[3]] == [0, 3]
    assert (outputs[1].type, outputs[1].message) == ("TimeoutError", "the model did not answer within 0.01 s")
    assert (outputs[2].type, outputs[2].message) == ("TimeoutError", "my own")


async def test_late_batch_fails(backend: LocalComputeBackend, models: Models) -> None:
    async def model(rows: list[int]) -> list[int]:
        await asyncio.Event().wait()
        return rows

    with pytest.raises(ModelError, match=r"within 0\.01 s"):
        await backend.submit(coroutine_task(models, model, range(4), timeout=0.01, batch=True))


async def test_batch_model_is_called_once(backend: LocalComputeBackend, models: Models) -> None:
    batches: list[list[Any]] = []

    async def model(rows: list[Any]) -> list[Any]:
        batches.append(rows)
        return picky_batch(rows)

    assert await backend.submit(coroutine_task(models, model, range(100), batch=True)) == list(range(100))
    assert len(batches) == 1


async def test_cancellation_of_the_models_own_is_its_rows_error(backend: LocalComputeBackend, models: Models) -> None:
    async def model(x: int) -> int:
        if x == 1:
            inner = asyncio.create_task(asyncio.Event().wait())
            inner.cancel()
            await inner
        return x

    outputs = await backend.submit(coroutine_task(models, model, range(3), max_concurrency=1))
    assert [outputs[0], outputs[1].type, outputs[2]] == [0, "CancelledError", 2]


async def test_cancelled_calls_are_cancelled(backend: LocalComputeBackend, models: Models) -> None:
    entered, left = asyncio.Semaphore(0), 0

    async def model(x: int) -> None:
        nonlocal left
        entered.release()
        try:
            await asyncio.Event().wait()
        finally:
            left += 1

    future = backend.submit(coroutine_task(models, model, range(100), max_concurrency=5))
    for _ in range(5):
        await entered.acquire()
    assert future.cancel()
    await backend.aclose()
    assert left == 5


async def test_model_that_ignores_its_cancellation(backend: LocalComputeBackend, models: Models) -> None:
    entered, calls = asyncio.Event(), 0

    async def model(x: int) -> int:
        nonlocal calls
        calls += 1
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return x
        return x

    future = backend.submit(coroutine_task(models, model, range(100), max_concurrency=1))
    await entered.wait()
    assert future.cancel()
    with pytest.raises(asyncio.CancelledError):
        await future
    await backend.aclose()
    assert calls == 1


async def test_calls_that_do_not_wait_leave_others_their_turn(
    backend: LocalComputeBackend, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coroutines, "_SLICE", 0.0)
    turns: list[int] = []
    done = 0

    async def model(x: int) -> int:
        nonlocal done
        done += 1
        return x

    future = backend.submit(coroutine_task(models, model, range(1000), max_concurrency=100))
    while not future.done():
        turns.append(done)
        await asyncio.sleep(0)
    assert await future == list(range(1000))
    assert len(set(turns)) > 10


class Spawning:
    """Makes tasks, and counts them."""

    def __init__(self) -> None:
        self.count = 0
        self.tasks: set[asyncio.Task[None]] = set()

    def __call__(self, work):
        self.count += 1
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


async def test_batches_of_one_row_cost_one_task_each_also_when_there_is_no_room():
    spawn = Spawning()
    lane = Lane(3, Pace(), spawn)

    async def model(x):
        await asyncio.sleep(0)
        return -x

    outputs = await asyncio.gather(*(lane.run(model, ModelCall("m", placement="loop"), [n]) for n in range(200)))
    assert outputs == [[-n] for n in range(200)]
    assert spawn.count == 200
    await asyncio.sleep(0)
    assert lane.idle


async def test_a_lane_that_is_resized_takes_in_fewer_and_more_and_forgets_no_row():
    spawn = Spawning()
    lane = Lane(8, Pace(), spawn)
    inside, most, seen = 0, 0, []

    async def model(x):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0)
        inside -= 1
        seen.append(x)
        return x

    call = ModelCall("m", placement="loop")
    running = asyncio.gather(
        *(lane.run(model, call, range(at, at + 40)) for at in (0, 100, 200)), lane.run(model, call, [7])
    )
    while len(seen) < 20:  # noqa: ASYNC110 - turn by turn
        await asyncio.sleep(0)
    assert most == 8
    for limit in (2, 0, 5, 1, 0, 3):
        lane.resize(limit)
        while lane.under_way > limit:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
        most, before = 0, len(seen)
        for _ in range(10):
            await asyncio.sleep(0)
        assert most <= limit
        assert (len(seen) > before) == (limit > 0)
    lane.resize(50)
    outputs = await running
    assert [list(each) for each in outputs] == [list(range(at, at + 40)) for at in (0, 100, 200)] + [[7]]
    await asyncio.sleep(0)
    assert lane.idle
