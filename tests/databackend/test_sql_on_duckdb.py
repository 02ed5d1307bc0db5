"""The SQL databackend on DuckDB."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import duckdb
import pytest

from asyncdl.databackend.sql import SQLDataBackend
from asyncdl.databackend.tables import TableSchema
from asyncdl.datatypes import Datatypes
from asyncdl.drivers.duckdb import DuckDBDatabase
from asyncdl.errors import (
    ClosedError,
    ConfigurationError,
    ConstraintError,
    DuplicateKeyError,
    QueryError,
    StoreUnavailableError,
    TableNotFoundError,
)
from asyncdl.query import table
from asyncdl.testing.databackend_outputs import DataBackendTests

pytestmark = pytest.mark.anyio
FILE = "rows.duckdb"


def run(where: Path, *statements: str) -> list[Any]:
    with closing(duckdb.connect(where / FILE)) as connection:
        return [connection.execute(each).fetchall() for each in statements][-1]


class TestSQLDataBackendOnDuckDB(DataBackendTests):
    def make_backend(self, where: Path, datatypes: Datatypes) -> SQLDataBackend:
        return SQLDataBackend(DuckDBDatabase(where / FILE), datatypes)

    def raw_tables(self, where: Path) -> set[str]:
        return {row[0] for row in run(where, "SELECT table_name FROM duckdb_tables()")}

    def raw_rows(self, where: Path, table: str) -> list[dict[str, Any]]:
        with closing(duckdb.connect(where / FILE)) as connection:
            return connection.execute(f'SELECT * FROM "{table}"').to_arrow_table().to_pylist()


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[SQLDataBackend]:
    backend = SQLDataBackend(DuckDBDatabase(tmp_path / FILE), Datatypes(allow_pickle=False))
    await backend.open()
    yield backend
    await backend.aclose()


async def write(backend: SQLDataBackend, what: Any) -> Any:
    async with backend.transaction() as tx:
        return await backend.write(what.request(), {}, tx)


async def read(backend: SQLDataBackend, query: Any) -> list[tuple[Any, ...]]:
    return [row async for _, rows in backend.read(query, {}) for row in rows]


# tables that other programs made


async def test_a_table_of_another_program_is_read_and_written(backend: SQLDataBackend, tmp_path: Path) -> None:
    run(
        tmp_path,
        "CREATE SEQUENCE numbers START 30",
        "CREATE TYPE mood AS ENUM ('sad', 'ok')",
        "CREATE TABLE notes (id INTEGER PRIMARY KEY DEFAULT nextval('numbers'), body VARCHAR NOT NULL, how mood, "
        "price DECIMAL(10, 2), big HUGEINT, s STRUCT(a INTEGER, b VARCHAR[]), m MAP(VARCHAR, DOUBLE), n TIMESTAMP_NS, "
        "f FLOAT, instant TIMESTAMPTZ, u UUID, j JSON)",
        "INSERT INTO notes VALUES (7, 'a', 'ok', 1.5, 2::HUGEINT ** 70, {'a': 1, 'b': ['x', NULL]}, MAP {'k': 0.5}, "
        "'2020-01-02 03:04:05.123456789', 0.5, '2020-01-01 00:00:00+02', "
        "'00000000-0000-0000-0000-000000000005', '[1]')",
        "CREATE VIEW few AS SELECT id, body FROM notes",
    )
    notes = table("notes")
    schema = await backend.schema("notes")
    assert schema is not None
    assert schema.columns["s"] == "struct<a: int32, b: array<string>>"
    row = {
        "id": 7,
        "body": "a",
        "how": "ok",
        "price": Decimal("1.50"),
        "big": Decimal(2**70),
        "s": {"a": 1, "b": ["x", None]},
        "m": {"k": 0.5},
        "n": datetime(2020, 1, 2, 3, 4, 5, 123456),
        "f": 0.5,
        "instant": datetime(2019, 12, 31, 22, tzinfo=UTC),
        "u": UUID(int=5),
        "j": [1],
    }
    assert await read(backend, notes) == [tuple(row.values())]
    assert (await write(backend, notes.insert([{"body": "numbered"}, row | {"id": 20}]))).ids == [30, 20]
    assert await read(backend, notes.filter(notes.id == 20)) == [tuple((row | {"id": 20}).values())]
    changes = {name: value for name, value in row.items() if name != "id"}
    await write(backend, notes.update(changes, where=notes.id == 30))
    assert await read(backend, notes.filter(notes.id == 30)) == [tuple((row | {"id": 30}).values())]
    assert await read(backend, table("few").count()) == [(3,)]
    with pytest.raises(ConstraintError):
        await write(backend, notes.insert([{"how": "sad"}]))
    with pytest.raises(DuplicateKeyError):
        await write(backend, notes.insert([{"id": 8, "body": "x"}, {"id": 7, "body": "x"}]))
    assert await read(backend, notes.count()) == [(3,)]


async def test_nested_values_are_set_as_they_are(backend: SQLDataBackend) -> None:
    schema = TableSchema(
        "t",
        {
            "id": "int64",
            "m": "map<string, array<int64>>",
            "s": "struct<key: array<int64>, value: array<string>>",
            "a": "array<uuid>",
            "d": "array<decimal>",
        },
        ("id",),
    )
    async with backend.transaction() as tx:
        await backend.create_table(schema, tx)
    t = table("t")
    value = {
        "m": {"key": [1], "value": [2]},
        "s": {"key": [1], "value": ["x"]},
        "a": [UUID(int=1), None],
        "d": [Decimal("1E-30"), Decimal(5)],
    }
    await write(backend, t.insert([{"id": 1}, {"id": 2, **value}]))
    await write(backend, t.update(value, where=t.id == 1))
    assert await read(backend, t.order_by("id")) == [(1, *value.values()), (2, *value.values())]


async def test_a_table_without_a_key_is_read_but_not_updated(backend: SQLDataBackend, tmp_path: Path) -> None:
    run(tmp_path, "CREATE TABLE loose (a INT)", "INSERT INTO loose VALUES (1)")
    loose = table("loose")
    assert (await write(backend, loose.insert([{"a": 2}]))).ids == []
    assert sorted(await read(backend, loose)) == [(1,), (2,)]
    for bad in (loose.delete(where=loose.a == 1), loose.update({"a": 3}, where=True), loose.upsert([{"a": 1}])):
        with pytest.raises(QueryError, match="no primary key"):
            await write(backend, bad)


async def test_hostile_names_and_texts(backend: SQLDataBackend, tmp_path: Path) -> None:
    run(tmp_path, 'CREATE TABLE odd ("a""b" INTEGER PRIMARY KEY, "x; DROP TABLE odd" TEXT, "sel.ect?" REAL)')
    odd = table("odd")
    hostile = "'; DROP TABLE odd; -- ? \0 \\"
    await write(backend, odd.insert([{'a"b': 1, "x; DROP TABLE odd": hostile, "sel.ect?": 0.5}]))
    await write(backend, odd.update({"sel.ect?": 1.5}, where=odd["x; DROP TABLE odd"] == hostile))
    assert await read(backend, odd) == [(1, hostile, 1.5)]


async def test_decimals_are_exact_as_they_are_and_compare_as_numbers(backend: SQLDataBackend) -> None:
    t = table("t")
    values = [Decimal("9.50"), Decimal("10"), Decimal("-3.25")]
    await write(backend, t.insert([{"id": at, "d": each} for at, each in enumerate(values)]))
    assert await read(backend, t.order_by("d").select("d")) == [(values[2],), (values[0],), (values[1],)]
    assert await read(backend, t.filter(t.d.isin([Decimal("9.5")])).select("d")) == [(Decimal("9.50"),)]
    assert await read(backend, t.d.sum()) == [(Decimal("16.25"),)]


async def test_what_duckdb_cannot_run_is_a_query_error(backend: SQLDataBackend) -> None:
    t = table("t")
    await write(backend, t.insert([{"id": 1, "s": "x"}]))
    with pytest.raises(QueryError):
        await read(backend, t.mutate(n=t.s.cast("int64")))


# faults


async def test_a_constraint_half_way_leaves_nothing(backend: SQLDataBackend, tmp_path: Path) -> None:
    run(tmp_path, "CREATE TABLE c (id INTEGER PRIMARY KEY, n INTEGER CHECK (n < 50_000))")
    c = table("c")
    with pytest.raises(ConstraintError):
        await write(backend, c.insert([{"id": n, "n": n} for n in range(60_000)]))
    assert await read(backend, c.count()) == [(0,)]
    await write(backend, c.insert([{"id": 1, "n": 1}]))
    assert await read(backend, c.count()) == [(1,)]


async def test_what_is_cancelled_leaves_the_threads_usable(backend: SQLDataBackend) -> None:
    t = table("t")
    await write(backend, t.insert([{"id": n, "n": n} for n in range(20_000)]))

    async def insert(at: int) -> None:
        await write(backend, t.insert([{"id": 100_000 + at * 100 + n, "n": n} for n in range(100)]))

    async def stream() -> None:
        async for _ in backend.read(t, {}, size=10):
            await asyncio.sleep(0)

    async def slow() -> None:
        sql = "SELECT count(*) FROM t AS a, t AS b, t AS c WHERE a.n + b.n + c.n = 7"
        await backend.database.fetch(sql)  # type: ignore[attr-defined]

    tasks = [asyncio.create_task(make) for at in range(50) for make in (insert(at), stream(), slow(), read(backend, t))]
    for at, task in enumerate(tasks):
        task.cancel() if at % 2 else asyncio.get_running_loop().call_later(at / 1000, task.cancel)
    await asyncio.wait(tasks)
    assert all(each.cancelled() or each.exception() is None for each in tasks)
    count = (await read(backend, t.count()))[0][0]
    assert (count - 20_000) % 100 == 0
    await insert(60)
    assert await read(backend, t.count()) == [(count + 100,)]


async def test_closing_while_busy(tmp_path: Path) -> None:
    backend = SQLDataBackend(DuckDBDatabase(tmp_path / FILE), Datatypes(allow_pickle=False))
    await backend.open()
    t = table("t")
    await write(backend, t.insert([{"id": n} for n in range(20_000)]))
    reading = asyncio.create_task(
        backend.database.fetch("SELECT count(*) FROM t AS a, t AS b, t AS c WHERE a.id + b.id + c.id = 7")
    )
    writing = asyncio.create_task(write(backend, t.insert([{"id": n} for n in range(20_000, 40_000)])))
    stream = backend.read(t, {}, size=10)
    await anext(stream)
    await backend.aclose()
    results = await asyncio.gather(reading, writing, return_exceptions=True)
    assert isinstance(results[0], ClosedError)
    with pytest.raises(ClosedError):  # at once, or behind what was read ahead
        _ = [page async for page in stream]
    found = run(tmp_path, "SELECT count(*) FROM t")[0][0]
    assert found == (20_000 if isinstance(results[1], BaseException) else 40_000), results[1]


class Held(list[Any]):
    """Parameters that a statement is given when they are let go: it is on its thread, and has not begun."""

    def __init__(self) -> None:
        super().__init__([7])
        self.reached, self.go = threading.Event(), threading.Event()

    def __iter__(self) -> Iterator[Any]:
        self.reached.set()
        self.go.wait(60)
        return super().__iter__()


@pytest.mark.parametrize("how", ["cancelled", "closed"])
async def test_an_interrupt_before_a_statement_begins_is_not_lost(tmp_path: Path, how: str) -> None:
    backend = SQLDataBackend(DuckDBDatabase(tmp_path / FILE), Datatypes(allow_pickle=False))
    await backend.open()
    await write(backend, table("t").insert([{"id": n} for n in range(20_000)]))
    held = Held()
    endless = "SELECT count(*) FROM t AS a, t AS b, t AS c WHERE a.id + b.id + c.id = ?"
    reading = asyncio.create_task(backend.database.fetch(endless, held))
    await asyncio.to_thread(held.reached.wait)
    if how == "cancelled":
        reading.cancel()
        await asyncio.wait([reading])
        held.go.set()
        await backend.aclose()
    else:
        closing = asyncio.create_task(backend.aclose())
        asyncio.get_running_loop().call_later(0.05, held.go.set)
        await closing
        with pytest.raises(ClosedError):
            await reading


async def test_a_file_that_goes_behind_our_back(tmp_path: Path) -> None:
    backend = SQLDataBackend(DuckDBDatabase(tmp_path / FILE), Datatypes(allow_pickle=False))
    await backend.open()
    t = table("t")
    await write(backend, t.insert([{"id": 1}]))
    (tmp_path / FILE).unlink()
    with pytest.raises(StoreUnavailableError, match=FILE):
        await write(backend, t.insert([{"id": 2}]))
    with pytest.raises(StoreUnavailableError, match=FILE):
        await read(backend, t)
    await backend.aclose()


async def test_a_table_that_goes_behind_our_back(backend: SQLDataBackend, tmp_path: Path) -> None:
    t = table("t")
    await write(backend, t.insert([{"id": 1}]))
    run(tmp_path, "DROP TABLE t")
    with pytest.raises((TableNotFoundError, QueryError)):
        await write(backend, t.delete(where=t.id == 1))
    with pytest.raises((TableNotFoundError, QueryError)):
        await read(backend, t)


@pytest.mark.parametrize("content", [b"no database" * 500, b"x"])
async def test_what_is_no_database(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(StoreUnavailableError, match=FILE):
        await SQLDataBackend(DuckDBDatabase(tmp_path / FILE), Datatypes(allow_pickle=False)).open()


async def test_places_where_no_file_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / FILE):
        with pytest.raises(StoreUnavailableError):
            await DuckDBDatabase(path).open()


async def test_options(tmp_path: Path) -> None:
    database = DuckDBDatabase(tmp_path / FILE, {"threads": "1", "memory_limit": "200MB"})
    await database.open()
    assert await database.fetch("SELECT current_setting('threads')") == [(1,)]
    with pytest.raises(ConfigurationError):
        await DuckDBDatabase(tmp_path / FILE, {"threads": "2"}).open()
    await database.aclose()
    with pytest.raises(ConfigurationError, match="no_such"):
        await DuckDBDatabase(tmp_path / FILE, {"no_such": "1"}).open()


async def test_rows_stream_without_being_held(backend: SQLDataBackend) -> None:
    first = backend.database.stream("SELECT range FROM range(1000000000000)", size=1000)
    page = await anext(first)
    assert len(page) == 1000
    await first.aclose()  # type: ignore[attr-defined]


async def test_two_writers_of_one_process_take_turns(tmp_path: Path) -> None:
    one, two = (SQLDataBackend(DuckDBDatabase(tmp_path / FILE), Datatypes(allow_pickle=False)) for _ in range(2))
    await one.open()
    await two.open()
    t = table("t")
    await write(one, t.insert([{"id": 0, "n": 0}]))
    await asyncio.gather(*(write((one, two)[n % 2], t.update({"n": t.n + 1}, where=t.id == 0)) for n in range(40)))
    assert await read(two, t.select("n")) == [(40,)]
    await one.aclose()
    await two.aclose()
