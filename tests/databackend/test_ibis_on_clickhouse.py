"""The databackend over ibis' connections, on ClickHouse: chdb is ClickHouse's own engine, in this process."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import asyncdl
from asyncdl import Listener, Model
from asyncdl.databackend.ibis import IbisDataBackend
from asyncdl.databackend.requests import Written
from asyncdl.datatypes import Datatypes
from asyncdl.drivers.ibis import IbisDatabase
from asyncdl.errors import QueryError, StoreUnavailableError
from asyncdl.query import Query, table
from asyncdl.testing.databackend_outputs import DataBackendTests
from tests import models
from tests.conftest import rows_of

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
        if where.name != "target":
            return IbisDataBackend(IbisDatabase(uri(where)), datatypes)
        run(where.parent, "CREATE DATABASE IF NOT EXISTS target", "SELECT 1")  # a process has one engine
        return IbisDataBackend(IbisDatabase(f"{uri(where.parent)}&database=target"), datatypes)

    def raw_tables(self, where: Path) -> set[str]:
        return {row[0] for row in run(where, "SELECT name FROM system.tables WHERE database = 'default'")}

    def raw_rows(self, where: Path, name: str) -> list[dict[str, Any]]:
        names = [row[0] for row in run(where, f"DESCRIBE TABLE {name}")]
        return [dict(zip(names, row, strict=True)) for row in run(where, f"SELECT * FROM {name} ORDER BY id")]


async def test_tables_of_another_program(tmp_path: Path) -> None:
    run(
        tmp_path,
        "CREATE TABLE events (id UInt64, at DateTime64(3, 'UTC'), tags Array(String), u UUID, kind LowCardinality(String), "
        "price Nullable(Decimal(10, 2)), blob String, m Map(String, Int32)) ENGINE = MergeTree ORDER BY at",
        "INSERT INTO events VALUES (1, '2020-01-01 00:00:00.123', ['a', 'b'], '00000000-0000-0000-0000-000000000005', 'x', "
        "1.5, 'text', {'k': 1}), (2, '2021-01-01 00:00:00', [], '00000000-0000-0000-0000-000000000006', 'y', NULL, '', {})",
        "CREATE TABLE keyed (a String, b Int64, v Float64) ENGINE = ReplacingMergeTree ORDER BY (a, b)",
        "CREATE TABLE twice (id Int64, v Int64) ENGINE = MergeTree ORDER BY id",
        "INSERT INTO twice VALUES (1, 1), (1, 2)",
        "SELECT 1",
    )
    backend = IbisDataBackend(IbisDatabase(uri(tmp_path)), Datatypes(allow_pickle=False))
    await backend.open()
    try:
        events = table("events")
        first = (
            1,
            datetime(2020, 1, 1, 0, 0, 0, 123000, tzinfo=UTC),
            ["a", "b"],
            UUID(int=5),
            "x",
            Decimal("1.50"),
            "text",
            {"k": 1},
        )
        assert (await read(backend, events.order_by("id")))[0] == first
        assert await read(backend, events.filter(events.u == UUID(int=6)).select("id")) == [(2,)]
        await write(backend, events.update({"price": Decimal("2.25"), "tags": ["z"]}, where=events.id == 1))
        await write(backend, events.update({"kind": events.kind.upper()}, where=events.id == 2))
        found = await read(backend, events.order_by("id").select("id", "kind", "price", "tags"))
        assert found == [(1, "x", Decimal("2.25"), ["z"]), (2, "Y", None, [])]
        await write(backend, events.insert([dict(zip(await names(backend, events), (3, *first[1:]), strict=True))]))
        assert (await read(backend, events.filter(events.id == 3)))[0] == (3, *first[1:])
        assert (await write(backend, events.delete(where=events.id < 3))).ids in ([1, 2], [2, 1])
        keyed = table("keyed")
        await write(backend, keyed.insert([{"a": "x", "b": 1, "v": 0.5}, {"a": "x", "b": 2, "v": 1.5}]))
        await write(backend, keyed.upsert([{"a": "x", "b": 1, "v": 7.5}]))
        assert await read(backend, keyed.order_by("b")) == [("x", 1, 7.5), ("x", 2, 1.5)]
        twice = table("twice")
        assert sorted(await read(backend, twice)) == [(1, 1), (1, 2)]
        with pytest.raises(QueryError, match="no primary key"):
            await write(backend, twice.update({"v": 3}, where=twice.v == 1))
    finally:
        await backend.aclose()


async def read(backend: IbisDataBackend, query: Query) -> list[tuple[Any, ...]]:
    return [row async for _, rows in backend.read(query, {}) for row in rows]


async def names(backend: IbisDataBackend, query: Query) -> tuple[str, ...]:
    schema = await backend.schema(query.root())
    assert schema is not None
    return tuple(schema.columns)


async def write(backend: IbisDataBackend, query: Any) -> Written:
    async with backend.transaction() as tx:
        return await backend.write(query.request(), {}, tx)


async def test_rows_stream_and_others_read_meanwhile(tmp_path: Path) -> None:
    backend = IbisDataBackend(IbisDatabase(uri(tmp_path)), Datatypes(allow_pickle=False))
    await backend.open()
    t = table("t")
    await write(backend, t.insert([{"id": n} for n in range(30_000)]))
    seen = 0
    async for _, rows in backend.read(t.order_by("id"), {}, size=1000):
        assert [row[0] for row in rows] == list(range(seen, seen + len(rows)))
        seen += len(rows)
        if seen % 10_000 == 0:
            assert await read(backend, t.count()) == [(30_000,)]
    assert seen == 30_000
    stream = backend.read(t, {}, size=10)
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    await backend.aclose()


async def test_what_comes_and_goes_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for life in range(2):
        async with asyncdl.connect(uri(tmp_path)) as db:
            t = db["numbers"]
            if life == 0:
                await db.execute(t.insert([{"id": n, "x": n * 10} for n in range(3)]))
            added = await db.add(Listener("doubled", model=Model("double", models.double), key="x", select=t))
            await added.wait()
            if life == 0:
                await (await db.execute(t.insert({"id": 3, "x": 5}))).wait()
                await (await db.execute(t.update({"x": t.x + 1}, where=t.id == 0))).wait()
                await (await db.execute(t.upsert([{"id": 1, "x": 7}, {"id": 4, "x": 8}]))).wait()
                await (await db.execute(t.delete(where=t.id == 2))).wait()
            found = await rows_of(db, t.outputs("doubled").order_by("id"))
            assert found == [(0, 1, 2), (1, 7, 14), (3, 5, 10), (4, 8, 16)]
    async with asyncdl.connect(uri(tmp_path)) as db:
        await db.remove("listener", "doubled")
        await db.wait_idle(timeout=30)
    names = {row[0] for row in run(tmp_path, "SELECT name FROM system.tables WHERE database = 'default'")}
    assert names == {"numbers", "_asyncdl_tables"}


async def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match=r"clickhouse://user:\*\*\*@localhost:1/x"):
        await IbisDatabase("clickhouse://user:secret@localhost:1/x").open()


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("clickhouse_connect").setLevel(logging.ERROR)
