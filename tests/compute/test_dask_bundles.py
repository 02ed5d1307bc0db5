"""Batches that go to Dask together: each keeps its own outputs, error, cancellation and end."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from asyncdl.compute import dask_bundles
from asyncdl.compute import dask_worker as dask_worker_module
from asyncdl.compute.base import ComputeFuture, ModelCall
from asyncdl.compute.dask import DaskComputeBackend
from asyncdl.compute.dask_bundles import SMALL, Line, Load, Pace, bundle_size, goes_alone
from asyncdl.errors import ModelOutputError, WorkerLostError
from asyncdl.testing.compute import Models
from tests.dask_processes import Processes

pytestmark = pytest.mark.anyio

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import a test


class Noted:
    """A batch model: notes by files what it begins, and where; waits at a gate if it is told to; fails and dies as it is told."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __call__(self, rows: list[Any]) -> list[Any]:
        for row in rows:
            Path(self.folder, f"at-{row}-{os.getpid()}-{time.monotonic_ns()}").touch()
            while str(row).startswith("wait") and not Path(self.folder, "go").exists():
                time.sleep(0.01)
            if row == "exit":
                os._exit(7)
        return [] if rows == ["bad"] else rows

    def begun(self) -> list[tuple[str, int]]:
        """Return what was begun, and in which processes."""
        return [(each.name.split("-")[1], int(each.name.split("-")[2])) for each in Path(self.folder).glob("at-*")]

    async def reached(self, row: str, count: int = 1) -> set[int]:
        """Wait until what begins so was begun so often; return the processes."""
        return await asyncio.to_thread(self._reached, row, count)

    def _reached(self, row: str, count: int) -> set[int]:
        until = time.monotonic() + 60
        while len(found := [pid for name, pid in self.begun() if name.startswith(row)]) < count:
            assert time.monotonic() < until, f"only {self.begun()} have begun"
            time.sleep(0.01)  # nobody tells when a file appears
        return set(found)

    def go(self) -> None:
        Path(self.folder, "go").touch()


