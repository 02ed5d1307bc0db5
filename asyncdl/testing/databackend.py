"""The conformance suite of databackends: rows, queries and writes.

Derive a class named ``Test...`` from `asyncdl.testing.databackend_outputs.DataBackendTests`, or for a databackend of documents
from `DocumentBackendTests` there, implement the hooks, and pytest runs the suites against your databackend. It needs
hypothesis, and the pytest plugin of anyio, on asyncio.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from asyncdl.databackend.base import DataBackend
from asyncdl.datatypes import Datatypes
from asyncdl.errors import (
    AsyncDLError,
    ClosedError,
    DatatypeError,
    DuplicateKeyError,
    InvalidIdentifierError,
    InvalidRowError,
    QueryError,
    TableNotFoundError,
)
from asyncdl.testing.databackend_hooks import BackendHooks


class RowTests(BackendHooks):
    """Rows, queries and writes, wherever they are."""

    async def test_use_before_open_and_after_close_is_refused(self, tmp_path: Path, datatypes: Datatypes) -> None:
        backend = self.make_backend(tmp_path, datatypes)
        await backend.aclose()
        for _ in range(2):
            with pytest.raises(ClosedError):
                await backend.tables()
            with pytest.raises(ClosedError):
                await self.read(backend, self.language.table("t"))
            await backend.open()
            assert await backend.tables() == []
            await backend.aclose()
            await backend.aclose()

    async def test_ids_are_made_in_order(self, backend: DataBackend) -> None:
        ids: list[Any] = []
        for _ in range(3):
            ids += (await self.insert(backend, "t", *({"a": at} for at in range(100)))).ids
        assert ids == sorted(set(ids))
        assert {type(each) for each in ids} == {self.language.generated}
        assert await self.ids(backend, self.language.table("t")) == ids

    async def test_a_rolled_back_table_is_not_there(self, backend: DataBackend, tmp_path: Path) -> None:
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is the transaction
            async with backend.transaction() as tx:
                await backend.write(self.language.insert("t", [{"id": 1, "a": "x"}]), {}, tx)
                await backend.write(self.language.insert("t", [{"id": 2, "a": "y"}]), {}, tx)
                raise ZeroDivisionError
        assert await backend.tables() == []
        assert "t" not in self.raw_tables(tmp_path)
        await self.insert(backend, "t", {"id": "1", "a": 1})
        assert await self.read(backend, self.language.table("t")) == [{"id": "1", "a": 1}]

    async def test_a_table_that_another_process_replaced_is_seen(
        self, backend: DataBackend, other: DataBackend
    ) -> None:
        await self.insert(backend, "t", {"id": 1, "a": 1})
        assert await self.read(backend, self.language.table("t")) == [{"id": 1, "a": 1}]
        await self.drop(other, "t")
        await self.insert(other, "t", {"id": "x", "b": 1.5})
        assert await self.read(backend, self.language.table("t")) == [{"id": "x", "b": 1.5}]
        await self.drop(other, "t")
        assert await backend.tables() == await other.tables() == []

    async def test_rows_come_in_the_order_that_is_asked_for(self, backend: DataBackend) -> None:
        await self.insert(backend, "t", *({"id": at, "n": at * 7 % 10} for at in range(10)))
        rows = await self.read(backend, self.language.ordered("t", "n", descending=True, limit=3))
        assert [(row["id"], row["n"]) for row in rows] == [(7, 9), (4, 8), (1, 7)]
        rows = await self.read(backend, self.language.ordered("t", "n", descending=False, limit=2))
        assert [row["n"] for row in rows] == [0, 1]
        assert await self.read(backend, self.language.pick("t", "n")) == [{"n": at * 7 % 10} for at in range(10)]
        keys = await self.read(backend, self.language.keys("t"))
        assert sorted(keys, key=lambda row: row["id"]) == [{"id": at} for at in range(10)]

    async def test_an_upsert_replaces_only_what_its_rows_name(self, backend: DataBackend) -> None:
        await self.insert(backend, "t", {"id": 1, "a": 1, "b": "x"}, {"id": 2, "a": 2, "b": "y"})
        written = await self.upsert(backend, "t", {"id": 1, "a": 10}, {"id": 2, "b": "z"}, {"id": 3, "a": 3})
        assert written.ids == [1, 2, 3]
        assert await self.column(backend, "t", "a") == [10, 2, 3]
        assert await self.column(backend, "t", "b") == ["x", "z", None]

    async def test_update_and_delete_return_the_ids(self, backend: DataBackend) -> None:
        await self.insert(backend, "t", *({"id": at, "a": at} for at in range(6)))
        written = await self.update(backend, "t", {"a": 0}, ("a", ">", 3))
        assert sorted(written.ids) == [4, 5]
        assert await self.column(backend, "t", "a") == [0, 1, 2, 3, 0, 0]
        written = await self.delete(backend, "t", ("a", "==", 0))
        assert sorted(written.ids) == [0, 4, 5]
        assert await self.ids(backend, self.language.table("t")) == [1, 2, 3]
        assert (await self.update(backend, "t", {"a": 0}, ("a", ">", 9))).ids == []
        assert (await self.delete(backend, "t", ("a", ">", 9))).ids == []
        with pytest.raises(QueryError, match="primary key"):
            await self.update(backend, "t", {"id": 2})
        assert sorted((await self.delete(backend, "t")).ids) == [1, 2, 3]

    @pytest.mark.parametrize(
        ("rows", "error", "says"),
        [
            ([{"id": 1}], DuplicateKeyError, "the key"),
            ([{"id": 7, "a": 1}, {"id": 7, "a": 2}], DuplicateKeyError, "(row|document)s 0 and 1"),
            ([{"id": None}], InvalidRowError, "(row 0|_id None)"),
            ([{"id": 7, "text": "\ud800"}], DatatypeError, "surrogate"),
            (["id"], InvalidRowError, "(row|document) 0"),
            ([{1: 2}], InvalidRowError, "(column|key) 1"),
        ],
    )
    async def test_a_bad_row_is_refused_before_anything_is_written(
        self, backend: DataBackend, tmp_path: Path, rows: list[Any], error: type[AsyncDLError], says: str
    ) -> None:
        await self.insert(backend, "t", {"id": 1, "a": 1, "f": 1.5, "text": "x"})
        before = self.raw(tmp_path, "t")
        with pytest.raises(error, match=self.key_in_errors if says == "the key" else says):
            await self.insert(backend, "t", *rows)
        assert self.raw(tmp_path, "t") == before

    @pytest.mark.parametrize("name", ["", "a b", "a/b", 'a"b', "x" * 300, "🙂", "_asyncdl_events", "a;b"])
    async def test_hostile_table_names_are_refused(self, backend: DataBackend, tmp_path: Path, name: str) -> None:
        before = self.raw_tables(tmp_path)
        with pytest.raises((InvalidIdentifierError, TableNotFoundError)):
            await self.insert(backend, name, {"a": 1})
        assert self.raw_tables(tmp_path) == before

    async def test_unusual_column_names_work(self, backend: DataBackend) -> None:
        row = {"id": 1, "select": 1, "größe": 2.5, "a b-c": "x", "日本": True, "0": None}
        await self.insert(backend, "t", row)
        assert await self.read(backend, self.language.table("t")) == [row]
        assert await self.ids(backend, self.language.where("t", ("a b-c", "==", "x"))) == [1]

    async def test_concurrent_writers_and_readers(self, backend: DataBackend, other: DataBackend) -> None:
        await self.insert(backend, "t", {"id": 0, "who": "first"})

        async def insert(at: int) -> None:
            await self.insert(backend if at % 2 else other, "t", {"id": at, "who": str(at)})

        async def look() -> int:
            return len(await self.read(backend, self.language.table("t")))

        async with asyncio.TaskGroup() as group:
            for at in range(1, 61):
                group.create_task(insert(at))
            counts = [group.create_task(look()) for _ in range(30)]
        assert all(1 <= each.result() <= 61 for each in counts)
        assert await self.ids(other, self.language.table("t")) == list(range(61))

    async def test_reading_streams_in_batches(self, backend: DataBackend) -> None:
        await self.insert(backend, "t", *({"id": at} for at in range(2500)))
        sizes = [len(rows) async for _, rows in backend.read(self.language.table("t"), {}, size=1000)]
        assert sizes == [1000, 1000, 500]
        empty = [rows async for _, rows in backend.read(self.language.where("t", ("id", "<", 0)), {})]
        assert empty == [[]]
