"""The SQL metadata store on SQLite."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asyncdl.drivers.sql import Statement
from asyncdl.drivers.sqlite import SQLiteDatabase
from asyncdl.errors import ClosedError, ConfigurationError, ConflictError, DuplicateKeyError
from asyncdl.metadata.base import Change, ClaimJob, MoveCursor, PutJob
from asyncdl.metadata.sql import SQLMetadataStore
from asyncdl.testing.metadata import MetadataStoreTests, RecordKind, event, intent, job

pytestmark = pytest.mark.anyio

COMMITTER = """
    import asyncio, sys
    from asyncdl.drivers.sqlite import SQLiteDatabase
    from asyncdl.metadata.sql import SQLMetadataStore
    from asyncdl.testing.metadata import event, intent

    async def main(path, name, count, tasks):
        store = SQLMetadataStore(SQLiteDatabase(path))
        await store.open()
        async def commit(at):
            key = f"{name}-{at}"
            await store.commit(event(key, payload="x" * 2000), intent(key), event(key, payload="y" * 2000))
            print(key, flush=True)
        for at in range(0, count, tasks):
            await asyncio.gather(*(commit(n) for n in range(at, at + tasks)))
        await store.aclose()

    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
"""


def committer(path: Path, name: str, count: int, tasks: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(COMMITTER), str(path), name, str(count), str(tasks)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rows(path: Path, sql: str) -> list[Any]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


class TestSQLMetadataStoreOnSQLite(MetadataStoreTests):
    def make_store(self, where: Path) -> SQLMetadataStore:
        return SQLMetadataStore(SQLiteDatabase(where / "meta.db"))

    async def raw(self, where: Path, kind: RecordKind) -> Sequence[Any]:
        return rows(where / "meta.db", f"SELECT * FROM _asyncdl_{kind}")


async def test_two_processes_committing_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    processes = [committer(path, name, 200, 10) for name in "ab"]  # both make the file, too
    store = SQLMetadataStore(SQLiteDatabase(path))
    await store.open()
    seen, found = 0, []
    while len(found) < 802:
        seen = await store.wait_for_commits(seen)
        if not found:
            await store.commit(event("mine"), event("mine"))
        found += await store.events(found[-1].seq if found else 0)
    for each in processes:
        out, errors = await asyncio.to_thread(each.communicate)
        assert (each.returncode, errors) == (0, "")
        assert len(out.split()) == 200
    assert found == await store.events(0)
    assert all(found[at].topic == found[at + 1].topic for at in range(0, 802, 2))
    assert len({each.topic for each in found}) == 401
    assert len(await store.intents()) == 400
    await store.aclose()


async def test_a_process_killed_while_committing_leaves_whole_commits(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    acknowledged: set[str] = set()
    for life in range(5):
        process = committer(path, f"life{life}", 1_000_000, 5)
        assert process.stdout is not None
        for _ in range(20 + life):
            acknowledged.add((await asyncio.to_thread(process.stdout.readline)).strip())
        process.kill()
        out, _ = await asyncio.to_thread(process.communicate)
        assert process.returncode == -9
        whole = [line for line in out.splitlines(keepends=True) if line.endswith("\n")]
        acknowledged |= {line.strip() for line in whole}
    store = SQLMetadataStore(SQLiteDatabase(path))
    await store.open()
    events = await store.events(0, limit=10_000_000)
    topics = [each.topic for each in events[::2]]
    assert topics == [each.topic for each in events[1::2]]
    assert set(topics) == {each.id for each in await store.intents()}
    assert acknowledged <= set(topics)
    [after] = await store.commit(event("after"))
    assert after.seq == events[-1].seq + 1
    await store.aclose()
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


async def test_a_schema_of_another_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    connection = sqlite3.connect(path)
    connection.executescript(
        "CREATE TABLE _asyncdl_schema (version INTEGER PRIMARY KEY, something TEXT);"
        "CREATE TABLE _asyncdl_jobs (other INTEGER);"
        "INSERT INTO _asyncdl_schema VALUES (2, 'new');"
    )
    connection.close()
    store = SQLMetadataStore(SQLiteDatabase(path))
    with pytest.raises(ConfigurationError, match="schema 2"):
        await store.open()
    with pytest.raises(ClosedError):
        await store.last_event()
    assert sorted(rows(path, "SELECT name FROM sqlite_master")) == [("_asyncdl_jobs",), ("_asyncdl_schema",)]


async def test_joins_a_databackend_on_the_same_database_object_only(tmp_path: Path) -> None:
    database, same_file = SQLiteDatabase(tmp_path / "app.db"), SQLiteDatabase(tmp_path / "app.db")
    store = SQLMetadataStore(database)
    assert store.joins(SimpleNamespace(database=database))
    assert not store.joins(SimpleNamespace(database=same_file))
    assert not store.joins(object())


async def test_rows_and_events_commit_together_or_not_at_all(tmp_path: Path) -> None:
    database = SQLiteDatabase(tmp_path / "app.db")
    store = SQLMetadataStore(database)
    await database.open()  # as the databackend does
    await store.open()
    await database.write(Statement("CREATE TABLE docs (id INTEGER PRIMARY KEY)"))
    async with database.transaction() as tx:
        tx.defer(Statement("INSERT INTO docs VALUES (?)", [(1,), (2,)], many=True))
        [made] = await store.commit(event("docs"), PutJob(job()), joining=tx)
    assert await store.events(0) == [made]
    assert await database.fetch("SELECT id FROM docs") == [(1,), (2,)]

    async def write(row: int, *changes: Change) -> None:
        async with database.transaction() as tx:
            tx.defer(Statement("INSERT INTO docs VALUES (?)", (row,)))
            await store.commit(event("lost"), *changes, joining=tx)

    with pytest.raises(ConflictError):
        await write(3, MoveCursor("c", 2, expected=1))
    with pytest.raises(DuplicateKeyError):  # a row of the user's, and so not a conflict of ours
        await write(1, ClaimJob("j", "me", 5.0, 6.0))
    assert await store.events(0) == [made]
    assert (await store.jobs())[0].attempts == 0
    assert await database.fetch("SELECT count(*) FROM docs") == [(2,)]
    await store.aclose()
    assert await database.fetch("SELECT count(*) FROM docs") == [(2,)]  # what we did not open stays open
    await database.aclose()


async def test_a_joined_commit_wakes_both_stores(tmp_path: Path) -> None:
    database = SQLiteDatabase(tmp_path / "app.db")
    store, other = SQLMetadataStore(database), SQLMetadataStore(SQLiteDatabase(tmp_path / "app.db"))
    await store.open()
    await other.open()

    async def topics(on: SQLMetadataStore) -> list[str]:
        seen = 0
        while not (found := await on.events(0)):
            seen = await on.wait_for_commits(seen)
        return [each.topic for each in found]

    waiting = asyncio.gather(topics(store), topics(other))
    async with database.transaction() as tx:
        await store.commit(event("joined"), intent(), joining=tx)
    assert await waiting == [["joined"], ["joined"]]
    await other.aclose()
    await store.aclose()
