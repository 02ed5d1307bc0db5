"""The straight-line script: `sqlite3` and a loop. Nothing that also keeps track of anything can be much faster.

Timed from connecting to the last commit; each batch of 1,000 outputs is one transaction.
"""

import sqlite3
from contextlib import closing
from time import perf_counter

import workload

FILE = "straight.db"
TYPES = {"int": "INTEGER", "text": "TEXT"}


def connect() -> sqlite3.Connection:
    """Connect as asyncdl does."""
    connection = sqlite3.connect(FILE, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def fill(rows: int, keys: str) -> None:
    with closing(connect()) as connection:
        connection.execute(f"CREATE TABLE docs (id {TYPES[keys]} PRIMARY KEY, text TEXT)")
        for chunk in workload.chunks(0, rows, keys):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO docs VALUES (:id, :text)", chunk)
            connection.execute("COMMIT")


def backfill(keys: str) -> None:
    with closing(connect()) as connection:
        connection.execute(f"CREATE TABLE outputs (id {TYPES[keys]} PRIMARY KEY, length INTEGER)")
        found = connection.execute("SELECT id, text FROM docs")
        while batch := found.fetchmany(workload.CHUNK):
            connection.execute("BEGIN IMMEDIATE")
            outputs = [(key, workload.length(text)) for key, text in batch]
            connection.executemany("INSERT INTO outputs VALUES (?, ?)", outputs)
            connection.execute("COMMIT")


def main() -> None:
    options = workload.parser().parse_args()
    fill(options.rows, options.keys)
    started = perf_counter()
    backfill(options.keys)
    seconds = perf_counter() - started
    with closing(connect()) as connection:
        outputs = workload.summary(connection.execute("SELECT id, length FROM outputs"))
    workload.finish(seconds=seconds, outputs=outputs)


if __name__ == "__main__":
    main()
