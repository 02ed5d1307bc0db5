"""Faults on Dask, with real processes: each ends in the right state, with a message that says what happened; none hangs."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from asyncdl.compute.base import RowError
from asyncdl.compute.dask import DaskComputeBackend
from asyncdl.errors import ComputeUnavailableError, ModelError, WorkerLostError
from asyncdl.testing.compute import Models, increment
from tests.dask_processes import Processes

pytestmark = pytest.mark.anyio

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import a test


@pytest.fixture
async def backend(dask: Processes, models: Models) -> AsyncIterator[DaskComputeBackend]:
    backend = DaskComputeBackend(dask.url)
    await backend.open(models)
    yield backend
    await backend.aclose()


class Meeting:
    """A model that says where it runs, and waits until it may go on; by files, for it runs in other processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __call__(self, x: Any) -> Any:
        Path(self.folder, f"at-{x}-{os.getpid()}").touch()
        while not Path(self.folder, "go").exists():
            time.sleep(0.01)
        return x

    async def reached(self, count: int = 1) -> list[tuple[str, int]]:
        """Wait until so many calls have begun; return the inputs, and the processes that they are in."""
        return await asyncio.to_thread(self._reached, count)

    def _reached(self, count: int) -> list[tuple[str, int]]:
        until = time.monotonic() + 30
        while len(found := list(Path(self.folder).glob("at-*"))) < count:
            assert time.monotonic() < until, f"only {found} have begun"
            time.sleep(0.01)
        return [(each.name.split("-")[1], int(each.name.split("-")[2])) for each in found]

    def go(self) -> None:
        Path(self.folder, "go").touch()


def exits(x: Any) -> Any:
    if x == "exit":
        os._exit(7)
    return x


def crashes(x: Any) -> Any:
    if x == "exit":
        ctypes.string_at(0)
    return x


def hang(x: Any) -> None:
    while True:
        time.sleep(0.01)


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("nobody can pickle this")


