"""What the drivers of PostgreSQL and MySQL have in common: transactions, cancellation, whole pools, errors."""

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
    AsyncDLError,
    ClosedError,
    ConflictError,
    ConstraintError,
    DuplicateKeyError,
    LeaseLostError,
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


async def test_a_transaction_whose_statement_was_cancelled_has_ended(database: SQLDatabase) -> None:
    async with database.transaction() as tx:
        statement = asyncio.create_task(tx.run(insert(1)))
        await asyncio.sleep(0)
        statement.cancel()
        await asyncio.wait([statement])
        with pytest.raises(ClosedError):
            await tx.run(insert(2))
    await database.write(insert(3))
    assert await ids(database) == [0, 3]


# transactions


async def test_a_transaction_is_committed_at_the_end_of_its_block(database: SQLDatabase) -> None:
    async with database.transaction() as tx:
        [outcome] = await tx.run(insert(1))
        tx.defer(insert(2))
        assert outcome.rowcount == 1
    async with database.transaction() as tx:
        tx.defer(Statement("DELETE FROM t WHERE id = 2"))
    assert await ids(database) == [0, 1]


async def test_an_exception_in_the_block_rolls_back(database: SQLDatabase) -> None:
    async def write() -> None:
        async with database.transaction() as tx:
            await tx.run(insert(1))
            tx.defer(insert(2))
            raise LookupError

    with pytest.raises(LookupError):
        await write()
    await database.write(insert(1))
    assert await ids(database) == [0, 1]


async def test_deferred_statements_run_in_order_before_what_runs_next(database: SQLDatabase) -> None:
    async with database.transaction() as tx:
        tx.defer(insert(1, 5), Statement("UPDATE t SET n = n * 2 WHERE id = 1"))
        tx.defer(Statement("UPDATE t SET n = n + 1 WHERE id = 1"))
        [found] = await tx.run(Statement("SELECT n FROM t WHERE id = 1", fetch=True))
        assert found.rows == [(11,)]
        tx.defer(insert(2))
        [removed] = await tx.commit(Statement("DELETE FROM t WHERE id > 0 RETURNING id", fetch=True))
        assert sorted(removed.rows) == [(1,), (2,)]
    assert await ids(database) == [0]


@pytest.mark.parametrize("end", ["commit", "error"])
async def test_use_after_the_end_is_refused(database: SQLDatabase, end: str) -> None:
    async with database.transaction() as tx:
        if end == "commit":
            await tx.commit(insert(1))
        else:
            with pytest.raises(DuplicateKeyError):
                await tx.run(insert(1), insert(0))
        with pytest.raises(ClosedError):
            await tx.run(insert(2))
        with pytest.raises(ClosedError):
            tx.defer(insert(2))
    assert await ids(database) == ([0, 1] if end == "commit" else [0])


async def test_conditions_are_checked_and_all_or_nothing(database: SQLDatabase) -> None:
    nobody = Statement("UPDATE t SET n = 1 WHERE id = 9", expect=1, conflict="nobody is there")
    with pytest.raises(ConflictError, match="nobody is there"):
        await database.write(insert(1), nobody)
    with pytest.raises(ConflictError, match="nobody is there"):  # and not what came of it
        await database.write(nobody, insert(0))
    none = "SELECT 1 FROM t WHERE id = 9"
    lost = Statement(none, fetch=True, expect=1, conflict="lost", error=LeaseLostError)
    with pytest.raises(LeaseLostError, match="lost"):
        await database.write(insert(1), lost)
    unchanged = Statement("UPDATE t SET n = 0 WHERE id = 0", expect=1)
    [first, second, _] = await database.write(
        insert(1, expect=1), Statement("DELETE FROM t WHERE id = 9", expect=0), unchanged
    )
    assert (first.rowcount, second.rowcount) == (1, 0)


# errors


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        (insert(0), DuplicateKeyError),
        (insert(1, name="counter"), DuplicateKeyError),
        (Statement("UPDATE t SET n = NULL"), ConstraintError),
        (Statement("INSERT INTO nowhere VALUES (1)"), StoreError),
        (Statement("this is no SQL"), StoreError),
        (insert(1, object()), StoreError),
        (insert(1, float("nan")), StoreError),
        (insert(1, 2**63), StoreError),
        (insert(1, name="\ud800"), StoreError),
        (insert(1, name="x" * 51), StoreError),
    ],
    ids=[
        "primary key",
        "unique",
        "not null",
        "no table",
        "syntax",
        "type",
        "nan",
        "too large",
        "surrogate",
        "too long",
    ],
)
async def test_errors_of_statements_are_translated(
    database: SQLDatabase, statement: Statement, error: type[AsyncDLError]
) -> None:
    with pytest.raises(error) as caught:
        await database.write(insert(7), statement)
    assert caught.type is error
    assert caught.value.__cause__ is not None
    assert database.url in str(caught.value)
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


async def test_a_stream_sees_one_snapshot_in_pages(database: SQLDatabase) -> None:
    await database.write(*(insert(n) for n in range(1, 25)))
    pages = []
    async for page in database.stream("SELECT id FROM t ORDER BY id", size=10):
        pages.append(len(page))
        await database.write(insert(1000 + len(pages)))
    assert pages == [10, 10, 5]
    assert [page async for page in database.stream("SELECT id FROM t WHERE id < 0")] == []


async def test_breaking_out_of_streams_leaves_the_pool_whole(database: SQLDatabase) -> None:
    for _ in range(30):
        async with aclosing(database.stream(SERIES.format(900), size=10)) as pages:  # type: ignore[type-var]
            async for _ in pages:
                break
    await all_at_once(database)


async def test_closing_waits_for_the_transaction_under_way(database: SQLDatabase, kind: Kind, url: str) -> None:
    other, begun, go_on = kind.make(url), asyncio.Event(), asyncio.Event()  # type: ignore[call-arg]
    await other.open()

    async def slowly() -> None:
        async with other.transaction() as tx:
            await tx.run(insert(1))
            begun.set()
            await go_on.wait()

    writing = asyncio.create_task(slowly())
    await begun.wait()
    closing = asyncio.create_task(other.aclose())
    await asyncio.sleep(0)
    assert not closing.done()
    go_on.set()
    await asyncio.gather(writing, closing)
    assert await ids(database) == [0, 1]


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


def test_two_loops_one_after_another(kind: Kind, url: str) -> None:
    database = kind.make(url)  # type: ignore[call-arg]

    async def once() -> list[Any]:
        await database.open()
        try:
            return await database.fetch("SELECT 1")
        finally:
            await database.aclose()

    assert asyncio.run(once()) == asyncio.run(once()) == [(1,)]
