"""The local compute backend: the conformance suite, threads, and what is common to all placements."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections import Counter
from typing import Any

import pytest

from asyncdl.compute.base import ComputeBackend, RowError
from asyncdl.compute.gil import prompt_switching
from asyncdl.compute.local import LocalComputeBackend
from asyncdl.errors import ModelError, ModelOutputError
from asyncdl.testing.compute import ComputeBackendTests, Models, increment

pytestmark = pytest.mark.anyio


class TestLocalComputeBackend(ComputeBackendTests):
    async def make(self) -> ComputeBackend:
        return LocalComputeBackend(threads=4, processes=2)


class Gate:
    """A plain model that waits, in its thread, until it may go on."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opens = threading.Event()
        self.calls = 0

    def __call__(self, x: Any) -> Any:
        self.calls += 1
        self.entered.release()
        self.opens.wait(60)
        return x

    async def reached(self, times: int = 1) -> None:
        for _ in range(times):
            await asyncio.to_thread(self.entered.acquire, timeout=60)


async def test_each_row_is_called_once(backend: LocalComputeBackend, models: Models) -> None:
    called: list[int] = []

    def model(x: int) -> int:
        called.append(x)
        if x % 3 == 0:
            raise ValueError(x)
        return x

    outputs = await backend.submit(models.task(model, range(1000)))
    assert called == list(range(1000))
    assert [isinstance(each, RowError) for each in outputs] == [x % 3 == 0 for x in range(1000)]


async def test_keyboard_interrupt_of_a_model_is_its_rows_error(backend: LocalComputeBackend, models: Models) -> None:
    def model(x: int) -> int:
        if x == 1:
            raise KeyboardInterrupt("not yours")
        return x

    outputs = await backend.submit(models.task(model, [0, 1, 2]))
    assert [outputs[0], outputs[1].type, outputs[2]] == [0, "KeyboardInterrupt", 2]


async def test_exception_that_cannot_be_shown(backend: LocalComputeBackend, models: Models) -> None:
    class Hostile(Exception):
        def __str__(self) -> str:
            raise SystemExit

    def model(x: int) -> int:
        raise Hostile

    (output,) = await backend.submit(models.task(model, [1]))
    assert output.type == "Hostile"


async def test_model_may_change_its_batch(backend: LocalComputeBackend, models: Models) -> None:
    def model(rows: list[int]) -> list[int]:
        outputs = [rows.pop(0) for _ in range(len(rows))]
        if len(outputs) > 1:
            raise ValueError("only one at a time")
        return outputs

    inputs = [1, 2, 3]
    assert await backend.submit(models.task(model, inputs, batch=True)) == [1, 2, 3]
    assert inputs == [1, 2, 3]


async def test_dataframe_is_no_batch_of_outputs(backend: LocalComputeBackend, models: Models) -> None:
    import pandas as pd

    with pytest.raises(ModelOutputError, match="DataFrame"):
        await backend.submit(models.task(lambda rows: pd.DataFrame({"a": rows, "b": rows}), [1, 2], batch=True))


async def test_queued_batch_that_is_cancelled_never_starts(backend: LocalComputeBackend, models: Models) -> None:
    gate = Gate()
    running = [backend.submit(models.task(gate, [at], uuid="gate")) for at in range(2)]
    await gate.reached(2)
    queued = backend.submit(models.task(gate, [2], uuid="gate"))
    last = backend.submit(models.task(gate, [3], uuid="gate"))
    assert queued.cancel()
    gate.opens.set()
    assert [await each for each in (*running, last)] == [[0], [1], [3]]
    assert gate.calls == 3


async def test_running_batch_that_is_cancelled_ends_at_the_next_row(
    backend: LocalComputeBackend, models: Models
) -> None:
    gate = Gate()
    future = backend.submit(models.task(gate, range(1000)))
    await gate.reached()
    assert future.cancel()
    with pytest.raises(asyncio.CancelledError):
        await future
    for _ in range(5):  # the thread is asked to stop in one of the loop's next turns
        await asyncio.sleep(0)
    gate.opens.set()
    await backend.aclose()
    assert gate.calls == 1


