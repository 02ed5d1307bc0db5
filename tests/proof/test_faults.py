"""Each call to each store fails in turn, during one `add`, one write of each kind, one replacement and one removal.

None is left out: the first fails, then the second, until all has been done before the call came that was to fail.
What returned has been done and all that follows comes; what raised has been done as a whole or not at all; nothing is left over.

``ASYNCDL_FAULTS=all`` tries all faults in all scenarios, and PostgreSQL and MongoDB, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import asyncdl
from asyncdl import Datalayer, Listener, Model
from asyncdl.compute.local import LocalComputeBackend
from asyncdl.databackend.mongo import MongoDataBackend
from asyncdl.datatypes import Datatypes
from asyncdl.drivers.mongo import MongoDatabase
from asyncdl.errors import AsyncDLError
from asyncdl.testing.faults import FAULTS, Fault, Faults, faulty
from tests.places import stores_of
from tests.proof.notes import notes_of, nothing_is_left_over

pytestmark = pytest.mark.anyio

AT_ONCE = 8
"""Trials at once: most of their time is spent waiting."""
SETTINGS = {"job_backoff": 0.01, "job_lease": 300.0, "threads": 1, "progress": False}
"""A job that waits for its lease is one too slow."""
PATIENCE = 60.0
ROWS = {1: "one", 2: "two", 3: "", 4: "four four"}


def length(more: int) -> Callable[[str], int]:
    """Return a model's function, which no import path leads to: it is an artifact."""
    return lambda text: len(text) + more


def listener(db: Datalayer, name: str, more: int) -> Listener:
    return Listener(name, model=Model(f"m-{name}", length(more)), key="text", select=notes_of(db).select())


@dataclass(frozen=True)
class Scenario:
    """What is done, and what has to be there before and after: the rows, and for each listener what its model adds."""

    do: Callable[[Datalayer], Awaitable[Any]]
    rows: dict[int, str]
    models: dict[str, int]


SCENARIOS = {
    "add": Scenario(lambda db: db.add(listener(db, "new", 7)), ROWS, {"old": 1, "new": 7}),
    "insert": Scenario(
        lambda db: db.execute(notes_of(db).insert({5: "five", 6: "six"})), {**ROWS, 5: "five", 6: "six"}, {"old": 1}
    ),
    "update": Scenario(
        lambda db: db.execute(notes_of(db).update([1, 3], "changed")), {**ROWS, 1: "changed", 3: "changed"}, {"old": 1}
    ),
    "delete": Scenario(lambda db: db.execute(notes_of(db).delete([2, 3])), {1: ROWS[1], 4: ROWS[4]}, {"old": 1}),
    "replace": Scenario(lambda db: db.replace(Model("m-old", length(9))), ROWS, {"old": 9}),
    "remove": Scenario(lambda db: db.remove("model", "m-old", recursive=True), ROWS, {}),
}
BEFORE = Scenario(lambda db: db.show(), ROWS, {"old": 1})


async def prepare(uris: dict[str, str]) -> None:
    async with asyncdl.connect(**uris, **SETTINGS) as db:
        await db.execute(notes_of(db).insert(ROWS))
        await db.add(listener(db, "old", 1), wait=True)


async def check(db: Datalayer, scenario: Scenario, *, done: bool) -> None:
    """Hold the stores against what was done, or, if that is not known, against that or nothing of it."""
    await db.wait_idle(PATIENCE)
    notes = notes_of(db)
    rows = await notes.rows()
    models = {name: (await db.load("listener", name)).model.object("") for name in await db.show("listener")}
    found = (rows, models)
    assert found == (scenario.rows, scenario.models) or (not done and found == (BEFORE.rows, BEFORE.models))
    for name, more in models.items():
        assert await notes.outputs(name) == sorted((key, len(text) + more) for key, text in rows.items())
    assert await db.jobs.list(state=("failed", "upstream_failed")) == []


async def suffer(call: asyncio.Future[Any], faults: Faults, fault: str) -> bool:
    """Wait for the user's call to end, giving it up where it would wait; return whether it returned."""
    reached = asyncio.ensure_future(faults.reached.wait())
    try:
        await asyncio.wait({call, reached}, return_when=asyncio.FIRST_COMPLETED)
        if fault in {"hung", "stuck", "reached"}:
            call.cancel()
        async with asyncio.timeout(PATIENCE):
            await call
    except (AsyncDLError, asyncio.CancelledError):
        return False
    finally:
        reached.cancel()
    return True


async def trial(uris: dict[str, str], scenario: Scenario, at: int, fault: Any) -> list[str]:
    """Have one call fail; return the calls that were made until all was done, or the call failed."""
    async with asyncdl.connect(**uris, **SETTINGS, worker=False) as real:
        faults = Faults()
        async with asyncdl.connect(
            faulty(real.databackend, faults),
            metadata_store=faulty(real.metadata, faults),
            artifact_store=faulty(real.artifact_store, faults),
            compute=faulty(LocalComputeBackend(1, 1), faults),
            **SETTINGS,
        ) as db:
            await db.wait_idle(PATIENCE)
            faults.arm(at, fault)
            done = await suffer(asyncio.ensure_future(scenario.do(db)), faults, fault)
            idle = asyncio.ensure_future(db.wait_idle(PATIENCE))
            reached = asyncio.ensure_future(faults.reached.wait())
            await asyncio.wait({idle, reached}, return_when=asyncio.FIRST_COMPLETED)
            calls = faults.calls
            faults.heal()
            reached.cancel()
            await idle
            await check(db, scenario, done=done)
    async with asyncdl.connect(**uris, **SETTINGS) as db:
        await check(db, scenario, done=done)
        await nothing_is_left_over(db)
    return calls if len(calls) < at else []


