"""Limits of models in all processes together: calls at once, and calls in a second."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

import asyncdl
from asyncdl import Listener, Model
from asyncdl.components.cursors import belonging
from asyncdl.errors import ConflictError, InvalidComponentError, ModelError, StoreUnavailableError
from asyncdl.jobs.shares import Share, Shares, divide
from asyncdl.metadata.changes import DeleteCursor
from tests import models
from tests.conftest import rows_of
from tests.jobs.test_many_processes import exists, setup  # noqa: F401 - a fixture
from tests.places import PAIRS, stores_of

pytestmark = pytest.mark.anyio

COUNTING = """
import asyncio, os, threading, time
HERE = os.path.dirname(__file__)

def note(what):
    with open(os.path.join(HERE, "calls"), "a") as file:
        file.write(f"{what} {os.getpid()} {time.monotonic()}\\n")

async def call(x):
    note("begin")
    await asyncio.sleep(0.005)
    note("end")
    return x + 1

def plain(x):
    note("begin")
    time.sleep(0.002)
    note("end")
    return x + 1

async def stuck(x):
    note("begin")
    while not os.path.exists(os.path.join(HERE, "gate")):
        await asyncio.sleep(0.01)
    note("end")
    return x + 1
"""


@pytest.fixture
def counting(setup, monkeypatch):  # noqa: F811 - the fixture
    import sys

    (setup.folder / "counting.py").write_text(COUNTING)
    yield setup
    sys.modules.pop("counting", None)


def noted(setup) -> list[tuple[str, int, float]]:  # noqa: F811
    path = setup.path("calls")
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [(what, int(pid), float(at)) for what, pid, at in lines]


def most_at_once(calls, without=()) -> int:
    """Return how many calls were under way at once, by the order in which they were noted."""
    now = most = 0
    for what, pid, _ in calls:
        if pid not in without:
            now += 1 if what == "begin" else -1
            most = max(most, now)
    return most


@pytest.mark.parametrize("function", ["call", "plain"])
async def test_calls_at_once_stay_below_the_limit_in_all_processes_together(counting, function):
    import counting as module

    async with counting.writer() as db:
        for name in ("one", "two", "three"):
            await counting.ready(name, job_shard_rows=60, threads=4)
        t = db["numbers"]
        await db.execute(t.insert([{"id": n, "x": n} for n in range(600)]))
        await db.wait_idle(60)
        model = Model("limited", getattr(module, function), max_concurrency=4)
        added = await db.add(Listener("limited", model=model, key="x", select=t))
        asked = await asyncio.gather(*(db.predict("limited", n) for n in range(50)))  # a fourth process
        await added.wait(90)
        assert asked == [n + 1 for n in range(50)]
        assert len(await rows_of(db, t.outputs("limited").select("id"))) == 600
        calls = noted(counting)
        assert sum(what == "begin" for what, _, _ in calls) == 650
        assert len({pid for _, pid, _ in calls}) >= 2
        assert 2 <= most_at_once(calls) <= 4


@pytest.mark.parametrize("function", ["call", "plain"])
async def test_calls_in_a_second_stay_below_the_limit_in_all_processes_together(counting, function):
    import counting as module

    async with counting.writer() as db:
        for name in ("one", "two"):
            await counting.ready(name, job_shard_rows=50)
        t = db["numbers"]
        await db.execute(t.insert([{"id": n, "x": n} for n in range(100)]))
        await db.wait_idle(60)
        model = Model("limited", getattr(module, function), rate_limit=50)
        added = await db.add(Listener("limited", model=model, key="x", select=t))
        await asyncio.gather(*(db.predict("limited", n) for n in range(20)))
        await added.wait(60)
        begun = sorted(at for what, _, at in noted(counting) if what == "begin")
        assert len(begun) == 120
        assert begun[-1] - begun[0] >= 119 / 50 - 0.2  # no faster; a tenth of a second may be reserved at once
        for at, first in enumerate(begun):
            # what was reserved for a process that could not begin in time comes late
            assert sum(each < first + 1.0 for each in begun[at:]) <= 50 * 1.1 + 3 * 5


async def test_the_calls_of_a_process_that_was_killed_are_others_within_the_lease(counting):
    import counting as module

    async with counting.writer() as db:
        worker = await counting.ready("one", job_lease=2)
        t = db["numbers"]
        await db.execute(t.insert([{"id": n, "x": n} for n in range(50)]))
        await db.wait_idle(60)
        model = Model("limited", module.stuck, max_concurrency=3)
        added = await db.add(Listener("limited", model=model, key="x", select=t))
        await exists(counting.path("calls"))
        other = await counting.ready("two", job_lease=2)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        counting.path("gate").touch()
        await added.wait(60)
        calls = noted(counting)
        assert most_at_once(calls, without=[worker.pid]) <= 3
        assert {pid for _, pid, _ in calls} == {worker.pid, other.pid}
        other.send_signal(signal.SIGTERM)
        await asyncio.to_thread(other.communicate)
        assert not [name for name in await db.metadata.cursors() if name.startswith("share:")]  # given back


# several datalayers in this process are several processes to each other


@pytest.fixture(params=[each for each in PAIRS if each != ("sqlite", "own")], ids=" + ".join)
def uris(request, tmp_path):
    with stores_of(request, tmp_path) as uris:
        yield uris


@asynccontextmanager
async def several(count: int, uris, **settings) -> AsyncIterator[list[asyncdl.Datalayer]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(asyncdl.connect(**uris, worker=False, **settings)) for _ in range(count)]


@pytest.fixture(autouse=True)
def fresh():
    models.inside.clear()


@pytest.mark.parametrize("limit", [1, 2, 7])
async def test_processes_take_turns_and_none_starves(uris, limit):
    async with several(4, uris) as dbs:
        await dbs[0].add(Model("limited", models.inside_now, max_concurrency=limit))
        await asyncio.gather(*(db.predict("limited", n) for n in range(15) for db in dbs))
        assert 1 <= max(models.inside) <= limit
        assert len(models.inside) == 60


async def test_a_process_that_comes_later_gets_its_part_of_what_another_holds(uris):
    async with several(2, uris) as [first, second]:
        await first.add(Model("limited", models.inside_now, max_concurrency=4))
        busy = [asyncio.ensure_future(first.predict("limited", n)) for n in range(2000)]
        await busy[0]
        await asyncio.gather(*(second.predict("limited", n) for n in range(10)))
        assert not all(each.done() for each in busy)
        assert max(models.inside) <= 4
        for each in busy:
            each.cancel()
        await asyncio.wait(busy)


async def test_another_limit_is_no_new_version_and_counts_at_once(uris):
    async with several(2, uris) as [first, second]:
        added = await first.add(Model("limited", models.inside_now, max_concurrency=50))
        await asyncio.gather(*(first.predict("limited", n) for n in range(100)))
        assert max(models.inside) > 2
        again = await second.add(Model("limited", models.inside_now, max_concurrency=2))
        assert (again.created, again.component.uuid) == (False, added.component.uuid)
        assert (await first.show("model", "limited", -1))["fields"]["max_concurrency"] == 2
        models.inside.clear()
        await asyncio.gather(*(db.predict("limited", n) for n in range(20) for db in (first, second)))
        assert max(models.inside) <= 2


async def test_who_was_taken_for_dead_begins_no_more_calls_until_it_has_a_share_again(uris):
    async with several(2, uris) as [first, second]:
        await first.add(Model("limited", models.inside_now, max_concurrency=3))
        busy = [asyncio.ensure_future(first.predict("limited", n)) for n in range(150)]
        await busy[0]
        for _ in range(5):
            gone = [name for name in await second.metadata.cursors() if name.startswith("share:")]
            try:
                await second.metadata.commit(*map(DeleteCursor, gone))
            except ConflictError:
                continue
            await asyncio.gather(*busy[:30])
        assert sorted(await asyncio.gather(*busy)) == list(range(150))


async def test_closing_gives_back_and_removing_leaves_nothing(uris):
    async with several(2, uris) as [first, second]:
        await first.add(Model("limited", models.inside_now, max_concurrency=3, rate_limit=1000))
        await first.add(Model("limited2", models.inside_now, max_concurrency=3, rate_limit=1000))
        await asyncio.gather(first.predict("limited", 1), first.predict("limited2", 1))
        assert belonging("model", "limited", await second.metadata.cursors())
        await first.aclose()
        left = await second.metadata.cursors()
        assert not [name for name in left if name.startswith("share:")]
        await second.remove("model", "limited")
        left = await second.metadata.cursors()
        assert not belonging("model", "limited", left)
        assert belonging("model", "limited2", left)


async def test_closing_while_calls_wait_for_their_turn_ends_them(uris):
    async with several(1, uris) as [db]:
        await db.add(Model("limited", models.inside_now, max_concurrency=1, rate_limit=0.01))
        await db.predict("limited", 1)
        waiting = [asyncio.ensure_future(db.predict("limited", n)) for n in range(5)]
        while not db._engine.stores.compute._tasks:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
        await db.aclose()
        assert all(isinstance(each, Exception) for each in await asyncio.gather(*waiting, return_exceptions=True))


async def test_retries_and_rows_of_a_failed_batch_count_as_calls(uris):
    async with several(1, uris) as [db]:
        models.attempts.clear()
        flaky = Model("flaky", models.fails_twice, retries=2, backoff=0.0, rate_limit=20, retry_on=ValueError)
        await db.add(flaky)
        begun = time.monotonic()
        assert await asyncio.gather(*(db.predict("flaky", n) for n in range(3))) == [3, 3, 3]
        assert time.monotonic() - begun >= 8 / 20 - 0.1  # nine calls
        await db.add(Model("hopeless", models.fails_on_negative, retries=5, rate_limit=1000, give_up_on=ValueError))
        with pytest.raises(ModelError, match="-1 is negative"):
            await db.predict("hopeless", -1)
        batch = Model("batch", models.batch_fails_on_negative, batch=True, rate_limit=30)
        await db.add(batch)
        models.attempts.clear()
        outputs = await asyncio.gather(*(db.predict("batch", n) for n in (1, -2, 3)), return_exceptions=True)
        assert [outputs[0], type(outputs[1]), outputs[2]] == [2, ModelError, 4]
        assert models.attempts["batch"] == 4  # the batch, and each of its rows


async def test_calls_that_are_made_elsewhere_count_with_those_on_the_loop(uris):
    async with several(1, uris) as [db]:
        added = await db.add(Model("limited", models.inside_now, max_concurrency=3))
        limits, registry = db._engine.stores.compute, db._registry
        call = registry.call(added.component, await registry.find("model", "limited"), "single")

        async def elsewhere(n):
            async with limits.turn(call):
                await models.inside_now(n)

        asked = [db.predict("limited", n) for n in range(60)] + [elsewhere(n) for n in range(20)]
        await asyncio.gather(*asked)
        assert max(models.inside) <= 3
        assert len(models.inside) == 80


async def test_a_model_without_limits_asks_the_store_for_nothing(uris):
    async with several(1, uris) as [db]:
        await db.add(Model("free", models.inside_now))
        await asyncio.gather(*(db.predict("free", n) for n in range(20)))
        assert not belonging("model", "free", await db.metadata.cursors())


SHARES = st.dictionaries(
    st.text("abcdef", min_size=1), st.builds(Share, st.integers(0, 20), st.integers(0, 40), st.just(1)), max_size=8
)


@given(limit=st.integers(1, 30), shares=SHARES, turn=st.integers(0, 5))
def test_a_limit_is_divided_among_those_who_want_something(limit, shares, turn):
    parts = divide(limit, shares, turn)
    wanting = [owner for owner, share in shares.items() if share.wants]
    assert set(parts) == set(shares)
    assert sum(parts.values()) == min(limit, sum(share.wants for share in shares.values()))
    assert sum(parts.values()) <= limit
    assert all(0 <= parts[owner] <= share.wants for owner, share in shares.items())
    if limit >= len(wanting):  # everybody has something, and nobody less than another who is content with less
        assert all(parts[owner] for owner in wanting)
        fair = limit // max(len(wanting), 1)
        assert all(parts[owner] >= min(shares[owner].wants, fair) for owner in wanting)
    else:
        assert sum(parts.values()) == limit
        idle = [owner for owner in wanting if not shares[owner].held]
        assert sum(parts[owner] for owner in idle) == min(limit, len(idle))  # those first who have nothing


@given(st.integers(0, 2**20 - 1), st.integers(0, 2**20 - 1), st.integers(1, 2**22))
def test_a_share_is_one_integer_that_every_store_can_hold(held, wants, beat):
    share = Share(held, wants, beat)
    assert Share.decoded(share.encoded()) == share
    assert 0 < share.encoded() < 2**63


@pytest.mark.parametrize(
    "wrong",
    [{"max_concurrency": 0}, {"max_concurrency": 10**7}, {"rate_limit": 0}, {"rate_limit": -1}, {"rate_limit": 1e9}],
)
def test_limits_are_positive(wrong):
    with pytest.raises(InvalidComponentError, match="must be positive"):
        Model("m", models.double, **wrong)


async def test_a_worker_drains_with_a_paused_a_limited_and_a_running_job_at_no_cost_of_an_attempt(counting):
    import counting as module
    import gating

    async with counting.writer() as db:
        worker = await counting.ready("one", grace=1.0)
        t = db["numbers"]
        await db.execute(t.insert([{"id": n, "x": n} for n in range(400)]))
        await db.wait_idle(60)
        paused = Listener("paused", model=Model("free", module.call), key="x", select=t)
        await db.add(paused, wait=True)
        await db.pause("listener", "paused")
        counting.path("calls").unlink()
        slow = Model("slow", module.call, rate_limit=2)  # would take 200 s
        stuck = Model("stuck", module.stuck, max_concurrency=2)
        gated = Model("gated", gating.gated)
        for model in (slow, stuck, gated):
            await db.add(Listener(model.identifier, model=model, key="x", select=t))
        await db.execute(t.insert({"id": 1000, "x": 1000}))
        await exists(counting.path("one"))
        while len([1 for what, _, _ in noted(counting) if what == "begin"]) < 4:  # noqa: ASYNC110 - the worker writes
            await asyncio.sleep(0.01)
        worker.send_signal(signal.SIGTERM)
        assert worker.stdout is not None
        while "stopping" not in await asyncio.to_thread(worker.stdout.readline):
            pass
        counting.path("one.gate").touch()  # a thread cannot be stopped within a call
        await asyncio.to_thread(worker.communicate)
        assert worker.returncode == 0
        jobs = await db.jobs.list()
        assert {job.state for job in jobs} <= {"succeeded", "pending", "paused"}
        assert all(job.attempts == 0 for job in jobs if job.state != "succeeded")
        assert not [name for name in await db.metadata.cursors() if name.startswith("share:")]
        assert (await db.show("listener", "paused", -1))["paused"] is True
        # others go on where it stopped, within limits that are no hindrance any more
        counting.path("gate").touch()
        counting.path("two.gate").touch()
        await db.add(Model("slow", module.call))
        await counting.ready("two")
        await db.resume("listener", "paused")
        await db.wait_idle(90)
        for name in ("slow", "stuck", "gated", "paused"):
            assert len(await rows_of(db, t.outputs(name).select("id"))) == 401


@pytest.mark.parametrize(("on_loop", "limit"), [(True, 1), (True, 5), (False, 2)])
async def test_limits_hold_on_a_dask_cluster(tmp_path, on_loop, limit):
    uris = {
        "databackend": f"sqlite:///{tmp_path / 'app.db'}",
        "artifact_store": f"filesystem://{tmp_path / 'artifacts'}",
    }
    noted_in = str(tmp_path / "calls")

    def note(what):
        with open(noted_in, "a") as file:
            file.write(f"{what}\n")

    def plain(x):
        note("begin")
        time.sleep(0.002)
        note("end")
        return x

    async def coroutine(x):
        note("begin")
        await asyncio.sleep(0.002)
        note("end")
        return x

    async with asyncdl.connect(**uris, compute="dask://?workers=2&threads=2") as db:
        await db.compute.wait_for_workers(2)
        t = db["numbers"]
        await db.execute(t.insert([{"id": n, "x": n} for n in range(60)]))
        model = Model("limited", coroutine if on_loop else plain, max_concurrency=limit)
        added = await db.add(Listener("limited", model=model, key="x", select=t))
        await asyncio.gather(*(db.predict("limited", n) for n in range(20)), added.wait(60))
        lines = (tmp_path / "calls").read_text().split()
        assert lines.count("begin") >= 80
        assert most_at_once([(line, 0, 0.0) for line in lines]) <= limit


class Unreachable:
    """A metadata store in front of another one: at the first two commits and now and then it is away, before them or after."""

    def __init__(self, store, rng):
        self._store, self._rng = store, rng
        self.troubles = 0

    def __getattr__(self, name):
        return getattr(self._store, name)

    async def commit(self, *changes, joining=None):
        chance = [0.0, 1.0, self._rng.random()][min(self.troubles, 2)]
        if chance < 0.15:
            self.troubles += 1
            raise StoreUnavailableError("away before")
        committed = await self._store.commit(*changes, joining=joining)
        if chance > 0.85:
            self.troubles += 1
            raise StoreUnavailableError("away after: it was committed, and nobody was told")
        return committed


@pytest.mark.parametrize("seed", range(3))
async def test_shares_never_add_up_to_more_than_the_limit_on_a_store_that_is_away_at_times(tmp_path, seed):
    from asyncdl.drivers.sqlite import SQLiteDatabase
    from asyncdl.metadata.sql import SQLMetadataStore

    rng, limit = random.Random(seed), 5
    store = SQLMetadataStore(SQLiteDatabase(tmp_path / "meta.db"))
    await store.open()
    allowed: dict[str, int] = {}
    most = 0
    done = 0

    async def process(name: str) -> None:
        nonlocal most, done
        away = Unreachable(store, rng)
        stores.append(away)
        shares = Shares(away, "m", name, 60.0, lambda calls: allowed.__setitem__(name, calls), lambda: 0)
        shares.limit_to(limit)
        keeping = asyncio.ensure_future(shares.run())
        inside: set[object] = set()
        under_way[name] = inside

        async def call() -> None:
            nonlocal most, done
            async with shares.places(1):
                inside.add(token := object())
                most = max(most, sum(map(len, under_way.values())))
                await asyncio.sleep(rng.random() * 0.003)
                inside.discard(token)
                done += 1

        await asyncio.gather(*(call() for _ in range(60)))
        await keeping

    under_way: dict[str, set[object]] = {}
    stores: list[Unreachable] = []
    try:
        await asyncio.gather(*(process(f"p{n}") for n in range(3)))
        assert done == 180
        assert sum(each.troubles for each in stores)
        assert most <= limit
        assert not [name for name in await store.cursors() if name.startswith("share:")]
    finally:
        await store.aclose()
