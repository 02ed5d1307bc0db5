"""The SQL databackend on MariaDB, or on MySQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from asyncdl.databackend.sql import SQLDataBackend
from asyncdl.datatypes import Datatypes
from asyncdl.drivers.mysql import MySQLDatabase
from asyncdl.errors import ConstraintError, DuplicateKeyError, InvalidRowError, QueryError, StoreError
from asyncdl.query import table
from asyncdl.testing.databackend_outputs import WORDS, DataBackendTests, Output
from tests.mysql import Server

pytestmark = pytest.mark.anyio

Run = Callable[..., list[Any]]


class TestSQLDataBackendOnMySQL(DataBackendTests):
    every_float = False
    key_in_errors = "PRIMARY"

    @pytest.fixture(autouse=True)
    def _server(self, mysql: Server) -> None:
        self.server = mysql

    def make_backend(self, where: Path, datatypes: Datatypes) -> SQLDataBackend:
        return SQLDataBackend(MySQLDatabase(self.server.url(where)), datatypes)

    def raw_tables(self, where: Path) -> set[str]:
        return {next(iter(row.values())) for row in self.server.run("SHOW TABLES", url=self.server.url(where))}

    def raw_rows(self, where: Path, table: str) -> list[dict[str, Any]]:
        return self.server.run(f"SELECT * FROM `{table}`", url=self.server.url(where))


@pytest.fixture
def run(mysql: Server, tmp_path: Path) -> Run:
    return lambda sql: mysql.run(sql, url=mysql.url(tmp_path))


@pytest.fixture
async def backend(mysql: Server, tmp_path: Path) -> AsyncIterator[SQLDataBackend]:
    backend = SQLDataBackend(MySQLDatabase(mysql.url(tmp_path)), Datatypes(allow_pickle=False))
    await backend.open()
    yield backend
    await backend.aclose()


async def write(backend: SQLDataBackend, what: Any) -> Any:
    async with backend.transaction() as tx:
        return await backend.write(what.request(), {}, tx)


async def read(backend: SQLDataBackend, query: Any) -> list[tuple[Any, ...]]:
    return [row async for _, rows in backend.read(query, {}) for row in rows]


# tables that other programs made


@pytest.mark.parametrize("kind", ["INT", "BIGINT UNSIGNED", "SMALLINT"])
async def test_numbered_tables_of_other_programs(backend: SQLDataBackend, run: Run, kind: str) -> None:
    run(f"CREATE TABLE notes (id {kind} AUTO_INCREMENT PRIMARY KEY, body TEXT NOT NULL)")
    run("INSERT INTO notes (body) VALUES ('theirs'), ('theirs too')")
    notes = table("notes")
    assert (await write(backend, notes.insert([{"body": "a"}, {"body": "b"}]))).ids == [3, 4]
    assert (await write(backend, notes.insert([{"body": "c"}, {"body": "mine", "id": 20}]))).ids == [21, 20]
    run("INSERT INTO notes (body) VALUES ('theirs again')")  # their numbers go on behind ours
    assert sorted(row[0] for row in await read(backend, notes.select("id"))) == [1, 2, 3, 4, 20, 21, 22]
    with pytest.raises(ConstraintError):
        await write(backend, notes.insert([{"body": None}]))
    with pytest.raises(DuplicateKeyError):
        await write(backend, notes.insert([{"id": 1, "body": "x"}]))


async def test_concurrent_writers_get_numbers_of_their_own(backend: SQLDataBackend, run: Run) -> None:
    run("CREATE TABLE notes (id INT AUTO_INCREMENT PRIMARY KEY, body TEXT)")
    written = await asyncio.gather(
        *(write(backend, table("notes").insert([{"body": f"{n}"}, {"body": f"{n}"}])) for n in range(20))
    )
    assert sorted(each for one in written for each in one.ids) == list(range(1, 41))


async def test_columns_with_server_defaults(backend: SQLDataBackend, run: Run) -> None:
    run(
        "CREATE TABLE events (id INT PRIMARY KEY, kind VARCHAR(10) NOT NULL DEFAULT 'plain', n INT, "
        "at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, twice INT GENERATED ALWAYS AS (n * 2) STORED)"
    )
    events = table("events")
    await write(backend, events.insert([{"id": 1, "n": 1}, {"id": 2, "n": 2, "kind": "odd"}, {"id": 3, "n": None}]))
    assert await read(backend, events.order_by("id").select("kind", "n", "twice")) == [
        ("plain", 1, 2),
        ("odd", 2, 4),
        ("plain", None, None),
    ]
    assert all(each.tzinfo is UTC for (each,) in await read(backend, events.select("at")))
    assert (await write(backend, events.update({"n": 5}, where=events.id == 1))).ids == [1]


async def test_a_composite_key_of_another_program(backend: SQLDataBackend, run: Run) -> None:
    run("CREATE TABLE pairs (b INT, a VARCHAR(10), v DOUBLE, PRIMARY KEY (a, b))")
    pairs = table("pairs")
    assert (await backend.schema("pairs")).primary_key == ("a", "b")  # type: ignore[union-attr]
    written = await write(backend, pairs.insert([{"a": "x", "b": n, "v": n / 2} for n in range(20)]))
    assert written.ids == [("x", n) for n in range(20)]
    assert await backend.fetch(pairs, {}, ["v"], [("x", 3), ("no", 1)]) == [("x", 3, 1.5)]
    assert sorted((await write(backend, pairs.delete(where=pairs.b > 17))).ids) == [("x", 18), ("x", 19)]
    both = [{"a": "x", "b": 1, "v": 9.0}, {"a": "x", "b": 1, "v": 8.0}]
    assert len((await write(backend, pairs.upsert(both))).ids) == 1
    assert await read(backend, pairs.filter(pairs.b == 1).select("v")) == [(8.0,)]
    with pytest.raises(InvalidRowError):
        await write(backend, pairs.insert({"a": "y"}))
    with pytest.raises(StoreError, match="too long"):
        await write(backend, pairs.insert({"a": "a text that is too long", "b": 1}))


async def test_types_of_other_programs(backend: SQLDataBackend, run: Run) -> None:
    run(
        "CREATE TABLE odd (id VARCHAR(20) CHARACTER SET latin1 PRIMARY KEY, m ENUM('sad', 'glad'), n DECIMAL(10, 2), "
        "y YEAR, u INT UNSIGNED, b BOOLEAN, c CHAR(3))"
    )
    row = {"id": "é", "m": "glad", "n": Decimal("1.50"), "y": 1999, "u": 2**32 - 1, "b": True, "c": "abc"}
    odd = table("odd")
    await write(backend, odd.insert([row]))
    await write(backend, odd.upsert([row | {"m": "sad"}]))
    assert await read(backend, odd.filter(odd.id == "é")) == [tuple((row | {"m": "sad"}).values())]
    with pytest.raises(StoreError):
        await write(backend, odd.insert({"id": "x", "m": "angry"}))


async def test_a_table_without_a_key_is_read_but_not_updated(backend: SQLDataBackend, run: Run) -> None:
    run("CREATE TABLE loose (a INT)")
    loose = table("loose")
    assert (await write(backend, loose.insert([{"a": 2}]))).ids == []
    assert await read(backend, loose) == [(2,)]
    for bad in (loose.delete(where=loose.a == 1), loose.update({"a": 3}, where=True), loose.upsert([{"a": 1}])):
        with pytest.raises(QueryError, match="no primary key"):
            await write(backend, bad)


async def test_an_upsert_never_changes_a_row_with_another_key(backend: SQLDataBackend, run: Run) -> None:
    run("CREATE TABLE people (id INT PRIMARY KEY, email VARCHAR(50) UNIQUE, n INT)")
    run("INSERT INTO people VALUES (1, 'a', 1)")
    people = table("people")
    with pytest.raises(ConstraintError):
        await write(backend, people.upsert([{"id": 2, "email": "a", "n": 2}]))
    assert await read(backend, people) == [(1, "a", 1)]


# what MySQL does in its own way


async def test_texts_with_what_sql_escapes(backend: SQLDataBackend) -> None:
    t, texts = table("t"), ["a\0b", "\\", "\\'", "'; --", "%s", "a ", "A", "a"]
    await write(backend, t.insert([{"id": at, "s": each} for at, each in enumerate(texts)]))
    for at, each in enumerate(texts):
        assert await read(backend, t.filter(t.s == each).select("id")) == [(at,)]


async def test_concurrent_updates_lose_nothing(backend: SQLDataBackend, mysql: Server, tmp_path: Path) -> None:
    other = SQLDataBackend(MySQLDatabase(mysql.url(tmp_path)), Datatypes(allow_pickle=False))
    await other.open()
    t = table("t")
    await write(backend, t.insert([{"id": at, "n": 0} for at in range(5)]))
    await asyncio.gather(
        *(write((backend, other)[at % 2], t.update({"n": t.n + 1}, where=t.id < 3)) for at in range(30)),
        *(write((backend, other)[at % 2], t.upsert([{"id": 4, "n": 7}, {"id": 3, "n": 8}])) for at in range(10)),
    )
    assert await read(backend, t.order_by("id").select("n")) == [(30,), (30,), (30,), (8,), (7,)]
    await other.aclose()


async def test_setting_columns_to_expressions(backend: SQLDataBackend) -> None:
    t = table("t")
    await write(backend, t.insert([{"id": at, "n": at, "value": 0.5, "s": "x"} for at in range(4)]))
    written = await write(backend, t.update({"n": t.n + 10, "value": t.n, "s": t.s.upper()}, where=t.id > 1))
    assert sorted(written.ids) == [2, 3]
    assert (await read(backend, t.order_by("id")))[1:3] == [(1, 1, 0.5, "x"), (2, 12, 2.0, "X")]
    await write(backend, t.update({"n": t.n - t.n.max()}, where=True))
    assert await read(backend, t.order_by("id").select("n")) == [(-13,), (-12,), (-1,), (0,)]


async def test_what_is_computed_has_the_type_that_ibis_says(backend: SQLDataBackend) -> None:
    t = table("t")
    await write(backend, t.insert([{"id": at, "n": at, "f": at / 2, "s": "ü", "d": Decimal(at)} for at in range(4)]))
    query = t.aggregate(total=t.n.sum(), mean=t.n.mean(), count=t.count(), top=t.s.max(), decimals=t.d.sum())
    [row] = await read(backend, query)
    assert row == (6, 1.5, 4, "ü", Decimal(6))
    assert [type(each) for each in row] == [int, float, int, str, Decimal]
    found = await read(backend, t.limit(1).select(a=t.s.length(), b=t.s.startswith("ü"), c=t.s + "\\"))
    assert found == [(1, True, "ü\\")]


async def test_an_older_list_never_overwrites_a_newer_one_beside_it(backend: SQLDataBackend) -> None:
    await write(backend, table("t").insert([{"id": 1}]))

    async def put(as_of: int) -> None:
        values = [f"{as_of}.{at}" for at in range(as_of % 5 + 1)]
        await DataBackendTests.put(None, backend, WORDS, Output((1,), values), as_of=as_of, replaced=[1])  # type: ignore[arg-type]

    await asyncio.gather(*map(put, range(1, 21)))
    assert await backend._fetch("SELECT value FROM `_outputs_words` ORDER BY position") == [("20.0",)]
