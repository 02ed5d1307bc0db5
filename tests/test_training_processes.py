"""Trainings in several processes, and in processes that are killed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import asyncdl
from asyncdl import ComponentReady, Listener, MetricReported, Model, Trainer
from tests import fits
from tests.conftest import rows_of

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parent.parent

TRAINING = """
import asyncio, sys, asyncdl
from tests.test_training_processes import declared

async def main(uri, artifacts, log, on):
    options = {"artifact_store": artifacts} if artifacts else {}
    async with asyncdl.connect(uri, **options, job_lease=1.0, job_max_attempts=100) as db:
        added = await db.add(declared(db, log, on))
        print("added", flush=True)
        await added.wait()
        print("done", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


def declared(db: Any, log: str, on: Any) -> Listener:
    """Return a listener whose model notes each epoch of its training."""
    query = db["numbers"].find() if db.databackend.language == "mongodb" else db["numbers"]
    trainer = Trainer(select=query, key=("x", "y"), fit=fits.epochs, on=on, kwargs={"log": log})
    select = query if db.databackend.language == "mongodb" else query.select("id", "x")
    return Listener("means", model=Model("mean", fits.Mean(), trainer=trainer), key="x", select=select)


@contextmanager
def training(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run it in a process of its own; it is killed at the end, if it is still there."""
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINING, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


async def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return (await asyncio.to_thread(process.stdout.readline)).strip()


async def insert(db: Any) -> None:
    rows = [{"x": float(n), "y": 15.0} for n in range(4)]
    if db.databackend.language == "mongodb":
        await db.execute(db["numbers"].insert_many([{"_id": n, **row} for n, row in enumerate(rows)]))
    else:
        await db.execute(db["numbers"].insert([{"id": n, **row} for n, row in enumerate(rows)]))


def epochs_in(log: Path) -> str:
    """Return the epochs that were begun, in order."""
    return "".join(log.read_text().split())


async def killed_and_resumed(uri: str, artifacts: str, log: Path, on: str) -> None:
    options: dict[str, Any] = {"artifact_store": artifacts} if artifacts else {}
    async with asyncdl.connect(uri, **options, worker=False) as db:
        await insert(db)
        # its fourth epoch is kept, but nobody hears of it any more
        with training(uri, artifacts, str(log), on, ASYNCDL_TEST_HANG_AFTER="3") as process:
            assert await line(process) == "added"
            seen = 0
            while len(await db.events.read(0, MetricReported)) < 4:
                seen = await db.metadata.wait_for_commits(seen, "events")
            process.send_signal(signal.SIGKILL)
        [job] = await db.jobs.list(kind="train")
        assert (job.state, job.done, job.total, job.attempts) == ("running", 4, 6, 1)
        [model] = await db.metadata.components(type_id="model")
        assert model.status == "pending"

    async with asyncdl.connect(uri, **options, job_lease=1.0) as db:  # goes on with what another one began
        await db.wait_idle(60)
        assert epochs_in(log) == "012345"  # each epoch once: none was repeated, none left out
        [job] = await db.jobs.list(kind="train")
        assert (job.state, job.done, job.total, job.attempts) == ("succeeded", 6, 6, 2)
        assert [event.done for event in await db.events.read(0, MetricReported)] == [1, 2, 3, 4, 5, 6]
        assert await db.predict("mean", 0.0) == 15.0
        shown = await db.show("model", "mean", -1)
        assert {sha256 async for sha256 in db.artifact_store.list()} == set(shown["artifacts"])
        assert len([each for each in await db.events.read(0, ComponentReady) if each.identifier == "mean"]) == 1
        if db.databackend.language != "mongodb":
            outputs = db["numbers"].outputs("means").select("id", "means")
            assert await rows_of(db, outputs) == [(id, 15.0) for id in range(4)]
        else:
            found = await (await db.execute(db["numbers"].outputs("means").find())).to_list()
            assert [row["means"] for row in found] == [15.0] * 4


@pytest.fixture
def uris(tmp_path):
    return f"sqlite:///{tmp_path / 'app.db'}", f"filesystem://{tmp_path / 'artifacts'}"


@pytest.mark.parametrize("on", ["thread", "process"])
async def test_a_training_whose_process_is_killed_goes_on_elsewhere_from_its_checkpoint(uris, tmp_path, on):
    await killed_and_resumed(*uris, tmp_path / "log", on)


async def test_the_same_on_postgresql(postgresql, tmp_path):
    await killed_and_resumed(
        postgresql.url(tmp_path), f"filesystem://{tmp_path / 'artifacts'}", tmp_path / "log", "thread"
    )


async def test_the_same_on_mongodb(mongodb_replica_set, tmp_path):
    uri = f"{mongodb_replica_set.rpartition('/')[0]}/training_killed"
    await killed_and_resumed(uri, "", tmp_path / "log", "thread")


async def test_two_processes_train_once(uris, tmp_path):
    async with asyncdl.connect(uris[0], artifact_store=uris[1], worker=False) as db:
        await insert(db)
        log = tmp_path / "log"
        with training(*uris, str(log), "thread") as first, training(*uris, str(log), "thread") as second:
            for process in (first, second):
                assert [await line(process), await line(process)] == ["added", "done"]
        assert epochs_in(log) == "012345"
        assert await db.show("model", "mean") == [0]
        assert len(await db.jobs.list(kind="train")) == 1
        ready = [each.identifier for each in await db.events.read(0, ComponentReady)]
        assert ready == ["mean", "means"]


async def test_a_training_stopped_by_closing_goes_on_when_it_is_opened_again(uris, tmp_path, monkeypatch):
    log = tmp_path / "log"
    async with asyncdl.connect(uris[0], artifact_store=uris[1]) as db:
        await insert(db)
        monkeypatch.setenv("ASYNCDL_TEST_HANG_AFTER", "1")
        await db.add(declared(db, str(log), "process"))
        seen = 0
        while len(await db.events.read(0, MetricReported)) < 2:
            seen = await db.metadata.wait_for_commits(seen, "events")
    monkeypatch.delenv("ASYNCDL_TEST_HANG_AFTER")
    async with asyncdl.connect(uris[0], artifact_store=uris[1]) as db:
        await db.wait_idle(60)
        [job] = await db.jobs.list(kind="train")
        assert (job.state, job.attempts) == ("succeeded", 1)  # the one that was stopped does not count
        assert epochs_in(log) == "012345"


@pytest.mark.timeout(300)
async def test_killed_again_and_again_at_any_moment_it_ends_trained_with_nothing_left_over(uris, tmp_path):
    chance = random.Random(3)
    log = tmp_path / "log"
    async with asyncdl.connect(uris[0], artifact_store=uris[1], worker=False) as db:
        await insert(db)
    for _ in range(3):
        after = f"{chance.uniform(0, 0.15):.4f}"
        with training(*uris, str(log), "thread", ASYNCDL_TEST_DIES_AFTER=after) as process:
            await asyncio.to_thread(process.wait)
    async with asyncdl.connect(uris[0], artifact_store=uris[1], job_lease=1.0, job_max_attempts=100) as db:
        await db.wait_idle(60)
        assert [each.status for each in await db.metadata.components(type_id="model")] == ["ready"]
        assert await db.predict("mean", 0.0) == 15.0
        begun = epochs_in(log)
        assert sorted(set(begun)) == list("012345")
        assert list(begun) == sorted(begun)  # no epoch that was kept was made again
        shown = await db.show("model", "mean", -1)
        seen = 0
        while await db.metadata.intents():  # what is recovered on open, beside all else
            seen = await db.metadata.wait_for_commits(seen)
        assert {sha256 async for sha256 in db.artifact_store.list()} == set(shown["artifacts"])
        assert len([each for each in await db.events.read(0, ComponentReady) if each.identifier == "mean"]) == 1
