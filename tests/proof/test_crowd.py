"""Four processes, twenty tasks in each: all add, write and subscribe at once."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
from collections import Counter
from multiprocessing import connection
from pathlib import Path

import pytest

import asyncdl
from asyncdl import RowsInserted
from tests.places import stores_of
from tests.proof.crowding import ROWS, SETTINGS, TASKS, listener, run
from tests.proof.notes import notes_of, nothing_is_left_over

pytestmark = pytest.mark.anyio

PROCESSES = 4
INSERTED = PROCESSES * TASKS * ROWS
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.proof.crashing", "tests.proof.preloaded"])


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "pair",
    [("sqlite", "sqlite"), ("postgresql", "postgresql"), ("replica set", "replica set"), ("sqlite", "own")],
    ids=" + ".join,
)
async def test_a_crowd_does_everything_once(
    pair: tuple[str, str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    request.param = pair
    with stores_of(request, tmp_path) as uris:
        async with asyncdl.connect(**uris, **SETTINGS) as db:
            first = await db.execute(notes_of(db).insert({0: "row 0"}))
            await db.add(listener(db, tmp_path / "calls"), wait=True)
        barrier = _CONTEXT.Barrier(PROCESSES)
        rows = INSERTED + 1
        processes = [
            _CONTEXT.Process(target=run, args=(uris, each, tmp_path, barrier, rows)) for each in range(PROCESSES)
        ]
        for each in processes:
            each.start()
        try:
            running = set(processes)
            while running and not any(each.exitcode for each in processes):  # the others would wait for one that failed
                await asyncio.to_thread(connection.wait, [each.sentinel for each in running])
                running = {each for each in running if each.exitcode is None}
            assert [each.exitcode for each in processes] == [0] * PROCESSES
        finally:
            for each in processes:
                each.kill()
                each.join()
        found = [json.loads((tmp_path / f"{each}.json").read_text()) for each in range(PROCESSES)]
        async with asyncdl.connect(**uris, **SETTINGS) as db:
            await db.wait_idle(60)
            done = [each for process in found for each in process["done"]]
            assert not any(each["same"] for each in done)
            assert sorted(each["version"] for each in done) == list(range(PROCESSES * TASKS))
            assert await db.show("model", "contested") == list(range(PROCESSES * TASKS))
            assert await db.show("listener", "counted") == [0]
            events = await db.events.read(0, RowsInserted, limit=10 * rows)
            assert events[0].seq == first.first
            for seen in (seen for process in found for seen in process["seen"]):
                assert seen == [event.seq for event in events]
            told = Counter(key for event in events for key in event.ids)
            assert told == Counter(range(rows))
            calls = Counter((tmp_path / "calls").read_text().splitlines())
            assert calls == Counter(f"row {key}" for key in range(rows))
            outputs = await notes_of(db).outputs("counted")
            assert outputs == [(key, len(f"row {key}")) for key in range(rows)]
            await nothing_is_left_over(db)
