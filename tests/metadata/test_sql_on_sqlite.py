"""The SQL metadata store on SQLite."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asyncdl.drivers.sqlite import SQLiteDatabase
from asyncdl.errors import ClosedError, ConfigurationError
from asyncdl.metadata.sql import SQLMetadataStore
from asyncdl.testing.metadata import MetadataStoreTests
from asyncdl.testing.metadata_records import RecordKind, event, intent

pytestmark = pytest.mark.anyio


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
