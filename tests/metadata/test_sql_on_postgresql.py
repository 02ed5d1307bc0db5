"""The SQL metadata store on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from asyncdl.drivers.postgresql import PostgreSQLDatabase
from asyncdl.errors import ConfigurationError
from asyncdl.metadata.sql import SQLMetadataStore
from asyncdl.testing.metadata import MetadataStoreTests
from asyncdl.testing.metadata_records import RecordKind, event
from tests.postgresql import Server

pytestmark = pytest.mark.anyio


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


async def test_stores_in_two_schemas_of_a_database_neither_wake_nor_hold_up_each_other(
    postgresql: Server, store: SQLMetadataStore, tmp_path: Path
) -> None:
    same = SQLMetadataStore(PostgreSQLDatabase(postgresql.url(tmp_path)))
    other = SQLMetadataStore(PostgreSQLDatabase(postgresql.url(tmp_path / "other")))
    await same.open()
    await other.open()
    async with asyncio.timeout(60):
        before = seen = await store.wait_for_commits(0)
        await same.commit(event())
        seen = await store.wait_for_commits(seen)  # from here on it listens
        for _ in range(50):
            await other.commit(event())
        while await store.last_event() < 2:
            await same.commit(event())  # is told of behind those
            seen = await store.wait_for_commits(seen)
        assert seen < before + 10
        async with other.database.transaction() as tx:
            tx.defer(*other.database.lock(other._of_ours("commit")))
            await tx.run()
            await store.commit(event())
    await same.aclose()
    await other.aclose()
