"""Processes whose clocks are wrong by an hour: they go by the store's clock."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import asyncdl
from asyncdl import Listener, Model, Schedule
from asyncdl.metadata.clock import StoreClock
from tests.conftest import rows_of

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parent.parent.parent
HOUR = 3600

SKEW = """
import os, time
shift = float(os.environ.get("SKEW", "0"))
if shift:
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + shift
    time.time_ns = lambda: real_ns() + int(shift * 1e9)
"""
WORKING = """
import os, time
def worked(x):
    with open(os.environ["WORKED"], "a") as file:
        file.write(f"{x}:{os.getpid()}\\n")
    while os.environ.get("STAY") == "yes" and not os.path.exists(os.environ["WORKED"] + ".gate"):
        time.sleep(0.01)
    return x + 1
"""
LEASE = 3.0
"""Long enough for a slow machine to renew it, in thirds, and not so long that a test waits for it."""


class Workers:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"sqlite:///{folder / 'app.db'}"
        self.settings = {"artifact_store": f"filesystem://{folder / 'artifacts'}", "job_lease": LEASE}
        (folder / "sitecustomize.py").write_text(SKEW)
        (folder / "working.py").write_text(WORKING)
        self.processes: list[subprocess.Popen[str]] = []

    async def start(self, skew: int, **more: str) -> None:
        given = {f"ASYNCDL_{key.upper()}": str(value) for key, value in self.settings.items()}
        given |= {"SKEW": str(skew), "WORKED": str(self.folder / "worked"), **more}
        process = await asyncio.to_thread(self._started, given)
        self.processes.append(process)
        assert process.stdout is not None
        assert "working for" in await asyncio.to_thread(process.stdout.readline)

    def _started(self, given: dict[str, str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "asyncdl.cli", "worker", self.uri],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{self.folder}", "COLUMNS": "200", **given},
            stdout=subprocess.PIPE,
            text=True,
        )

    @asynccontextmanager
    async def writer(self) -> AsyncIterator[asyncdl.Datalayer]:
        async with asyncdl.connect(self.uri, worker=False, **self.settings) as db:
            yield db

    def lines(self) -> list[str]:
        path = self.folder / "worked"
        return path.read_text().split() if path.exists() else []

    def worked(self) -> Counter[str]:
        return Counter(line.partition(":")[0] for line in self.lines())


@pytest.fixture
def workers(tmp_path, monkeypatch):
    workers = Workers(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield workers
    for process in workers.processes:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    sys.modules.pop("working", None)


def listener(name: str, t: Any) -> Listener:
    import working

    return Listener(name, model=Model(name, working.worked), key="x", select=t)


@pytest.mark.timeout(300)
async def test_a_job_that_runs_is_left_to_whoever_runs_it_until_that_dies(workers: Workers) -> None:
    """To a process whose clock is ahead every lease would seem to have run out, to one that is behind none would for hours."""
    async with workers.writer() as db:
        t = db["numbers"]
        await db.execute(t.insert({"id": 0, "x": 0}))
        await db.execute(t.delete(where=t.id == 0))
        for skew in (HOUR, -HOUR):
            await workers.start(skew, STAY="yes")
        await db.add(listener("worked", t))
        await db.wait_idle(timeout=120)
        await db.execute(t.insert({"id": 1, "x": 1}))
        killed: set[int] = set()
        for attempt in (1, 2):
            while len(workers.lines()) < attempt:  # noqa: ASYNC110 - another process writes the file
                await asyncio.sleep(0.02)
            [job] = running = await db.jobs.list(state="running")
            while running[0].lease < job.lease + 2 * LEASE:  # renewed, again and again
                await asyncio.sleep(0.05)
                running = await db.jobs.list(state="running")
                assert [(each.owner, each.attempts) for each in running] == [(job.owner, attempt)]
            assert len(workers.lines()) == attempt
            pid = int(workers.lines()[-1].partition(":")[2])
            assert pid not in killed
            killed.add(pid)
            if attempt == 1:
                next(each for each in workers.processes if each.pid == pid).send_signal(signal.SIGKILL)
        (workers.folder / "worked.gate").touch()
        await db.wait_idle(timeout=120)
        assert workers.worked() == {"1": 2}
        assert await rows_of(db, t.outputs("worked")) == [(1, 1, 2)]


@pytest.mark.timeout(300)
async def test_work_is_done_once_and_none_is_stuck(workers: Workers) -> None:
    async with workers.writer() as db:
        t = db["numbers"]
        await db.execute(t.insert([{"id": n, "x": n} for n in range(20)]))
        for skew in (HOUR, -HOUR, 0):
            await workers.start(skew)
        added = await db.add(listener("worked", t))
        await added.wait(120)
        for n in range(20, 40):
            await db.execute(t.insert({"id": n, "x": n}))
        await db.wait_idle(timeout=120)
        assert workers.worked() == {str(n): 1 for n in range(40)}
        assert [row[2] for row in await rows_of(db, t.outputs("worked"))] == list(range(1, 41))
        jobs = await db.jobs.list()
        assert {job.state for job in jobs} == {"succeeded"}
        assert max(job.created for job in jobs) - min(job.created for job in jobs) < HOUR / 2


@pytest.mark.timeout(300)
async def test_a_schedule_fires_once_for_all(workers: Workers) -> None:
    async with workers.writer() as db:
        for skew in (HOUR, -HOUR):
            await workers.start(skew)
        await db.add(Schedule("often", every=1.0, publish=asyncdl.ReconcileRequested()))
        found: list[Any] = []
        async with db.events.subscribe(asyncdl.ScheduleFired) as events:
            async for event in events:
                found.append(event)
                if len(found) == 4:
                    break
    times = [event.at for event in found]
    assert times == sorted(set(times))
    assert max(times) - min(times) < HOUR / 2


class Shifted:
    """A store whose clock is not this machine's."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.asked = 0

    async def time(self) -> float:
        self.asked += 1
        return time.time() + self.seconds


async def test_the_clock_is_the_stores() -> None:
    for seconds in (-5000.0, 0.0, 5000.0):
        store = Shifted(seconds)
        clock = StoreClock(store.time)
        await clock.set()
        assert abs(clock.now() - time.time() - seconds) < 60
        store.seconds += 500  # it has been set
        await clock.set()
        assert abs(clock.now() - time.time() - seconds - 500) < 60
        assert store.asked >= 2
