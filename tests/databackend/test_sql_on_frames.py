"""The SQL databackend on a folder of Parquet and CSV files."""

from __future__ import annotations

import asyncio
import os
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

import asyncdl
from asyncdl import Listener, Model
from asyncdl.databackend.sql import SQLDataBackend
from asyncdl.datatypes import Datatypes
from asyncdl.drivers.frames import FramesDatabase
from asyncdl.drivers.frames_files import FileOperations
from asyncdl.errors import ConfigurationError, QueryError, StoreError, StoreUnavailableError, TableNotFoundError
from asyncdl.query import Query, table
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


class TestSQLDataBackendOnCSV(TestSQLDataBackendOnFrames):
    """The same, in files that do not say of what types their columns are."""

    def make_backend(self, where: Path, datatypes: Datatypes) -> SQLDataBackend:
        return SQLDataBackend(FramesDatabase(where, ".csv"), datatypes)

    def raw_tables(self, where: Path) -> set[str]:
        return {path.stem for path in [*where.glob("*.csv"), *where.glob(".asyncdl/tables/*.parquet")]}

    def raw_rows(self, where: Path, table: str) -> list[dict[str, Any]]:
        types = {
            "id": int,
            "a": lambda text: float(text) if "." in text else int(text),
            "n": float,
            "f": float,
            "yes": {"true": True, "false": False}.get,
        }
        lines = (where / f"{table}.csv").read_text().splitlines()
        names = [each.strip('"') for each in lines[0].split(",")]
        rows = [[each.strip('"') if each else None for each in line.split(",")] for line in lines[1:]]
        return [
            {name: None if each is None else types.get(name, str)(each) for name, each in zip(names, row, strict=True)}
            for row in rows
        ]


def connect(folder: Path, options: str = "") -> Any:
    return asyncdl.connect(
        f"frames://{folder}{options}", artifact_store=f"filesystem://{folder / '.asyncdl' / 'artifacts'}"
    )


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


async def test_csv_files_of_others_stay_csv(tmp_path: Path) -> None:
    (tmp_path / "numbers.csv").write_text("id,x,who,at\n1,0.5,ann,2020-01-01\n2,,,\n")
    pq.write_table(pa.table({"id": [1]}), tmp_path / "other.parquet")
    async with connect(tmp_path) as db:
        t = db["numbers"]
        assert await rows_of(db, t) == [(1, 0.5, "ann", date(2020, 1, 1)), (2, None, None, None)]
        await db.execute(t.insert([{"id": 3, "x": 0.1, "who": "", "at": None}]))
        await db.execute(db["other"].insert([{"id": 2}]))
        await db.execute(db["new"].insert([{"id": 1}]))
    assert sorted(each for each in os.listdir(tmp_path) if each != ".asyncdl") == [
        "new.parquet",
        "numbers.csv",
        "other.parquet",
    ]
    async with connect(tmp_path, "?format=csv") as db:
        t = db["numbers"]
        assert (await rows_of(db, t))[2] == (3, 0.1, "", None)
        assert (await db.databackend.schema("numbers")).primary_key == ("id",)
        await db.execute(db["newer"].insert([{"id": 1}]))
    assert (tmp_path / "newer.csv").exists()
    # a spreadsheet saves it in its own way, with another column
    (tmp_path / "numbers.csv").write_text("id,who,x,more\n1,0012,2,7\n")
    async with connect(tmp_path) as db:
        assert await rows_of(db, db["numbers"]) == [(1, "0012", 2.0, 7)]


async def test_csv_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b'id,x\n1,\xff\xfe\n"open\n')
    with pytest.raises(StoreUnavailableError, match=r"t\.csv"):
        await connect(tmp_path)
    (tmp_path / "t.csv").write_text("id\n1\n")
    pq.write_table(pa.table({"id": [1]}), tmp_path / "t.parquet")
    with pytest.raises(StoreUnavailableError, match=r"t\.parquet and t\.csv"):
        await connect(tmp_path)
    with pytest.raises(ConfigurationError, match="format"):
        connect(tmp_path, "?format=xlsx")


