"""The SQL metadata store on MySQL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from asyncdl.drivers.mysql import MySQLDatabase
from asyncdl.errors import ConfigurationError
from asyncdl.metadata.sql import SQLMetadataStore
from asyncdl.testing.metadata import MetadataStoreTests
from asyncdl.testing.metadata_records import RecordKind
from tests.mysql import Server

pytestmark = pytest.mark.anyio


class TestSQLMetadataStoreOnMySQL(MetadataStoreTests):
    @pytest.fixture(autouse=True)
    def _server(self, mysql: Server) -> None:
        self.server = mysql

    def make_store(self, where: Path) -> SQLMetadataStore:
        return SQLMetadataStore(MySQLDatabase(self.server.url(where)))

    async def raw(self, where: Path, kind: RecordKind) -> Sequence[Any]:
        return self.server.run(f"SELECT * FROM _asyncdl_{kind}", url=self.server.url(where))


async def test_a_schema_of_another_version_is_refused_and_left_alone(mysql: Server, tmp_path: Path) -> None:
    url = mysql.url(tmp_path)
    for sql in (
        "CREATE TABLE _asyncdl_schema (version INTEGER PRIMARY KEY, something TEXT)",
        "CREATE TABLE _asyncdl_jobs (other INTEGER)",
        "INSERT INTO _asyncdl_schema VALUES (2, 'new')",
    ):
        mysql.run(sql, url=url)
    with pytest.raises(ConfigurationError, match="schema 2"):
        await SQLMetadataStore(MySQLDatabase(url)).open()
    ours = {next(iter(row.values())) for row in mysql.run("SHOW TABLES", url=url)}
    assert ours == {"_asyncdl_jobs", "_asyncdl_schema"}
