"""The local compute backend: threads, child processes, the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from asyncdl.compute import coroutines
from asyncdl.compute.base import ComputeBackend, ModelCall, ModelTask, RowError
from asyncdl.compute.gil import prompt_switching
from asyncdl.compute.local import LocalComputeBackend
from asyncdl.errors import ModelError, ModelOutputError
from asyncdl.testing.compute import ComputeBackendTests, Models, increment, picky_batch

pytestmark = pytest.mark.anyio

ORPHANER = """
    import asyncio, os, sys, time
    from asyncdl.compute.base import ModelCall, ModelTask
    from asyncdl.compute.local import LocalComputeBackend
    from asyncdl.testing.compute import Models

    def hang(pid_file):
        with open(pid_file, "w") as file:
            print(os.getpid(), file=file)
        while True:
            pass

    async def main():
        backend, models = LocalComputeBackend(processes=1), Models()
        await backend.open(models)
        await backend.submit(models.task(hang, [sys.argv[1]], "process"))

    asyncio.run(main())  # without a guard: a child must not run this again
"""


class TestLocalComputeBackend(ComputeBackendTests):
    async def make(self) -> ComputeBackend:
        return LocalComputeBackend(threads=4, processes=2)


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture
async def backend(models: Models) -> AsyncIterator[LocalComputeBackend]:
    backend = LocalComputeBackend(threads=2, processes=2, grace=10)
    await backend.open(models)
    yield backend
    await backend.aclose()


def coroutine_task(models: Models, function: Callable[..., Any], inputs: Any, **others: Any) -> ModelTask:
    models.models[function.__qualname__] = function
    return ModelTask("key", ModelCall(function.__qualname__, placement="loop", **others), inputs)


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


def processes() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if "asyncdl.compute.child" in " ".join(each.cmdline())]


def wait_for_end(pid: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:  # whoever inherits an orphan may not care for it
            process.wait(60)


def my_pid(x: Any) -> int:
    return os.getpid()


def kill_me(x: Any) -> Any:
    if x == "exit":
        os._exit(7)
    if x == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def hang(x: Any) -> None:
    while True:
        pass


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("nobody can pickle this")


class Poisoned:
    """Pickles well, and cannot be unpickled."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


# threads


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
    late = [backend.submit(models.task(gate, range(100), uuid="late", timeout=0.01)) for _ in range(6)]
    for future in late:
        with pytest.raises(ModelError, match=r"within 0\.01 s: a thread cannot be stopped"):
            await future
    assert await backend.submit(models.task(increment, [1])) == [2]
    gate.opens.set()
    await backend.aclose()
    assert gate.calls == 6


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


# processes


@pytest.mark.parametrize(("how", "what"), [("exit", "exited with status 7"), ("kill", "was killed by SIGKILL")])
async def test_dead_child_fails_its_batch_only(
    backend: LocalComputeBackend, models: Models, how: str, what: str
) -> None:
    batches = [[1, 2], [3, how, 4], [5, 6], [7], [8]]
    futures = [backend.submit(models.task(kill_me, batch, "process", uuid="kill")) for batch in batches]
    with pytest.raises(ModelError, match=f"{what} while it ran a batch of 3"):
        await futures.pop(1)
    assert [await future for future in futures] == [[1, 2], [5, 6], [7], [8]]


async def test_child_killed_while_idle_is_replaced(models: Models) -> None:
    backend = LocalComputeBackend(processes=1)
    await backend.open(models)
    task = models.task(my_pid, [1], "process")
    (first,) = await backend.submit(task)
    assert await backend.submit(task) == [first]
    assert await backend.submit(models.task(my_pid, [1], "process")) == [first]
    psutil.Process(first).kill()
    # Waits until it is dead, without taking its status from the one who has to find that out.
    await asyncio.to_thread(os.waitid, os.P_PID, first, os.WEXITED | os.WNOWAIT)
    (second,) = await backend.submit(task)
    assert [each.pid for each in processes()] == [second]
    assert second != first
    assert models.loads.count(task.call.uuid) == 1
    await backend.aclose()
    assert processes() == []


