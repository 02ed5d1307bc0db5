"""The SQL databackend on SQLite."""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from asyncdl.databackend.requests import WriteRequest
from asyncdl.databackend.sql import SQLDataBackend
from asyncdl.datatypes import Datatypes
from asyncdl.drivers.sqlite import SQLiteDatabase
from asyncdl.errors import ConstraintError, DatatypeError, DuplicateKeyError, QueryError, TableNotFoundError
from asyncdl.query import fn, table
from asyncdl.testing.databackend_outputs import LENGTH, WORDS, DataBackendTests

pytestmark = pytest.mark.anyio
FILE = "rows.db"


def run(where: Path, *statements: str) -> list[Any]:
    with closing(sqlite3.connect(where / FILE, isolation_level=None)) as connection:
        return [connection.execute(each).fetchall() for each in statements][-1]


class TestSQLDataBackendOnSQLite(DataBackendTests):
    def make_backend(self, where: Path, datatypes: Datatypes) -> SQLDataBackend:
        return SQLDataBackend(SQLiteDatabase(where / FILE), datatypes)

    def raw_tables(self, where: Path) -> set[str]:
        return {row[0] for row in run(where, "SELECT name FROM sqlite_master WHERE type = 'table'")}

    def raw_rows(self, where: Path, table: str) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(where / FILE)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(f'SELECT * FROM "{table}"')]


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[SQLDataBackend]:
    backend = SQLDataBackend(SQLiteDatabase(tmp_path / FILE), Datatypes(allow_pickle=False))
    await backend.open()
    yield backend
    await backend.aclose()


async def write(backend: SQLDataBackend, what: Any) -> Any:
    async with backend.transaction() as tx:
        return await backend.write(what.request() if hasattr(what, "request") else what, {}, tx)


async def read(backend: SQLDataBackend, query: Any) -> list[tuple[Any, ...]]:
    return [row async for _, rows in backend.read(query, {}) for row in rows]


# tables that other programs made


async def test_a_table_of_another_program_is_read_and_written(backend: SQLDataBackend, tmp_path: Path) -> None:
    run(
        tmp_path,
        'CREATE TABLE notes (id INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT NOT NULL, "when" DATETIME, flag BOOL, x ANY)',
        "INSERT INTO notes VALUES (7, 'a', '2020-01-02T03:04:05', 1, x'00'), (8, 'b', 'soon', 'maybe', 1.5)",
        "DELETE FROM notes WHERE id = 8",
        "INSERT INTO notes VALUES (3, 'c', 'soon', 'maybe', 1.5)",
    )
    notes = table("notes")
    assert (await backend.schema("notes")).columns["when"] == "timestamp"
    assert await read(backend, notes.order_by("id")) == [
        (3, "c", "soon", "maybe", 1.5),
        (7, "a", datetime(2020, 1, 2, 3, 4, 5), True, b"\0"),
    ]
    written = await write(backend, notes.insert([{"body": "numbered"}, {"body": "too"}, {"body": "mine", "id": 20}]))
    assert written.ids == [21, 22, 20]
    assert await read(backend, notes.filter(notes.id > 8).select("id", "body")) == [
        (20, "mine"),
        (21, "numbered"),
        (22, "too"),
    ]
    with pytest.raises(ConstraintError):
        await write(backend, notes.insert([{"flag": True}]))
    with pytest.raises(DuplicateKeyError):
        await write(backend, notes.insert([{"id": 7, "body": "x"}]))


async def test_a_table_without_a_key_is_read_but_not_updated(backend: SQLDataBackend, tmp_path: Path) -> None:
    run(tmp_path, "CREATE TABLE loose (a INT)", "INSERT INTO loose VALUES (1)")
    loose = table("loose")
    assert (await write(backend, loose.insert([{"a": 2}]))).ids == []
    assert await read(backend, loose) == [(1,), (2,)]
    for bad in (loose.delete(where=loose.a == 1), loose.update({"a": 3}, where=True), loose.upsert([{"a": 1}])):
        with pytest.raises(QueryError, match="no primary key"):
            await write(backend, bad)


