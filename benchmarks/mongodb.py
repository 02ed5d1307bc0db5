"""asyncdl on MongoDB beside what one would write by hand with motor: a backfill, and single reads.

Run ``python benchmarks/mongodb.py mongodb://localhost:27017/`` against a replica set, or without a URL where the tests' server
can be started. Both are measured in one run, and their ratio is what counts. The databases that it makes are dropped.
"""

import argparse
import asyncio
import statistics
import sys
import time
from pathlib import Path
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import motor.motor_asyncio
import pymongo

import asyncdl
from asyncdl import Listener, Model

_BATCH = 1000
_TURNS = 10


def documents(rows: int) -> list[dict[str, object]]:
    """Return the rows."""
    return [{"_id": at, "text": f"document number {at} " + "x" * (at % 50), "year": at % 100} for at in range(rows)]


async def straight(url: str) -> float:
    """Compute outputs by hand: read a batch, compute, write, with the next batch being read meanwhile."""
    client = motor.motor_asyncio.AsyncIOMotorClient(url)
    data = client.get_default_database()
    begun = time.perf_counter()
    cursor = data["docs"].find({}, {"text": 1}, batch_size=_BATCH)
    reading = asyncio.ensure_future(cursor.to_list(_BATCH))
    while batch := await reading:
        reading = asyncio.ensure_future(cursor.to_list(_BATCH))
        await data["by_hand"].insert_many([{"_id": each["_id"], "value": len(each["text"])} for each in batch])
    taken = time.perf_counter() - begun
    client.close()
    return taken


async def ours(url: str) -> float:
    """Add a listener, and wait."""
    async with asyncdl.connect(url, progress=False) as db:
        begun = time.perf_counter()
        added = await db.add(Listener("length", model=Model("len", len), key="text", select=db["docs"]))
        await added.wait()
        return time.perf_counter() - begun


async def reads(url: str, calls: int, at_once: int) -> tuple[float, float]:
    """Return the seconds that bare motor and ``execute`` take for as many calls of find_one, in turns."""

    async def all_of(one: object) -> float:
        left = iter(range(calls // _TURNS))

        async def worker() -> None:
            for at in left:
                await one(at)  # type: ignore[operator]

        begun = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(at_once)))
        return time.perf_counter() - begun

    async with asyncdl.connect(url, progress=False) as db:
        found = motor.motor_asyncio.AsyncIOMotorClient(url)
        bare, docs = found.get_default_database()["docs"], db["docs"]
        theirs = mine = 0.0
        for _ in range(_TURNS):
            theirs += await all_of(lambda at: bare.find_one({"_id": at}))
            mine += await all_of(lambda at: db.execute(docs.find_one({"_id": at})))
        found.close()
        return theirs, mine


def measure(url: str, rows: int, repeat: int, calls: int) -> None:
    """Measure, and print."""
    ratios, speeds, single = [], [], []
    for _ in range(repeat):
        name = f"asyncdl_benchmark_{uuid4().hex[:8]}"
        with pymongo.MongoClient(url) as client:
            client[name]["docs"].insert_many(documents(rows))
            try:
                theirs, mine = asyncio.run(straight(url + name)), asyncio.run(ours(url + name))
                outputs = [each for each in client[name].list_collection_names() if each.startswith("_outputs_")]
                assert client[name][outputs[0]].count_documents({}) == rows
                bare, executed = asyncio.run(reads(url + name, calls, 200))
            finally:
                client.drop_database(name)
        ratios.append(theirs / mine)
        single.append(bare / executed)
        speeds.append((rows / theirs, rows / mine, calls / bare, calls / executed))
        print("by hand {:,.0f} rows/s, asyncdl {:,.0f}; bare find_one {:,.0f}/s, execute {:,.0f}".format(*speeds[-1]))
    print(f"medians of {repeat} (least):")
    print(f"backfill of {rows:,}: {statistics.median(ratios):.2f} ({min(ratios):.2f}) of a script by hand")
    print(f"find_one, 200 at once: {statistics.median(single):.2f} ({min(single):.2f}) of bare motor")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", help="a replica set, without a database")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--repeat", type=int, default=3)
    chosen = parser.parse_args()
    if chosen.url:
        measure(chosen.url.rstrip("/") + "/", chosen.rows, chosen.repeat, chosen.calls)
        return
    from tests.mongodb import Mongod

    server = Mongod(replica_set=True)
    server.start()
    try:
        measure(server.url, chosen.rows, chosen.repeat, chosen.calls)
    finally:
        server.stop()


if __name__ == "__main__":
    main()
