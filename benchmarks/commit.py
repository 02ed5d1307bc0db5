"""Small transactions on SQLite: a hop to the connection's thread for each statement, beside one hop for all.

python benchmarks/commit.py

`asyncdl.drivers.sqlite` runs what belongs together in one hop; this is why.
"""

import asyncio
import tempfile
from pathlib import Path
from time import perf_counter

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from asyncdl.drivers.sql import Statement
from asyncdl.drivers.sqlite import SQLiteDatabase

COMMITS = 2_000
INSERT = "INSERT INTO events (topic, payload) VALUES (?, ?)"
MOVE = "UPDATE cursors SET seq = seq + 1 WHERE name = ?"


async def hops(path: Path) -> float:
    """Run transactions as SQLAlchemy's async engine has them."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    insert, move = text(INSERT.replace("?, ?", ":topic, :payload")), text(MOVE.replace("?", ":name"))
    started = perf_counter()
    for number in range(COMMITS):
        async with engine.begin() as connection:
            await connection.execute(insert, {"topic": "t", "payload": str(number)})
            await connection.execute(move, {"name": "c"})
    seconds = perf_counter() - started
    await engine.dispose()
    return seconds


async def one_hop(database: SQLiteDatabase) -> float:
    """Run transactions as asyncdl does."""
    started = perf_counter()
    for number in range(COMMITS):
        await database.write(Statement(INSERT, ("t", str(number))), Statement(MOVE, ("c",), expect=1))
    return perf_counter() - started


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        database = SQLiteDatabase(Path(folder) / "events.db")
        await database.open()
        await database.write(
            Statement("CREATE TABLE events (seq INTEGER PRIMARY KEY, topic TEXT, payload TEXT)"),
            Statement("CREATE TABLE cursors (name TEXT PRIMARY KEY, seq INTEGER)"),
            Statement("INSERT INTO cursors VALUES ('c', 0)"),
        )
        for name, seconds in {"a hop for each": await hops(database.path), "one hop": await one_hop(database)}.items():
            print(f"{name:16}{seconds / COMMITS * 1e3:8.3f} ms a transaction of two statements")
        await database.aclose()


if __name__ == "__main__":
    asyncio.run(main())
