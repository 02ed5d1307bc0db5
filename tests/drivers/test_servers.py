"""What the drivers of PostgreSQL and MySQL have in common: connections, and how each comes back into its pool."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from asyncdl.drivers.mysql import MySQLDatabase
from asyncdl.drivers.pooled import FETCHERS, STREAMS, WRITERS
from asyncdl.drivers.postgresql import PostgreSQLDatabase
from asyncdl.drivers.sql import MARK, SQLDatabase, Statement
from asyncdl.errors import (
    ClosedError,
    ConflictError,
    StoreError,
    StoreUnavailableError,
)

pytestmark = pytest.mark.anyio

SERIES = "WITH RECURSIVE s (at) AS (SELECT 1 UNION ALL SELECT at + 1 FROM s WHERE at < {}) SELECT at FROM s"


@dataclass(frozen=True)
class Kind:
    """A driver, and its database's words where these differ."""

    make: type[SQLDatabase]
    scheme: str
    sleep: str


KINDS = {
    "postgresql": Kind(PostgreSQLDatabase, "postgresql", "SELECT pg_sleep({})"),
    "mysql": Kind(MySQLDatabase, "mysql", "SELECT sleep({})"),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def url(request: pytest.FixtureRequest, kind: Kind, tmp_path: Path) -> str:
    found: str = request.getfixturevalue(kind.scheme).url(tmp_path)
    return found


@pytest.fixture
async def database(kind: Kind, url: str) -> AsyncIterator[SQLDatabase]:
    database = kind.make(url)  # type: ignore[call-arg]
    await database.open()
    await database.write(
        Statement("CREATE TABLE t (id bigint PRIMARY KEY, n bigint NOT NULL, name varchar(50) UNIQUE)"),
        Statement("INSERT INTO t VALUES (0, 0, 'counter')"),
    )
    yield database
    await database.aclose()


def insert(id: int, n: Any = 0, name: str | None = None, **options: Any) -> Statement:
    return Statement(f"INSERT INTO t VALUES ({MARK}, {MARK}, {MARK})", (id, n, name), **options)


async def ids(database: SQLDatabase) -> list[int]:
    return [row[0] for row in await database.fetch("SELECT id FROM t ORDER BY id")]


async def all_at_once(database: SQLDatabase) -> None:
    """Use every connection that there may be, each for itself: none is lost, none is in a transaction."""

    async def stream() -> None:
        async with aclosing(database.stream(SERIES.format(50), size=10)) as pages:  # type: ignore[type-var]
            assert len(await anext(pages)) == 10
            await asyncio.sleep(0.02)

    async def write() -> None:
        async with database.transaction() as tx:
            await tx.run(*database.lock("all"), Statement("SELECT 1", fetch=True))

    async with asyncio.timeout(20):
        await asyncio.gather(
            *(stream() for _ in range(STREAMS)),
            *(write() for _ in range(WRITERS)),
            *(database.fetch("SELECT 1") for _ in range(FETCHERS)),
        )


# concurrency


async def test_500_concurrent_read_modify_writes_under_a_lock_are_exact(
    database: SQLDatabase, kind: Kind, url: str
) -> None:
    other = kind.make(url)  # type: ignore[call-arg]
    await other.open()

    async def add_one(on: SQLDatabase) -> None:
        async with on.transaction() as tx:
            tx.defer(*on.lock("counter"))
            [found] = await tx.run(Statement("SELECT n FROM t WHERE id = 0", fetch=True))
            await tx.run(Statement(f"UPDATE t SET n = {MARK} WHERE id = 0", (found.rows[0][0] + 1,)))

    await asyncio.gather(*(add_one((database, other)[n % 2]) for n in range(500)))
    assert await database.fetch("SELECT n FROM t WHERE id = 0") == [(500,)]
    await other.aclose()


async def test_500_concurrent_reads_beside_transactions_and_streams(database: SQLDatabase) -> None:
    async with database.transaction() as tx, aclosing(database.stream("SELECT * FROM t", size=1)) as pages:  # type: ignore[type-var]
        await anext(pages)
        await tx.run(insert(1))
        found = await asyncio.gather(*(database.fetch("SELECT count(*) FROM t") for _ in range(500)))
        assert found == [[(1,)]] * 500
    await asyncio.gather(*(database.write(insert(n)) for n in range(10, 210)))
    assert len(await ids(database)) == 202


async def test_a_deadlock_is_a_conflict_of_one(database: SQLDatabase) -> None:
    await database.write(insert(1))
    first = asyncio.Barrier(2)

    async def change(one: int, then: int) -> None:
        async with database.transaction() as tx:
            await tx.run(Statement(f"UPDATE t SET n = n + 1 WHERE id = {MARK}", (one,)))
            await first.wait()
            await tx.run(Statement(f"UPDATE t SET n = n + 1 WHERE id = {MARK}", (then,)))

    results = await asyncio.gather(change(0, 1), change(1, 0), return_exceptions=True)
    assert sorted(type(each) for each in results if each is not None) == [ConflictError]
    assert await database.fetch("SELECT sum(n) FROM t") == [(2,)]


# cancellation


async def test_200_cancelled_transactions_leave_whole_ones_and_a_whole_pool(database: SQLDatabase) -> None:
    turns, finished = random.Random(11), set()

    async def pair(n: int) -> None:
        async with database.transaction() as tx:
            await tx.run(*database.lock("pairs"), insert(n))
            tx.defer(insert(n + 1))
            if n % 4 == 1:  # the others are committed by the end of the block
                await tx.commit()
        finished.add(n)

    for at in range(1, 400, 40):
        tasks = [asyncio.create_task(pair(n)) for n in range(at, at + 40, 2)]
        for task in turns.sample(tasks, len(tasks)):
            await asyncio.sleep(turns.choice([0, 0, 0.001, 0.002]))
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert result is None or isinstance(result, asyncio.CancelledError)
    await database.write(*database.lock("pairs"), insert(1001), insert(1002))
    found = set(await ids(database)) - {0}
    assert {n + 1 if n % 2 else n - 1 for n in found} == found
    assert finished | {1001} <= found
    await all_at_once(database)


async def test_200_cancelled_reads_leave_the_pool_whole(database: SQLDatabase, kind: Kind) -> None:
    turns = random.Random(13)

    async def read() -> None:
        async with aclosing(database.stream(SERIES.format(900), size=100)) as pages:  # type: ignore[type-var]
            async for page in pages:
                assert len(page) <= 100
        await database.fetch(kind.sleep.format(0.01))

    tasks = [asyncio.create_task(read()) for _ in range(200)]
    for task in tasks:
        await asyncio.sleep(turns.choice([0, 0, 0.001]))
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(each is None or isinstance(each, asyncio.CancelledError) for each in results)
    await all_at_once(database)


# errors


@pytest.mark.parametrize(
    "statement", [insert(1, float("nan")), insert(1, name="x" * 51)], ids=["no number", "too long"]
)
async def test_values_that_a_column_cannot_hold(database: SQLDatabase, statement: Statement) -> None:
    with pytest.raises(StoreError) as caught:
        await database.write(insert(7), statement)
    assert caught.type is StoreError
    assert await ids(database) == [0]


async def test_errors_of_reads_leave_the_pool_whole(database: SQLDatabase) -> None:
    for _ in range(20):
        with pytest.raises(StoreError):
            await database.fetch("SELECT * FROM nowhere")
        with pytest.raises(StoreError):
            async for _ in database.stream("SELECT * FROM nowhere"):
                pass
    await all_at_once(database)


async def test_nobody_answers(kind: Kind) -> None:
    database = kind.make(f"{kind.scheme}://somebody:secret@127.0.0.1:1/nothing")  # type: ignore[call-arg]
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="somebody@127") as caught:
            await database.open()
        assert "secret" not in str(caught.value)
    with pytest.raises(ClosedError):
        await database.fetch("SELECT 1")
    await database.aclose()


