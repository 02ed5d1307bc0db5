"""Commits to the metadata store on MongoDB, one after the other and many at once, beside bare journaled inserts.

python benchmarks/commit_mongodb.py

On a replica set a commit is a transaction, on a standalone server a change set. What is asked for at once goes in groups.
"""

import asyncio
import sys
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from asyncdl.drivers.mongo import MongoDatabase  # noqa: E402 - of this checkout
from asyncdl.metadata.changes import AppendEvent, MoveCursor  # noqa: E402 - of this checkout
from asyncdl.metadata.mongo import MongoMetadataStore  # noqa: E402 - of this checkout
from tests.mongodb import served  # noqa: E402 - of this checkout

COMMITS = 300
AT_ONCE = 50


async def commits(store: MongoMetadataStore, tasks: int) -> float:
    """Return the seconds that a commit takes, of an event and a cursor that some tasks each move on."""

    async def task(name: str) -> None:
        for at in range(COMMITS // tasks):
            await store.commit(AppendEvent("Type", "topic", "{}", 1.0), MoveCursor(name, at + 1, expected=at))

    started = perf_counter()
    await asyncio.gather(*(task(f"{tasks}-{n}") for n in range(tasks)))
    return (perf_counter() - started) / COMMITS


async def inserts(database: MongoDatabase) -> float:
    """Return the seconds that an insert takes that waits for journal and majority."""
    started = perf_counter()
    for at in range(COMMITS):
        await database.insert("bare", [{"_id": at}])
    return (perf_counter() - started) / COMMITS


async def measure(*, replica_set: bool) -> None:
    server = served(replica_set=replica_set)
    try:
        store = MongoMetadataStore(MongoDatabase(server.url + "benchmark"))
        await store.open()
        await commits(store, 10)  # warm
        bare, one, many = await inserts(store.database), await commits(store, 1), await commits(store, AT_ONCE)
        await store.aclose()
    finally:
        server.stop()
    print(
        f"{'replica set' if replica_set else 'standalone':12} bare insert {bare * 1e3:6.2f} ms   a commit {one * 1e3:6.2f} ms "
        f"({one / bare:.1f} inserts)   one of {AT_ONCE} at once {many * 1e3:6.2f} ms ({many / bare:.1f})"
    )


async def main() -> None:
    for replica_set in (False, True):
        await measure(replica_set=replica_set)


if __name__ == "__main__":
    asyncio.run(main())