async def test_hostile_names_of_other_programs(backend: SQLDataBackend, tmp_path: Path) -> None:
    run(tmp_path, 'CREATE TABLE odd ("a""b" INTEGER PRIMARY KEY, "x; DROP TABLE odd" TEXT, [sel.ect] REAL)')
    odd = table("odd")
    await write(backend, odd.insert([{'a"b': 1, "x; DROP TABLE odd": "v", "sel.ect": 0.5}]))
    await write(backend, odd.update({"x; DROP TABLE odd": "w"}, where=odd['a"b'] == 1))
    assert await read(backend, odd) == [(1, "w", 0.5)]


async def test_a_column_added_by_another_program(backend: SQLDataBackend, tmp_path: Path) -> None:
    docs = table("docs")
    await write(backend, docs.insert([{"id": 1, "v": [1]}]))
    assert await read(backend, docs) == [(1, [1])]
    run(tmp_path, "ALTER TABLE docs ADD COLUMN extra INTEGER DEFAULT 5")
    assert await read(backend, docs) in ([(1, [1])], [(1, [1], 5)])  # its own process may have looked a moment ago
    await backend._catalog.refresh(force=True)
    assert await read(backend, docs) == [(1, [1], 5)]


# what SQLite cannot do, or does in its own way


async def test_nan_is_skipped_where_sql_would_take_it_for_zero(backend: SQLDataBackend) -> None:
    t, nan = table("t"), math.nan
    await write(backend, t.insert([{"id": 1, "f": nan}, {"id": 2, "f": 3.0}, {"id": 3, "f": None}]))
    assert await read(backend, t.f.mean()) == [(3.0,)]
    assert await read(backend, t.filter(t.f.isnan()).select("id")) == [(1,)]
    assert await read(backend, t.filter(t.f == nan).select("id")) == [(1,)]
    assert await read(backend, t.order_by("f").select("id")) == [(2,), (1,), (3,)]
    assert await read(backend, t.mutate(g=t.f * 2).select("g")) == [(None,), (6.0,), (None,)]


async def test_decimals_are_exact_as_they_are_and_compare_as_numbers(backend: SQLDataBackend) -> None:
    t = table("t")
    values = [Decimal("9.50"), Decimal("10"), Decimal("-3.25")]
    await write(backend, t.insert([{"id": at, "d": each} for at, each in enumerate(values)]))
    assert await read(backend, t.order_by("d").select("d")) == [(values[2],), (values[0],), (values[1],)]
    assert await read(backend, t.d.max()) == [(Decimal(10),)]
    assert await read(backend, t.filter(t.d.isin([Decimal("9.5")])).select("d")) == [(Decimal("9.50"),)]
    assert await read(backend, t.d.sum()) == [(Decimal("16.25"),)]


async def test_json_keeps_its_strings(backend: SQLDataBackend) -> None:
    t = table("t")
    await write(backend, t.insert([{"id": 1, "j": {"a": "123", "b": [1, "x"]}}]))
    assert await read(backend, t.select(a=t.j["a"], b=t.j["b"], c=t.j["b"][1])) == [("123", [1, "x"], "x")]


@pytest.mark.parametrize("make", [lambda t: t.f.median(), lambda t: t.mutate(x=t.s.levenshtein("a"))])
async def test_what_sqlite_cannot_run_is_a_query_error(backend: SQLDataBackend, make: Any) -> None:
    t = table("t")
    await write(backend, t.insert([{"id": 1, "f": 1.5, "s": "x"}]))
    with pytest.raises(QueryError):
        await read(backend, make(t))


async def test_setting_columns_to_expressions(backend: SQLDataBackend) -> None:
    t = table("t")
    await write(backend, t.insert([{"id": at, "n": at, "f": 0.5, "s": "x"} for at in range(4)]))
    written = await write(backend, t.update({"n": t.n + 10, "f": t.n, "s": t.s.upper()}, where=t.id > 1))
    assert sorted(written.ids) == [2, 3]
    assert await read(backend, t.order_by("id")) == [
        (0, 0, 0.5, "x"),
        (1, 1, 0.5, "x"),
        (2, 12, 2.0, "X"),
        (3, 13, 3.0, "X"),
    ]
    await write(backend, t.update({"n": t.n - t.n.max()}, where=True))
    assert await read(backend, t.order_by("id").select("n")) == [(-13,), (-12,), (-1,), (0,)]
    await write(backend, t.update({"n": t.n.min()}, where=t.id == 3))
    assert await read(backend, t.filter(t.id == 3).select("n")) == [(-13,)]
    with pytest.raises(DatatypeError, match="column 'n' is int64"):
        await write(backend, t.update({"n": t.s}, where=True))
    with pytest.raises(DatatypeError, match="column 'n'"):
        await write(backend, t.update({"n": "five"}, where=True))


