"""What all SQL drivers have in common: transactions and their ends, conditions, errors, streams, opening and closing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from asyncdl.drivers.duckdb import DuckDBDatabase
from asyncdl.drivers.mysql import MySQLDatabase
from asyncdl.drivers.postgresql import PostgreSQLDatabase
from asyncdl.drivers.sql import MARK, SQLDatabase, SQLTransaction, Statement
from asyncdl.drivers.sqlite import SQLiteDatabase
from asyncdl.errors import (
    AsyncDLError,
    ClosedError,
    ConflictError,
    ConstraintError,
    DuplicateKeyError,
    LeaseLostError,
    StoreError,
)

pytestmark = pytest.mark.anyio

Insert = Callable[..., Statement]
"""What makes the statement that inserts a row: ``id``, ``n``, ``name``, options."""

FILES = {"sqlite": SQLiteDatabase, "duckdb": DuckDBDatabase}
SERVERS = {"postgresql": PostgreSQLDatabase, "mysql": MySQLDatabase}


@pytest.fixture(params=[*FILES, *SERVERS])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def made(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> SQLDatabase:
    """A database, not open yet."""
    if kind in FILES:
        return FILES[kind](tmp_path / "test.db")
    return SERVERS[kind](request.getfixturevalue(kind).url(tmp_path))


@pytest.fixture
async def database(made: SQLDatabase) -> AsyncIterator[SQLDatabase]:
    await made.open()
    await made.write(
        Statement("CREATE TABLE t (id bigint PRIMARY KEY, n bigint NOT NULL, name varchar(50) UNIQUE)"),
        Statement("INSERT INTO t VALUES (0, 0, 'counter')"),
    )
    yield made
    await made.aclose()


@pytest.fixture
def insert(kind: str) -> Insert:
    mark = MARK if kind in SERVERS else "?"

    def insert(id: int, n: Any = 0, name: str | None = None, **options: Any) -> Statement:
        return Statement(f"INSERT INTO t VALUES ({mark}, {mark}, {mark})", (id, n, name), **options)

    return insert


async def ids(database: SQLDatabase) -> list[int]:
    return [row[0] for row in await database.fetch("SELECT id FROM t ORDER BY id")]


# transactions


async def test_a_transaction_is_committed_at_the_end_of_its_block(database: SQLDatabase, insert: Insert) -> None:
    async with database.transaction() as tx:
        [outcome] = await tx.run(insert(1))
        tx.defer(insert(2))
        assert outcome.rowcount == 1
    async with database.transaction() as tx:
        tx.defer(Statement("DELETE FROM t WHERE id = 2"))
    async with database.transaction():
        pass
    assert await ids(database) == [0, 1]


async def test_an_exception_in_the_block_rolls_back(database: SQLDatabase, insert: Insert) -> None:
    async def write() -> None:
        async with database.transaction() as tx:
            await tx.run(insert(1))
            tx.defer(insert(2))
            raise LookupError

    with pytest.raises(LookupError):
        await write()
    assert await ids(database) == [0]
    await database.write(insert(1))
    assert await ids(database) == [0, 1]


async def test_deferred_statements_run_in_order_before_what_runs_next(database: SQLDatabase, insert: Insert) -> None:
    async with database.transaction() as tx:
        tx.defer(insert(1, 5), Statement("UPDATE t SET n = n * 2 WHERE id = 1"))
        tx.defer(Statement("UPDATE t SET n = n + 1 WHERE id = 1"))
        [found] = await tx.run(Statement("SELECT n FROM t WHERE id = 1", fetch=True))
        assert found.rows == [(11,)]
        tx.defer(insert(2))
        [removed] = await tx.commit(Statement("DELETE FROM t WHERE id > 0 RETURNING id", fetch=True))
        assert sorted(removed.rows) == [(1,), (2,)]
    assert await ids(database) == [0]


async def test_a_failing_deferred_statement_fails_the_commit_and_leaves_nothing(
    database: SQLDatabase, insert: Insert
) -> None:
    async def write() -> None:
        async with database.transaction() as tx:
            tx.defer(insert(1), insert(0))

    with pytest.raises(DuplicateKeyError):
        await write()
    assert await ids(database) == [0]


@pytest.mark.parametrize("end", ["commit", "error"])
async def test_use_after_the_end_is_refused(database: SQLDatabase, insert: Insert, end: str) -> None:
    async with database.transaction() as tx:
        if end == "commit":
            await tx.commit(insert(1))
        else:
            with pytest.raises(DuplicateKeyError):
                await tx.run(insert(1), insert(0))
        await refused(tx, insert(2))
    await refused(tx, insert(3))
    assert await ids(database) == ([0, 1] if end == "commit" else [0])


async def refused(tx: SQLTransaction, statement: Statement) -> None:
    with pytest.raises(ClosedError):
        await tx.run(statement)
    with pytest.raises(ClosedError):
        await tx.commit(statement)
    with pytest.raises(ClosedError):
        tx.defer(statement)


async def test_a_transaction_whose_statement_was_cancelled_has_ended(database: SQLDatabase, insert: Insert) -> None:
    async with database.transaction() as tx:
        statement = asyncio.create_task(tx.run(insert(1)))
        await asyncio.sleep(0)
        statement.cancel()
        await asyncio.wait([statement])
        assert statement.cancelled()
        with pytest.raises(ClosedError):
            await tx.run(insert(2))
    await database.write(insert(3))
    assert await ids(database) == [0, 3]


async def test_conditions_are_checked_and_all_or_nothing(database: SQLDatabase, insert: Insert) -> None:
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
    assert await ids(database) == [0, 1]


# errors


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ((0,), DuplicateKeyError),
        ((1, 0, "counter"), DuplicateKeyError),
        ("UPDATE t SET n = NULL", ConstraintError),
        ("INSERT INTO nowhere VALUES (1)", StoreError),
        ("this is no SQL", StoreError),
        ((1, object()), StoreError),
        ((1, 2**63), StoreError),
        ((1, 0, "\ud800"), StoreError),
    ],
    ids=["primary key", "unique", "not null", "no table", "syntax", "type", "too large", "surrogate"],
)
async def test_errors_of_statements_are_translated(
    database: SQLDatabase, insert: Insert, wrong: Any, error: type[AsyncDLError]
) -> None:
    with pytest.raises(error) as caught:
        await database.write(insert(7), Statement(wrong) if isinstance(wrong, str) else insert(*wrong))
    assert caught.type is error
    assert caught.value.__cause__ is not None
    assert database.url in str(caught.value)
    assert await ids(database) == [0]


# streams, opening and closing


async def test_a_stream_sees_one_snapshot_in_pages(database: SQLDatabase, insert: Insert) -> None:
    await database.write(*(insert(n) for n in range(1, 25)))
    pages = []
    async for page in database.stream("SELECT id FROM t ORDER BY id", size=10):
        pages.append(len(page))
        await database.write(insert(1000 + len(pages)))
    assert pages == [10, 10, 5]
    whole = [len(page) async for page in database.stream("SELECT id FROM t ORDER BY id", size=14)]
    assert whole == [14, 14]
    assert [page async for page in database.stream("SELECT id FROM t WHERE id < 0")] == []


async def test_closing_waits_for_the_transaction_under_way(database: SQLDatabase, insert: Insert) -> None:
    async with database.transaction() as tx:
        await tx.run(insert(1))
        closing = asyncio.create_task(database.aclose())
        late = asyncio.create_task(database.write(insert(3)))
        await asyncio.sleep(0)
        await tx.run(insert(2))
        assert not closing.done()
    await closing
    with pytest.raises(ClosedError):
        await late
    await database.open()
    assert await ids(database) == [0, 1, 2]


async def test_a_cancelled_close_can_be_repeated(database: SQLDatabase, insert: Insert) -> None:
    await database.open()
    await database.aclose()
    async with database.transaction() as tx:
        await tx.run(insert(1))
        closing = asyncio.create_task(database.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        assert closing.cancelled()
    assert await ids(database) == [0, 1]
    await database.aclose()
    with pytest.raises(ClosedError):
        await database.fetch("SELECT 1")


async def test_opening_is_counted(made: SQLDatabase) -> None:
    await made.aclose()
    await asyncio.gather(*(made.open() for _ in range(3)))
    for _ in range(3):
        assert await made.fetch("SELECT 1") == [(1,)]
        await made.aclose()
    with pytest.raises(ClosedError):
        await made.fetch("SELECT 1")
    with pytest.raises(ClosedError):
        await made.write(Statement("SELECT 1"))
    with pytest.raises(ClosedError):
        await anext(made.stream("SELECT 1"))
    await made.aclose()


def test_two_loops_one_after_another(made: SQLDatabase) -> None:
    async def use(n: int) -> list[Any]:
        await made.open()
        await made.write(Statement("CREATE TABLE IF NOT EXISTS t (n bigint)"))
        await asyncio.gather(*(made.write(Statement(f"INSERT INTO t VALUES ({n})")) for _ in range(20)))
        found = await made.fetch("SELECT n, count(*) FROM t GROUP BY n ORDER BY n")
        await made.aclose()
        return found

    assert asyncio.run(use(1)) == [(1, 20)]
    assert asyncio.run(use(2)) == [(1, 20), (2, 20)]