class Poisoned:
    """Pickles well, and cannot be unpickled."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


async def test_worker_killed_in_the_middle_of_a_batch(
    dask: Processes, backend: DaskComputeBackend, models: Models, tmp_path: Path
) -> None:
    victim = dask.start_worker()
    await backend.wait_for_workers(1)
    meeting = Meeting(tmp_path)
    future = backend.submit(models.task(meeting, ["a"]))
    assert await meeting.reached() == [("a", victim.pid)]
    other = dask.start_worker()
    victim.kill()
    # the batch runs again elsewhere, and its outputs come once
    assert {pid for _, pid in await meeting.reached(2)} == {victim.pid, other.pid}
    meeting.go()
    assert await future == ["a"]


async def test_all_workers_gone_and_back(
    dask: Processes, backend: DaskComputeBackend, models: Models, tmp_path: Path
) -> None:
    dask.start_worker()
    dask.start_worker()
    await backend.wait_for_workers(2)
    assert backend.parallelism == 4
    meeting = Meeting(tmp_path)
    futures = [backend.submit(models.task(meeting, [f"{at}"], uuid="meeting")) for at in range(10)]
    await meeting.reached(2)
    dask.kill_workers()
    await backend.wait_for_workers(0)
    assert backend.parallelism == 1
    meeting.go()
    dask.start_worker()
    assert [await each for each in futures] == [[f"{at}"] for at in range(10)]


async def test_no_workers_for_too_long(dask: Processes, models: Models) -> None:
    backend = DaskComputeBackend(dask.url, no_workers_timeout=0.2)
    await backend.open(models)
    with pytest.raises(ComputeUnavailableError, match=r"waited for 0\.2 s: the Dask cluster has no workers"):
        await backend.submit(models.task(increment, [1]))
    dask.start_worker()
    await backend.wait_for_workers(1)
    assert await backend.submit(models.task(increment, [1])) == [2]
    await backend.aclose()


async def test_no_worker_offers_what_is_needed(dask: Processes, models: Models) -> None:
    backend = DaskComputeBackend(dask.url, no_workers_timeout=0.2)
    await backend.open(models)
    dask.start_worker()
    await backend.wait_for_workers(1)
    with pytest.raises(ComputeUnavailableError, match=r"no Dask worker offers \{'GPU': 1\}.*--resources \"GPU=1\""):
        await backend.submit(models.task(increment, [1], resources={"GPU": 1}))
    able = dask.start_worker("--resources", "GPU=1")
    await backend.wait_for_workers(2)
    where = [backend.submit(models.task(lambda _: os.getpid(), [1], resources={"GPU": 1})) for _ in range(5)]
    assert [await each for each in where] == [[able.pid]] * 5
    await backend.aclose()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_scheduler_ended_and_started_again(
    dask: Processes, backend: DaskComputeBackend, models: Models, tmp_path: Path, how: signal.Signals
) -> None:
    dask.start_worker()
    await backend.wait_for_workers(1)
    meeting = Meeting(tmp_path)
    running, queued = (backend.submit(models.task(meeting, [name], uuid="meeting")) for name in "ab")
    await meeting.reached()
    assert dask.scheduler is not None
    dask.scheduler.send_signal(how)
    with pytest.raises(WorkerLostError, match=f"scheduler at {dask.address}"):
        await running
    with pytest.raises(WorkerLostError):
        await queued
    dask.scheduler.wait()
    dask.kill_workers()
    meanwhile = backend.submit(models.task(increment, [1]))
    dask.start_scheduler()
    dask.start_worker()
    # It came while there was none: it waits for the new one, or is an attempt lost with the old; it never hangs.
    with contextlib.suppress(WorkerLostError):
        assert await meanwhile == [2]
    assert await backend.submit(models.task(increment, [1])) == [2]


async def test_scheduler_gone_for_too_long(dask: Processes, models: Models) -> None:
    backend = DaskComputeBackend(dask.url, no_workers_timeout=0.2)
    await backend.open(models)
    dask.kill_scheduler()
    with pytest.raises((ComputeUnavailableError, WorkerLostError)):
        await backend.submit(models.task(increment, [1]))
    with pytest.raises(ComputeUnavailableError, match="scheduler"):
        await backend.submit(models.task(increment, [1]))
    await backend.aclose()
    with pytest.raises(ComputeUnavailableError, match="no Dask scheduler answers"):
        await DaskComputeBackend(dask.url, connect_timeout=0.2).open(models)


@pytest.mark.parametrize("model", [exits, crashes])
async def test_model_that_kills_its_worker(
    dask: Processes, backend: DaskComputeBackend, models: Models, model: Callable[[Any], Any]
) -> None:
    for _ in range(5):
        dask.start_worker()
    await backend.wait_for_workers(5)
    with pytest.raises(WorkerLostError, match="4 Dask workers died while they ran it"):
        await backend.submit(models.task(model, [1, "exit", 2]))
    assert await backend.submit(models.task(model, [1, 2])) == [1, 2]


async def test_model_that_kills_its_process_beside_the_worker(
    dask: Processes, backend: DaskComputeBackend, models: Models
) -> None:
    dask.start_worker()
    with pytest.raises(WorkerLostError, match=r"on tcp://.*exited with status 7 while it ran a batch of 3"):
        await backend.submit(models.task(exits, [1, "exit", 2], "process"))
    assert await backend.submit(models.task(exits, [1, 2], "process")) == [1, 2]


async def test_model_that_never_returns(dask: Processes, backend: DaskComputeBackend, models: Models) -> None:
    dask.start_worker()
    for placement, what in (("thread", "a thread cannot be stopped"), ("process", "its process was killed")):
        with pytest.raises(ModelError, match=rf"within 0\.1 s: {what}"):
            await backend.submit(models.task(hang, [1], placement, timeout=0.1))
        assert await backend.submit(models.task(increment, [1], placement)) == [2]


async def test_cancelled_batch_stops_on_its_worker(
    dask: Processes, backend: DaskComputeBackend, models: Models, tmp_path: Path
) -> None:
    dask.start_worker()
    meeting = Meeting(tmp_path)
    running = backend.submit(models.task(meeting, ["a", "b", "c"]))
    queued = backend.submit(models.task(Meeting(tmp_path), ["never"]))
    await meeting.reached()
    assert running.cancel()
    assert queued.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    # A child process beside the thread gets its turn when the worker has been told.
    assert await backend.submit(models.task(increment, [1], "process")) == [2]
    meeting.go()  # as on one machine: a thread stops at its next row
    assert await backend.submit(models.task(increment, [2])) == [3]
    assert [name for name, _ in await meeting.reached()] == ["a"]


async def test_large_inputs_and_outputs(dask: Processes, backend: DaskComputeBackend, models: Models) -> None:
    dask.start_worker()
    [output] = await backend.submit(models.task(lambda x: x + b"!", [b"x" * 200_000_000]))
    assert len(output) == 200_000_001


async def test_what_cannot_be_pickled(dask: Processes, backend: DaskComputeBackend, models: Models) -> None:
    dask.start_worker()
    with pytest.raises(ModelError, match=r"cannot be loaded: TypeError: nobody can pickle this"):
        await backend.submit(models.task(Unpicklable(), [1]))
    with pytest.raises(ModelError, match=r"inputs cannot be sent to a worker: nobody can pickle this"):
        await backend.submit(models.task(increment, [Unpicklable()]))
    with pytest.raises(ModelError, match="no number"):
        await backend.submit(models.task(Poisoned(), [1]))
    with pytest.raises(ModelError, match=r"inputs cannot be read on tcp://.*no number"):
        await backend.submit(models.task(increment, [Poisoned()]))
    with pytest.raises(ModelError, match=r"outputs cannot be unpickled.*no number"):
        await backend.submit(models.task(lambda _: Poisoned(), [1]))
    outputs = await backend.submit(models.task(lambda x: Unpicklable() if x else x, [0, 1]))
    assert outputs[0] == 0
    assert isinstance(outputs[1], RowError)
    assert outputs[1].message == "nobody can pickle this"


async def test_worker_of_another_version(dask: Processes, models: Models, tmp_path: Path) -> None:
    (tmp_path / "older.py").write_text("import asyncdl\nasyncdl.__version__ = '0.0.1'\n")
    backend = DaskComputeBackend(dask.url, no_workers_timeout=0.2)
    await backend.open(models)
    dask.start_worker("--preload", str(tmp_path / "older.py"))
    await backend.wait_for_workers(1, any_version=True)
    with pytest.raises(
        ComputeUnavailableError, match=r"no Dask worker can be given work: tcp://.*asyncdl 0\.0\.1 there and"
    ):
        await backend.submit(models.task(increment, [1]))
    good = dask.start_worker()
    await backend.wait_for_workers(1)
    where = [backend.submit(models.task(lambda _: os.getpid(), [1])) for _ in range(5)]
    assert [await each for each in where] == [[good.pid]] * 5
    await backend.aclose()


async def test_worker_without_asyncdl(dask: Processes, models: Models, tmp_path: Path) -> None:
    (tmp_path / "without.py").write_text("import sys\nsys.modules['asyncdl'] = None\n")
    backend = DaskComputeBackend(dask.url, no_workers_timeout=0.2)
    await backend.open(models)
    dask.start_worker("--preload", str(tmp_path / "without.py"))
    await backend.wait_for_workers(1, any_version=True)
    with pytest.raises(
        ComputeUnavailableError, match=r"no Dask worker can be given work: tcp://.*it cannot run asyncdl"
    ):
        await backend.submit(models.task(increment, [1]))
    good = dask.start_worker()
    await backend.wait_for_workers(1)
    where = [backend.submit(models.task(lambda _: os.getpid(), [1])) for _ in range(5)]
    assert [await each for each in where] == [[good.pid]] * 5
    await backend.aclose()
