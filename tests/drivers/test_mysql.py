"""MySQL's driver: transactions, tables in them, cancellation, lost connections, errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import pytest

from asyncdl.drivers.mysql import MySQLDatabase
from asyncdl.drivers.mysql_values import ERRORS, translate
from asyncdl.drivers.sql import MARK, Statement
from asyncdl.errors import (
    ConfigurationError,
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


# concurrency


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
    async with asyncio.timeout(60):  # until the server has noticed that the connection is gone it keeps its locks
        while "made" in await tables(database):
            await database.recover()
            await asyncio.sleep(0.05)
    assert await changing(database) == []
