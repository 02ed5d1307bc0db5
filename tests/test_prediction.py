"""Predictions of concurrent callers: few batches, and to each their own."""

from __future__ import annotations

import asyncio
import os
import random
import threading

import pytest

import asyncdl
from asyncdl import Model
from asyncdl.compute.local import LocalComputeBackend
from asyncdl.errors import (
    ClosedError,
    ComponentNotFoundError,
    ModelError,
    ModelOutputError,
    StoreUnavailableError,
    WorkerLostError,
)
from asyncdl.prediction import BATCH
from tests import models

pytestmark = pytest.mark.anyio

sizes: list[int] = []
"""How long the batches were that `measured` got, in this process."""
entered = threading.Event()
go_on = threading.Event()


def measured(xs):
    sizes.append(len(xs))
    return [x * x for x in xs]


def waits(xs):
    entered.set()
    go_on.wait(60)
    return measured(xs)


def squares_of_positives(xs):
    if min(xs) < 0:
        raise ValueError(f"{min(xs)} is negative")
    return measured(xs)


def forgets_zeros(xs):
    return [x for x in xs if x]


def dies_of_zero(xs):
    if 0 in xs:
        os._exit(7)
    return xs


async def both(pairs):
    sizes.append(len(pairs))
    return [x + y for x, y in pairs]


class Endless:
    """Tells when `never_ends` was called, and when it was cancelled."""

    def __init__(self):
        self.started, self.stopped = asyncio.Event(), asyncio.Event()


watched: list[Endless] = []


async def never_ends(xs):
    watched[-1].started.set()
    try:
        await asyncio.Event().wait()
    finally:
        watched[-1].stopped.set()


@pytest.fixture
async def endless():
    watched.append(Endless())
    return watched[-1]


@pytest.fixture(autouse=True)
def fresh():
    sizes.clear()
    entered.clear()
    go_on.clear()
    yield
    go_on.set()


async def lookups(db):
    """Count how often the metadata store is asked for components."""
    asked = []
    components = db.metadata.components

    async def counted(**options):
        asked.append(options)
        return await components(**options)

    db.metadata.components = counted
    return asked


