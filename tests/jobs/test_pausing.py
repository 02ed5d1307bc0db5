"""Pausing and resuming listeners: on one database and two, from other processes, in the middle of a job, over restarts."""

from __future__ import annotations

import asyncio
import signal

import pytest

import asyncdl
from asyncdl import JobSucceeded, Listener, ListenerPaused, ListenerResumed, Model, OutputsWritten
from asyncdl.components.cursors import gate_of
from asyncdl.errors import ComponentNotFoundError, InvalidComponentError, JobTimeoutError
from asyncdl.metadata.changes import ClaimJob, MoveCursor, SetJobState
from tests import models
from tests.conftest import rows_of
from tests.jobs.test_many_processes import gated_listener, setup  # noqa: F401 - a fixture
from tests.jobs.test_priorities import until
from tests.places import PAIRS, stores_of

pytestmark = pytest.mark.anyio


@pytest.fixture(params=PAIRS, ids=" + ".join)
def uris(request, tmp_path):
    with stores_of(request, tmp_path) as uris:
        yield uris | {"job_backoff": 0.01}


def doubled(db, model="double", **fields):
    return Listener("doubled", model=Model(model, getattr(models, model)), key="x", select=db["numbers"], **fields)


async def outputs(db, name="doubled"):
    return await rows_of(db, db["numbers"].outputs(name).select("id", name))


async def installed(db, rows=3):
    await db.execute(db["numbers"].insert([{"id": n, "x": n} for n in range(rows)]))
    await db.wait_idle(60)
    await db.add(doubled(db), wait=True)


async def test_what_is_written_while_a_listener_is_paused_is_computed_when_it_is_resumed(uris):
    async with asyncdl.connect(**uris) as db:
        t = db["numbers"]
        await installed(db)
        await db.pause("listener", "doubled")
        assert (await db.show("listener", "doubled", -1))["paused"] is True
        inserted = await db.execute(t.insert([{"id": n, "x": n} for n in (10, 11)]))
        updated = await db.execute(t.update({"x": 100}, where=t.id == 1))
        deleted = await db.execute(t.delete(where=t.id == 2))
        await db.wait_idle(60)  # what is paused is nobody's work
        with pytest.raises(JobTimeoutError):
            await inserted.wait(0.05)  # but it is not done
        assert {job.state for job in await db.jobs.list(target=(await db.load("listener", "doubled")).uuid)} == {
            "succeeded",
            "paused",
        }
        assert await outputs(db) == [(0, 0), (1, 2)]
        assert [step.stage async for step in _first(inserted.progress())] == ["paused"]
        await db.resume("listener", "doubled")
        assert (await db.show("listener", "doubled", -1))["paused"] is False
        for written in (inserted, updated, deleted):
            await written.wait(60)
        assert await outputs(db) == [(0, 0), (1, 200), (10, 20), (11, 22)]
        assert await db.jobs.list(state="paused") == []


async def _first(progress):
    async for each in progress:
        yield each
        break
    await progress.aclose()


async def test_pausing_and_resuming_are_idempotent_and_each_is_told_once(uris):
    async with asyncdl.connect(**uris) as db:
        await installed(db)
        await db.resume("listener", "doubled")  # was not paused
        await asyncio.gather(*(db.pause("listener", "doubled") for _ in range(10)))
        await asyncio.gather(*(db.resume("listener", "doubled") for _ in range(10)))
        await db.pause("listener", "doubled")
        found = await db.events.read(0, ListenerPaused, ListenerResumed)
        assert [type(each) for each in found] == [ListenerPaused, ListenerResumed, ListenerPaused]
        assert {each.identifier for each in found} == {"doubled"}


async def test_only_listeners_that_there_are_can_be_paused(uris):
    async with asyncdl.connect(**uris) as db:
        await installed(db)
        for act in (db.pause, db.resume):
            with pytest.raises(InvalidComponentError, match="only a listener"):
                await act("model", "double")
            with pytest.raises(ComponentNotFoundError, match="doubled"):
                await act("listener", "doublet")