@pytest.fixture
async def backend(
    dask: Processes, models: Models, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[DaskComputeBackend]:
    """Make one bundle at once for each thread, of any length: what is submitted together goes together, on a busy machine too."""
    monkeypatch.setattr(dask_bundles, "_ENOUGH", 600.0)
    backend = DaskComputeBackend(dask.url, ahead=1)
    await backend.open(models)
    yield backend
    await backend.aclose()


@pytest.fixture
def noted(tmp_path: Path) -> Noted:
    return Noted(tmp_path)


Submit = Callable[[Any], ComputeFuture]


@pytest.fixture
async def submit(dask: Processes, backend: DaskComputeBackend, models: Models, noted: Noted) -> Submit:
    """Return what submits a batch of a model of which one was seen before."""
    dask.start_worker()
    await backend.wait_for_workers(1)

    def submit(row: Any) -> ComputeFuture:
        return backend.submit(models.task(noted, [row], uuid="noted", batch=True))

    assert await submit("first") == ["first"]
    return submit


async def outputs(futures: list[ComputeFuture]) -> list[Any]:
    async def one(future: Awaitable[Any]) -> Any:
        return await future

    return list(await asyncio.gather(*(one(each) for each in futures), return_exceptions=True))


async def test_each_has_its_own_outputs_or_error(submit: Submit, noted: Noted) -> None:
    gate = submit("wait")
    await noted.reached("wait")
    futures = [submit(row) for row in ("a", "bad", "b")]
    noted.go()
    assert await gate == ["wait"]
    found = await outputs(futures)
    assert found[0] == ["a"]
    assert isinstance(found[1], ModelOutputError)
    assert found[2] == ["b"]
    assert all(future.done() for future in futures)


async def test_a_cancelled_one_is_skipped_and_harms_no_other(dask: Processes, submit: Submit, noted: Noted) -> None:
    from distributed import Client

    futures = [submit(row) for row in ("wait", "a", "cancelled", "b")]
    await noted.reached("wait")
    assert futures[2].cancel()
    assert futures[2].done()
    async with Client(dask.address, asynchronous=True) as client, asyncio.timeout(60):
        while not all((await client.run(skips)).values()):
            pass  # nobody tells when a worker has heard of it
    noted.go()
    found = await outputs(futures)
    assert found[:2] == [["wait"], ["a"]]
    assert isinstance(found[2], asyncio.CancelledError)
    assert found[3] == ["b"]
    assert sorted(row for row, _ in noted.begun()) == ["a", "b", "first", "wait"]


async def skips(dask_worker: Any) -> bool:
    """Return whether a worker is to skip anything."""
    return bool((await dask_worker_module._workplaces[dask_worker]).skipped)


async def bundles(dask_worker: Any) -> bool:
    """Return whether a worker runs a bundle that is wanted."""
    return bool((await dask_worker_module._workplaces[dask_worker])._bundles)


async def test_the_one_that_runs_is_stopped_alone(submit: Submit, noted: Noted) -> None:
    futures = [submit(row) for row in ("wait", "a")]
    await noted.reached("wait")
    assert futures[0].cancel()
    noted.go()  # a thread cannot be stopped within a call
    assert await futures[1] == ["a"]
    with pytest.raises(asyncio.CancelledError):
        await futures[0]


async def test_a_bundle_that_nobody_wants_is_stopped(dask: Processes, submit: Submit, noted: Noted) -> None:
    from distributed import Client

    futures = [submit(row) for row in ("wait", "never", "never")]
    await noted.reached("wait")
    assert all(future.cancel() for future in futures)
    async with Client(dask.address, asynchronous=True) as client, asyncio.timeout(60):
        while any((await client.run(bundles)).values()):
            pass  # as above
    noted.go()
    assert await submit("after") == ["after"]
    assert "never" not in [row for row, _ in noted.begun()]


async def test_a_worker_killed_in_the_middle(dask: Processes, submit: Submit, noted: Noted) -> None:
    futures = [submit(row) for row in ("a", "wait", "b")]
    [victim] = await noted.reached("wait")
    assert victim == dask.workers[0].pid
    dask.workers[0].kill()
    other = dask.start_worker()
    assert await noted.reached("wait", 2) == {victim, other.pid}
    noted.go()
    assert await outputs(futures) == [["a"], ["wait"], ["b"]]
    assert Counter(noted.begun())["b", other.pid] == 1


async def test_what_kills_workers_harms_only_itself(
    dask: Processes, submit: Submit, noted: Noted, backend: DaskComputeBackend
) -> None:
    futures = [submit(row) for row in ("a", "exit", "b", "c")]

    async def replace_the_dead() -> None:
        while True:
            await asyncio.to_thread(dask.workers[-1].wait)
            dask.start_worker()

    replacing = asyncio.create_task(replace_the_dead())
    found = await outputs(futures)
    noted_again = await submit("after")
    replacing.cancel()
    dask.workers[-1].kill()
    await asyncio.wait([replacing])
    assert [found[at] for at in (0, 2, 3)] == [["a"], ["b"], ["c"]]
    assert isinstance(found[1], WorkerLostError)
    assert noted_again == ["after"]


async def test_slow_ones_are_spread_over_the_workers(
    dask: Processes, submit: Submit, noted: Noted, backend: DaskComputeBackend
) -> None:
    dask.start_worker()
    await backend.wait_for_workers(2)
    futures = [submit(f"wait{at}") for at in range(10)]  # the model was quick until now
    assert len(await noted.reached("wait", 2)) == 2
    noted.go()
    assert await outputs(futures) == [[f"wait{at}"] for at in range(10)]


async def test_many_at_once_are_few_tasks(dask: Processes, submit: Submit) -> None:
    from distributed import Client

    async with Client(dask.address, asynchronous=True) as client:
        before = await client.run_on_scheduler(tasks_so_far)
        assert await outputs([submit(at) for at in range(200)]) == [[at] for at in range(200)]
        assert await client.run_on_scheduler(tasks_so_far) - before == 1


def tasks_so_far(dask_scheduler: Any) -> int:
    """Return how many tasks have ended on a scheduler."""
    return sum(prefix.state_counts["memory"] for prefix in dask_scheduler.task_prefixes.values())


@pytest.mark.parametrize(
    ("seconds", "size", "waiting", "threads", "expected"),
    [
        (None, 100, 1000, 2, 1),  # nothing is known
        (0.001, 100, 1000, 2, 30),
        (0.001, 100, 10, 2, 5),  # to each thread its share
        (0.001, 100, 3, 4, 1),
        (0.02, 100, 1000, 2, 1),
        (0.0, 100, 10_000, 2, 300),
        (0.001, SMALL + 1, 1000, 2, 1),
        (0.001, 50_000, 1000, 2, 10),
        (0.001, 100, 5, 0, 5),
    ],
)
def test_size_of_a_bundle(seconds: float | None, size: float, waiting: int, threads: int, expected: int) -> None:
    assert bundle_size(Pace(seconds, size), waiting, threads) == expected


def test_what_takes_long_or_waits_for_a_limit_goes_alone() -> None:
    assert not goes_alone(ModelCall("m"))
    assert all(
        goes_alone(each)
        for each in (ModelCall("m", long=True), ModelCall("m", at_most=1), ModelCall("m", rate_limit=1))
    )


class Flight:
    aboard: Any = None


def load(name: str, *, parcel: bytes = b"model", pace: Pace, alone: bool = False) -> Load:
    return Load(name, Flight(), parcel, None, pace, None, alone)


async def test_the_line_is_in_order_and_bundles_are_of_one_kind() -> None:
    sent: list[list[str]] = []
    line = Line(lambda _, loads: sent.append([each.key for each in loads]))
    pace = Pace(0.001)
    loads = [
        load("a1", pace=pace),
        load("b1", pace=pace, parcel=b"other"),
        load("a2", pace=pace),
        load("alone", pace=pace, alone=True),
        load("gone", pace=pace),
        load("a3", pace=pace),
        load("b2", pace=pace, parcel=b"other"),
    ]
    for each in loads:
        line.join(each)
    loads[4].answer.cancel()
    line.resize(2, 1)
    await asyncio.sleep(0)
    assert sent == [["a1", "a2", "a3"], ["b1", "b2"]]
    line.left()
    await asyncio.sleep(0)
    assert sent[2:] == [["alone"]]
