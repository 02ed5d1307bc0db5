"""From an insert to its output in the hands of another process.

    python benchmarks/latency.py [sqlite postgresql mongodb URI ...] [--rows 100]

The time goes from the call that inserts a row to the moment at which another process, which subscribes to ``OutputsWritten``
and then queries, has read the row's output: two wake-ups across processes, or three, and the work itself between them. Rows
come one by one, at random distances, so that a database that is polled is met at any point of its interval, and with at
least 0.1 s of rest, such that everybody falls asleep before the next.

- ``two``: one process inserts and does not work; the other works and reads.
- ``three``: one inserts, one works, one reads.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from databases import NAMES, database, scheme
from processes import process, ready, told_to_end

import asyncdl
from asyncdl import Listener, Model, OutputsWritten

ARRANGEMENTS = ("two", "three")
_REST = 0.1
_PATIENCE = 30.0


def length(text: str) -> int:
    """Return the length of a text: a model that takes no time."""
    return len(text)


def connect(uri: str, folder: str, *, worker: bool) -> Any:
    """Return a connection to the benchmark's datalayer."""
    return asyncdl.connect(uri, artifact_store=f"filesystem://{folder}/artifacts", worker=worker, progress=False)


def newest(db: asyncdl.Datalayer) -> Any:
    """Return the query for the row that came last, with its output: always the same text."""
    table: Any = db["docs"]
    if db.databackend.language == "mongodb":
        return table.find({}).sort("_id", -1).limit(1).outputs("length")
    return table.outputs("length").order_by(table.id.desc()).limit(1)


async def read(uri: str, folder: str, *, worker: bool) -> None:
    """Print the key of each output, and when it had been read; until the standard input ends."""
    async with connect(uri, folder, worker=worker) as db:
        query, key = newest(db), "_id" if db.databackend.language == "mongodb" else "id"

        async def follow() -> None:
            async with db.events.subscribe(OutputsWritten) as events:
                await (await db.execute(query)).to_list()  # compiled before it counts
                ready()
                async for _ in events:
                    for row in await (await db.execute(query)).to_list():
                        if row["length"] is not None:
                            print(json.dumps([row[key], time.perf_counter()]), flush=True)

        following = asyncio.create_task(follow())
        await told_to_end()
        following.cancel()
        await asyncio.wait({following})


async def work(uri: str, folder: str) -> None:
    """Work, until the standard input ends."""
    async with connect(uri, folder, worker=True):
        ready()
        await told_to_end()


async def measure(uri: str, folder: str, arrangement: str, rows: int) -> dict[str, Any]:
    """Insert rows one by one, and return how long their outputs took."""
    key = "_id" if uri.startswith("mongodb") else "id"
    async with AsyncExitStack() as stack:
        async with connect(uri, folder, worker=True) as db:
            table: Any = db["docs"]
            await (await db.execute(inserted(table, {key: 0, "text": "the first"}))).wait()
            await db.add(Listener("length", model=Model("length", length), key="text", select=table), wait=True)
        db = await stack.enter_async_context(connect(uri, folder, worker=False))
        if arrangement == "three":
            await stack.enter_async_context(process(__file__, "--work", uri, folder))
        mode = "--read" if arrangement == "three" else "--read-and-work"
        reader = await stack.enter_async_context(process(__file__, mode, uri, folder))
        await db.wait_idle()
        table, taken = db["docs"], []
        for at in range(1, rows + 1):
            await asyncio.sleep(_REST * (1 + random.random()))
            begun = time.perf_counter()  # of one clock for all processes of a machine
            await db.execute(inserted(table, {key: at, "text": f"row {at}"}))
            taken.append(await read_at(reader, at) - begun)
        return figures(taken)


def inserted(table: Any, row: dict[str, Any]) -> Any:
    """Return the write of one row."""
    return table.insert_one(row) if "_id" in row else table.insert([row])


async def read_at(reader: asyncio.subprocess.Process, wanted: int) -> float:
    """Return when a row's output was read."""
    assert reader.stdout is not None
    async with asyncio.timeout(_PATIENCE):
        while True:
            key, at = json.loads(await reader.stdout.readline())
            if key == wanted:
                return float(at)


def figures(taken: list[float]) -> dict[str, Any]:
    """Return what is printed."""
    taken.sort()
    return {
        "rows": len(taken),
        "ms_least": round(taken[0] * 1000, 1),
        "ms_median": round(statistics.median(taken) * 1000, 1),
        "ms_p90": round(taken[int(len(taken) * 0.9)] * 1000, 1),
        "ms_most": round(taken[-1] * 1000, 1),
    }


def main() -> None:
    """Measure, and print a line of JSON for each database and arrangement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", nargs="*", default=[*NAMES])
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--arrangement", choices=ARRANGEMENTS, action="append")
    for mode in ("--read", "--read-and-work", "--work"):
        parser.add_argument(mode, nargs=2, metavar=("URI", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        asyncio.run(work(*given.work))
    elif given.read or given.read_and_work:
        asyncio.run(read(*(given.read or given.read_and_work), worker=bool(given.read_and_work)))
    else:
        for wanted in given.database:
            for arrangement in given.arrangement or ARRANGEMENTS:
                with tempfile.TemporaryDirectory() as folder, database(wanted, Path(folder)) as uri:
                    found = asyncio.run(measure(uri, folder, arrangement, given.rows))
                print(json.dumps({"database": scheme(uri), "processes": arrangement, **found}), flush=True)


if __name__ == "__main__":
    main()
