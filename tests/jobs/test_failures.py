"""What fails: rules for retries, deadlines, dead jobs, and what depends on them."""

from __future__ import annotations

import asyncio
import threading

import pytest

import asyncdl
from asyncdl import Application, Listener, Model, Table
from asyncdl.errors import (
    InvalidComponentError,
    JobError,
    JobFailedError,
    ModelError,
    ModelOutputError,
    QueueDeadlineError,
)
from tests import models
from tests.conftest import rows_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def uris(tmp_path):
    return {
        "databackend": f"sqlite:///{tmp_path / 'app.db'}",
        "artifact_store": f"filesystem://{tmp_path / 'artifacts'}",
        "job_backoff": 0.01,
        "job_max_attempts": 2,
    }


class Unsteady:
    """Fails on each row so often, with one type of error."""

    def __init__(self, error, times=2):
        self.error, self.times = error, times
        self.tries = {}

    def __call__(self, x):
        self.tries[x] = self.tries.get(x, 0) + 1
        if self.tries[x] <= self.times:
            raise self.error(f"{x}, try {self.tries[x]}")
        return self.tries[x]


class UnsteadyCoroutine(Unsteady):
    async def __call__(self, x):
        return super().__call__(x)


@pytest.mark.parametrize("kind", [Unsteady, UnsteadyCoroutine])
@pytest.mark.parametrize(
    ("raised", "rules", "tried"),
    [
        (ConnectionResetError, {}, 3),
        (ConnectionResetError, {"retry_on": ConnectionError}, 3),
        (ConnectionResetError, {"retry_on": (OSError, KeyError), "give_up_on": [ValueError]}, 3),
        (ConnectionResetError, {"retry_on": (OSError,), "give_up_on": "builtins:ConnectionError"}, 1),
        (ValueError, {"retry_on": (ConnectionError,)}, 1),
        (ValueError, {"give_up_on": (ValueError,)}, 1),
    ],
)
async def test_rules_for_retries_look_at_types(uris, kind, raised, rules, tried):
    async with asyncdl.connect(**uris) as db:
        t = db["numbers"]
        await db.execute(t.insert([{"id": n, "x": n} for n in range(3)]))
        model = Model("unsteady", kind(raised), retries=2, backoff=0.001, **rules)
        await db.add(Listener("tries", model=model, key="x", select=t), wait=True)
        errors = await db.errors("tries")
        if tried == 3:
            assert (errors, await rows_of(db, t.outputs("tries").select("id", "tries"))) == (
                [],
                [(0, 3), (1, 3), (2, 3)],
            )
        else:
            assert [(key, each.type, each.message) for key, each in errors] == [
                (n, raised.__name__, f"{n}, try 1") for n in range(3)
            ]


def test_a_rule_that_names_no_exception_is_refused():
    for wrong in (int, "ValueError", 7, [None]):
        with pytest.raises((InvalidComponentError, TypeError)):
            Model("m", len, retry_on=wrong)
    assert Model("m", len, retry_on=KeyError).retry_on == ("builtins:KeyError",)


async def test_an_attempt_that_takes_too_long_fails_and_the_next_is_made(uris):
    async with asyncdl.connect(**uris, job_timeout=0.2) as db:
        t = db["numbers"]
        await db.execute(t.insert({"id": 1, "x": 1}))
        await db.wait_idle(60)  # the insert is planned by itself, before there is a listener
        added = await db.add(Listener("hangs", model=Model("hangs", _hang), key="x", select=t))
        with pytest.raises(JobFailedError, match="was not done within"):
            await added.wait(60)
        [job] = await db.jobs.list(state="failed")
        assert job.attempts == 2


async def _hang(x):
    await asyncio.Event().wait()


