"""Which job comes first: priorities of listeners, and that none waits for ever."""

from __future__ import annotations

import asyncio

import pytest

import asyncdl
from asyncdl import Application, ComponentTuned, Listener, Model, Table
from asyncdl.errors import InvalidComponentError, JobError, JobNotFoundError
from asyncdl.metadata.changes import PutJob
from asyncdl.metadata.records import JobRecord
from asyncdl.query import table_in
from tests import models

pytestmark = pytest.mark.anyio


@pytest.fixture
def uris(tmp_path):
    return {
        "databackend": f"sqlite:///{tmp_path / 'app.db'}",
        "artifact_store": f"filesystem://{tmp_path / 'artifacts'}",
    }


def listener(name, t, **fields):
    return Listener(name, model=Model("double", models.double), key="x", select=t, **fields)


async def begun(db) -> list[JobRecord]:
    """Return the jobs in the order in which they were begun."""
    return sorted((job for job in await db.jobs.list(limit=10_000) if job.started), key=lambda job: job.started)


PAYLOAD = '{"ids": [%d], "since": 0}'


async def uuid_of(db, listener) -> str:
    return (await db.load("listener", listener)).uuid


async def names(db) -> dict[str, str]:
    return {record.uuid: record.identifier for record in await db.metadata.components(type_id="listener")}


async def prepared(db, rows, **priorities):
    """Install listeners while nobody works, and insert some rows."""
    t = db["numbers"]
    table = Table("numbers", {"id": "int64", "x": "int64"})
    await db.add(Application("all", [table, *(listener(name, t, priority=each) for name, each in priorities.items())]))
    for n in range(rows):
        await db.execute(t.insert({"id": n, "x": n}))


async def test_jobs_of_a_listener_of_higher_priority_are_begun_first(uris):
    async with asyncdl.connect(**uris, worker=False) as db:
        await prepared(db, 1, middle=0, least=-3, most=2)
    async with asyncdl.connect(**uris, job_concurrency=1) as db:
        await db.wait_idle(60)
        called, jobs = await names(db), await begun(db)
        # the rest is what follows from the first: reconciliation on opening
        assert [called[job.target] for job in jobs if job.rows] == ["most", "middle", "least"]
        assert {called[job.target]: job.priority for job in jobs if job.rows} == {
            "most": 210,
            "middle": 10,
            "least": -290,
        }


async def test_another_priority_is_no_new_version_and_counts_for_what_waits(uris):
    async with asyncdl.connect(**uris, worker=False) as db:
        await prepared(db, 0, one=0, two=5)
        before = await db.load("listener", "one")
        again = await db.add(listener("one", db["numbers"], priority=9))
        assert (again.created, again.component.uuid, again.component.priority) == (False, before.uuid, 9)
        assert (await db.load("listener", "one")).priority == 9
        assert (await db.show("listener", "one")) == [0]
        assert (await db.show("listener", "one", -1))["fields"]["priority"] == 9
        assert [each.identifier for each in await db.events.read(0, ComponentTuned)] == ["one"]
        await db.add(listener("one", db["numbers"], priority=9))
        assert len(await db.events.read(0, ComponentTuned)) == 1  # nothing was to be changed


async def until(db, condition):
    """Wait until a condition holds, looking after each commit."""
    seen = 0
    while not await condition():
        seen = await db.metadata.wait_for_commits(seen)


async def test_jobs_that_wait_already_get_the_new_priority(uris):
    models.gate.clear()
    models.began.clear()
    async with asyncdl.connect(**uris, job_concurrency=1) as db:
        try:
            await prepared(db, 0, one=0, two=5)
            await db.add(Table("others", {"id": "int64", "x": "int64"}))
            gated = Listener("gated", model=Model("gate", models.gated), key="x", select=db["others"], priority=99)
            await db.add(gated, wait=True)
            await db.execute(db["others"].insert({"id": 1, "x": 1}))
            await asyncio.to_thread(models.began.wait, 60)  # the only job at once
            await db.execute(db["numbers"].insert({"id": 1, "x": 1}))

            async def waiting():
                return len(await db.jobs.list(state="pending")) == 2

            await until(db, waiting)
            await db.add(listener("one", db["numbers"], priority=50))

            async def prioritized():
                return [job.priority for job in await db.jobs.list(state="pending")].count(5010) == 1

            await until(db, prioritized)
        finally:
            models.gate.set()
        await db.wait_idle(60)
        called = await names(db)
        assert [called[job.target] for job in await begun(db)][-2:] == ["one", "two"]


