"""Subscribers: how many stored events one reads a second, and what a hundred cost that have nothing to read.

    python benchmarks/subscribers.py [sqlite postgresql URI ...] [--events 200000] [--rounds 3] [--idle 100] [--seconds 10]

The log is read from its start through ``db.events.subscribe(since=0)``, each event as an object with its fields; half of the
events are ``RowsInserted`` of one row, half ``OutputsWritten`` of ten. The idle cost is the processor time of this process,
which holds no more than an open datalayer that works and the subscribers: with as many as asked for, and with none.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from databases import database, scheme

import asyncdl
from asyncdl import Event, OutputsWritten, RowsInserted

_TOGETHER = 5000


async def publish(db: asyncdl.Datalayer, count: int) -> None:
    """Fill the log, past the datalayer's own way of writing, which would plan each event."""
    inserted = [RowsInserted(table="docs", ids=[at]).change() for at in range(0, _TOGETHER, 2)]
    written = [
        OutputsWritten(identifier="length", uuid="0" * 32, ids=list(range(at, at + 10))).change()
        for at in range(1, _TOGETHER, 2)
    ]
    both = [each for pair in zip(inserted, written, strict=True) for each in pair]
    for at in range(0, count, _TOGETHER):
        await db.metadata.commit(*both[: count - at])


async def read_all(db: asyncdl.Datalayer, last: int, *types: type[Event]) -> tuple[int, float]:
    """Read the log from its start; return how many events there were and the seconds."""
    count, begun = 0, time.perf_counter()
    async with db.events.subscribe(*types, since=0) as events:
        async for event in events:
            count += 1
            if event.seq >= last:
                break
    return count, time.perf_counter() - begun


async def reading(uri: str, folder: str, count: int, rounds: int) -> dict[str, Any]:
    """Measure how fast a subscriber reads."""
    async with asyncdl.connect(uri, artifact_store=f"filesystem://{folder}", worker=False) as db:
        await publish(db, count)
        last, speeds = await db.events.last(), []
        for _ in range(rounds):
            found, seconds = await read_all(db, last)
            assert found >= count, found
            speeds.append(found / seconds)
        return {
            "events": count,
            "events_per_second_median": round(statistics.median(speeds)),
            "events_per_second_least": round(min(speeds)),
        }


async def idling(uri: str, folder: str, idle: int, seconds: float) -> dict[str, Any]:
    """Measure what subscribers cost while nothing happens."""
    async with asyncdl.connect(uri, artifact_store=f"filesystem://{folder}") as db:
        await db.wait_idle()
        alone = await cost(seconds)
        async with AsyncExitStack() as stack:
            tasks = []
            for at in range(idle):
                name = f"subscriber {at}" if at % 2 else None
                events = await stack.enter_async_context(db.events.subscribe(name=name))
                tasks.append(asyncio.ensure_future(anext(events)))
            await asyncio.sleep(1)  # until they have read what there was, and saved where they stand
            with_them = await cost(seconds)
            assert not any(task.done() for task in tasks)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
    return {
        "idle": idle,
        "core_percent_with": round(with_them * 100, 2),
        "core_percent_without": round(alone * 100, 2),
    }


async def cost(seconds: float) -> float:
    """Return which part of a core this process uses meanwhile."""
    begun, used = time.perf_counter(), time.process_time()
    await asyncio.sleep(seconds)
    return (time.process_time() - used) / (time.perf_counter() - begun)


def main() -> None:
    """Measure, and print two lines of JSON for each database."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", nargs="*", default=["sqlite", "postgresql"])
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--idle", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()
    for wanted in given.database:
        with tempfile.TemporaryDirectory() as folder, database(wanted, Path(folder)) as uri:
            found = asyncio.run(reading(uri, folder, given.events, given.rounds))
            print(json.dumps({"database": scheme(uri), **found}), flush=True)
            found = asyncio.run(idling(uri, folder, given.idle, given.seconds))
            print(json.dumps({"database": scheme(uri), **found}), flush=True)


if __name__ == "__main__":
    main()
