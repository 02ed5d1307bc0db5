"""Eight processes that claim jobs at once: how many claims a second, and what share of the tries is in vain.

    python benchmarks/claims.py [postgresql postgresql://... ...] [--jobs 600] [--processes 8] [--rounds 2]

``skip locked`` is what a runner does: one transaction for eight jobs that passes over those that others are about to claim,
without a turn. ``commit`` is what it did: a commit for each job, each waiting for its turn among all commits, and often too late.
Each process looks for eight jobs at a time, as a runner with nothing to do does. The rounds of the two alternate.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
import uuid
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from databases import database, scheme
from processes import process, ready, told_to_end

from asyncdl.drivers.postgresql import PostgreSQLDatabase
from asyncdl.errors import ConflictError
from asyncdl.metadata.base import JobFilter
from asyncdl.metadata.changes import ClaimJob, PutJob
from asyncdl.metadata.records import JobRecord
from asyncdl.metadata.sql import SQLMetadataStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

_AT_ONCE = 8
_LEASE = 1e9


@asynccontextmanager
async def connect(uri: str) -> AsyncIterator[SQLMetadataStore]:
    """Open the metadata store alone: eight processes start in no time, and do nothing else."""
    store = SQLMetadataStore(PostgreSQLDatabase(uri))
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


async def claim(uri: str, way: str) -> None:
    """Claim until there is nothing left; print how many were tried, and how many claimed."""
    async with connect(uri) as metadata:
        ready()
        await told_to_end()
        owner, tried, claimed, limit = uuid.uuid4().hex, 0, 0, _AT_ONCE
        while found := await metadata.claimable(time.time(), limit=limit):
            wanted = found[-_AT_ONCE:]  # those before were another's a moment ago
            mine = (
                await one_by_one(metadata, wanted, owner)
                if way == "commit"
                else await together(metadata, wanted, owner)
            )
            tried, claimed = tried + len(wanted), claimed + mine
            limit = _AT_ONCE if mine else min(limit * 4, 4096)
        print(json.dumps([tried, claimed]), flush=True)


async def together(metadata: SQLMetadataStore, wanted: Sequence[JobRecord], owner: str) -> int:
    """Claim those that nobody else is about to."""
    now = time.time()
    return len(await metadata.claim(*(ClaimJob(each.id, owner, now, now + _LEASE, each.attempts) for each in wanted)))


async def one_by_one(metadata: SQLMetadataStore, wanted: Sequence[JobRecord], owner: str) -> int:
    """Claim by a commit for each job."""
    claimed = 0
    for each in wanted:
        try:
            await metadata.commit(ClaimJob(each.id, owner, time.time(), time.time() + _LEASE, each.attempts))
            claimed += 1
        except ConflictError:
            continue
    return claimed


async def measure(uri: str, way: str, jobs: int, processes: int) -> tuple[float, float]:
    """Return the claims a second, and the share of those tried that another was first with."""
    async with connect(uri) as metadata, AsyncExitStack() as stack:
        records = [
            JobRecord(uuid.uuid4().hex, "benchmark", "0" * 32, "{}", first=0, last=0, created=float(n))
            for n in range(jobs)
        ]
        await metadata.commit(*(PutJob(record) for record in records))
        starting = [stack.enter_async_context(process(__file__, "--claim", uri, way)) for _ in range(processes)]
        children = await asyncio.gather(*starting)
        begun = time.perf_counter()
        for child in children:
            child.stdin.close()  # type: ignore[union-attr]
        lines = await asyncio.gather(*(child.stdout.readline() for child in children))  # type: ignore[union-attr]
        seconds = time.perf_counter() - begun
        results = [json.loads(line) for line in lines]
        tried, claimed = (sum(column) for column in zip(*results, strict=True))
        assert claimed == jobs, (claimed, jobs)
        owners = {job.owner for job in await metadata.jobs(JobFilter(states=["running"], limit=jobs))}
        assert None not in owners
        return jobs / seconds, 1 - claimed / tried


def main() -> None:
    """Measure, and print a line of JSON for each database."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", nargs="*", default=["postgresql"])
    parser.add_argument("--jobs", type=int, default=600)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--claim", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.claim:
        asyncio.run(claim(*given.claim))
        return
    for wanted in given.database:
        found: dict[str, list[tuple[float, float]]] = {"skip locked": [], "commit": []}
        for at in range(given.rounds):
            for way, results in found.items():
                with tempfile.TemporaryDirectory() as folder, database(wanted, Path(folder) / f"{at}{way[:4]}") as uri:
                    results.append(asyncio.run(measure(uri, way, given.jobs, given.processes)))
        figures = {
            way: {
                "claims_per_second_median": round(statistics.median(speed for speed, _ in results)),
                "in_vain_median": round(statistics.median(vain for _, vain in results), 2),
            }
            for way, results in found.items()
        }
        print(json.dumps({"database": scheme(uri), "processes": given.processes, **figures}), flush=True)


if __name__ == "__main__":
    main()
