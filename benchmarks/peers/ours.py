"""asyncdl, in each way in which it is measured."""

import asyncio
import math
import resource
import statistics
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any

import workload

import asyncdl
from asyncdl import Datalayer, Listener, Model

URI = "sqlite://ours.db"
LATENCY = 0.05
"""Seconds that a call of the slow model takes."""

CONCURRENCY = 1_000


async def slow_length(text: str) -> int:
    """A model behind a network."""
    await asyncio.sleep(LATENCY)
    return len(text)


def listener(db: Datalayer, model: Model) -> Listener:
    return Listener("length", model=model, key="text", select=db["docs"].select("id", "text"))


async def insert(db: Datalayer, start: int, stop: int, keys: str) -> list[Any]:
    """Insert rows in writes of 1,000; return their handles."""
    docs = db["docs"]
    return [await db.execute(docs.insert(chunk)) for chunk in workload.chunks(start, stop, keys)]


async def outputs(db: Datalayer) -> dict[str, int]:
    found = await db.execute(db["docs"].outputs("length"))
    return workload.summary([(row["id"], row["length"]) async for row in found])


def peak_memory() -> float:
    """Return the most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


@asynccontextmanager
async def heartbeat(gaps: list[float]) -> AsyncIterator[None]:
    """Sleep 1 ms, over and over, and note the milliseconds from one awakening to the next."""

    async def beat() -> None:
        last = perf_counter()
        while True:
            await asyncio.sleep(0.001)
            now = perf_counter()
            gaps.append((now - last) * 1000)
            last = now

    task = asyncio.create_task(beat())
    await asyncio.sleep(0)
    try:
        yield
    finally:
        await asyncio.sleep(0.005)  # a beat that is late by now still counts, the more so where it is the only one
        task.cancel()


async def backfill(db: Datalayer, rows: int, keys: str, model: Model) -> dict[str, Any]:
    """Add a listener to a filled table."""
    await insert(db, 0, rows, keys)
    started = perf_counter()
    added = await db.add(listener(db, model))
    await added.wait()
    return {"seconds": perf_counter() - started, "memory": peak_memory()}


async def with_heartbeat(db: Datalayer, rows: int, keys: str) -> dict[str, Any]:
    """Do the same while a task wants to run every millisecond."""
    gaps: list[float] = []
    await insert(db, 0, rows, keys)
    started = perf_counter()
    async with heartbeat(gaps):
        added = await db.add(listener(db, Model("length", workload.length)))
        await added.wait()
        seconds = perf_counter() - started
    gaps.sort()
    late = gaps[math.ceil(0.999 * len(gaps)) - 1]
    return {"seconds": seconds, "gap_median": statistics.median(gaps), "gap_p999": late, "gap_max": gaps[-1]}


async def live(db: Datalayer, rows: int, keys: str) -> dict[str, Any]:
    """Insert the rows while the listener is installed. The first 1,000 make the table, and are not timed."""
    await insert(db, 0, workload.CHUNK, keys)
    added = await db.add(listener(db, Model("length", workload.length)))
    await added.wait()
    started = perf_counter()
    for written in await insert(db, workload.CHUNK, workload.CHUNK + rows, keys):
        await written.wait()
    return {"seconds": perf_counter() - started, "memory": peak_memory()}


async def one_row(db: Datalayer, rows: int, keys: str) -> dict[str, Any]:
    """Insert one row after the other, and read each one's output as soon as it is said to be there."""
    await live(db, 0, keys)
    docs = db["docs"]
    waited, read = [], []
    for number in range(workload.CHUNK, workload.CHUNK + rows):
        row = workload.row(number, keys)
        started = perf_counter()
        written = await db.execute(docs.insert([row]))
        await written.wait()
        waited.append((perf_counter() - started) * 1000)
        found = await (await db.execute(docs.filter(docs.id == row["id"]).outputs("length"))).first()
        read.append((perf_counter() - started) * 1000)
        if found is None or found["length"] != workload.length(row["text"]):
            raise SystemExit(f"row {row['id']}: written.wait() returned, and its output reads {found}")
    return {
        "seconds": sum(waited) / 1000,
        "waited_median": statistics.median(waited),
        "waited_max": max(waited),
        "read_median": statistics.median(read),
    }


async def main() -> None:
    parser = workload.parser()
    parser.add_argument("--mode", choices=("backfill", "heartbeat", "live", "slow", "one-row"), default="backfill")
    options = parser.parse_args()
    async with asyncdl.connect(URI) as db:
        match options.mode:
            case "backfill":
                figures = await backfill(db, options.rows, options.keys, Model("length", workload.length))
            case "slow":
                model = Model("length", slow_length, max_concurrency=CONCURRENCY)
                figures = await backfill(db, options.rows, options.keys, model)
                figures["ideal"] = options.rows * LATENCY / CONCURRENCY
            case "heartbeat":
                figures = await with_heartbeat(db, options.rows, options.keys)
            case "live":
                figures = await live(db, options.rows, options.keys)
            case _:
                figures = await one_row(db, options.rows, options.keys)
        workload.finish(**figures, outputs=await outputs(db))


if __name__ == "__main__":
    asyncio.run(main())
