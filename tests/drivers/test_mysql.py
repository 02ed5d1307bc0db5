"""MySQL's driver: transactions, tables in them, cancellation, lost connections, errors."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import pytest

from asyncdl.drivers import pooled
from asyncdl.drivers.mysql import MySQLDatabase
from asyncdl.drivers.mysql_values import ERRORS, translate
from asyncdl.drivers.sql import MARK, Statement
from asyncdl.errors import (
    AsyncDLError,
    ClosedError,
    ConfigurationError,
    ConflictError,
    ConstraintError,
    DuplicateKeyError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from tests.mysql import OwnServer, Server

pytestmark = pytest.mark.anyio

SEQUENCE = "WITH RECURSIVE s (at) AS (SELECT 1 UNION ALL SELECT at + 1 FROM s WHERE at < {}) SELECT at FROM s"


@pytest.fixture
def url(mysql: Server, tmp_path: Path) -> str:
    return mysql.url(tmp_path)


@pytest.fixture
async def database(url: str) -> AsyncIterator[MySQLDatabase]:
    database = MySQLDatabase(url)
    await database.open()
    await database.write(
        Statement("CREATE TABLE t (id BIGINT PRIMARY KEY, n BIGINT NOT NULL, name VARCHAR(50) UNIQUE)"),
        Statement("INSERT INTO t VALUES (0, 0, 'counter')"),
    )
    yield database
    await database.aclose()


def insert(id: int, n: Any = 0, name: str | None = None, **options: Any) -> Statement:
    return Statement(f"INSERT INTO t VALUES ({MARK}, {MARK}, {MARK})", (id, n, name), **options)


async def ids(database: MySQLDatabase) -> list[int]:
    return [row[0] for row in await database.fetch("SELECT id FROM t ORDER BY id")]


async def all_at_once(database: MySQLDatabase) -> None:
    """Use every connection that there may be, each for itself: none is lost, none is in a transaction."""

    async def stream() -> None:
        async with aclosing(database.stream(SEQUENCE.format(50), size=10)) as pages:  # type: ignore[type-var]
            assert len(await anext(pages)) == 10
            await asyncio.sleep(0.02)

    async def write() -> None:
        async with database.transaction() as tx:
            await tx.run(*database.lock("all"), Statement("SELECT 1", fetch=True))

    async with asyncio.timeout(20):
        await asyncio.gather(
            *(stream() for _ in range(pooled.STREAMS)),
            *(write() for _ in range(pooled.WRITERS)),
            *(database.fetch("SELECT 1") for _ in range(pooled.FETCHERS)),
        )


# concurrency


async def test_500_concurrent_read_modify_writes_under_a_lock_are_exact(database: MySQLDatabase, url: str) -> None:
    other = MySQLDatabase(url)
    await other.open()

    async def add_one(on: MySQLDatabase) -> None:
        async with on.transaction() as tx:
            tx.defer(*on.lock("counter"))
            [found] = await tx.run(Statement("SELECT n FROM t WHERE id = 0", fetch=True))
            await tx.run(Statement(f"UPDATE t SET n = {MARK} WHERE id = 0", (found.rows[0][0] + 1,)))

    await asyncio.gather(*(add_one((database, other)[n % 2]) for n in range(500)))
    assert await database.fetch("SELECT n FROM t WHERE id = 0") == [(500,)]
    await other.aclose()


async def test_500_concurrent_reads_beside_200_writers(database: MySQLDatabase) -> None:
    async with database.transaction() as tx:
        await tx.run(insert(1))
        found = await asyncio.gather(*(database.fetch("SELECT count(*) FROM t") for _ in range(500)))
        assert found == [[(1,)]] * 500
    await asyncio.gather(*(database.write(insert(n)) for n in range(10, 210)))
    assert len(await ids(database)) == 202


async def test_a_deadlock_is_a_conflict_of_one(database: MySQLDatabase) -> None:
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


async def test_200_cancelled_transactions_leave_whole_ones_and_a_whole_pool(database: MySQLDatabase) -> None:
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


async def test_200_cancelled_reads_leave_the_pool_whole(database: MySQLDatabase) -> None:
    turns = random.Random(13)

    async def read() -> None:
        async with aclosing(database.stream(SEQUENCE.format(900), size=100)) as pages:  # type: ignore[type-var]
            async for page in pages:
                assert len(page) <= 100
        await database.fetch("SELECT sleep(0.01)")

    tasks = [asyncio.create_task(read()) for _ in range(200)]
    for task in tasks:
        await asyncio.sleep(turns.choice([0, 0, 0.001]))
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(each is None or isinstance(each, asyncio.CancelledError) for each in results)
    await all_at_once(database)


async def test_cancelling_ends_what_the_server_does(database: MySQLDatabase) -> None:
    running = "SELECT count(*) FROM information_schema.processlist WHERE info = 'SELECT sleep(61)'"

    async def until(expected: int) -> None:
        async with asyncio.timeout(10):
            while await database.fetch(running) != [(expected,)]:  # noqa: ASYNC110 - the server does not tell
                await asyncio.sleep(0.01)

    reading = asyncio.create_task(database.fetch("SELECT sleep(61)"))
    await until(1)
    reading.cancel()
    await asyncio.wait([reading])
    await until(0)


# transactions


async def test_an_exception_in_the_block_rolls_back(database: MySQLDatabase) -> None:
    async def write() -> None:
        async with database.transaction() as tx:
            await tx.run(insert(1))
            tx.defer(insert(2))
            raise LookupError

    with pytest.raises(LookupError):
        await write()
    await database.write(insert(1))
    assert await ids(database) == [0, 1]


@pytest.mark.parametrize("end", ["commit", "error"])
async def test_use_after_the_end_is_refused(database: MySQLDatabase, end: str) -> None:
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


async def test_conditions_are_checked_and_all_or_nothing(database: MySQLDatabase) -> None:
    nobody = Statement("UPDATE t SET n = 1 WHERE id = 9", expect=1, conflict="nobody is there")
    with pytest.raises(ConflictError, match="nobody is there"):
        await database.write(insert(1), nobody)
    with pytest.raises(ConflictError, match="nobody is there"):  # and not what came of it
        await database.write(nobody, insert(0))
    unchanged = Statement("UPDATE t SET n = 0 WHERE id = 0", expect=1)
    [first, second, _] = await database.write(
        insert(1, expect=1), Statement("DELETE FROM t WHERE id = 9", expect=0), unchanged
    )
    assert (first.rowcount, second.rowcount) == (1, 0)


async def test_many_rows_are_few_statements(database: MySQLDatabase) -> None:
    row, rows = f"({MARK}, {MARK}, {MARK})", [(n, n, f"100%\\' {n}") for n in range(1, 3001)]
    for options in ({"row": row}, {}):
        statement = Statement(f"INSERT INTO t VALUES {row}", rows, many=True, expect=3000, **options)  # type: ignore[arg-type]
        [outcome] = await database.write(statement)
        assert outcome.rowcount == 3000
        assert await database.fetch("SELECT count(*), sum(n), max(name) FROM t WHERE id > 0") == [
            (3000, 4_501_500, "100%\\' 999")
        ]
        await database.write(Statement("DELETE FROM t WHERE id > 0"))


async def test_parameters_are_exact(database: MySQLDatabase) -> None:
    values = [2**63 - 1, 0.1, 5e-324, 1.7976931348623157e308, "'\\\0\n%s?\"🙂", b"\0\\'\xff", Decimal("1E-20"), None]
    [found] = await database.fetch(f"SELECT {', '.join([MARK] * len(values))}", values)
    assert list(found) == values
    [found] = await database.fetch(f"SELECT CAST({MARK} AS DATETIME(6))", (datetime.max,))
    assert found == (datetime.max,)
    assert await database.fetch(f"SELECT {MARK} = '-01:00:00.500000'", (timedelta(hours=-1, milliseconds=-500),))


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
    database: MySQLDatabase, statement: Statement, error: type[AsyncDLError]
) -> None:
    with pytest.raises(error) as caught:
        await database.write(insert(7), statement)
    assert caught.type is error
    assert caught.value.__cause__ is not None
    assert database.url in str(caught.value)
    assert await ids(database) == [0]


@pytest.mark.parametrize("code", ERRORS)
def test_the_table_of_errors_is_complete(code: int) -> None:
    from asyncmy.errors import OperationalError

    found = translate(OperationalError(code, "why"), "mysql://somewhere")
    assert type(found) is ERRORS[code]
    assert "mysql://somewhere: why" in str(found)


async def test_a_lock_is_not_waited_for_for_ever(database: MySQLDatabase, url: str) -> None:
    impatient = MySQLDatabase(f"{url}?innodb_lock_wait_timeout=1")
    await impatient.open()
    async with database.transaction() as tx:
        await tx.run(*database.lock("x"), insert(1))
        with pytest.raises(StoreTimeoutError, match="'x'"):
            await impatient.write(*impatient.lock("x", wait=0), insert(2))
        with pytest.raises(StoreTimeoutError):
            await impatient.write(insert(1))
    await impatient.write(*impatient.lock("x"), insert(2))
    await impatient.aclose()


# servers that are not there, or go away


async def test_nobody_answers() -> None:
    database = MySQLDatabase("mysql://somebody:secret@127.0.0.1:1/nothing")
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="somebody@127") as caught:
            await database.open()
        assert "secret" not in str(caught.value)
    with pytest.raises(ClosedError):
        await database.fetch("SELECT 1")
    await database.aclose()


async def test_no_such_database_and_a_wrong_password(mysql: Server) -> None:
    with pytest.raises(StoreUnavailableError, match="create the database"):
        await MySQLDatabase(mysql.with_path("/not_there")).open()
    parts = urlsplit(mysql.with_path("/mysql"))
    wrong = f"mysql://nobody:guessed@{parts.hostname}:{parts.port or 3306}/mysql"
    with pytest.raises(StoreUnavailableError, match="is the password right") as caught:
        await MySQLDatabase(wrong).open()
    assert "guessed" not in str(caught.value)


async def test_a_server_killed_under_load_ten_times_loses_nothing_acknowledged() -> None:
    with TemporaryDirectory(prefix="asyncdl-my-") as folder:
        server = await asyncio.to_thread(OwnServer, Path(folder))
        await asyncio.to_thread(server.start)
        database = MySQLDatabase(server.url.replace("/mysql", "/test"))
        setting_up = MySQLDatabase(server.url)
        await setting_up.open()
        await setting_up.write(Statement("CREATE DATABASE test"))
        await setting_up.aclose()
        await database.open()
        await database.write(Statement("CREATE TABLE t (id BIGINT PRIMARY KEY, n BIGINT, name VARCHAR(50))"))
        acknowledged: set[int] = set()
        numbers = iter(range(10**9))
        stop = asyncio.Event()
        enough = asyncio.Condition()

        async def write() -> None:
            while not stop.is_set():
                n = next(numbers)
                try:
                    await database.write(*database.lock("w"), insert(2 * n), insert(2 * n + 1))
                    acknowledged.add(n)
                    async with enough:
                        enough.notify_all()
                except StoreError:
                    await asyncio.sleep(0.05)  # it is away

        writers = [asyncio.create_task(write()) for _ in range(8)]
        for _ in range(10):
            before = len(acknowledged)
            async with asyncio.timeout(30), enough:
                await enough.wait_for(lambda before=before: len(acknowledged) > before + 20)  # type: ignore[misc]
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
        stop.set()
        await asyncio.gather(*writers)
        found = set(await ids(database))
        assert {each for n in acknowledged for each in (2 * n, 2 * n + 1)} <= found
        assert {each ^ 1 for each in found} == found
        await database.aclose()
        await asyncio.to_thread(server.stop)


# streams, opening and closing


async def test_breaking_out_of_streams_leaves_the_pool_whole(database: MySQLDatabase) -> None:
    pages = [len(page) async for page in database.stream(SEQUENCE.format(25), size=10)]
    assert pages == [10, 10, 5]
    for _ in range(30):
        async with aclosing(database.stream(SEQUENCE.format(900), size=10)) as found:  # type: ignore[type-var]
            async for _ in found:
                break
    await all_at_once(database)


async def test_opening_is_counted_and_closing_ends_everything(url: str) -> None:
    database = MySQLDatabase(url)
    await asyncio.gather(*(database.open() for _ in range(3)))
    for _ in range(3):
        assert await database.fetch("SELECT 1") == [(1,)]
        await database.aclose()
    await database.aclose()
    with pytest.raises(ClosedError):
        await database.fetch("SELECT 1")


def test_two_loops_one_after_another(url: str) -> None:
    database = MySQLDatabase(url)

    async def once() -> list[Any]:
        await database.open()
        try:
            return await database.fetch("SELECT 1")
        finally:
            await database.aclose()

    assert asyncio.run(once()) == asyncio.run(once()) == [(1,)]


def test_urls() -> None:
    def place(url: str) -> Any:
        return MySQLDatabase(url).place

    assert place("mariadb://u:a@HOST/db") == place("mysql://u:b@host:3306/db")
    assert place("mysql://u@host/db") != place("mysql://u@host/other")
    assert place("mysql://u@host/db") != place("mysql://u@host:3307/db")
    for bad in ("mysql://host", "mysql://u:secret@host:port/db", "mysql://h/db?ssl-mode=perhaps", "mysql://h/db?a;b=1"):
        with pytest.raises(ConfigurationError) as caught:
            MySQLDatabase(bad)
        assert "secret" not in str(caught.value)


# tables in transactions, which MySQL itself ends with each of them

MAKE = Statement("CREATE TABLE made (id BIGINT PRIMARY KEY)", table="made")
DROP = Statement("DROP TABLE IF EXISTS made", table="made")
FILL = Statement("INSERT INTO made VALUES (1)")


async def tables(database: MySQLDatabase) -> set[str]:
    return {row[0] for row in await database.fetch("SHOW TABLES")}


async def changing(database: MySQLDatabase) -> list[tuple[Any, ...]]:
    return await database.fetch("SELECT name FROM _asyncdl_changes")


async def test_a_table_made_in_a_transaction_goes_with_it(database: MySQLDatabase) -> None:
    async def make() -> None:
        async with database.transaction() as tx:
            await tx.run(insert(1), MAKE, FILL)
            assert await changing(database) == [("made",)]  # to others it is not there
            raise LookupError

    with pytest.raises(LookupError):
        await make()
    assert "made" not in await tables(database)
    assert await changing(database) == []
    assert await ids(database) == [0]
    await database.write(insert(1), MAKE, FILL)
    assert await database.fetch("SELECT id FROM made") == [(1,)]
    assert (await ids(database), await changing(database)) == ([0, 1], [])


async def test_a_table_is_dropped_with_its_transaction_alone(database: MySQLDatabase) -> None:
    await database.write(MAKE, FILL)
    with pytest.raises(DuplicateKeyError):
        await database.write(DROP, insert(0))
    assert await database.fetch("SELECT id FROM made") == [(1,)]
    await database.write(insert(1), DROP)
    assert "made" not in await tables(database)
    assert (await ids(database), await changing(database)) == ([0, 1], [])


async def test_what_a_dead_process_left_is_cleared_away(database: MySQLDatabase) -> None:
    async with database.transaction() as tx:
        await tx.run(MAKE, FILL)
        tx._driver.close()  # as if the process had died
        tx._made.clear()
        with pytest.raises(StoreUnavailableError):
            await tx.run(FILL)
    assert "made" in await tables(database)
    await database.recover()
    assert "made" not in await tables(database)
    assert await changing(database) == []