class Failing(FileOperations):
    """Fails at one operation; with ``stays``, at all that follow, too."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.stays = False
        self.failed = 0

    def _count(self) -> None:
        if self.left is None:
            return
        self.left -= 1
        if self.left == 0 or (self.left < 0 and self.stays):
            self.failed += 1
            raise OSError(28, "no space left, says the test")

    def write(self, path: Path, text: str) -> None:
        self._count()
        super().write(path, text)

    def flush(self, path: Path) -> None:
        self._count()
        super().flush(path)

    def rename(self, path: Path, to: Path) -> None:
        self._count()
        super().rename(path, to)

    def delete(self, path: Path) -> None:
        self._count()
        super().delete(path)


@pytest.mark.timeout(300)  # some sixty folders, each flushed to the disk
@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize("stays", [False, True])
async def test_a_fault_at_each_operation_on_files_loses_nothing(tmp_path: Path, suffix: str, stays: bool) -> None:
    """What was said to be written is, what was said not to be is not: at once, later, and after reopening."""
    told: list[bool] = []
    for at in range(1, 100):
        folder = tmp_path / str(at)
        files = Failing()
        backend = SQLDataBackend(FramesDatabase(folder, suffix, files), Datatypes(allow_pickle=False))
        await backend.open()
        await write(backend, table("a").insert([{"id": 1, "x": 0}]), table("b").insert([{"id": 1, "x": 0}]))
        files.left, files.stays = at, stays
        a, b = table("a"), table("b")
        try:
            await write(backend, a.update({"x": 1}, where=a.id == 1), b.update({"x": 1}, where=b.id == 1))
        except StoreUnavailableError:
            told.append(False)
        else:
            told.append(True)
        reached, files.left = files.failed > 0, None
        expected = [(1, int(told[-1]))]
        assert await read(backend, a) == await read(backend, b) == expected
        await backend.aclose()
        backend = SQLDataBackend(FramesDatabase(folder, suffix), Datatypes(allow_pickle=False))
        await backend.open()
        assert await read(backend, a) == await read(backend, b) == expected
        await write(backend, a.insert([{"id": 2, "x": 2}]))
        assert sorted(await read(backend, a)) == [*expected, (2, 2)]
        await backend.aclose()
        if not reached:
            break
    assert not reached
    assert not told[0]
    assert told[-2:] == [True, True]  # the last that failed was behind the decision, and in no one's way
    assert told == sorted(told)


async def test_who_waits_to_write_reads_what_others_have_written(tmp_path: Path) -> None:
    one, other = (SQLDataBackend(FramesDatabase(tmp_path), Datatypes(allow_pickle=False)) for _ in range(2))
    await one.open()
    await other.open()
    a = table("a")
    await write(one, a.insert([{"id": 1, "x": 0}]))
    await write(other, a.insert([{"id": 2, "x": 0}]))
    with FileLock(tmp_path / ".asyncdl" / "tables" / "lock"):  # as another process that writes
        waits = asyncio.create_task(write(one, a.insert([{"id": 3, "x": 0}])))
        await asyncio.sleep(0.1)
        reads = asyncio.create_task(read(one, a))
        await asyncio.sleep(0.1)
    assert {key for key, _ in await reads} >= {1, 2}
    await waits
    assert {key for key, _ in await read(other, a)} == {1, 2, 3}
    await one.aclose()
    await other.aclose()


async def test_what_a_killed_process_had_decided_is_what_others_read(tmp_path: Path) -> None:
    files = Failing()
    killed, other = (
        SQLDataBackend(FramesDatabase(tmp_path, operations=each), Datatypes(allow_pickle=False))
        for each in (files, None)
    )
    await killed.open()
    await other.open()
    a = table("a")
    await write(killed, a.insert([{"id": 1, "x": 0}]))
    assert await read(other, a) == [(1, 0)]
    # a new file flushed, two folders flushed, the journal written, flushed, renamed, and its folder flushed
    files.left, files.stays = 8, True
    await write(killed, a.update({"x": 1}, where=True))
    assert files.failed
    assert await read(other, a) == [(1, 1)]
    await killed.aclose()
    await other.aclose()


async def write(backend: SQLDataBackend, *queries: Any) -> None:
    async with backend.transaction() as tx:
        for query in queries:
            await backend.write(query.request(), {}, tx)


async def read(backend: SQLDataBackend, query: Query) -> list[tuple[Any, ...]]:
    return [row async for _, rows in backend.read(query, {}) for row in rows]


async def test_a_folder_that_nobody_may_write_into_any_more(tmp_path: Path) -> None:
    backend = SQLDataBackend(FramesDatabase(tmp_path / "rows"), Datatypes(allow_pickle=False))
    await backend.open()
    await write(backend, table("a").insert([{"id": 1, "x": 0}]))
    (tmp_path / "rows" / "a.new").mkdir()  # also for root, whom no permission stops
    with pytest.raises(StoreError):
        await write(backend, table("a").insert([{"id": 2, "x": 0}]))
    assert await read(backend, table("a")) == [(1, 0)]
    (tmp_path / "rows" / "a.new").rmdir()
    await write(backend, table("a").insert([{"id": 2, "x": 0}]))
    assert len(await read(backend, table("a"))) == 2
    await backend.aclose()