async def test_late_child_is_killed(backend: LocalComputeBackend, models: Models) -> None:
    late = [backend.submit(models.task(hang, [1], "process", timeout=0.01)) for _ in range(3)]
    for future in late:
        with pytest.raises(ModelError, match=r"within 0\.01 s: its process was killed"):
            await future
    assert await backend.submit(models.task(increment, [1], "process")) == [2]
    await backend.aclose()
    assert processes() == []


async def test_cancelled_child_is_killed(models: Models, tmp_path: Path) -> None:
    backend, pid_file = LocalComputeBackend(processes=1), tmp_path / "pid"
    os.mkfifo(pid_file)

    def tell_and_hang(file: str) -> None:
        with open(file, "w") as pipe:
            pipe.write(str(os.getpid()))
        while True:
            pass

    await backend.open(models)
    future = backend.submit(models.task(tell_and_hang, [str(pid_file)], "process"))
    pid = int(await asyncio.to_thread(pid_file.read_text))
    assert future.cancel()
    assert await backend.submit(models.task(increment, [1], "process")) == [2]
    assert not psutil.pid_exists(pid)
    await backend.aclose()


async def test_unpicklable_outputs_are_their_rows_errors(backend: LocalComputeBackend, models: Models) -> None:
    def model(x: int) -> Any:
        return Unpicklable() if x == 1 else x

    outputs = await backend.submit(models.task(model, [0, 1, 2], "process"))
    assert [outputs[0], outputs[1].message, outputs[2]] == [0, "nobody can pickle this", 2]


async def test_what_cannot_be_unpickled_fails_the_batch(backend: LocalComputeBackend, models: Models) -> None:
    with pytest.raises(ModelError, match=r"outputs cannot be unpickled.*no number"):
        await backend.submit(models.task(lambda _: Poisoned(), [1], "process"))
    with pytest.raises(ModelError, match="no number"):
        await backend.submit(models.task(increment, [Poisoned()], "process"))
    with pytest.raises(ModelError, match="no number"):
        await backend.submit(models.task(Poisoned(), [1], "process"))
    with pytest.raises(ModelError, match=r"inputs cannot be sent to a process.*nobody can pickle"):
        await backend.submit(models.task(increment, [Unpicklable()], "process"))
    assert await backend.submit(models.task(increment, [1], "process")) == [2]


async def test_large_batches_pass_the_pipe(backend: LocalComputeBackend, models: Models) -> None:
    inputs = [bytes([at]) * 3_000_000 for at in range(5)]
    assert await backend.submit(models.task(lambda x: x + b"!", inputs, "process")) == [x + b"!" for x in inputs]


async def test_prints_of_a_model_do_not_get_into_the_pipe(
    backend: LocalComputeBackend, models: Models, capfd: pytest.CaptureFixture[str]
) -> None:
    def model(x: int) -> int:
        print("hello", flush=True)  # noqa: T201
        os.write(1, b"raw")
        return x

    assert await backend.submit(models.task(model, [1], "process")) == [1]
    assert "hello\nraw" in capfd.readouterr().err


async def test_what_a_dead_child_started_does_not_outlive_it(
    backend: LocalComputeBackend, models: Models, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"

    def model(file: str) -> None:
        grandchild = os.fork()  # it holds the pipe of its parent open
        if grandchild == 0:
            signal.pause()
        Path(file).write_text(str(grandchild))
        os._exit(1)

    with pytest.raises(ModelError, match="exited with status 1"):
        await backend.submit(models.task(model, [str(pid_file)], "process"))
    await asyncio.to_thread(wait_for_end, int(pid_file.read_text()))


async def test_processes_start_when_needed(backend: LocalComputeBackend, models: Models) -> None:
    assert await backend.submit(models.task(increment, [1])) == [2]
    assert processes() == []


def test_children_die_with_a_killed_parent(tmp_path: Path) -> None:
    pid_file, script = tmp_path / "pid", tmp_path / "script.py"
    os.mkfifo(pid_file)
    script.write_text(textwrap.dedent(ORPHANER))
    with subprocess.Popen([sys.executable, str(script), str(pid_file)]) as parent:
        child = psutil.Process(int(pid_file.read_text()))
        parent.kill()
    wait_for_end(child.pid)


# the event loop


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
