"""A process is killed at a random moment, over and over; after each the stores hold all that was acknowledged, and no more.

``ASYNCDL_CRASHES`` says how often in all (200).
"""

from __future__ import annotations

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
from tests.places import stores_of
from tests.proof.crashing import SETTINGS, Deed, State, install, read_journal, run
from tests.proof.notes import notes_of, nothing_is_left_over, output_of

pytestmark = pytest.mark.anyio

STORES = [
    ("sqlite", "sqlite"),
    ("sqlite", "own"),
    ("postgresql", "postgresql"),
    ("postgresql", "replica set"),
    ("mysql", "mysql"),
    ("replica set", "replica set"),
    ("standalone", "standalone"),
]
"""Databackend and metadata store: one database, or two of them, between which no transaction reaches."""
CHUNKS = 2
CRASHES = -(-int(os.environ.get("ASYNCDL_CRASHES", "200")) // (len(STORES) * CHUNKS))
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.proof.crashing", "tests.proof.preloaded"])


@pytest.fixture(params=STORES, ids=" + ".join)
def uris(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    with stores_of(request, tmp_path) as made:
        yield made


@pytest.mark.timeout(600 + 10 * CRASHES)
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
        process.join(chance.uniform(0.0, 0.8))  # it lives until it is killed
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
    """Take what had begun as done where it was, as a whole; what was done in part shows in `check`.

    A server without transactions may have done a part of a write, as it always may.
    """
    rows, installed = await notes_of(db).rows(), await variants(db)
    for deed in begun:
        if "component" in deed:
            if installed.get(deed["component"]) == deed["variant"]:
                state.apply(deed)
            continue
        put = {int(key): text for key, text in deed.get("put", {}).items()}
        done = [key for key, text in put.items() if rows.get(key) == text]
        gone = [key for key in deed.get("delete", ()) if key not in rows]
        if not db.databackend.atomic or len(done) + len(gone) == len(put) + len(deed.get("delete", ())):
            state.apply({"put": {key: put[key] for key in done}, "delete": gone})


async def variants(db: Datalayer) -> dict[str, int]:
    found = {}
    for name in await db.show("listener"):
        if name not in {"word", "loud"}:
            listener = await db.load("listener", name)
            found[name] = listener.model.object("")
    return found


async def check(db: Datalayer, state: State) -> None:
    """Hold the stores against what must be there."""
    notes = notes_of(db)
    rows = await notes.rows()
    assert rows == state.rows
    assert await variants(db) == state.variants
    words = [(key, at, word) for key, text in rows.items() for at, word in enumerate(text.split())]
    assert await notes.outputs("word", columns=("word_position", "word")) == sorted(words)
    loud: list[tuple[Any, ...]] = [(key, at, word.upper()) for key, at, word in words]
    assert await notes.outputs("word", "loud", columns=("word_position", "loud")) == sorted(loud)
    tables = await output_of(db)
    for name, variant in state.variants.items():
        outputs = await notes.outputs(name)
        assert outputs == sorted((key, len(text) + variant) for key, text in rows.items()), name
        assert len(await db.databackend.failed(tables[name])) == 0
    await nothing_is_left_over(db)
