"""Single-row inserts from many tasks with a listener installed: how far the outputs lag behind.

    python benchmarks/inserts.py [sqlite postgresql URI ...] [--seconds 10] [--tasks 50] [--rate N | --full]

The tasks insert a row each, over and over, such that together they keep a rate: the one that is promised, by default. With
``--full`` they insert as fast as they can, which shows what becomes of the outputs then. For each row the lag is the time from
the return of its insert until its output can be read. Another process looks, past asyncdl and through the database's own driver,
every five milliseconds or so for the outputs that have come; that is how exact a lag is, and it takes its part of the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
from databases import database, scheme
from processes import process, ready, told_to_end

import asyncdl
from asyncdl import Listener, Model

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

TABLE = "inserted"
RATES = {"sqlite": 1000, "postgresql": 2000}
"""Inserts a second that are promised."""
_LOOK = 0.005
_WARM = 2.0
"""Seconds of inserting before it counts."""


def length(text: str) -> int:
    """Return the length of a text: a model that takes no time."""
    return len(text)


async def look(uri: str, outputs: str, file: str) -> None:
    """Note when outputs can be read, until the standard input ends and all have come; write that to a file."""
    fetch, close = await reader(uri)
    ended = asyncio.create_task(told_to_end())
    seen: dict[str, float] = {}
    floor = ""  # ids are ordered by time: up to this one everything has its output
    ready()
    while True:
        last = ended.done()
        rows = await fetch(f"SELECT id FROM {TABLE} WHERE id > $1 ORDER BY id", floor)
        there = await fetch(f"SELECT id FROM {outputs} WHERE id > $1", floor)
        now = time.perf_counter()
        for each in there:
            seen.setdefault(each, now)
        for each in rows:
            if each not in seen:
                break
            floor = each
        if last and (not rows or floor == rows[-1]):
            break
        await asyncio.sleep(_LOOK)
    await close()
    await asyncio.to_thread(Path(file).write_text, json.dumps(seen))


async def reader(uri: str) -> tuple[Callable[[str, str], Awaitable[list[str]]], Callable[[], Awaitable[None]]]:
    """Return what reads one column, and what closes the connection."""
    if uri.startswith("sqlite"):
        lite = sqlite3.connect(uri.removeprefix("sqlite:///"), isolation_level=None)

        async def fetch(sql: str, floor: str) -> list[str]:
            return [row[0] for row in lite.execute(sql.replace("$1", "?"), [floor])]

        async def close() -> None:
            lite.close()

        return fetch, close
    connection = await asyncpg.connect(uri)

    async def fetch_remote(sql: str, floor: str) -> list[str]:
        return [row[0] for row in await connection.fetch(sql, floor)]

    return fetch_remote, connection.close


async def measure(uri: str, folder: str, tasks: int, seconds: float, rate: float | None) -> dict[str, Any]:
    """Insert for some seconds, and return how long the outputs took."""
    file = Path(folder) / "seen.json"
    async with asyncdl.connect(uri, artifact_store=f"filesystem://{folder}/artifacts") as db:
        await db.execute(db[TABLE].insert({"text": "the first"}))
        added = Listener("length", model=Model("length", length), key="text", select=db[TABLE])
        await db.add(added, wait=True)
        state = json.loads((await db.metadata.components(type_id="listener"))[0].state)
        async with process(__file__, "--look", uri, state["output"]["name"], str(file)):
            await insert(db, tasks, _WARM, rate)
            returned, took = await insert(db, tasks, seconds, rate)
            begun = time.perf_counter()
            await db.wait_idle()
            drained = time.perf_counter() - begun
    seen: dict[str, float] = json.loads(await asyncio.to_thread(file.read_text))
    lags = sorted(max(seen[each] - at, 0.0) for each, at in returned.items())
    return {
        "tasks": tasks,
        "inserts_per_second": round(len(returned) / seconds),
        "insert_ms_median": round(statistics.median(took) * 1000, 1),
        "lag_s_median": round(statistics.median(lags), 3),
        "lag_s_p99": round(lags[int(len(lags) * 0.99)], 3),
        "lag_s_most": round(lags[-1], 3),
        "drain_s": round(drained, 2),
    }


async def insert(
    db: asyncdl.Datalayer, tasks: int, seconds: float, rate: float | None
) -> tuple[dict[str, float], list[float]]:
    """Insert rows one by one from many tasks; return when each insert returned, and how long they took."""
    table, begun = db[TABLE], time.perf_counter()
    returned: dict[str, float] = {}
    took: list[float] = []

    async def one_after_the_other(task: int) -> None:
        turn = 0
        while (now := time.perf_counter()) < begun + seconds:
            if rate is not None:
                due = begun + (turn * tasks + task) / rate  # who is late does not wait
                turn += 1
                await asyncio.sleep(max(due - now, 0.0))
            at = time.perf_counter()
            written = await db.execute(table.insert({"text": "some text"}))
            end = time.perf_counter()
            took.append(end - at)
            returned[str(written.ids[0])] = end

    async with asyncio.TaskGroup() as group:
        for task in range(tasks):
            group.create_task(one_after_the_other(task))
    return returned, took


def main() -> None:
    """Measure, and print a line of JSON for each database."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", nargs="*", default=[*RATES])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--tasks", type=int, default=50)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--look", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.look:
        asyncio.run(look(*given.look))
        return
    for wanted in given.database:
        with tempfile.TemporaryDirectory() as folder, database(wanted, Path(folder)) as uri:
            rate = None if given.full else given.rate or RATES[scheme(uri)]
            found = asyncio.run(measure(uri, folder, given.tasks, given.seconds, rate))
            print(json.dumps({"database": scheme(uri), "rate": rate or "full", **found}), flush=True)


if __name__ == "__main__":
    main()