async def closing(uris: dict[str, str], scenario: Scenario, at: int, fault: Any) -> list[str]:
    """Close a datalayer of which one call has the fault, and all that are made while it closes; return as `trial` does."""
    async with asyncdl.connect(**uris, **SETTINGS, worker=False) as real:
        faults = Faults()
        db = await asyncdl.connect(
            faulty(real.databackend, faults),
            metadata_store=faulty(real.metadata, faults),
            artifact_store=faulty(real.artifact_store, faults),
            compute=faulty(LocalComputeBackend(1, 1), faults),
            **{**SETTINGS, "job_lease": 1.0},  # what cannot be given back is left to it
        )
        await db.wait_idle(PATIENCE)
        faults.arm(at, fault)
        done = asyncio.ensure_future(scenario.do(db))
        reached = asyncio.ensure_future(faults.reached.wait())
        await asyncio.wait({done, reached}, return_when=asyncio.FIRST_COMPLETED)
        idle = asyncio.ensure_future(db.wait_idle(PATIENCE))
        await asyncio.wait({idle, reached}, return_when=asyncio.FIRST_COMPLETED)
        calls = faults.calls
        done.cancel()  # closing waits for what a user's call is writing
        async with asyncio.timeout(PATIENCE):
            await db.aclose()
        faults.heal()
        for each in (done, reached, idle):
            each.cancel()
        await asyncio.wait({done, reached, idle})
    async with asyncdl.connect(**uris, **SETTINGS) as db:
        await check(db, scenario, done=not done.cancelled() and done.exception() is None)
        await nothing_is_left_over(db)
    return calls if len(calls) < at else []


@pytest.fixture
async def prepared(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Callable[[str], Any]]:
    """Yield what makes the URIs of stores that hold what is there before: on SQLite by copying files, elsewhere anew."""
    pair = request.node.callspec.params["pair"]
    request.param = pair
    with contextlib.ExitStack() as stack:
        first = tmp_path / "first"
        first.mkdir()
        if pair[0] == "sqlite":
            found = stack.enter_context(stores_of(request, first))
            await prepare(found)

        async def make(name: str) -> dict[str, str]:
            folder = tmp_path / name
            if pair[0] == "sqlite":
                shutil.copytree(first, folder)
                return {role: uri.replace(str(first), str(folder)) for role, uri in found.items()}
            folder.mkdir()
            uris = stack.enter_context(stores_of(request, folder))
            await prepare(uris)
            return uris

        yield make


def test_a_store_with_faults_has_the_abilities_of_the_one_given() -> None:
    given = MongoDataBackend(MongoDatabase("mongodb://127.0.0.1/app"), Datatypes(allow_pickle=False))
    wrapped = faulty(given, Faults())
    assert not given.tables_with_rows  # as others do: so it could be the base's
    assert wrapped.tables_with_rows == given.tables_with_rows
    assert (wrapped.language, wrapped.atomic, wrapped.url) == (given.language, given.atomic, given.url)


ALL = os.environ.get("ASYNCDL_FAULTS") == "all"
STORES = [("sqlite", "sqlite"), ("sqlite", "own")]
MORE_STORES = [("postgresql", "postgresql"), ("replica set", "replica set"), ("standalone", "standalone")]
CHOSEN = [
    (pair, name, fault)
    for pair in STORES + MORE_STORES
    for name in SCENARIOS
    for fault in FAULTS
    if ALL or (pair in STORES and name in {"add", "update", "remove"} and fault in {"refused", "lost", "hung"})
]
"""Where rows and events are one commit, and where they are two; what else there is takes long."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("pair", "name", "fault"), CHOSEN, ids=[f"{' + '.join(pair)}, {name}, {fault}" for pair, name, fault in CHOSEN]
)
async def test_every_call_fails_in_turn(
    prepared: Callable[[str], Any], pair: tuple[str, str], name: str, fault: Fault
) -> None:
    await each_in_turn(prepared, name, fault, trial)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name", [each for each in SCENARIOS if each in {"add", "update"} or (ALL and each != "insert")]
)
@pytest.mark.parametrize("pair", STORES + MORE_STORES * ALL, ids=" + ".join)
async def test_whatever_it_waits_for_and_whatever_comes_of_that_it_closes(
    prepared: Callable[[str], Any], pair: tuple[str, str], name: str
) -> None:
    # Not an insert: that goes on when who asked has gone, and closing waits for it.
    await each_in_turn(prepared, name, "stuck", closing)


async def each_in_turn(
    prepared: Callable[[str], Any], name: str, fault: Fault, attempt: Callable[..., Awaitable[list[str]]]
) -> None:
    """Make trials, or closings, until one did all that was to be done before the call came that was to have the fault."""
    at, over = 1, False
    while not over:
        numbers = range(at, at + AT_ONCE)
        uris = [await prepared(str(each)) for each in numbers]
        trials = [attempt(each, SCENARIOS[name], number, fault) for each, number in zip(uris, numbers, strict=True)]
        results = await asyncio.gather(*trials, return_exceptions=True)
        for number, result in zip(numbers, results, strict=True):
            if isinstance(result, BaseException):
                result.add_note(f"call number {number} of {name} was {fault}")
                raise result
        at, over = at + AT_ONCE, all(results)
    assert at > 20