async def test_a_job_that_nobody_began_with_in_time_has_failed(uris):
    async with asyncdl.connect(**uris, worker=False) as db:
        t = db["numbers"]
        await db.execute(t.insert({"id": 1, "x": 1}))
        await db.add(Listener("doubled", model=Model("double", models.double), key="x", select=t))
    gate = threading.Event()
    try:
        async with asyncdl.connect(**uris, job_deadline=2, job_concurrency=1, threads=1) as db:
            models.gate = gate
            models.began.clear()
            await db.add(Listener("gated", model=Model("gate", models.gated), key="x", select=db["numbers"]))
            await asyncio.to_thread(models.began.wait)
            written = await db.execute(db["numbers"].insert({"id": 2, "x": 2}))
            [job] = [each for each in await _planned(db, written) if each.state == "pending"][:1]
            await asyncio.sleep(3)  # the setting is in seconds: they have to pass, by the clock of the store
            gate.set()
            with pytest.raises(JobFailedError, match="no worker began"):
                await written.wait(60)
            failed = await db.jobs.get(job.id)
            assert (failed.state, failed.attempts) == ("failed", 1)
            assert QueueDeadlineError.__name__ in str(failed.error)
            assert failed.rows == [2]
            await db.jobs.retry(job.id)
            await db.wait_idle(60)
            assert (await db.jobs.get(job.id)).state == "succeeded"
    finally:
        gate.set()


async def _planned(db, written):
    """Return a write's jobs, once there are any."""
    seen = 0
    while True:
        seen = await db.metadata.wait_for_commits(seen)
        jobs = [job for job in await db.jobs.list() if job.first <= written.last <= job.last]
        if jobs:
            return jobs


def chain(db):
    t = db["numbers"]
    first = Listener("first", model=Model("fragile", models.breaks_on_negative, batch=True), key="x", select=t)
    second = Listener(
        "second", model=Model("double", models.double), key="first", select=t.outputs("first").select("id", "first")
    )
    third = Listener(
        "third",
        model=Model("again", models.double),
        key="second",
        select=t.outputs("first", "second").select("id", "second"),
    )
    return Application("chain", [third, Table("numbers", {"id": "int64", "x": "int64"}), first, second])


async def test_what_depends_on_a_failed_job_has_failed_with_it_and_is_mended_with_it(uris):
    async with asyncdl.connect(**uris) as db:
        t = db["numbers"]
        await db.add(Table("numbers", {"id": "int64", "x": "int64"}))
        await db.execute(t.insert([{"id": 1, "x": -1}, {"id": 2, "x": 2}]))
        await db.wait_idle(60)
        models.broken = True
        added = await db.add(chain(db))
        with pytest.raises(JobFailedError, match="1 outputs for 2 inputs"):
            await added.wait(60)
        [failed] = await db.jobs.list(state="failed")
        dependent = await db.jobs.list(state="upstream_failed")
        names = {(await db.show("listener", name, -1))["uuid"]: name for name in ("second", "third")}
        assert sorted(names[job.target] for job in dependent) == ["second", "third"]
        assert all(failed.id in str(job.error) for job in dependent)
        assert [(await db.show("listener", name, -1))["status"] for name in ("first", "second", "third")] == [
            "failed",
            "pending",
            "pending",
        ]
        models.broken = False
        await db.jobs.retry(failed.id)
        await added.wait(60)
        assert await rows_of(db, t.outputs("first", "second", "third")) == [(1, -1, -1, -2, -4), (2, 2, 2, 4, 8)]
        for name in ("first", "second", "third"):
            assert (await db.show("listener", name, -1))["status"] == "ready"
        models.broken = True
        written = await db.execute(t.insert({"id": 3, "x": -3}))
        with pytest.raises(JobFailedError):
            await written.wait(60)
        assert len(await db.jobs.list(state="upstream_failed")) == 2
        models.broken = False
        [failed] = await db.jobs.list(state="failed")
        assert failed.rows == [3]
        await db.jobs.retry(failed.id)
        await written.wait(60)
        assert (3, -3, -3, -6, -12) in await rows_of(db, t.outputs("first", "second", "third"))


