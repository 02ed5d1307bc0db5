"""Processes that share one metadata store: workers, those that only write, those that are stopped, cancelled, drained."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import asyncdl
from asyncdl import Listener, Model
from asyncdl.errors import JobCancelledError
from asyncdl.metadata.records import JobRecord
from tests import models
from tests.conftest import rows_of

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parent.parent.parent

GATED = """
import os, time
def gated(x):
    open(os.environ["STARTED"], "a").write(f"{x}\\n")
    while not os.path.exists(os.environ["GATE"]):
        time.sleep(0.01)
    return x + 1
"""


class Setup:
    """An application's stores, and worker processes for it."""

    def __init__(self, folder: Path, *, shared: bool) -> None:
        self.folder = folder
        self.uri = f"sqlite:///{folder / 'app.db'}"
        self.settings = {"artifact_store": f"filesystem://{folder / 'artifacts'}"}
        if not shared:
            self.settings["metadata_store"] = f"sqlite:///{folder / 'meta.db'}"
        (folder / "gating.py").write_text(GATED)
        self.processes: list[subprocess.Popen[str]] = []

    def path(self, name: str) -> Path:
        return self.folder / name

    def worker(self, name: str, *, grace: float = 20, **settings: object) -> subprocess.Popen[str]:
        given = {**self.settings, **settings}
        environment = {f"ASYNCDL_{key.upper()}": str(value) for key, value in given.items()}
        environment |= {"STARTED": str(self.path(name)), "GATE": str(self.path(f"{name}.gate"))}
        process = subprocess.Popen(
            [sys.executable, "-m", "asyncdl.cli", "worker", self.uri, "--grace", str(grace)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{self.folder}", "COLUMNS": "200", **environment},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    async def ready(self, name: str, **settings: object) -> subprocess.Popen[str]:
        """Start a worker, and wait until it works: then it has nothing to reconcile."""
        process = self.worker(name, **settings)  # type: ignore[arg-type]
        assert process.stdout is not None
        assert "working for" in await asyncio.to_thread(process.stdout.readline)
        return process

    @asynccontextmanager
    async def writer(self, **settings: object) -> AsyncIterator[asyncdl.Datalayer]:
        async with asyncdl.connect(self.uri, worker=False, **self.settings, **settings) as db:
            yield db


@pytest.fixture(params=["one database", "two databases"])
def setup(request, tmp_path, monkeypatch):
    setup = Setup(tmp_path, shared=request.param == "one database")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield setup
    for process in setup.processes:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    sys.modules.pop("gating", None)


async def exists(path: Path) -> None:
    while not os.path.exists(path):  # noqa: ASYNC110, ASYNC240 - another process makes it
        await asyncio.sleep(0.01)


async def gated_listener(db: asyncdl.Datalayer, rows: int = 1) -> asyncdl.Added:
    import gating

    await db.execute(db["numbers"].insert([{"id": n, "x": n} for n in range(rows)]))
    return await db.add(Listener("gated", model=Model("gated", gating.gated), key="x", select=db["numbers"]))


async def setups(db: asyncdl.Datalayer) -> list[JobRecord]:
    """Return the first backfills: a worker that starts late reconciles, too."""
    return [job for job in await db.jobs.list(kind="backfill") if "setup" in job.payload]


async def test_a_process_that_only_writes_is_followed_by_a_worker_elsewhere(setup):
    async with setup.writer() as db:
        t = db["numbers"]
        await db.execute(t.insert([{"id": n, "x": n} for n in range(10)]))
        added = await db.add(Listener("doubled", model=Model("double", models.double), key="x", select=t))
        assert {job.state for job in await db.jobs.list()} == set()  # nobody has planned anything
        worker = setup.worker("worker")
        await added.wait(60)
        await (await db.execute(t.update({"x": 50}, where=t.id == 3))).wait(60)
        assert (3, 50, 100) in await rows_of(db, t.outputs("doubled"))
        worker.send_signal(signal.SIGTERM)
        output, _ = await asyncio.to_thread(worker.communicate)
        assert worker.returncode == 0, output
        assert "stopping, within 20 s" in output


async def test_rows_that_were_there_before_their_listener_are_computed_once_however_late_anybody_plans(setup):
    models.calls.clear()
    async with setup.writer() as db:
        t = db["numbers"]
        await db.execute(t.insert([{"id": n, "x": n} for n in range(5)]))
        await db.execute(t.update({"x": 50}, where=t.id == 0))
        counted = Listener("counted", model=Model("counted", models.counted), key="x", select=t)
        await db.add(counted)
        inserted = await db.execute(t.insert([{"id": n, "x": n} for n in range(5, 9)]))
        async with asyncdl.connect(setup.uri, **setup.settings) as worker:
            await inserted.wait(60)
            await worker.wait_idle(60)
        assert len(await rows_of(db, t.outputs("counted"))) == 9
        assert set(models.calls) == {50, *range(1, 9)}
        assert {models.calls[x] for x in (50, 1, 2, 3, 4)} == {1}


async def test_who_starts_while_a_backfill_runs_computes_nothing_twice(setup):
    """Each that starts has outputs compared with rows: after what is being computed, and not beside it."""
    models.calls.clear()
    model = Model("counted", models.counted_unhurriedly, max_concurrency=4)
    async with asyncdl.connect(setup.uri, **setup.settings) as first:
        t = first["numbers"]
        await first.execute(t.insert([{"id": n, "x": n} for n in range(300)]))
        added = await first.add(Listener("counted", model=model, key="x", select=t))
        while len(models.calls) < 20:  # noqa: ASYNC110 - the model counts, and knows of nobody
            await asyncio.sleep(0.01)
        async with asyncdl.connect(setup.uri, **setup.settings) as second:
            assert len(models.calls) < 300
            await added.wait(60)
            await second.wait_idle(60)
        assert {job.state for job in await first.jobs.list()} == {"succeeded"}
        assert len([job for job in await first.jobs.list() if "sweep" in job.payload]) == 1
    assert dict(models.calls) == dict.fromkeys(range(300), 1)


async def test_a_drained_worker_ends_what_it_does_and_leaves_the_rest(setup):
    async with setup.writer() as db:
        worker = await setup.ready("one", job_concurrency=1)
        added = await gated_listener(db)
        await exists(setup.path("one"))
        await db.execute(db["numbers"].insert({"id": 7, "x": 7}))
        worker.send_signal(signal.SIGTERM)
        assert worker.stdout is not None
        while "stopping" not in await asyncio.to_thread(worker.stdout.readline):
            pass
        setup.path("one.gate").touch()
        await asyncio.to_thread(worker.communicate)
        assert worker.returncode == 0
        [backfill] = await setups(db)
        assert (backfill.state, backfill.attempts) == ("succeeded", 1)
        setup.path("two.gate").touch()
        setup.worker("two")
        await db.wait_idle(60)
        await added.wait(60)
        assert await rows_of(db, db["numbers"].outputs("gated").select("id", "gated")) == [(0, 1), (7, 8)]


async def test_what_is_not_done_within_the_grace_goes_back_without_costing_an_attempt(setup):
    async with setup.writer() as db:
        worker = await setup.ready("one", grace=0.1)
        await gated_listener(db)
        await exists(setup.path("one"))
        worker.send_signal(signal.SIGTERM)
        setup.path(
            "one.gate"
        ).touch()  # a thread cannot be stopped within a call: it must come back for the process to end
        await asyncio.to_thread(worker.communicate)
        assert worker.returncode == 0
        [job] = await setups(db)
        assert (job.state, job.attempts) in {("pending", 0), ("succeeded", 1)}


async def test_a_job_is_cancelled_from_another_process_at_once(setup):
    async with setup.writer() as db:
        await setup.ready("one", job_lease=3600)  # no renewal of a lease would notice
        added = await gated_listener(db, rows=1000)
        await exists(setup.path("one"))
        [job] = await setups(db)
        await db.jobs.cancel(job.id)
        setup.path("one.gate").touch()
        with pytest.raises(JobCancelledError):
            await added.wait(60)
        written = await db.execute(db["numbers"].insert({"id": 5000, "x": 1}))
        await written.wait(60)  # the worker is free again
        assert await rows_of(db, db["numbers"].outputs("gated").select("id")) == [(5000,)]


async def test_a_worker_that_slept_while_another_took_over_writes_nothing(setup):
    async with setup.writer() as db:
        sleeping = await setup.ready("sleeping", job_lease=1)
        added = await gated_listener(db)
        await exists(setup.path("sleeping"))
        sleeping.send_signal(signal.SIGSTOP)
        setup.path("other.gate").touch()
        setup.worker("other", job_lease=1)
        await added.wait(60)
        t = db["numbers"]
        assert await rows_of(db, t.outputs("gated").select("id", "gated")) == [(0, 1)]
        await (await db.execute(t.delete(where=True))).wait(60)
        sleeping.send_signal(signal.SIGCONT)
        setup.path("sleeping.gate").touch()
        await (await db.execute(t.insert({"id": 1, "x": 1}))).wait(60)  # either of them
        sleeping.send_signal(signal.SIGTERM)
        await asyncio.to_thread(sleeping.communicate)
        output = (await db._registry.outputs(["gated"]))["gated"]
        found = [row async for _, rows in db.databackend.read(db[output.name], {}) for row in rows]
        assert [row[0] for row in found] == [1]  # no output of the row that went