async def test_a_listener_stays_paused_over_restarts_and_new_versions(uris):
    async with asyncdl.connect(**uris) as db:
        await installed(db)
        await db.pause("listener", "doubled")
    async with asyncdl.connect(**uris) as db:
        await db.execute(db["numbers"].insert({"id": 7, "x": 7}))
        await db.add(doubled(db, model="unhurried"))  # another version: its first backfill waits as well
        await db.wait_idle(60)
        assert await outputs(db) == [(0, 0), (1, 2), (2, 4)]
        assert [(await db.show("listener", "doubled", n))["paused"] for n in (0, 1)] == [True, True]
        await db.resume("listener", "doubled")
        await db.wait_idle(60)
        assert await outputs(db) == [(0, 0), (1, 1), (2, 2), (7, 7)]


async def test_a_paused_listener_can_be_removed_and_added_anew(uris):
    async with asyncdl.connect(**uris) as db:
        await installed(db)
        await db.pause("listener", "doubled")
        await db.execute(db["numbers"].insert({"id": 7, "x": 7}))
        await db.wait_idle(60)
        await db.remove("listener", "doubled")
        assert {job.state for job in await db.jobs.list()} == {"succeeded", "cancelled"}
        assert await db.metadata.cursor(gate_of("doubled")) is None
        await db.add(doubled(db), wait=True)
        assert len(await outputs(db)) == 4


async def test_what_reads_a_paused_listener_follows_when_that_goes_on(uris):
    async with asyncdl.connect(**uris) as db:
        t = db["numbers"]
        await installed(db)
        again = Model("again", models.double)
        select = t.outputs("doubled").select("id", "doubled")
        await db.add(Listener("fourfold", model=again, key="doubled", select=select), wait=True)
        await db.pause("listener", "doubled")
        written = await db.execute(t.insert({"id": 7, "x": 7}))
        await db.wait_idle(60)
        assert len(await outputs(db, "fourfold")) == 3
        await db.resume("listener", "doubled")
        await written.wait(60)
        assert (7, 28) in await outputs(db, "fourfold")


async def test_a_running_job_ends_its_batch_waits_and_goes_on_where_it_was(uris):
    models.gate.clear()
    models.began.clear()
    models.calls.clear()
    async with asyncdl.connect(**uris, threads=1) as db:
        try:
            rows = 3000
            await db.execute(db["numbers"].insert([{"id": n, "x": n} for n in range(rows)]))
            await db.wait_idle(60)
            model = Model("gate", models.gated_and_counted)
            added = await db.add(Listener("doubled", model=model, key="x", select=db["numbers"]))
            await asyncio.to_thread(models.began.wait, 60)
            await db.pause("listener", "doubled")
        finally:
            models.gate.set()
        await db.wait_idle(60)
        [job] = await db.jobs.list(kind="backfill")
        assert (job.state, job.attempts, job.owner) == ("paused", 0, None)
        done = len(await outputs(db))
        assert 0 < done < rows
        assert len(models.calls) <= done  # what was begun was written
        assert (await db.show("listener", "doubled", -1))["status"] == "pending"
        await db.resume("listener", "doubled")
        await added.wait(60)
        assert len(await outputs(db)) == rows
        assert set(models.calls.values()) == {1}  # nothing was computed twice


async def test_a_job_that_fails_or_is_retried_while_paused_is_not_begun_again(uris):
    async with asyncdl.connect(**uris) as db:
        await installed(db)
        await db.pause("listener", "doubled")
        written = await db.execute(db["numbers"].insert({"id": 7, "x": 7}))
        await db.wait_idle(60)
        [job] = await db.jobs.list(state="paused")
        await db.jobs.cancel(job.id)
        await db.jobs.retry(job.id)
        await db.wait_idle(60)
        assert (await db.jobs.get(job.id)).state == "paused"
        await db.resume("listener", "doubled")
        await written.wait(60)
        assert (7, 14) in await outputs(db)


