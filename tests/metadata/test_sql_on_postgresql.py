"""The SQL metadata store on PostgreSQL."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from asyncdl.drivers.postgresql import PostgreSQLDatabase
from asyncdl.drivers.sql import Statement
from asyncdl.errors import ConfigurationError, ConflictError, DuplicateKeyError
from asyncdl.metadata.base import Change, ClaimJob, DeleteComponent, MoveCursor, PutComponent, PutJob
from asyncdl.metadata.sql import SQLMetadataStore
from asyncdl.testing.metadata import MetadataStoreTests, RecordKind, component, event, intent, job
from tests.postgresql import Server

pytestmark = pytest.mark.anyio

COMMITTER = """
    import asyncio, sys
    from asyncdl.drivers.postgresql import PostgreSQLDatabase
    from asyncdl.metadata.sql import SQLMetadataStore
    from asyncdl.testing.metadata import event, intent

    async def main(url, name, count, tasks):
        store = SQLMetadataStore(PostgreSQLDatabase(url))
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


def committer(url: str, name: str, count: int, tasks: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(COMMITTER), url, name, str(count), str(tasks)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class TestSQLMetadataStoreOnPostgreSQL(MetadataStoreTests):
    @pytest.fixture(autouse=True)
    def _server(self, postgresql: Server) -> None:
        self.server = postgresql

    def make_store(self, where: Path) -> SQLMetadataStore:
        return SQLMetadataStore(PostgreSQLDatabase(self.server.url(where)))

    async def raw(self, where: Path, kind: RecordKind) -> Sequence[Any]:
        return self.server.run(f"SELECT * FROM _asyncdl_{kind}", url=self.server.url(where))


@pytest.fixture
async def store(postgresql: Server, tmp_path: Path) -> AsyncIterator[SQLMetadataStore]:
    store = SQLMetadataStore(PostgreSQLDatabase(postgresql.url(tmp_path)))
    await store.open()
    yield store
    await store.aclose()


async def test_two_processes_committing_at_once_lose_nothing(
    postgresql: Server, store: SQLMetadataStore, tmp_path: Path
) -> None:
    processes = [committer(postgresql.url(tmp_path), name, 200, 10) for name in "ab"]
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
    assert len(await store.intents()) == 400


async def test_a_process_killed_while_committing_leaves_whole_commits(
    postgresql: Server, store: SQLMetadataStore, tmp_path: Path
) -> None:
    acknowledged: set[str] = set()
    for life in range(5):
        process = committer(postgresql.url(tmp_path), f"life{life}", 1_000_000, 5)
        assert process.stdout is not None
        for _ in range(20 + life):
            acknowledged.add((await asyncio.to_thread(process.stdout.readline)).strip())
        process.kill()
        out, _ = await asyncio.to_thread(process.communicate)
        assert process.returncode == -9
        acknowledged |= {line.strip() for line in out.splitlines(keepends=True) if line.endswith("\n")}
    await store.commit(event("after"), intent("after"), event("after"))  # nobody holds the lock any more
    events = await store.events(0, limit=10_000_000)
    topics = [each.topic for each in events[::2]]
    assert topics == [each.topic for each in events[1::2]]
    assert set(topics) == {each.id for each in await store.intents()}
    assert acknowledged <= set(topics)


async def test_a_smaller_number_never_becomes_visible_after_a_larger_one(
    postgresql: Server, store: SQLMetadataStore, tmp_path: Path
) -> None:
    other = SQLMetadataStore(PostgreSQLDatabase(postgresql.url(tmp_path)))
    await other.open()
    appended, go_on = asyncio.Event(), asyncio.Event()

    async def slowly() -> None:
        async with store.database.transaction() as tx:
            await tx.run(*store.database.lock("commit"), *store._changes.statements(event("slow")))
            appended.set()
            await go_on.wait()

    slow = asyncio.create_task(slowly())
    await appended.wait()
    quick = asyncio.create_task(other.commit(event("quick")))
    await asyncio.wait([quick], timeout=0.2)
    assert await other.events(0) == []  # it waits, and steps over nothing
    go_on.set()
    await slow
    [made] = await quick
    assert [each.topic for each in await other.events(0)] == ["slow", "quick"]
    assert made.seq == 2
    await other.aclose()


async def test_a_parent_put_while_its_child_is_deleted(
    postgresql: Server, store: SQLMetadataStore, tmp_path: Path
) -> None:
    other = SQLMetadataStore(PostgreSQLDatabase(postgresql.url(tmp_path)))
    await other.open()
    for n in range(30):
        child = component(f"child{n}", f"child{n}")
        await store.commit(PutComponent(child))
        parent = PutComponent(component(f"parent{n}", f"parent{n}"), children=[child.uuid])
        results = await asyncio.gather(
            store.commit(parent), other.commit(DeleteComponent(child.uuid)), return_exceptions=True
        )
        assert sorted(isinstance(each, Exception) for each in results) == [False, True], results
        left = {each.uuid for each in await store.components(identifier=f"parent{n}")}
        assert left == ({f"parent{n}"} if isinstance(results[1], Exception) else set())
    await other.aclose()


async def test_a_schema_of_another_version_is_refused_and_left_alone(postgresql: Server, tmp_path: Path) -> None:
    url = postgresql.url(tmp_path)
    postgresql.run(
        "CREATE TABLE _asyncdl_schema (version INTEGER PRIMARY KEY, something TEXT);"
        "CREATE TABLE _asyncdl_jobs (other INTEGER);"
        "INSERT INTO _asyncdl_schema VALUES (2, 'new')",
        url=url,
    )
    with pytest.raises(ConfigurationError, match="schema 2"):
        await SQLMetadataStore(PostgreSQLDatabase(url)).open()
    found = postgresql.run("SELECT relname FROM pg_class WHERE relkind = 'r' AND pg_table_is_visible(oid)", url=url)
    ours = {row[0] for row in found if row[0].startswith("_asyncdl")}
    assert ours == {"_asyncdl_jobs", "_asyncdl_schema"}


async def test_rows_and_events_commit_together_or_not_at_all(postgresql: Server, store: SQLMetadataStore) -> None:
    database = store.database
    await database.write(Statement("CREATE TABLE docs (id INTEGER PRIMARY KEY)"))
    async with database.transaction() as tx:
        tx.defer(Statement("INSERT INTO docs VALUES ($1)", [(1,), (2,)], many=True))
        [made] = await store.commit(event("docs"), PutJob(job()), joining=tx)
    assert await store.events(0) == [made]
    assert await database.fetch("SELECT id FROM docs") == [(1,), (2,)]

    async def write(row: int, *changes: Change) -> None:
        async with database.transaction() as tx:
            tx.defer(Statement("INSERT INTO docs VALUES ($1)", (row,)))
            await store.commit(event("lost"), *changes, joining=tx)

    with pytest.raises(ConflictError):
        await write(3, MoveCursor("c", 2, expected=1))
    with pytest.raises(DuplicateKeyError):  # a row of the user's, and so not a conflict of ours
        await write(1, ClaimJob("j", "me", 5.0, 6.0))
    assert await store.events(0) == [made]
    assert (await store.jobs())[0].attempts == 0
    assert await database.fetch("SELECT count(*) FROM docs") == [(2,)]


async def test_waking_goes_on_when_the_listening_connection_was_killed(
    postgresql: Server, store: SQLMetadataStore, tmp_path: Path
) -> None:
    other = SQLMetadataStore(PostgreSQLDatabase(postgresql.url(tmp_path)))
    await other.open()
    for n in range(1, 4):
        killed = []
        while not killed:
            killed = await asyncio.to_thread(
                postgresql.run,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND query ILIKE 'LISTEN%'",
            )
        await other.commit(event())

        async def look(last: int) -> None:
            seen = 0
            while await store.last_event() < last:
                seen = await store.wait_for_commits(seen)

        async with asyncio.timeout(5):
            await look(n)
    await other.aclose()
