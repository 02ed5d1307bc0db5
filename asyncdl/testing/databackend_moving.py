"""The conformance suite of databackends: rows as they are, from one database into another."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from asyncdl.databackend.base import DataBackend
from asyncdl.databackend.tables import TableSchema
from asyncdl.datatypes import Datatypes
from asyncdl.errors import DatatypeError
from asyncdl.testing.databackend_values import ValueTests, same


class MovingTests(ValueTests):
    """`DataBackend.rows` and `DataBackend.put_rows`."""

    async def move(self, backend: DataBackend, rows: list[Mapping[str, Any]]) -> None:
        """Write rows as they are."""
        async with backend.transaction() as tx:
            await backend.put_rows("t", rows, tx)

    async def pages(self, backend: DataBackend, **options: Any) -> list[list[Any]]:
        """Return the keys of a table's rows, by page."""
        key = self.language.key
        return [[row[key] for row in page] async for page in backend.rows("t", **options)]

    async def test_rows_come_in_the_order_of_their_keys(self, backend: DataBackend) -> None:
        await self.insert(backend, "t", *({"id": at * 7919 % 2503, "n": at} for at in range(2503)))
        found = await self.pages(backend)
        assert [len(page) for page in found] == [1000, 1000, 503]
        assert list(chain.from_iterable(found)) == list(range(2503))
        found = await self.pages(backend, after=(2000,), size=100)
        assert list(chain.from_iterable(found)) == list(range(2001, 2503))
        assert await self.pages(backend, after=(2502,)) == []

    @pytest.mark.parametrize(
        "kind", ["integers", "booleans", "texts", "bytes", "decimals", "uuids", "nested", "vectors", "times"]
    )
    async def test_what_is_moved_is_what_it_was(
        self, backend: DataBackend, tmp_path: Path, datatypes: Datatypes, kind: str
    ) -> None:
        values = [self.comes_out(each) for each in self.exact[kind]]
        await self.insert(backend, "t", *({"id": at, "v": each} for at, each in enumerate(values)))
        schema = await backend.schema("t")
        assert schema is not None
        target = self.make_backend(tmp_path / "target", datatypes)
        (tmp_path / "target").mkdir()
        await target.open()
        try:
            await self.create(target, schema)
            for _ in range(2):  # again: what is there is replaced
                async for page in backend.rows("t", size=3):
                    await self.move(target, list(page))
            found = await self.column(target, "t", "v")
            assert all(same(one, other) for one, other in zip(values, found, strict=True)), found
            assert len(found) == len(values)
        finally:
            await target.aclose()

    async def test_what_is_there_is_replaced(self, backend: DataBackend) -> None:
        await self.insert(backend, "t", {"id": 1, "a": 1, "b": "x"}, {"id": 2, "a": 2, "b": "y"})
        key = self.language.key
        await self.move(backend, [{key: 2, "a": 20, "b": None}, {key: 3, "a": 30, "b": "z"}])
        assert await self.column(backend, "t", "a") == [1, 20, 30]
        assert await self.column(backend, "t", "b") == ["x", None, "z"]

    async def test_a_row_that_cannot_be_held_is_named(self, backend: DataBackend, tmp_path: Path) -> None:
        await self.create(backend, TableSchema("t", {"id": "int64", "a": "int64"}, ("id",)))
        key = self.language.key
        with pytest.raises(DatatypeError, match=r"7001.*'t'.*'a'.*str"):
            await self.move(backend, [{key: 7000, "a": 1}, {key: 7001, "a": "one"}])
        assert self.raw(tmp_path, "t") == []

    async def test_a_table_that_is_empty(self, backend: DataBackend) -> None:
        await self.create(backend, TableSchema("t", {"id": "int64", "a": "int64"}, ("id",)))
        assert await self.pages(backend) == []
        await self.move(backend, [])
        assert await self.pages(backend) == []
