"""The databackend over ibis' connections: on Polars, which rewrites its tables, and by statements of standard SQL.

The latter are what Snowflake, BigQuery, Trino and others get, which no test can reach: they run here on ibis' own connection
to DuckDB.
"""

from __future__ import annotations

from datetime import time
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import pytest

import asyncdl
from asyncdl import Listener, Model
from asyncdl.databackend.base import DataBackend
from asyncdl.databackend.ibis import IbisDataBackend
from asyncdl.datatypes import Datatypes
from asyncdl.drivers.ibis import IbisDatabase
from asyncdl.errors import ConfigurationError, MissingDependencyError, QueryError, StoreError
from asyncdl.query import table
from asyncdl.schemes import KINDS
from asyncdl.testing.databackend_outputs import DataBackendTests
from asyncdl.testing.databackend_values import EXACT
from tests import models
from tests.conftest import rows_of

pytestmark = pytest.mark.anyio


class _OverIbis(DataBackendTests):
    as_text = (Decimal, time, bytes)


@pytest.mark.filterwarnings("ignore:fetch_:DeprecationWarning")  # ibis calls what DuckDB renames
class TestIbisDataBackendByStatements(_OverIbis):
    # ibis' compiler writes a zero as it is into the text of DuckDB's statements
    exact: ClassVar[dict[str, list[Any]]] = {
        **EXACT,
        "texts": [each for each in EXACT["texts"] if each is None or "\0" not in each],
    }

    def make_backend(self, where: Path, datatypes: Datatypes) -> IbisDataBackend:
        return IbisDataBackend(IbisDatabase(f"duckdb://{where}/rows.duckdb"), datatypes)

    async def test_fetching_by_odd_ids(self, backend: DataBackend) -> None:
        ids = ["", "'", "🙂", "a,b"]
        await self.insert(backend, "t", *({"id": each, "n": at} for at, each in enumerate(ids)))
        assert sorted(await backend.fetch(self.language.table("t"), {}, ["n"], ids[1:])) == sorted(
            zip(ids[1:], (1, 2, 3), strict=True)
        )
        with pytest.raises(QueryError):  # ibis' compiler writes a zero into the text of DuckDB's statement
            await backend.fetch(self.language.table("t"), {}, ["n"], ["a\0b"])

    def raw_tables(self, where: Path) -> set[str]:
        return {row[0] for row in run(where, "SELECT table_name FROM duckdb_tables()")}

    def raw_rows(self, where: Path, name: str) -> list[dict[str, Any]]:
        names = [row[0] for row in run(where, f"DESCRIBE {name}")]
        return [dict(zip(names, row, strict=True)) for row in run(where, f"SELECT * FROM {name} ORDER BY id")]


def run(where: Path, sql: str) -> list[tuple[Any, ...]]:
    import duckdb

    with duckdb.connect(where / "rows.duckdb") as raw:
        return raw.execute(sql).fetchall()


class TestIbisDataBackendOnPolars(_OverIbis):
    databases: dict[Path, IbisDatabase]

    @pytest.fixture(autouse=True)
    def _in_memory(self) -> None:
        self.databases = {}

    def make_backend(self, where: Path, datatypes: Datatypes) -> IbisDataBackend:
        database = self.databases.setdefault(where, IbisDatabase("polars://"))  # whose tables live in its connection
        return IbisDataBackend(database, datatypes)

    def _frames(self, where: Path) -> dict[str, Any]:
        return self.databases[where]._owner._raw._tables if self.databases[where]._owner else {}  # type: ignore[union-attr]

    def raw_tables(self, where: Path) -> set[str]:
        return set(self._frames(where))

    def raw_rows(self, where: Path, name: str) -> list[dict[str, Any]]:
        return self._frames(where)[name].collect().sort("id").to_dicts()


REACHED = {"clickhouse", "polars"}
KNOWN = [each for each in KINDS if each.databackend is IbisDataBackend and each.schemes[0] not in REACHED]


@pytest.mark.parametrize("kind", KNOWN, ids=lambda kind: kind.schemes[0])
async def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'asyncdl\[{kind.extra}\]'") as caught:
        await asyncdl.connect(kind.example)
    assert "password@" not in str(caught.value).replace("***", "")


async def test_a_story_on_polars() -> None:
    async with asyncdl.connect("polars://") as db:
        t = db["numbers"]
        await db.execute(t.insert([{"id": n, "x": n} for n in range(5)]))
        added = await db.add(Listener("doubled", model=Model("double", models.double), key="x", select=t))
        await added.wait()
        await (await db.execute(t.insert({"x": 9}))).wait()
        await (await db.execute(t.update({"x": t.x + 100}, where=t.id == 0))).wait()
        await (await db.execute(t.upsert([{"id": 1, "x": 7}]))).wait()
        await (await db.execute(t.delete(where=t.id == 2))).wait()
        found = await rows_of(db, t.outputs("doubled"))
        assert found == [(0, 100, 200), (1, 7, 14), (3, 3, 6), (4, 4, 8), (5, 9, 18)]


@pytest.mark.filterwarnings("ignore:fetch_:DeprecationWarning")
async def test_what_a_database_cannot_do_is_told(tmp_path: Path) -> None:
    backend = IbisDataBackend(IbisDatabase(f"duckdb://{tmp_path}/rows.duckdb"), Datatypes(allow_pickle=False))
    run(tmp_path, "CREATE TABLE rows (id INTEGER, x INTEGER)")
    run(tmp_path, "INSERT INTO rows VALUES (1, 1)")
    run(tmp_path, "CREATE VIEW few AS SELECT * FROM rows")
    await backend.open()
    few = table("few")
    for write in (few.insert([{"id": 2, "x": 2}]), few.update({"x": 3}, where=few.id == 1), few.delete(where=True)):
        with pytest.raises((QueryError, StoreError), match=r"rows\.duckdb"):
            async with backend.transaction() as tx:
                await backend.write(write.request(), {}, tx)
    assert run(tmp_path, "SELECT * FROM rows") == [(1, 1)]
    await backend.aclose()


async def test_an_address_that_ibis_cannot_use() -> None:
    with pytest.raises(ConfigurationError, match="no_such"):
        await IbisDatabase("polars://?no_such=1").open()
