"""A backfill on DuckDB, beside a script by hand on its own driver: in turns, in one run, and their ratio.

    python benchmarks/on_duckdb.py [--rows 100000] [--rounds 5]

The script reads pages of 1,000 by key, and inserts each page's outputs from an Arrow table, in a transaction for each page: the
fastest way that DuckDB's driver has for rows from Python. (``executemany`` takes a hundred times as long.) asyncdl's batches
size themselves; its metadata are in SQLite, beside the database, as they are by default.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

import asyncdl
from asyncdl import Listener, Model

_PAGE = 1000
_READ = "SELECT id, text FROM docs WHERE id > ? ORDER BY id LIMIT ?"
_WRITE = "INSERT INTO lengths SELECT id, value FROM page"


def length(text: str) -> int:
    """Return the length of a text: a model that takes no time."""
    return len(text)


def documents(first: int, end: int) -> list[dict[str, Any]]:
    """Return rows."""
    return [{"id": n, "text": f"some text, and its number {n}"} for n in range(first, end)]


def by_hand(file: Path, rows: int) -> float:
    """Backfill by DuckDB alone; return the seconds."""
    with duckdb.connect(str(file)) as connection:
        connection.execute("CREATE OR REPLACE TABLE lengths (id BIGINT PRIMARY KEY, value BIGINT)")
        begun, last = time.perf_counter(), -1
        while page := connection.execute(_READ, [last, _PAGE]).fetchall():
            last = page[-1][0]
            outputs = {"id": [row[0] for row in page], "value": [length(row[1]) for row in page]}
            connection.register("page", pa.table(outputs))
            connection.execute(_WRITE)
            connection.unregister("page")
        seconds = time.perf_counter() - begun
        assert connection.execute("SELECT count(*) FROM lengths").fetchall() == [(rows,)]
        return seconds


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


async def measure(folder: Path, rows: int, rounds: int) -> dict[str, Any]:
    """Measure both in turns; each has a database of its own, since DuckDB lets in one process, or one instance, at a time."""
    own = folder / "by_hand.duckdb"
    with duckdb.connect(str(own)) as connection:
        connection.execute("CREATE TABLE docs (id BIGINT PRIMARY KEY, text VARCHAR)")
        connection.register("page", pa.Table.from_pylist(documents(0, rows)))
        connection.execute("INSERT INTO docs SELECT * FROM page")
    hand, ours = [], []
    async with asyncdl.connect(
        f"duckdb:///{folder}/app.duckdb",
        metadata_store=f"sqlite:///{folder}/meta.db",
        artifact_store=f"filesystem://{folder}/artifacts",
        progress=False,
    ) as db:
        for at in range(0, rows, 10_000):
            await db.execute(db["docs"].insert(documents(at, min(at + 10_000, rows))))
        for turn in range(rounds):
            hand.append(by_hand(own, rows))
            ours.append(await by_asyncdl(db, turn))
    ratios = [one / other for one, other in zip(hand, ours, strict=True)]
    return {
        "rows": rows,
        "duckdb_rows_per_second": round(rows / min(hand)),
        "asyncdl_rows_per_second": round(rows / min(ours)),
        "ratio_median": round(statistics.median(ratios), 2),
        "ratio_of_best": round(min(hand) / min(ours), 2),
    }


def main() -> None:
    """Measure, and print a line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(measure(Path(folder), given.rows, given.rounds))))


if __name__ == "__main__":
    main()
