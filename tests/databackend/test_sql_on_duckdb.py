"""The SQL databackend on DuckDB."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pytest

from asyncdl.databackend.sql import SQLDataBackend
from asyncdl.datatypes import Datatypes
from asyncdl.drivers.duckdb import DuckDBDatabase
from asyncdl.query import Query, table
from asyncdl.testing.databackend_outputs import DataBackendTests

pytestmark = pytest.mark.anyio
FILE = "rows.duckdb"


def run(where: Path, *statements: str) -> list[Any]:
    with closing(duckdb.connect(where / FILE)) as connection:
        return [connection.execute(each).fetchall() for each in statements][-1]


class TestSQLDataBackendOnDuckDB(DataBackendTests):
    def make_backend(self, where: Path, datatypes: Datatypes) -> SQLDataBackend:
        return SQLDataBackend(DuckDBDatabase(where / FILE), datatypes)

    def table(self, name: str) -> Query:
        return table(name)

    def where(self, name: str, column: str, operator: str, value: Any) -> Query:
        t = table(name)
        return t.filter({"==": t[column] == value, ">": t[column] > value, "<": t[column] < value}[operator])

    def pick(self, name: str, *columns: str) -> Query:
        return table(name).select(*columns)

    def joined(self, name: str, *identifiers: str) -> Query:
        return table(name).outputs(*identifiers)

    def raw_tables(self, where: Path) -> set[str]:
        return {row[0] for row in run(where, "SELECT table_name FROM duckdb_tables()")}

    def raw_rows(self, where: Path, table: str) -> list[dict[str, Any]]:
        with closing(duckdb.connect(where / FILE)) as connection:
            return connection.execute(f'SELECT * FROM "{table}"').to_arrow_table().to_pylist()
