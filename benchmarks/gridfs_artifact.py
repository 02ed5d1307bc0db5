"""A large artifact in GridFS: asyncdl's store beside motor's own bucket, streamed in and out, in turns.

python benchmarks/gridfs_artifact.py [--megabytes 1024] [--rounds 3] [--url mongodb://...]

Each run is a process of its own, for its memory. Without a URL a mongod is started, as the tests do. asyncdl hashes what it
writes, and verifies what it reads; motor does neither.
"""

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CHUNK = 1024 * 1024
NAMES = ("asyncdl", "motor", "motor, chunks of 1 MiB")
WHAT = ("put", "get", "get whole")
Figures = dict[str, float]


async def source(megabytes: int, seed: int) -> AsyncIterator[bytes]:
    data = bytearray((at * 7 + seed) % 251 for at in range(CHUNK))
    for at in range(megabytes):
        data[:8] = at.to_bytes(8, "big")
        yield bytes(data)


async def with_asyncdl(url: str, megabytes: int, seed: int) -> Figures:
    from asyncdl.artifact_store.gridfs import GridFSArtifactStore
    from asyncdl.drivers.mongo import MongoDatabase

    store = GridFSArtifactStore(MongoDatabase(url))
    await store.open()
    started, before = perf_counter(), memory()
    name = await store.put(source(megabytes, seed))
    put, total = perf_counter() - started, 0
    started = perf_counter()
    async for chunk in store.open_stream(name):
        total += len(chunk)
    get, held = perf_counter() - started, memory() - before
    started = perf_counter()
    total += len(await store.get(name))
    whole = perf_counter() - started
    figures = {"put": put, "get": get, "get whole": whole, "memory": held, "bytes": total}
    await store.delete(name)
    await store.aclose()
    return figures


async def with_motor(url: str, megabytes: int, seed: int, **options: Any) -> Figures:
    from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorGridFSBucket

    client: Any = AsyncIOMotorClient(url)
    # As asyncdl has them: a write is in the journal, and with the majority of the replicas.
    from pymongo import WriteConcern

    database = client.get_default_database().with_options(write_concern=WriteConcern("majority", j=True))
    bucket = AsyncIOMotorGridFSBucket(database, "motor", **options)
    started, before = perf_counter(), memory()
    stream = bucket.open_upload_stream("large")
    async for chunk in source(megabytes, seed):
        await stream.write(chunk)
    await stream.close()
    put, total = perf_counter() - started, 0
    started = perf_counter()
    reading = await bucket.open_download_stream(stream._id)
    while chunk := await reading.readchunk():
        total += len(chunk)
    get, held = perf_counter() - started, memory() - before
    started = perf_counter()
    total += len(await (await bucket.open_download_stream(stream._id)).read())
    whole = perf_counter() - started
    figures = {"put": put, "get": get, "get whole": whole, "memory": held, "bytes": total}
    await bucket.delete(stream._id)
    client.close()
    return figures


def memory() -> float:
    """Return the most that this process has held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(name: str, url: str, megabytes: int, seed: int) -> None:
    options = {"chunk_size_bytes": CHUNK} if name.endswith("1 MiB") else {}
    run = with_asyncdl(url, megabytes, seed) if name == "asyncdl" else with_motor(url, megabytes, seed, **options)
    print(json.dumps(asyncio.run(run)))


def run(name: str, url: str, megabytes: int, seed: int) -> Figures:
    command = [
        sys.executable,
        __file__,
        "--megabytes",
        str(megabytes),
        "--url",
        url,
        "--run",
        name,
        "--seed",
        str(seed),
    ]
    ended = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    figures: Figures = json.loads(ended.stdout)
    if figures["bytes"] != 2 * megabytes * CHUNK:
        raise ValueError(f"{name} read {figures['bytes']} bytes")
    return figures


def compare(url: str, megabytes: int, rounds: int) -> None:
    found: dict[str, list[Figures]] = {name: [] for name in NAMES}
    for at in range(rounds):
        for name in NAMES if at % 2 else NAMES[::-1]:
            found[name].append(run(name, url, megabytes, at))
    for name, runs in found.items():
        speeds = [f"{what} {megabytes / statistics.median(each[what] for each in runs):5.0f} MiB/s" for what in WHAT]
        print(f"{name:24}{'   '.join(speeds)}   {max(each['memory'] for each in runs):5.0f} MiB more memory")
    for other in NAMES[1:]:
        pairs = list(zip(found[other], found["asyncdl"], strict=True))
        ratios = [f"{what} {statistics.median(a[what] / b[what] for a, b in pairs):.2f}" for what in WHAT]
        print(f"speed, asyncdl / {other}: {', '.join(ratios)}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--url", default="")
    parser.add_argument("--run", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        child(given.run, given.url, given.megabytes, given.seed)
    elif given.url:
        compare(given.url, given.megabytes, given.rounds)
    else:
        from tests.mongodb import served

        server = served(replica_set=False)
        try:
            compare(server.url + "benchmark", given.megabytes, given.rounds)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
