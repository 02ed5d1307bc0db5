"""Schedules and triggers."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest

import asyncdl
from asyncdl import Listener, Model, ReconcileRequested, RowsInserted, Schedule, ScheduleFired, Trigger
from asyncdl.errors import InvalidComponentError, JobFailedError
from asyncdl.jobs.ticking import Ticking
from tests import models
from tests.conftest import rows_of

pytestmark = pytest.mark.anyio


def at(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def test_times_of_cron():
    schedule = Schedule("s", publish=ReconcileRequested(), cron="0 3 * * *", timezone="Europe/Berlin")
    added = at("2026-03-01 12:00")
    assert schedule.next(added, added) == at("2026-03-02 02:00")
    assert schedule.last(at("2026-03-02 01:59"), added) is None
    assert schedule.last(at("2026-03-02 02:00"), added) == at("2026-03-02 02:00")
    assert schedule.last(at("2026-05-05 12:00"), added) == at("2026-05-05 01:00")  # summer time
    assert schedule.next(at("2026-05-05 12:00"), added) == at("2026-05-06 01:00")


def test_times_of_an_interval():
    schedule = Schedule("s", models.record, every=timedelta(minutes=1))
    assert schedule.last(159.0, 100.0) is None
    assert schedule.last(160.0, 100.0) == 160.0
    assert schedule.last(1000.0, 100.0) == 1000.0
    assert [schedule.next(now, 100.0) for now in (100.0, 159.0, 160.0)] == [160.0, 160.0, 220.0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"every": 1},
        {"object": models.record},
        {"object": models.record, "every": 1, "cron": "* * * * *"},
        {"object": models.record, "every": 0},
        {"object": models.record, "cron": "at noon"},
        {"object": models.record, "cron": "0 3 * * *", "timezone": "Mars/Olympus"},
        {"publish": "reconcile", "every": 1},
    ],
)
def test_what_cannot_be_understood_is_refused(wrong):
    with pytest.raises(InvalidComponentError):
        Schedule("s", **wrong)


def test_triggers_are_checked():
    for wrong in ({"object": 1, "table": "t"}, {"object": len, "table": "t", "on": "drop"}):
        with pytest.raises(InvalidComponentError):
            Trigger("t", wrong.pop("object"), **wrong)


async def test_each_time_fires_once_and_missed_ones_are_made_up_for_by_one(db):
    added = await db.add(Schedule("hourly", publish=ReconcileRequested(identifier="x"), every=3600))
    created = (await db.show("schedule", "hourly", -1))["created"]
    clocks = [Ticking(db.metadata, db._registry) for _ in range(5)]

    async def fired():
        return [round(event.at - created) for event in await db.events.read(0, ScheduleFired)]

    await asyncio.gather(*(each.fire(created + 3599) for each in clocks))
    assert await fired() == []
    due = await asyncio.gather(*(each.fire(created + 3601) for each in clocks))
    assert {round(each - created) for each in due} == {7200}
    assert await fired() == [3600]
    await asyncio.gather(*(each.fire(created + 10 * 3600 + 5) for each in clocks))
    await clocks[0].fire(created + 5 * 3600)  # a clock that is late
    assert await fired() == [3600, 36000]
    assert [each.identifier for each in await db.events.read(0, ReconcileRequested)] == ["x", "x"]
    assert added.component.publish["type"] == "ReconcileRequested"


async def test_a_schedule_calls_its_function_and_reconciles(db):
    models.recorded.clear()
    await db.add(Schedule("often", models.record, every=0.05))
    await asyncio.to_thread(models.was_recorded.wait)
    assert isinstance(models.recorded[0], ScheduleFired)
    await db.remove("schedule", "often")
    await db.wait_idle(60)
    async with db.events.subscribe(ReconcileRequested) as events:
        await db.add(Schedule("put_right", publish=ReconcileRequested(), every=timedelta(seconds=0.05)))
        await anext(aiter(events))
    await db.remove("schedule", "put_right")


@pytest.mark.parametrize("function", [models.record, models.record_later])
async def test_a_trigger_is_called_on_each_change(db, function):
    models.recorded.clear()
    t = db["numbers"]
    await db.execute(t.insert({"id": 0, "x": 0}))
    await db.wait_idle(60)
    before = time.time()
    await db.add(Trigger("all", function, table="numbers"))
    await (await db.execute(t.insert([{"id": 1, "x": 1}, {"id": 2, "x": 2}]))).wait(60)
    await (await db.execute(t.update({"x": 5}, where=t.id == 1))).wait(60)
    await (await db.execute(t.delete(where=t.id == 2))).wait(60)
    await (await db.execute(db["others"].insert({"id": 1}))).wait(60)
    told = [(type(each).__name__, each.table, each.ids) for each in models.recorded]
    assert told == [
        ("RowsInserted", "numbers", [1, 2]),
        ("RowsUpdated", "numbers", [1]),
        ("RowsDeleted", "numbers", [2]),
    ]
    assert all(each.seq > 0 and each.created > before for each in models.recorded)


async def test_a_trigger_that_fails_is_tried_again_and_kept(tmp_path):
    uris = {
        "databackend": f"sqlite:///{tmp_path / 'app.db'}",
        "artifact_store": f"filesystem://{tmp_path / 'artifacts'}",
        "job_backoff": 0.01,
    }
    async with asyncdl.connect(**uris) as db:
        t = db["numbers"]
        calls = []

        def refuse(event):
            calls.append(event)
            raise ValueError("not today")

        await db.add(Trigger("refusing", refuse, table="numbers", on="insert"))
        await db.add(Trigger("recording", models.record, table="numbers", on=["delete"]))
        written = await db.execute(t.insert({"id": 1, "x": 1}))
        with pytest.raises(JobFailedError, match="not today"):
            await written.wait(60)
        [job] = await db.jobs.list(state="failed")
        assert (job.kind, job.attempts) == ("call", 3)
        assert job.arguments["event"]["type"] == RowsInserted.__name__
        assert "in refuse" in str(job.error)
        models.recorded.clear()
        await (await db.execute(t.delete(where=True))).wait(60)
        assert len(models.recorded) == 1
        await db.remove("trigger", "refusing")
        await (await db.execute(t.insert({"id": 2, "x": 1}))).wait(60)


async def test_a_trigger_does_not_hold_up_listeners(db):
    t = db["numbers"]
    await db.add(Trigger("hanging", _hang, table="numbers", on="insert"))
    await db.execute(t.insert({"id": 1, "x": 1}))
    added = await db.add(Listener("doubled", model=Model("double", models.double), key="x", select=t))
    await added.wait(60)
    assert await rows_of(db, t.outputs("doubled")) == [(1, 1, 2)]


async def _hang(event):
    await asyncio.Event().wait()