async def test_a_database_that_is_not_there(request: pytest.FixtureRequest, kind: Kind) -> None:
    server = request.getfixturevalue(kind.scheme)
    with pytest.raises(StoreUnavailableError, match="create the database"):
        await kind.make(server.with_path("/not_there")).open()  # type: ignore[call-arg]


# streams, opening and closing


async def test_breaking_out_of_streams_leaves_the_pool_whole(database: SQLDatabase) -> None:
    for _ in range(30):
        async with aclosing(database.stream(SERIES.format(900), size=10)) as pages:  # type: ignore[type-var]
            async for _ in pages:
                break
    await all_at_once(database)


async def test_opening_is_counted_and_closing_ends_everything(kind: Kind, url: str) -> None:
    database = kind.make(url)  # type: ignore[call-arg]
    await asyncio.gather(*(database.open() for _ in range(3)))
    many = SERIES.format(900).replace(
        "SELECT at FROM", "SELECT at, repeat('x', 20000) FROM"
    )  # more than a buffer holds
    pages = database.stream(many, size=10)
    await anext(pages)
    for _ in range(3):
        assert await database.fetch("SELECT 1") == [(1,)]
        await database.aclose()
    await database.aclose()
    with pytest.raises(ClosedError):
        await database.fetch("SELECT 1")
    with pytest.raises((StoreUnavailableError, ClosedError)):
        [page async for page in pages]
