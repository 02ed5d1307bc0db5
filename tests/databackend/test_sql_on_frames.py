"""The SQL databackend on a folder of Parquet files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import asyncdl
from asyncdl import Listener, Model
from asyncdl.databackend.sql import SQLDataBackend
from asyncdl.datatypes import Datatypes
from asyncdl.drivers.frames import FramesDatabase
from asyncdl.errors import QueryError, StoreError, StoreUnavailableError, TableNotFoundError
from asyncdl.testing.databackend_outputs import DataBackendTests
from tests import models
from tests.conftest import rows_of

pytestmark = pytest.mark.anyio


class TestSQLDataBackendOnFrames(DataBackendTests):
    def make_backend(self, where: Path, datatypes: Datatypes) -> SQLDataBackend:
        return SQLDataBackend(FramesDatabase(where), datatypes)

    def raw_tables(self, where: Path) -> set[str]:
        return {path.stem for path in [*where.glob("*.parquet"), *where.glob(".asyncdl/tables/*.parquet")]}

    def raw_rows(self, where: Path, table: str) -> list[dict[str, Any]]:
        return pq.read_table(where / f"{table}.parquet").to_pylist()


def connect(folder: Path) -> Any:
    return asyncdl.connect(f"frames://{folder}", artifact_store=f"filesystem://{folder / '.asyncdl' / 'artifacts'}")


async def test_what_comes_and_goes_is_followed(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [0, 1, 2], "x": [0, 10, 20]}), tmp_path / "numbers.parquet")  # another program's
    for life in range(2):
        async with connect(tmp_path) as db:
            t = db["numbers"]
            added = await db.add(Listener("doubled", model=Model("double", models.double), key="x", select=t))
            await added.wait()
            if life == 0:
                await (await db.execute(t.insert({"id": 3, "x": 5}))).wait()
                await (await db.execute(t.update({"x": t.x + 1}, where=t.id == 0))).wait()
                await (await db.execute(t.upsert([{"id": 1, "x": 7}, {"id": 4, "x": 8}]))).wait()
                await (await db.execute(t.delete(where=t.id == 2))).wait()
            assert await rows_of(db, t.outputs("doubled")) == [(0, 1, 2), (1, 7, 14), (3, 5, 10), (4, 8, 16)]
    assert sorted(os.listdir(tmp_path)) == [".asyncdl", "numbers.parquet"]


async def test_a_file_that_changes_behind_our_back(tmp_path: Path) -> None:
    async with connect(tmp_path) as db:
        t = db["t"]
        await db.execute(t.insert([{"id": 1, "x": 1}]))
        pq.write_table(pa.table({"id": [1, 2], "x": [1, 2]}), tmp_path / "t.parquet")
        assert await rows_of(db, t) == [(1, 1), (2, 2)]
        (tmp_path / "t.parquet").write_bytes(b"broken")
        with pytest.raises(StoreError, match=r"t\.parquet"):
            await rows_of(db, t)
        (tmp_path / "t.parquet").unlink()
        with pytest.raises((QueryError, TableNotFoundError)):
            await rows_of(db, t)


async def test_renames_that_a_dead_process_left_are_finished(tmp_path: Path) -> None:
    async with connect(tmp_path) as db:
        await db.execute(db["a"].insert([{"id": 1}]))
        await db.execute(db["b"].insert([{"id": 1}]))
    (tmp_path / "a.parquet").rename(tmp_path / "a.new")
    (tmp_path / "b.parquet").rename(tmp_path / "b.new")
    (tmp_path / "b.new").rename(tmp_path / "b.parquet")
    (tmp_path / ".asyncdl/tables/journal.json").write_text('[["a", true], ["b", true]]')
    async with connect(tmp_path) as db:
        assert await rows_of(db, db["a"]) == await rows_of(db, db["b"]) == [(1,)]


async def test_a_place_where_no_folder_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailableError):
        await connect(tmp_path / "file")
