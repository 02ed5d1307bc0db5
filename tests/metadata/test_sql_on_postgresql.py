"""The SQL metadata store on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from asyncdl.drivers.postgresql import PostgreSQLDatabase
from asyncdl.errors import ConfigurationError
from asyncdl.metadata.base import ClaimJob, JobFilter, MoveCursor, PutJob
from asyncdl.metadata.sql import SQLMetadataStore
from asyncdl.testing.metadata import MetadataStoreTests, RecordKind, event, job
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


async def _until_one_waits_for_a_lock(store: SQLMetadataStore) -> None:
    """Wait until the server says so: what is held up then is held up by the transaction that is open."""
    while not await store.database.fetch("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"):
        pass  # each look is a round trip


async def test_who_closes_a_gate_waits_for_a_claim_under_way_and_sees_it(store: SQLMetadataStore) -> None:
    await store.commit(PutJob(job("a")), PutJob(job("b")))
    async with store.database.transaction() as tx:
        assert await store.claim_within(tx, ClaimJob("a", "me", 3.0, 9.0, gate="gate")) == {"a"}
        closing = asyncio.create_task(store.commit(MoveCursor("gate", -1, expected=0)))
        await _until_one_waits_for_a_lock(store)
        assert await store.jobs(JobFilter(states=["running"])) == []  # who looked now would miss it
        await tx.commit()
    await closing
    assert [each.id for each in await store.jobs(JobFilter(states=["running"]))] == ["a"]
    assert await store.claim(ClaimJob("b", "me", 3.0, 9.0, gate="gate")) == set()


async def test_a_claim_waits_for_who_is_closing_a_gate_and_is_refused(store: SQLMetadataStore) -> None:
    await store.commit(PutJob(job("a")), PutJob(job("b")))
    async with store.database.transaction() as tx:
        await tx.run(*store.database.lock("gates"))  # as `commit` does
        await tx.run(*store._changes.statements(MoveCursor("gate", -1, expected=0)))
        claims = ClaimJob("a", "me", 3.0, 9.0, gate="gate"), ClaimJob("b", "me", 3.0, 9.0, gate="of another")
        claiming = asyncio.create_task(store.claim(*claims))
        await _until_one_waits_for_a_lock(store)
        assert not claiming.done()
        await tx.commit()
    assert await claiming == {"b"}


async def test_claims_pass_over_what_others_are_claiming_and_wait_for_no_commit(store: SQLMetadataStore) -> None:
    await store.commit(PutJob(job("a")), PutJob(job("b")))
    async with store.database.transaction() as held, store.database.transaction() as tx:
        await held.run(*store.database.lock("commit"))
        assert await store.claim_within(tx, ClaimJob("a", "me", 3.0, 9.0)) == {"a"}
        both = [ClaimJob(each, "you", 3.0, 9.0) for each in "ab"]
        assert await asyncio.wait_for(store.claim(*both), 60) == {"b"}
        await tx.commit()
    assert {(each.id, each.owner) for each in await store.jobs()} == {("a", "me"), ("b", "you")}
