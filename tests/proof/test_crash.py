"""A process is killed at a random moment, over and over; after each the stores hold all that was acknowledged, and no more.

``ASYNCDL_CRASHES`` says how often in all (48).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import asyncdl
from asyncdl import Datalayer
from asyncdl.components.registry import ListenerState
from asyncdl.metadata.base import UNFINISHED
from tests.conftest import rows_of
from tests.proof.crashing import SETTINGS, Deed, State, install, read_journal, run
from tests.test_story import PLACES

pytestmark = pytest.mark.anyio

STORES = [("sqlite", "sqlite"), ("sqlite", "own"), ("postgresql", "postgresql"), ("postgresql", "replica set")]
"""Databackend and metadata store: one database, or two of them, between which no transaction reaches."""
CHUNKS = 2
CRASHES = int(os.environ.get("ASYNCDL_CRASHES", "48")) // (len(STORES) * CHUNKS)
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.proof.crashing", "asyncdl.databackend.warmup"])


@pytest.fixture(params=STORES, ids=" + ".join)
def uris(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    data, metadata = request.param
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        made = {"databackend": enter(contextlib.contextmanager(PLACES[data])(request, tmp_path))}
        if metadata != data:
            (tmp_path / "metadata").mkdir()
            place = PLACES["sqlite" if metadata == "own" else metadata]
            made["metadata_store"] = enter(contextlib.contextmanager(place)(request, tmp_path / "metadata"))
        made["artifact_store"] = f"filesystem://{tmp_path / 'artifacts'}"
        yield made


@pytest.mark.timeout(600)
@pytest.mark.parametrize("chunk", range(CHUNKS))
async def test_a_process_killed_at_any_moment_loses_nothing_and_leaves_nothing(
    uris: dict[str, str], chunk: int, tmp_path: Path
) -> None:
    state = State({0: "the first"})
    await install(uris)
    chance = random.Random(chunk)
    for number in range(CRASHES):
        journal = tmp_path / f"journal {number}"
        journal.touch()
        seed = chunk * 1000 + number
        opened = _CONTEXT.Event()
        process = _CONTEXT.Process(target=run, args=(uris, journal, seed, state.rows, state.variants, opened))
        process.start()
        if chance.random() < 0.9:
            assert opened.wait(60)
        process.join(chance.uniform(0.0, 1.5))  # it lives until it is killed
        assert process.exitcode is None, "it ended by itself"
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        done, begun = read_journal(journal)
        for deed in done:
            state.apply(deed)
        async with asyncdl.connect(**uris, **SETTINGS) as db:
            await db.wait_idle(timeout=120)
            await resolve(db, state, begun)
            await check(db, state)


async def resolve(db: Datalayer, state: State, begun: list[Deed]) -> None:
    """Take what had begun as done where it was, as a whole; what was done in part shows in `check`."""
    rows = {row["id"]: row["text"] for row in await (await db.execute(db["notes"])).to_list()}
    installed = await variants(db)
    for deed in begun:
        if "component" in deed:
            done = installed.get(deed["component"]) == deed["variant"]
        else:
            put = {int(key): text for key, text in deed.get("put", {}).items()}
            done = all(rows.get(key) == text for key, text in put.items()) and not any(
                key in rows for key in deed.get("delete", ())
            )
        if done:
            state.apply(deed)


async def variants(db: Datalayer) -> dict[str, int]:
    found = {}
    for name in await db.show("listener"):
        if name not in {"word", "loud"}:
            listener = await db.load("listener", name)
            found[name] = listener.model.object("")
    return found


async def check(db: Datalayer, state: State) -> None:
    """Hold the stores against what must be there."""
    notes = db["notes"]
    rows = dict(await rows_of(db, notes))
    assert rows == state.rows
    assert await variants(db) == state.variants
    words = [(key, at, word) for key, text in rows.items() for at, word in enumerate(text.split())]
    assert await rows_of(db, notes.outputs("word").select("id", "word_position", "word")) == sorted(words)
    loud = [(key, at, word.upper()) for key, at, word in words]
    query = notes.outputs("word", "loud").select("id", "word_position", "loud")
    assert await rows_of(db, query) == sorted(loud)
    for name, variant in state.variants.items():
        outputs = await rows_of(db, notes.outputs(name).select("id", name))
        assert outputs == sorted((key, len(text) + variant) for key, text in rows.items()), name
        assert len(await db.databackend.failed((await _outputs(db))[name])) == 0
    await nothing_is_left_over(db)


async def _outputs(db: Datalayer) -> dict[str, Any]:
    records = await db.metadata.components(type_id="listener")
    return {each.identifier: ListenerState.loads(each.state).output for each in records if each.status == "ready"}


async def nothing_is_left_over(db: Datalayer) -> None:
    """Look past the datalayer: no job, intent, output table or artifact but those that are in use."""
    assert await db.jobs.list(state=UNFINISHED) == []
    assert await db.jobs.list(state=("failed", "upstream_failed")) == []
    async with asyncio.timeout(60):  # what follows a commit (deleting artifacts, dropping tables) is announced by it
        seen = 0
        while await db.metadata.intents():
            seen = await db.metadata.wait_for_commits(seen)
    records = await db.metadata.components()
    numbers = {
        key: [each.version for each in group]
        for key, group in itertools.groupby(records, key=lambda each: (each.type_id, each.identifier))
    }
    assert all(len(set(each)) == len(each) for each in numbers.values()), numbers
    tables = {each.name for each in (await _outputs(db)).values()}
    assert await _output_tables(db) == tables
    assert {each async for each in db.artifact_store.list()} == await db.metadata.artifacts()


async def _output_tables(db: Datalayer) -> set[str]:
    database = db.databackend.database  # type: ignore[attr-defined]
    catalog = "sqlite_master" if db.databackend.url.startswith("sqlite") else "pg_tables"
    column = "name" if catalog == "sqlite_master" else "tablename"
    only = "type = 'table'" if catalog == "sqlite_master" else "schemaname = current_schema()"
    found = await database.fetch(f"SELECT {column} FROM {catalog} WHERE {only}")
    return {name for (name,) in found if name.startswith("_outputs_")}