async def test_late_thread_fails_its_batch_and_does_not_starve_others(
    backend: LocalComputeBackend, models: Models
) -> None:
    gate = Gate()
    late = [backend.submit(models.task(gate, range(100), uuid="late", timeout=0.3)) for _ in range(6)]
    for future in late:
        with pytest.raises(ModelError, match=r"within 0\.3 s: a thread cannot be stopped"):
            await future
    assert await backend.submit(models.task(increment, [1])) == [2]
    gate.opens.set()
    await backend.aclose()
    assert gate.calls == 6


async def test_a_model_that_many_batches_wait_for_holds_up_no_other(models: Models) -> None:
    backend, gate, order = LocalComputeBackend(threads=1), Gate(), []
    await backend.open(models)
    first = backend.submit(models.task(gate, [0], uuid="slow"))
    await gate.reached()
    slow = [backend.submit(models.task(order.append, ["slow"], uuid="slow")) for _ in range(5)]
    await asyncio.sleep(0.05)
    quick = [backend.submit(models.task(order.append, ["quick"], uuid="quick")) for _ in range(2)]
    await asyncio.sleep(0.05)
    gate.opens.set()
    await asyncio.gather(first, *slow, *quick)
    # "slow" gives its place back before the next one is called: so they hold as many, and who waits longer is next
    assert order.index("quick") < 2, order
    await backend.aclose()


async def test_closing_leaves_a_stuck_thread_behind(models: Models, caplog: pytest.LogCaptureFixture) -> None:
    backend, gate = LocalComputeBackend(threads=1, grace=0.01), Gate()
    await backend.open(models)
    future = backend.submit(models.task(gate, range(10)))
    await gate.reached()
    await backend.aclose()
    assert future.done()
    assert "left behind" in caplog.text
    (stuck,) = (each for each in threading.enumerate() if each.name.startswith("asyncdl-model"))
    assert stuck.daemon
    gate.opens.set()
    await asyncio.to_thread(stuck.join)
    assert gate.calls == 1


async def test_switch_interval_is_put_back(backend: LocalComputeBackend, models: Models) -> None:
    before = sys.getswitchinterval()
    within: list[float] = await backend.submit(models.task(lambda _: sys.getswitchinterval(), range(3)))
    assert max(within) < before
    with prompt_switching(), prompt_switching():
        assert sys.getswitchinterval() < before
    assert sys.getswitchinterval() == before


async def test_loader_that_exits_is_an_error(backend: LocalComputeBackend, models: Models) -> None:
    task = models.task(increment, [1])
    models.failures[task.call.uuid] = SystemExit("import failed")
    with pytest.raises(ModelError, match="SystemExit: import failed"):
        await backend.submit(task)


async def test_two_backends_share_nothing(models: Models) -> None:
    first, second = LocalComputeBackend(threads=1), LocalComputeBackend(threads=1)
    await first.open(models)
    await second.open(models)
    task = models.task(increment, [1])
    assert await first.submit(task) == await second.submit(task) == [2]
    await first.aclose()
    assert await second.submit(task) == [2]
    await second.aclose()
    assert models.loads == [task.call.uuid] * 2
    gc.collect()


@pytest.mark.parametrize("counts", [{"threads": 0}, {"processes": -1}])
def test_counts_must_be_positive(counts: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="positive"):
        LocalComputeBackend(**counts)


async def test_retries_of_a_plain_function_concern_the_row_that_failed(
    backend: LocalComputeBackend, models: Models
) -> None:
    calls: Counter[int] = Counter()

    def model(x: int) -> int:
        calls[x] += 1
        if x == 2 or (x == 1 and calls[x] < 3):
            raise ValueError(f"not {x}")
        return x

    outputs = await backend.submit(models.task(model, [0, 1, 2, 3], retries=2, backoff=0.001))
    assert outputs[:2] + outputs[3:] == [0, 1, 3]
    assert outputs[2].message == "not 2"
    assert calls == {0: 1, 1: 3, 2: 3, 3: 1}


async def test_retries_of_a_batch_function_are_row_by_row(backend: LocalComputeBackend, models: Models) -> None:
    calls: Counter[tuple[int, ...]] = Counter()

    def model(rows: list[int]) -> list[int]:
        calls[tuple(rows)] += 1
        if len(rows) > 1 or (rows == [1] and calls[1,] < 2):
            raise ValueError("not yet")
        return rows

    assert await backend.submit(models.task(model, [0, 1], batch=True, retries=1, backoff=0.001)) == [0, 1]
    assert calls == {(0, 1): 1, (0,): 1, (1,): 2}