async def test_jobs_that_a_process_left_aside_which_died_while_it_resumed_are_found(uris):
    async with asyncdl.connect(**uris) as db:
        await installed(db)
        await db.pause("listener", "doubled")
        await db.execute(db["numbers"].insert({"id": 7, "x": 7}))
        await db.wait_idle(60)
    async with asyncdl.connect(**uris, worker=False) as db:
        await db.metadata.commit(MoveCursor(gate_of("doubled"), 2, expected=-1))  # it got no further
    async with asyncdl.connect(**uris) as db:

        async def none_is_left():
            return not await db.jobs.list(state="paused")

        await until(db, none_is_left)
        await db.wait_idle(60)
        assert (7, 14) in await outputs(db)


async def test_the_job_of_a_dead_process_is_put_aside_and_costs_it_no_attempt(uris):
    async with asyncdl.connect(**uris) as db:
        await installed(db)
    async with asyncdl.connect(**uris, worker=False) as db:
        [job] = await db.jobs.list(kind="backfill")
        await db.metadata.commit(SetJobState(job.id, "pending", ("succeeded",), 1.0))
        await db.metadata.commit(ClaimJob(job.id, "dead", 2.0, 3.0))
        await db.pause("listener", "doubled")
        assert (await db.jobs.get(job.id)).state == "running"  # as far as anybody knows
    async with asyncdl.connect(**uris) as db:
        await db.wait_idle(60)
        found = await db.jobs.get(job.id)
        assert (found.state, found.attempts) == ("paused", 1)
        await db.resume("listener", "doubled")
        await db.wait_idle(60)
        assert (await db.jobs.get(job.id)).state == "succeeded"


async def test_pausing_and_resuming_at_random_while_rows_are_written_loses_nothing(uris):
    async with asyncdl.connect(**uris) as db:
        t = db["numbers"]
        await installed(db)

        async def write():
            for n in range(100, 160):
                await db.execute(t.insert({"id": n, "x": n}))

        async def switch(act, count):
            for _ in range(count):
                await act("listener", "doubled")
                await asyncio.sleep(0)

        await asyncio.gather(write(), *(switch(act, 15) for act in (db.pause, db.resume, db.pause, db.resume)))
        await db.pause("listener", "doubled")
        await db.wait_idle(60)
        before = len(await db.events.read(0, OutputsWritten, limit=100_000))
        await db.execute(t.insert({"id": 999, "x": 1}))
        await db.wait_idle(60)
        assert len(await db.events.read(0, OutputsWritten, limit=100_000)) == before
        await db.resume("listener", "doubled")
        await db.wait_idle(60)
        assert await outputs(db) == [(n, 2 * n) for n in (0, 1, 2, *range(100, 160))] + [(999, 2)]


async def test_pausing_from_another_process_holds_for_all_workers(setup):  # noqa: F811 - the fixture
    async with setup.writer() as db:
        worker = await setup.ready("one")
        await setup.ready("two")
        added = await gated_listener(db, rows=2000)
        while not (setup.path("one").exists() or setup.path("two").exists()):  # noqa: ASYNC110 - one of them makes it
            await asyncio.sleep(0.01)
        await db.pause("listener", "gated")
        setup.path("one.gate").touch()
        setup.path("two.gate").touch()
        await db.wait_idle(60)
        succeeded = len(await db.events.read(0, JobSucceeded, limit=100_000))
        for n in range(5000, 5010):
            await db.execute(db["numbers"].insert({"id": n, "x": n}))
        await db.wait_idle(60)
        assert len(await db.events.read(0, JobSucceeded, limit=100_000)) == succeeded
        worker.send_signal(signal.SIGTERM)
        await asyncio.to_thread(worker.communicate)
        await db.resume("listener", "gated")
        await db.wait_idle(60)
        await added.wait(60)
        assert len(await rows_of(db, db["numbers"].outputs("gated").select("id"))) == 2010