# transactions and plans


async def test_a_table_made_and_used_in_one_transaction(backend: SQLDataBackend) -> None:
    t = table("t")
    async with backend.transaction() as tx:
        await backend.write(WriteRequest("insert", "t", rows=[{"id": 1, "a": 1}]), {}, tx)
        written = await backend.write(t.update({"a": t.a + 1}, where=t.id == 1).request(), {}, tx)
        assert written.ids == [1]
        await backend.drop_table("t", tx)
        with pytest.raises(TableNotFoundError):
            await backend.write(t.delete(where=True).request(), {}, tx)
        await backend.write(WriteRequest("insert", "t", rows=[{"id": "a", "b": 1}]), {}, tx)
    assert await read(backend, t) == [("a", 1)]


async def test_a_page_costs_what_its_rows_cost(backend: SQLDataBackend, tmp_path: Path) -> None:
    t = table("t")
    await write(backend, t.insert([{"id": 1, "text": "x", "n": 1}]))
    async with backend.transaction() as tx:
        await backend.create_outputs(LENGTH, tx)
        await backend.create_outputs(WORDS, tx)
    selects = [t, t.select("id", "text"), t.filter(t.n > 0).order_by("n"), t.rename(key="id")]
    selects += [t.outputs("length"), t.mutate(m=t.n + 1, u=fn.coalesce(t.text, ""))]
    outputs = {"length": LENGTH}
    for select in selects:
        await backend.scan(select, outputs, [], after=(0,), limit=5, missing=LENGTH)
    await backend.scan(t.outputs("words"), {"words": WORDS}, ["text"], after=(0, 0), limit=5, missing=None)
    statements = [page.sql for _, page in backend._pages._values.values()]
    assert len(statements) == len(selects) + 1
    for sql in statements:
        plan = [row[3] for row in run(tmp_path, f"EXPLAIN QUERY PLAN {sql.replace('?', '1')}")]
        assert re.match("SEARCH .* PRIMARY KEY", plan[0]), (sql, plan)
        assert not [each for each in plan if "TEMP B-TREE" in each or each.startswith(("SCAN", "MATERIALIZE"))], (
            sql,
            plan,
        )


async def test_pickles_are_refused_where_they_are_not_allowed(backend: SQLDataBackend) -> None:
    with pytest.raises(DatatypeError, match="pickle"):
        await write(backend, table("t").insert([{"id": 1, "v": object()}]))
    assert await backend.tables() == []


async def test_equal_queries_are_compiled_once(backend: SQLDataBackend) -> None:
    t = table("t")
    await write(backend, t.insert([{"id": 1, "n": 1}]))
    for _ in range(3):
        fresh = table("t")
        await read(backend, fresh.filter(fresh.n > 0))
    assert len(backend._compiler._recent._values) == 1


async def test_functions_that_ibis_brings_along(tmp_path: Path) -> None:
    database = SQLiteDatabase(tmp_path / "app.db")
    backend = SQLDataBackend(database, Datatypes(allow_pickle=False))
    await backend.open()
    try:
        t = table("t")
        async with backend.transaction() as tx:
            rows = [{"id": n, "text": "ab" * n, "x": float(n)} for n in range(5)]
            await backend.write(t.insert(rows).request(), {}, tx)
        matching = t.filter(t.text.re_search("^(ab){2,3}$")).select("id", backwards=t.text.reverse())
        pages = [page async for _, page in backend.read(matching, {})]
        assert pages == [[(2, "baba"), (3, "bababa")]]
        deviation = [page async for _, page in backend.read(t.aggregate(s=t.x.var()), {})]
        assert deviation == [[(2.5,)]]
        async with backend.transaction() as tx:
            changed = t.update({"x": 9.0}, where=t.text.re_search("^(ab){3}$"))
            assert (await backend.write(changed.request(), {}, tx)).ids == [3]
    finally:
        await backend.aclose()
