"""Many rows into SQLite: `executemany` beside some hundred rows in a step, with and without a thread that computes.

python benchmarks/many_rows.py

`asyncdl.drivers.sqlite` runs inserts of many rows in steps of 256; this is why.
"""

import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import Path
from time import perf_counter

BATCH = 4_096
INSERT = (
    "INSERT INTO outputs VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET value = excluded.value "
    "WHERE excluded.stamp >= outputs.stamp"
)
ROW = "(?, ?, ?, ?)"
Rows = list[tuple[int, int, int, None]]
Write = Callable[[sqlite3.Connection, Rows], None]


def one_by_one(connection: sqlite3.Connection, rows: Rows) -> None:
    connection.executemany(INSERT, rows)


def in_steps(size: int) -> Write:
    sql = INSERT.replace(ROW, ", ".join([ROW] * size), 1)

    def write(connection: sqlite3.Connection, rows: Rows) -> None:
        for at in range(0, len(rows), size):
            connection.execute(sql, list(chain.from_iterable(rows[at : at + size])))

    return write


@contextmanager
def computing() -> Iterator[None]:
    """Have another thread compute in pure Python, as a model does."""
    done = threading.Event()

    def compute() -> None:
        while not done.is_set():
            sum(range(1_000))

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def measure(write: Write, batches: int) -> float:
    """Return the microseconds that a row takes."""
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(sqlite3.connect(Path(folder) / "rows.db", isolation_level=None)) as db,
    ):
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute("CREATE TABLE outputs (id INTEGER PRIMARY KEY, value, stamp INTEGER, error TEXT)")
        started = perf_counter()
        for number in range(batches):
            db.execute("BEGIN IMMEDIATE")
            write(db, [(number * BATCH + at, at, 1, None) for at in range(BATCH)])
            db.execute("COMMIT")
        seconds = perf_counter() - started
        assert db.execute("SELECT count(*) FROM outputs").fetchone() == (batches * BATCH,)
        return seconds / batches / BATCH * 1e6


def main() -> None:
    ways = {"executemany": one_by_one, **{f"{size} rows in a step": in_steps(size) for size in (16, 64, 256, 1024)}}
    print(f"{'µs per row':24}{'alone':>12}{'beside a computing thread':>30}")
    for name, write in ways.items():
        alone = measure(write, 50)
        with computing():
            beside = measure(write, 1 if write is one_by_one else 20)
        print(f"{name:24}{alone:12.2f}{beside:30.2f}")


if __name__ == "__main__":
    main()
