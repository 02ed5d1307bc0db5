"""The SQLite driver, on real files."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import sqlite3
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from asyncdl.drivers.sql import Statement
from asyncdl.drivers.sqlite import SQLiteDatabase, translate
from asyncdl.errors import (
    ClosedError,
    ConstraintError,
    DuplicateKeyError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)

pytestmark = pytest.mark.anyio

READERS = 16


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SQLiteDatabase]:
    database = SQLiteDatabase(tmp_path / "test.db")
    await database.open()
    await database.write(
        Statement("CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER NOT NULL, name TEXT UNIQUE)"),
        Statement("INSERT INTO t VALUES (0, 0, 'counter')"),
    )
    yield database
    await database.aclose()


def insert(id: int, n: Any = 0, name: str | None = None, **options: Any) -> Statement:
    return Statement("INSERT INTO t VALUES (?, ?, ?)", (id, n, name), **options)


async def ids(database: SQLiteDatabase) -> list[int]:
    return [row[0] for row in await database.fetch("SELECT id FROM t ORDER BY id")]


async def fill(database: SQLiteDatabase, rows: int, size: int = 10) -> None:
    await database.write(
        Statement("INSERT INTO t VALUES (?, 1, ?)", [(n, f"{n:0{size}}") for n in range(1, rows + 1)], many=True)
    )


# concurrency


async def test_500_concurrent_read_modify_writes_are_exact(database: SQLiteDatabase) -> None:
    async def add_one() -> None:
        async with database.transaction() as tx:
            [found] = await tx.run(Statement("SELECT n FROM t WHERE id = 0", fetch=True))
            await tx.run(Statement("UPDATE t SET n = ? WHERE id = 0", (found.rows[0][0] + 1,)))

    await asyncio.gather(*(add_one() for _ in range(500)))
    assert await database.fetch("SELECT n FROM t WHERE id = 0") == [(500,)]


async def test_two_database_objects_on_one_file_do_not_lose_updates(database: SQLiteDatabase) -> None:
    other = SQLiteDatabase(database.path)
    await other.open()

    async def add_one(on: SQLiteDatabase) -> None:
        async with on.transaction() as tx:
            [found] = await tx.run(Statement("SELECT n FROM t WHERE id = 0", fetch=True))
            await tx.commit(Statement("UPDATE t SET n = ? WHERE id = 0", (found.rows[0][0] + 1,)))

    await asyncio.gather(*(add_one(on) for on in (database, other) for _ in range(100)))
    await other.aclose()
    assert await database.fetch("SELECT n FROM t WHERE id = 0") == [(200,)]


async def test_transactions_have_their_turn_in_the_order_of_asking(database: SQLiteDatabase) -> None:
    async def append(n: int) -> None:
        await database.write(Statement("INSERT INTO t (n) VALUES (?)", (n,)))

    await asyncio.gather(*map(append, range(1, 51)))
    assert await database.fetch("SELECT n FROM t WHERE id > 0 ORDER BY id") == [(n,) for n in range(1, 51)]


async def test_500_concurrent_reads_beside_a_transaction_see_what_is_committed(database: SQLiteDatabase) -> None:
    async with database.transaction() as tx:
        await tx.run(insert(1))
        found = await asyncio.gather(*(database.fetch("SELECT count(*) FROM t") for _ in range(500)))
        assert found == [[(1,)]] * 500
    assert await ids(database) == [0, 1]


# cancellation


async def test_200_cancelled_transactions_leave_whole_ones_and_a_free_turn(database: SQLiteDatabase) -> None:
    turns, finished = random.Random(11), set()

    async def pair(n: int) -> None:
        async with database.transaction() as tx:
            await tx.run(insert(n))
            tx.defer(insert(n + 1))
            if n % 4 == 1:  # the others are committed by the end of the block
                await tx.commit()
        finished.add(n)

    for at in range(1, 400, 40):
        tasks = [asyncio.create_task(pair(n)) for n in range(at, at + 40, 2)]
        for task in turns.sample(tasks, len(tasks)):
            for _ in range(turns.randrange(15)):
                await asyncio.sleep(0)
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert result is None or isinstance(result, asyncio.CancelledError)
    await database.write(insert(1001), insert(1002))
    found = set(await ids(database)) - {0}
    assert {n + 1 if n % 2 else n - 1 for n in found} == found
    assert finished | {1001} <= found
    raw = sqlite3.connect(database.path, timeout=0)
    raw.execute("BEGIN IMMEDIATE")  # no lock is held
    raw.close()


async def test_200_cancelled_reads_leave_the_pool_whole(database: SQLiteDatabase) -> None:
    await fill(database, 3000)
    turns = random.Random(13)

    async def read() -> None:
        async with aclosing(database.stream("SELECT * FROM t", size=100)) as pages:
            async for page in pages:
                assert len(page) <= 100
        await database.fetch("SELECT * FROM t")

    tasks = [asyncio.create_task(read()) for _ in range(200)]
    for task in tasks:
        for _ in range(turns.randrange(6)):
            await asyncio.sleep(0)
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert all(task.cancelled() for task in tasks[READERS:])
    await all_readers_at_once(database)


async def test_a_cancelled_wait_for_the_turn_passes_it_on(database: SQLiteDatabase) -> None:
    async with database.transaction() as tx:
        waiting = [asyncio.create_task(database.write(insert(n))) for n in (1, 2, 3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        waiting[1].cancel()
        await tx.run(insert(9))
    await waiting[2]
    assert await ids(database) == [0, 3, 9]


async def test_many_rows_are_one_statement(database: SQLiteDatabase) -> None:
    [outcome] = await database.write(
        Statement("INSERT INTO t VALUES (?, ?, ?)", [(n, n, None) for n in range(1, 1001)], many=True, expect=1000)
    )
    assert outcome.rowcount == 1000
    assert await database.fetch("SELECT count(*), sum(n) FROM t") == [(1001, 500_500)]


# errors


async def test_foreign_keys_are_checked(database: SQLiteDatabase) -> None:
    await database.write(Statement("CREATE TABLE child (t INTEGER REFERENCES t (id))"))
    with pytest.raises(ConstraintError) as caught:
        await database.write(Statement("INSERT INTO child VALUES (99)"))
    assert caught.type is ConstraintError


async def test_errors_of_reads_are_translated_and_leave_the_pool_whole(database: SQLiteDatabase) -> None:
    for _ in range(2 * READERS):
        with pytest.raises(StoreError):
            await database.fetch("SELECT * FROM nowhere")
        with pytest.raises(StoreError):
            async for _ in database.stream("SELECT * FROM nowhere"):
                pass
        with pytest.raises(StoreError):
            await database.fetch("SELECT ?", ("\ud800",))
    await all_readers_at_once(database)


async def test_the_write_lock_of_another_process_is_waited_for_in_vain(database: SQLiteDatabase) -> None:
    holder = f"""if True:
        import sqlite3, sys
        connection = sqlite3.connect({str(database.path)!r}, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        print("held", flush=True)
        sys.stdin.readline()
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert await process.stdout.readline() == b"held\n"
    await database.call_writer(lambda raw: raw.execute("PRAGMA busy_timeout=20"))
    with pytest.raises(StoreTimeoutError) as caught:
        await database.write(insert(1))
    assert isinstance(caught.value, TimeoutError)
    assert await ids(database) == [0]  # readers are not held up
    process.stdin.write(b"\n")
    await process.communicate()
    await database.write(insert(1))
    assert await ids(database) == [0, 1]


async def test_a_database_that_cannot_be_written_is_unavailable(database: SQLiteDatabase) -> None:
    await database.call_writer(lambda raw: raw.execute("PRAGMA query_only=1"))
    with pytest.raises(StoreUnavailableError):
        await database.write(insert(1))
    await database.call_writer(lambda raw: raw.execute("PRAGMA query_only=0"))
    await database.write(insert(1))
    assert await ids(database) == [0, 1]


async def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("This is no database.\n" * 1000)
    await refuses_to_open(SQLiteDatabase(tmp_path / "text.db"))


async def test_a_path_that_cannot_be_reached_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.db").mkdir()
    await refuses_to_open(SQLiteDatabase(tmp_path / "file" / "test.db"))
    await refuses_to_open(SQLiteDatabase(tmp_path / "folder.db"))


async def refuses_to_open(database: SQLiteDatabase) -> None:
    for _ in range(2):
        with pytest.raises(StoreUnavailableError) as caught:
            await database.open()
        assert isinstance(caught.value, ConnectionError)
        assert database.url in str(caught.value)
    with pytest.raises(ClosedError):
        await database.fetch("SELECT 1")
    await database.aclose()


def test_the_table_of_errors_is_complete() -> None:
    def error(code: int, kind: type[sqlite3.Error] = sqlite3.OperationalError) -> sqlite3.Error:
        made = kind("message")
        made.sqlite_errorcode = code
        return made

    for code, expected in {
        sqlite3.SQLITE_BUSY_SNAPSHOT: StoreTimeoutError,
        sqlite3.SQLITE_LOCKED_SHAREDCACHE: StoreTimeoutError,
        sqlite3.SQLITE_IOERR_READ: StoreUnavailableError,
        sqlite3.SQLITE_CANTOPEN_ISDIR: StoreUnavailableError,
        sqlite3.SQLITE_NOTADB: StoreUnavailableError,
        sqlite3.SQLITE_READONLY_DBMOVED: StoreUnavailableError,
        sqlite3.SQLITE_FULL: StoreError,
        sqlite3.SQLITE_ERROR: StoreError,
    }.items():
        assert type(translate(error(code), "sqlite://x")) is expected
    assert type(translate(sqlite3.ProgrammingError("no code"), "sqlite://x")) is StoreError
    for code, expected in {
        sqlite3.SQLITE_CONSTRAINT_UNIQUE: DuplicateKeyError,
        sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY: DuplicateKeyError,
        sqlite3.SQLITE_CONSTRAINT_CHECK: ConstraintError,
    }.items():
        assert type(translate(error(code, sqlite3.IntegrityError), "sqlite://x")) is expected


# streams


async def test_a_stream_yields_every_row_once_in_pages(database: SQLiteDatabase) -> None:
    await fill(database, 999)
    pages = [page async for page in database.stream("SELECT id FROM t ORDER BY id", size=300)]
    assert [len(page) for page in pages] == [300, 300, 300, 100]
    assert [row[0] for page in pages for row in page] == list(range(1000))
    whole = [len(page) async for page in database.stream("SELECT id FROM t", size=500)]
    assert whole == [500, 500]
    assert [page async for page in database.stream("SELECT id FROM t WHERE id < ?", (0,))] == []


async def test_a_stream_holds_one_page(database: SQLiteDatabase) -> None:
    await fill(database, 20_000, size=1000)  # 20 MB
    rows = 0
    tracemalloc.start()
    async for page in database.stream("SELECT * FROM t", size=100):
        rows += len(page)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows == 20_001
    assert peak < 2_000_000


async def test_a_stream_sees_one_snapshot(database: SQLiteDatabase) -> None:
    await fill(database, 99)
    seen = 0
    async for page in database.stream("SELECT * FROM t", size=10):
        seen += len(page)
        await database.write(Statement("DELETE FROM t WHERE id > 0"))
    assert seen == 100
    assert await ids(database) == [0]


async def test_breaking_out_of_streams_leaves_the_pool_whole(database: SQLiteDatabase) -> None:
    await fill(database, 1000)
    for _ in range(5 * READERS):
        async for page in database.stream("SELECT id FROM t", size=10):
            assert len(page) == 10
            break
    await all_readers_at_once(database)
    await database.write(Statement("PRAGMA user_version = 1"))
    assert await database.fetch("PRAGMA user_version") == [(1,)]


async def test_who_reads_more_for_each_row_does_not_run_the_pool_dry(database: SQLiteDatabase) -> None:
    await fill(database, 20)
    started, everyone = 0, asyncio.Event()

    async def read() -> int:
        nonlocal started
        async for page in database.stream("SELECT id FROM t"):
            started += 1
            if started == 3 * READERS:
                everyone.set()
            await everyone.wait()  # all are in their loops
            found = await database.fetch("SELECT count(*) FROM t")
            return len(page) - found[0][0]
        return -1

    assert await asyncio.gather(*(read() for _ in range(3 * READERS))) == [0] * (3 * READERS)


async def all_readers_at_once(database: SQLiteDatabase) -> None:
    """Hold as many connections as there are, which takes that none is lost."""
    streams = [database.stream("SELECT a.id FROM t AS a, t AS b UNION ALL VALUES (1)", size=1) for _ in range(READERS)]
    assert [len(await anext(each)) for each in streams] == [1] * READERS
    for each in streams:
        await each.aclose()  # type: ignore[attr-defined]


# opening and closing


async def test_opening_is_counted(tmp_path: Path) -> None:
    database = SQLiteDatabase(tmp_path / "a" / "b" / "test.db")
    await database.aclose()
    await asyncio.gather(*(database.open() for _ in range(3)))
    for _ in range(2):
        await database.aclose()
        assert await database.fetch("SELECT 1") == [(1,)]
    await database.aclose()
    with pytest.raises(ClosedError):
        await database.fetch("SELECT 1")
    with pytest.raises(ClosedError):
        await database.write(Statement("SELECT 1"))
    with pytest.raises(ClosedError):
        await database.version()
    with pytest.raises(ClosedError):
        await anext(database.stream("SELECT 1"))
    await database.aclose()
    await database.open()
    assert await database.fetch("SELECT 1") == [(1,)]
    await database.aclose()


async def test_opening_that_is_cancelled_can_be_tried_again(tmp_path: Path) -> None:
    database = SQLiteDatabase(tmp_path / "test.db")
    cancelled = 0
    for turns in range(60):
        task = asyncio.create_task(database.open())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        [result] = await asyncio.gather(task, return_exceptions=True)
        if isinstance(result, asyncio.CancelledError):
            cancelled += 1
            continue
        await database.aclose()
    assert cancelled > 0
    await database.open()
    assert await database.fetch("SELECT 1") == [(1,)]
    await database.aclose()


async def test_closing_ends_streams_that_nobody_finished(
    database: SQLiteDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    await fill(database, 100)
    before = set(threading.enumerate())
    second = SQLiteDatabase(database.path)
    await second.open()
    read_on, dropped = (second.stream("SELECT id FROM t", size=10) for _ in range(2))
    assert len(await anext(read_on)) == len(await anext(dropped)) == 10
    with caplog.at_level(logging.WARNING):
        await second.aclose()
        with pytest.raises(ClosedError):
            await anext(read_on)
        await dropped.aclose()  # type: ignore[attr-defined]
    gc.collect()
    assert caplog.records == []
    for thread in set(threading.enumerate()) - before:
        if "_connection_worker_thread" in thread.name:
            thread.join(10)
            assert not thread.is_alive()


async def test_the_version_tells_of_commits_of_this_and_other_connections(database: SQLiteDatabase) -> None:
    first = await database.version()
    assert await database.version() == first
    await database.fetch("SELECT * FROM t")
    assert await database.version() == first
    await database.write(insert(1))
    second = await database.version()
    assert second != first
    raw = sqlite3.connect(database.path)
    raw.execute("INSERT INTO t VALUES (2, 2, NULL)")
    raw.commit()
    raw.close()
    assert await database.version() != second


async def test_processes_that_make_one_file_at_once(tmp_path: Path) -> None:
    code = """if True:
        import asyncio, sys
        from asyncdl.drivers.sqlite import SQLiteDatabase
        async def main():
            await asyncio.to_thread(sys.stdin.readline)
            database = SQLiteDatabase(sys.argv[1])
            await database.open()
            await database.aclose()
        asyncio.run(main())
    """
    arguments = [sys.executable, "-c", code, str(tmp_path / "test.db")]
    streams = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [await asyncio.create_subprocess_exec(*arguments, **streams) for _ in range(4)]  # type: ignore[arg-type]
    results = await asyncio.gather(*(each.communicate(b"\n") for each in processes))
    assert [(each.returncode, errors) for each, (_, errors) in zip(processes, results, strict=True)] == [(0, b"")] * 4
