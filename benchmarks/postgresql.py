"""A backfill on PostgreSQL, beside a script by hand on asyncpg: in turns, in one run, and their ratio.

    python benchmarks/postgresql.py [--rows 100000] [--rounds 3] [--database postgresql://...]

The script reads pages of 1,000 by key and writes outputs by ``INSERT ... SELECT FROM unnest(...)``, one array for each
column, a transaction for each page; asyncdl's batches size themselves, and write by unnest, too.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import asyncpg

import asyncdl
from asyncdl import Listener, Model

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests import postgresql

_PAGE = 1000
_READ = "SELECT id, text FROM docs WHERE id > $1 ORDER BY id LIMIT $2"
_WRITE = "INSERT INTO lengths SELECT * FROM unnest($1::bigint[], $2::bigint[])"


def length(text: str) -> int:
    """Return the length of a text: a model that takes no time."""
    return len(text)


async def by_hand(url: str) -> float:
    """Backfill by asyncpg alone; return the seconds."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(
            "DROP TABLE IF EXISTS lengths; CREATE TABLE lengths (id bigint PRIMARY KEY, value bigint)"
        )
        begun, last = time.perf_counter(), -1
        while rows := await connection.fetch(_READ, last, _PAGE):
            last = rows[-1]["id"]
            await connection.execute(_WRITE, [row["id"] for row in rows], [length(row["text"]) for row in rows])
        return time.perf_counter() - begun
    finally:
        await connection.close()


async def by_asyncdl(db: asyncdl.Datalayer, turn: int) -> float:
    """Backfill by a listener; return the seconds."""
    name = f"length{turn}"
    begun = time.perf_counter()
    await db.add(Listener(name, model=Model(name, length), key="text", select=db["docs"]), wait=True)
    seconds = time.perf_counter() - begun
    left = await (await db.execute(db["docs"].missing_outputs(name).limit(1))).to_list()
    assert not left, left
    await db.remove("listener", name)
    return seconds


async def main() -> None:
    """Measure, and print a line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--database")
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        url = given.database or stack.enter_context(postgresql.serve()).url(Path(folder))
        async with asyncdl.connect(url, artifact_store=f"filesystem://{folder}/artifacts") as db:
            docs = db["docs"]
            for at in range(0, given.rows, 10_000):
                end = min(at + 10_000, given.rows)
                await db.execute(
                    docs.insert([{"id": n, "text": f"some text, and its number {n}"} for n in range(at, end)])
                )
            hand, ours = [], []
            for turn in range(given.rounds):
                hand.append(await by_hand(url))
                ours.append(await by_asyncdl(db, turn))
            ratios = [one / other for one, other in zip(hand, ours, strict=True)]
            print(
                json.dumps(
                    {
                        "rows": given.rows,
                        "asyncpg_rows_per_second": round(given.rows / min(hand)),
                        "asyncdl_rows_per_second": round(given.rows / min(ours)),
                        "ratio_median": round(statistics.median(ratios), 2),
                    }
                )
            )


asyncio.run(main())
