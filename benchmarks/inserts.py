"""Single-row inserts from many tasks with a listener installed: how many a second, and how far the outputs lag behind.

    python benchmarks/inserts.py [--seconds 3] [--tasks 50] [--database sqlite://FILE | postgresql://...] ...

Without a database: SQLite in a temporary folder, and PostgreSQL as the tests start it.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import asyncdl
from asyncdl import Listener, Model

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests import postgresql

TABLE = "inserted"


def length(text: str) -> int:
    """Return the length of a text: a model that takes no time."""
    return len(text)


async def measure(uri: str, folder: str, tasks: int, seconds: float) -> dict[str, float]:
    """Insert for some seconds; look all the while how many rows have no output yet."""
    async with asyncdl.connect(uri, artifact_store=f"filesystem://{folder}") as db:
        t = db[TABLE]
        await db.execute(t.insert({"text": "the first"}))
        await db.add(Listener("length", model=Model("length", length), key="text", select=t), wait=True)
        end, inserted, latencies = time.perf_counter() + seconds, 0, []

        async def insert() -> None:
            nonlocal inserted
            while (begun := time.perf_counter()) < end:
                await db.execute(t.insert({"text": "some text"}))
                inserted += 1
                latencies.append(time.perf_counter() - begun)

        lags: list[float] = []

        async def watch() -> None:
            while time.perf_counter() < end:
                written, begun = await db.execute(t.insert({"text": "watched"})), time.perf_counter()
                await written.wait()
                lags.append(time.perf_counter() - begun)

        async with asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(insert())
            group.create_task(watch())
        began = time.perf_counter()
        await db.wait_idle()
        left = await (await db.execute(t.missing_outputs("length").limit(1))).to_list()
        assert not left, left
        latencies.sort()
        return {
            "inserts_per_second": round(inserted / seconds),
            "insert_ms_median": round(latencies[len(latencies) // 2] * 1000, 1),
            "lag_s_worst": round(max(lags, default=0.0), 2),
            "drain_s": round(time.perf_counter() - began, 2),
        }


async def main() -> None:
    """Measure, and print a line of JSON for each database."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--tasks", type=int, default=50)
    parser.add_argument("--database", action="append", default=[])
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        databases = given.database
        if not databases:
            server = stack.enter_context(postgresql.serve())
            databases = [f"sqlite:///{folder}/app.db", server.url(Path(folder))]
        for at, uri in enumerate(databases):
            found = await measure(uri, f"{folder}/{at}", given.tasks, given.seconds)
            print(json.dumps({"database": uri.partition(":")[0], "tasks": given.tasks, **found}), flush=True)


asyncio.run(main())
