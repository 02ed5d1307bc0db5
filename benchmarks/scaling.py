"""A backfill whose workers read and write rows by themselves, with 1, 2, 4 and 8 workers on Dask.

python benchmarks/scaling.py [postgresql|mongodb|URI ...] [--rows 3200] [--latency 0.02] [--workers 1,2,4,8]

Each worker is a process of one thread; the model sleeps for each row, as one that waits for a service does, so that two cores
can carry eight workers. Efficiency is t1 / (n * tn); beside it is how much of their time workers spent in the model, which says
more on a busy machine, where sleeping takes longer. Timed is `add(..., wait=True)` on a filled table, on workers that have worked
for this datalayer before: they have connected, and imported what they need. Outputs are read back and checked.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cloudpickle
from databases import database, scheme

import asyncdl
from asyncdl import Listener, Model
from tests.dask_processes import Processes

WARM = 64
"""Rows for each worker before it counts."""


def model(seconds: float) -> Any:
    def waits(x: int) -> list[float]:
        begun = time.perf_counter()
        time.sleep(seconds)
        return [x, time.perf_counter() - begun]

    return waits


async def filled(db: Any, name: str, rows: int) -> tuple[Any, Any]:
    """Return a table with rows, and the query for all of them."""
    t = db[name]
    if db.databackend.language == "mongodb":
        await db.execute(t.insert_many([{"_id": n, "x": n} for n in range(rows)]))
        return t, t.find({})
    await db.execute(t.insert([{"id": n, "x": n} for n in range(rows)]))
    return t, t


async def backfilled(db: Any, name: str, rows: int, latency: float) -> tuple[float, float]:
    """Return the seconds that a backfill takes, and those that its workers spend in the model."""
    t, select = await filled(db, name, rows)
    begun = time.perf_counter()
    waiting = Model(f"on_{name}", model(latency), datatype="json")
    await db.add(Listener(f"of_{name}", model=waiting, key="x", select=select), wait=True)
    took = time.perf_counter() - begun
    found = [row[f"of_{name}"] async for row in await db.execute(t.outputs(f"of_{name}"))]
    assert sorted(x for x, _ in found) == list(range(rows)), "wrong outputs"
    return took, sum(spent for _, spent in found)


async def measure(uri: str, folder: Path, workers: int, args: argparse.Namespace) -> tuple[float, float, float]:
    """Return seconds, those in the model, and seconds of the client's processor."""
    dask = Processes()
    dask.start_scheduler()
    try:
        for _ in range(workers):
            dask.start_worker(OMP_NUM_THREADS="1")
        stores = {"databackend": uri, "artifact_store": f"filesystem://{folder}/artifacts{workers}"}
        async with asyncdl.connect(**stores, compute=dask.url, progress=False) as db:
            await db.compute.wait_for_workers(workers)
            await backfilled(db, "warm", WARM * workers, latency=0.02)
            begun = time.process_time()
            took, spent = await backfilled(db, "docs", args.rows, args.latency)
            return took, spent, time.process_time() - begun
    finally:
        dask.stop()


async def main(args: argparse.Namespace) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    print(f"{args.rows} rows of {1000 * args.latency:g} ms on {os.cpu_count()} cores\n")
    print(
        "| databackend | workers | seconds | rows/s | efficiency | workers' time in the model | client, ms of processor a row |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    for wanted in args.databases:
        first = None
        for workers in args.workers:
            with tempfile.TemporaryDirectory(prefix="asyncdl-") as folder:
                os.chmod(folder, 0o755)
                with database(wanted, Path(folder) / "db") as uri:
                    took, spent, busy = await measure(uri, Path(folder), workers, args)
            first = first or took * workers
            efficiency = first / (workers * took)
            row = (scheme(uri), workers, f"{took:.2f}", f"{args.rows / took:.0f}", f"{efficiency:.2f}")
            row += (f"{100 * spent / (workers * took):.0f} %",)
            print(f"| {' | '.join(map(str, row))} | {1000 * busy / args.rows:.3f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("databases", nargs="*", default=["postgresql", "mongodb"])
    parser.add_argument("--rows", type=int, default=3200)
    parser.add_argument("--latency", type=float, default=0.02)
    parser.add_argument("--workers", type=lambda text: [int(each) for each in text.split(",")], default=[1, 2, 4, 8])
    asyncio.run(main(parser.parse_args()))
