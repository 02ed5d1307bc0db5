"""The local compute backend's child processes."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import psutil
import pytest

from asyncdl.compute.local import LocalComputeBackend
from asyncdl.errors import ModelError, WorkerLostError
from asyncdl.testing.compute import Models, increment

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
    if x == "crash":
        ctypes.string_at(0)
    return x


def grabs(x: int) -> int:
    """Ask for more memory than its process may have."""
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    return len(bytearray(x))


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


@pytest.mark.parametrize(
    ("how", "what"),
    [("exit", "exited with status 7"), ("kill", "was killed by SIGKILL"), ("crash", "was killed by SIGSEGV")],
)
async def test_dead_child_fails_its_batch_only(
    backend: LocalComputeBackend, models: Models, how: str, what: str
) -> None:
    batches = [[1, 2], [3, how, 4], [5, 6], [7], [8]]
    futures = [backend.submit(models.task(kill_me, batch, "process", uuid="kill")) for batch in batches]
    with pytest.raises(WorkerLostError, match=f"{what} while it ran a batch of 3"):
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


async def test_outputs_of_200_mb(backend: LocalComputeBackend, models: Models) -> None:
    [output] = await backend.submit(models.task(lambda x: x + b"!", [b"x" * 200_000_000], "process"))
    assert len(output) == 200_000_001


async def test_out_of_memory_is_its_rows_error(backend: LocalComputeBackend, models: Models) -> None:
    outputs = await backend.submit(models.task(grabs, [1, 1 << 40, 2], "process"))
    assert [outputs[0], outputs[1].type, outputs[2]] == [1, "MemoryError", 2]


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

    with pytest.raises(WorkerLostError, match="exited with status 1"):
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