@pytest.mark.parametrize(
    ("rules", "attempts"),
    [
        ({}, 2),
        ({"give_up_on": ModelOutputError}, 1),
        ({"give_up_on": "asyncdl.errors:ModelError"}, 1),  # which it derives from
        ({"give_up_on": KeyError, "retry_on": ModelError}, 2),
        ({"give_up_on": ValueError, "retry_on": ModelError}, 1),  # its builtin kin
        ({"retry_on": ConnectionError}, 1),
    ],
)
async def test_rules_for_retries_hold_for_jobs_too(uris, rules, attempts):
    async with asyncdl.connect(**uris) as db:
        t = db["numbers"]
        await db.execute(t.insert([{"id": n, "x": n} for n in range(3)]))
        await db.wait_idle(60)
        model = Model("short", models.one_too_few, batch=True, **rules)
        added = await db.add(Listener("short", model=model, key="x", select=t))
        with pytest.raises(JobFailedError, match="2 outputs for 3 inputs"):
            await added.wait(60)
        [job] = await db.jobs.list(state="failed")
        assert job.attempts == attempts
        assert "ModelOutputError" in str(job.error)
        assert "Traceback" in str(job.error)


async def test_a_failed_job_is_listed_inspected_and_retried(uris):
    async with asyncdl.connect(**uris) as db:
        t = db["numbers"]
        await db.add(Table("numbers", {"id": "int64", "x": "int64"}))
        model = Model("fragile", models.breaks_on_negative, batch=True)
        await db.add(Listener("fragile", model=model, key="x", select=t), wait=True)
        models.broken = True
        written = await db.execute(t.insert([{"id": 5, "x": -5}, {"id": 6, "x": 6}]))
        with pytest.raises(JobFailedError):
            await written.wait(60)
        [job] = await db.jobs.list(state="failed", kind="refresh")
        assert (job.attempts, job.max_attempts, sorted(job.rows)) == (2, 2, [5, 6])
        assert job.finished is not None
        assert "1 outputs for 2 inputs" in str(job.error)
        models.broken = False
        await db.jobs.retry(job.id)
        await written.wait(60)
        again = await db.jobs.get(job.id)
        assert (again.state, again.attempts, again.error) == ("succeeded", 1, None)
        with pytest.raises(JobError, match="succeeded"):
            await db.jobs.retry(job.id)


async def test_only_rows_that_failed_are_tried_again(uris):
    async with asyncdl.connect(**uris) as db:
        t = db["numbers"]
        await db.execute(t.insert([{"id": n, "x": n - 2} for n in range(6)]))
        await db.wait_idle(60)
        models.calls.clear()
        models.negative_is_bad = True
        model = Model("picky", models.picky)
        await db.add(Listener("picky", model=model, key="x", select=t), wait=True)
        assert [(key, error.type) for key, error in await db.errors("picky")] == [(0, "ValueError"), (1, "ValueError")]
        models.negative_is_bad = False
        handle = await db.retry_failed("picky")
        await handle.wait(60)
        assert await db.errors("picky") == []
        assert dict(models.calls) == {-2: 2, -1: 2, 0: 1, 1: 1, 2: 1, 3: 1}
        assert len(await rows_of(db, t.outputs("picky"))) == 6


async def test_attempts_are_further_and_further_apart(uris):
    async with asyncdl.connect(**uris | {"job_max_attempts": 4, "job_backoff": 0.05}) as db:
        t = db["numbers"]
        await db.execute(t.insert([{"id": n, "x": n} for n in range(3)]))
        await db.wait_idle(60)
        pauses = []

        async def watch():
            seen, known = 0, -1.0
            while True:
                for job in await db.jobs.list(kind="backfill", state="pending"):
                    if job.not_before > known and job.attempts:
                        known = job.not_before
                        pauses.append((job.attempts, known - (job.started or 0.0)))
                seen = await db.metadata.wait_for_commits(seen)

        watching = asyncio.ensure_future(watch())
        try:
            model = Model("short", models.one_too_few, batch=True)
            added = await db.add(Listener("short", model=model, key="x", select=t))
            with pytest.raises(JobFailedError):
                await added.wait(60)
        finally:
            watching.cancel()
            await asyncio.wait([watching])
        assert [attempt for attempt, _ in pauses] == [1, 2, 3]
        for attempt, pause in pauses:
            assert pause >= 0.05 * 2 ** (attempt - 1)