async def test_a_job_of_low_priority_has_its_turn_however_many_come_before_it(uris):
    async with asyncdl.connect(**uris, worker=False) as db:
        await prepared(db, 1, low=-5, high=5)
    async with asyncdl.connect(**uris, job_concurrency=1) as db:
        await db.wait_idle(60)
    async with asyncdl.connect(**uris, worker=False) as db:
        [low, high] = [
            next(uuid for uuid, name in (await names(db)).items() if name == each) for each in ("low", "high")
        ]
        payload = PAYLOAD % 1
        made = [JobRecord("low", "refresh", low, payload, 1, 1, 1.0, priority=-490)]
        made += [JobRecord(f"high{n}", "refresh", high, payload, 1, 1, 2.0 + n, priority=510) for n in range(40)]
        held = [JobRecord(f"held{n}", "refresh", low, payload, 1, 1, 0.0, not_before=1e12) for n in range(40)]
        await db.metadata.commit(*map(PutJob, [*made, *held]))
    async with asyncdl.connect(**uris, job_concurrency=1) as db:

        async def ended():
            return {job.id for job in made} <= {job.id for job in await db.jobs.list(state="succeeded", limit=10_000)}

        await until(db, ended)
        order = [job.id for job in await begun(db) if job.id.startswith(("low", "high"))]
        assert order.index("low") <= 8
        assert order[:5] == [f"high{n}" for n in range(5)]
        assert len(order) == 41


async def test_jobs_of_a_slow_model_leave_room_for_others_however_many_they_are(uris):
    async with asyncdl.connect(**uris) as db:
        await prepared(db, 0, quick=0)
        await db.add(Table("others", {"id": "int64", "x": "int64"}))
        slow = Listener("slow", model=Model("slow", models.gated_coroutine), key="x", select=db["others"], priority=5)
        await db.add(slow, wait=True)
    async with asyncdl.connect(**uris, worker=False) as db:
        for n in range(20):  # each is a job
            await db.execute(db["others"].insert({"id": n, "x": n}))
            await db.metadata.commit(
                PutJob(JobRecord(f"{n}", "refresh", await uuid_of(db, "slow"), PAYLOAD % n, 1, 1, 1.0))
            )
    models.gate.clear()
    models.began.clear()
    async with asyncdl.connect(**uris, job_concurrency=8) as db:
        try:
            await asyncio.to_thread(models.began.wait, 60)
            written = await db.execute(db["numbers"].insert({"id": 1, "x": 1}))
            await written.wait(60)  # behind all of those

            async def half():
                return len(await db.jobs.list(state="running")) == 4

            await until(db, half)
        finally:
            models.gate.set()
        await db.wait_idle(60)


async def test_a_job_can_get_a_priority_of_its_own(uris):
    async with asyncdl.connect(**uris) as db:
        await prepared(db, 0, one=0, two=5)
        await db.wait_idle(60)
        await db.pause("listener", "one")
        await db.pause("listener", "two")
        await db.execute(db["numbers"].insert({"id": 1, "x": 1}))
        await db.wait_idle(60)
        called = await names(db)
        [job] = [each for each in await db.jobs.list(state="paused") if called[each.target] == "one"]
        await db.jobs.prioritize(job.id, 10_000)
        assert (await db.jobs.get(job.id)).priority == 10_000
        await db.resume("listener", "one")
        await db.wait_idle(60)
        with pytest.raises(JobError, match="succeeded"):
            await db.jobs.prioritize(job.id, 1)
        with pytest.raises(JobNotFoundError):
            await db.jobs.prioritize("nothing", 1)


@pytest.mark.parametrize("wrong", [1.5, "high", True, None, 10**7])
def test_a_priority_is_an_integer(wrong):
    with pytest.raises(InvalidComponentError, match="priority"):
        listener("l", table_in("ibis", "numbers"), priority=wrong)