async def test_concurrent_callers_share_batches(db):
    await db.add(Model("squares", measured, batch=True))
    asked = await lookups(db)
    found = await asyncio.gather(*(db.predict("squares", n) for n in range(1000)))
    assert found == [n * n for n in range(1000)]
    assert sum(sizes) == 1000
    assert max(sizes) <= BATCH
    assert len(sizes) == -(-1000 // BATCH)
    assert len(asked) < 20  # and not 1000


async def test_one_caller_after_the_other_waits_for_nobody(db):
    await db.add(Model("squares", measured, batch=True))
    assert [await db.predict("squares", n) for n in range(3)] == [0, 1, 4]
    assert sizes == [1, 1, 1]


async def test_who_comes_while_batches_run_is_in_the_next_one(tmp_path):
    compute = LocalComputeBackend(threads=1, processes=1)
    async with asyncdl.connect(f"sqlite:///{tmp_path / 'app.db'}", compute=compute) as db:
        await db.add(Model("squares", waits, batch=True))
        first = asyncio.create_task(db.predict("squares", 1))
        await asyncio.to_thread(entered.wait, 60)
        later = [asyncio.create_task(db.predict("squares", n)) for n in range(100)]
        await asyncio.sleep(0)
        go_on.set()
        assert await first == 1
        assert await asyncio.gather(*later) == [n * n for n in range(100)]
    assert sizes == [1, 100]


async def test_each_gets_their_own_error(db):
    await db.add(Model("squares", squares_of_positives, batch=True))
    found = await asyncio.gather(*(db.predict("squares", n) for n in (1, -2, 3, -4)), return_exceptions=True)
    assert (found[0], found[2]) == (1, 9)
    for at, message in ((1, "-2 is negative"), (3, "-4 is negative")):
        assert isinstance(found[at], ModelError)
        assert message in str(found[at])


async def test_one_input_that_breaks_the_batch_breaks_it_for_nobody_else(db):
    await db.add(Model("few", forgets_zeros, batch=True))
    await db.add(Model("mortal", dies_of_zero, batch=True, on="process"))
    for name, kind in (("few", ModelOutputError), ("mortal", WorkerLostError)):
        found = await asyncio.gather(*(db.predict(name, n) for n in (1, 0, 2)), return_exceptions=True)
        assert (found[0], found[2]) == (1, 2)
        assert isinstance(found[1], kind)


async def test_a_caller_who_leaves_disturbs_nobody(db):
    await db.add(Model("squares", waits, batch=True))
    tasks = [asyncio.create_task(db.predict("squares", n)) for n in range(5)]
    await asyncio.to_thread(entered.wait, 60)
    tasks[2].cancel()
    await asyncio.wait([tasks[2]])
    go_on.set()
    assert await asyncio.gather(*tasks[:2], *tasks[3:]) == [0, 1, 9, 16]
    assert tasks[2].cancelled()
    assert sizes == [5]


async def test_who_left_before_the_batch_is_not_computed(db):
    await db.add(Model("squares", measured, batch=True))
    tasks = [asyncio.create_task(db.predict("squares", n)) for n in range(5)]
    await asyncio.sleep(0)
    tasks[2].cancel()
    await asyncio.gather(*tasks[:2], *tasks[3:])
    assert sizes == [4]


async def test_when_all_callers_leave_the_batch_is_cancelled(db, endless):
    await db.add(Model("endless", never_ends, batch=True))
    tasks = [asyncio.create_task(db.predict("endless", n)) for n in range(3)]
    await endless.started.wait()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await endless.stopped.wait()


async def test_inputs_passed_otherwise_have_batches_of_their_own(db):
    await db.add(Model("sum", both, batch=True))
    found = await asyncio.gather(*(db.predict("sum", n, 1) for n in range(10)))
    assert found == [n + 1 for n in range(10)]
    assert sizes == [10]
    await db.add(Model("add", models.add))
    found = await asyncio.gather(*(db.predict("add", x=n, y=1) for n in range(10)), db.predict("add", 5, 6))
    assert found == [*(n + 1 for n in range(10)), 11]


async def test_a_model_of_one_input_is_asked_one_by_one(db):
    await db.add(Model("next", models.fails_on_negative))
    await db.add(Model("slowly", models.slowly))
    asked = await lookups(db)
    found = await asyncio.gather(*(db.predict("next", n) for n in range(-1, 99)), return_exceptions=True)
    assert isinstance(found[0], ModelError)
    assert found[1:] == list(range(1, 100))
    assert await asyncio.gather(*(db.predict("slowly", n) for n in range(100))) == list(range(100, 200))
    assert len(asked) < 20


async def test_a_model_that_is_not_there(db):
    found = await asyncio.gather(*(db.predict("none", n) for n in range(3)), return_exceptions=True)
    assert {type(each) for each in found} == {ComponentNotFoundError}
    await db.add(Model("squares", measured, batch=True))
    model = await db.load("model", "squares")
    assert await db.predict(model, 3) == 9
    await db.remove("model", "squares")
    with pytest.raises(ComponentNotFoundError, match="removed"):
        await db.predict(model, 3)


async def test_a_new_version_answers_from_then_on(db):
    await db.add(Model("m", measured, batch=True))
    assert await db.predict("m", 3) == 9
    await db.replace(Model("m", models.double))
    assert await db.predict("m", 3) == 6


async def test_closing_answers_those_who_wait(tmp_path, endless):
    async with asyncdl.connect(f"sqlite:///{tmp_path / 'app.db'}") as db:
        await db.add(Model("endless", never_ends, batch=True, max_concurrency=1))
        running = [asyncio.create_task(db.predict("endless", n)) for n in range(3)]
        await endless.started.wait()
        waiting = [asyncio.create_task(db.predict("endless", n)) for n in range(3)]
        await asyncio.sleep(0)
    found = await asyncio.gather(*running, *waiting, return_exceptions=True)
    assert [type(each) for each in found] == [ClosedError] * 6
    assert endless.stopped.is_set()


async def test_an_outage_is_told_to_those_who_asked_and_is_over_with_them(db):
    await db.add(Model("squares", measured, batch=True))
    components, away = db.metadata.components, StoreUnavailableError("away")

    async def unavailable(**options):
        raise away

    db.metadata.components = unavailable
    found = await asyncio.gather(*(db.predict("squares", n) for n in range(3)), return_exceptions=True)
    assert found == [away] * 3
    db.metadata.components = components
    assert await db.predict("squares", 3) == 9


@pytest.mark.parametrize("seed", range(5))
async def test_nobody_is_forgotten_whoever_leaves_and_whatever_fails(db, seed):
    chance = random.Random(seed)
    await db.add(Model("squares", squares_of_positives, batch=True))
    await db.add(Model("next", models.fails_on_negative))
    asked = [(chance.choice(["squares", "next"]), chance.randrange(-2, 20)) for _ in range(600)]
    tasks = []
    for name, n in asked:
        tasks.append(asyncio.create_task(db.predict(name, n)))
        if chance.random() < 0.1:
            await asyncio.sleep(0)
        if chance.random() < 0.2:
            chance.choice(tasks).cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    for (name, n), answer in zip(asked, found, strict=True):
        if isinstance(answer, asyncio.CancelledError):
            continue
        if n < 0:
            assert isinstance(answer, ModelError)
            assert f"{n} is negative" in str(answer)
        else:
            assert answer == (n * n if name == "squares" else n + 1)
    assert not all(isinstance(answer, asyncio.CancelledError) for answer in found)
