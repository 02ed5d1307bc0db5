"""The databackend over ibis' connections, on ClickHouse: chdb is ClickHouse's own engine, in this process."""

from __future__ import annotations

import logging
from datetime import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from asyncdl.databackend.ibis import IbisDataBackend
from asyncdl.datatypes import Datatypes
from asyncdl.drivers.ibis import IbisDatabase
from asyncdl.query import Query, table
from asyncdl.testing.databackend_outputs import DataBackendTests

pytest.importorskip("chdb", reason="chdb, 534 MB of ClickHouse, is not installed: pip install chdb clickhouse-connect")
pytestmark = pytest.mark.anyio


def uri(folder: Path) -> str:
    return f"clickhouse://?interface=chdb&path={folder / 'clickhouse'}"


def run(folder: Path, *statements: str) -> list[tuple[Any, ...]]:
    """Run statements past the code under test."""
    import clickhouse_connect

    client = clickhouse_connect.get_client(interface="chdb", path=str(folder / "clickhouse"), settings={"final": 1})
    try:
        for statement in statements[:-1]:
            client.command(statement)
        result = client.query(statements[-1])
        return [tuple(row) for row in result.result_rows]
    finally:
        client.close()


class TestIbisDataBackendOnClickHouse(DataBackendTests):
    years = (1900, 2299)
    as_text = (Decimal, time, bytes)

    def make_backend(self, where: Path, datatypes: Datatypes) -> IbisDataBackend:
        return IbisDataBackend(IbisDatabase(uri(where)), datatypes)

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
        return {row[0] for row in run(where, "SELECT name FROM system.tables WHERE database = 'default'")}

    def raw_rows(self, where: Path, name: str) -> list[dict[str, Any]]:
        names = [row[0] for row in run(where, f"DESCRIBE TABLE {name}")]
        return [dict(zip(names, row, strict=True)) for row in run(where, f"SELECT * FROM {name} ORDER BY id")]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("clickhouse_connect").setLevel(logging.ERROR)
