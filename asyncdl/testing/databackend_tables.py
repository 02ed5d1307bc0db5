"""The conformance suite of databackends: tables, whose columns have datatypes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asyncdl.databackend.base import DataBackend
from asyncdl.databackend.tables import TableSchema
from asyncdl.datatypes import infer
from asyncdl.errors import (
    AsyncDLError,
    DatatypeError,
    InvalidIdentifierError,
    InvalidRowError,
    QueryError,
    TableNotFoundError,
    UnknownColumnError,
)
from asyncdl.testing.databackend_hooks import BackendHooks


class TableTests(BackendHooks):
    """Tables with columns of datatypes, made by the first row, which other rows must fit."""

    async def test_the_first_insert_makes_the_table(self, backend: DataBackend, tmp_path: Path) -> None:
        written = await self.insert(backend, "t", {"id": 1, "a": None}, {"id": 2, "b": "x"}, {"id": 3, "a": 1.5})
        assert written.created == TableSchema("t", {"id": "int64", "a": "float64", "b": "string"}, ("id",))
        assert written.ids == [1, 2, 3]
        assert await backend.schema("t") == written.created
        assert await backend.tables() == ["t"]
        assert [row["b"] for row in self.raw(tmp_path, "t")] == [None, "x", None]
        assert (await self.insert(backend, "t", {"id": 4})).created is None
        assert (await self.insert(backend, "t")).ids == []
        names = [names async for names, _ in backend.read(self.language.where("t", ("id", "<", 0)), {})]
        assert names == [("id", "a", "b")]

    async def test_a_rolled_back_table_has_no_columns(self, backend: DataBackend) -> None:
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is the transaction
            async with backend.transaction() as tx:
                await backend.write(self.language.insert("t", [{"id": 1, "a": "x"}]), {}, tx)
                raise ZeroDivisionError
        if not backend.atomic:
            assert await backend.schema("t") == TableSchema("t", {"id": "int64", "a": "string"}, ("id",))
            return
        assert await backend.schema("t") is None
        assert (await self.insert(backend, "t", {"id": "1", "a": 1})).created is not None

    async def test_a_table_that_another_process_dropped_is_missed(
        self, backend: DataBackend, other: DataBackend
    ) -> None:
        await self.insert(backend, "t", {"id": 1, "a": 1})
        assert await self.read(backend, self.language.table("t")) == [{"id": 1, "a": 1}]
        await self.drop(other, "t")
        with pytest.raises((TableNotFoundError, QueryError)):
            await self.read(backend, self.language.table("t"))

    async def test_composite_keys(self, backend: DataBackend) -> None:
        await self.create(backend, TableSchema("t", {"a": "string", "b": "int64", "v": "string"}, ("a", "b")))
        written = await self.insert(backend, "t", {"a": "x", "b": 1, "v": "p"}, {"a": "x", "b": 2, "v": "q"})
        assert written.ids == [("x", 1), ("x", 2)]
        written = await self.update(backend, "t", {"v": "z"}, ("b", "==", 2))
        assert written.ids == [("x", 2)]
        assert (await self.upsert(backend, "t", {"a": "x", "b": 1, "v": "y"})).ids == [("x", 1)]
        rows = await self.read(backend, self.language.table("t"))
        assert sorted(row["v"] for row in rows) == ["y", "z"]
        assert (await self.delete(backend, "t", ("b", "==", 1))).ids == [("x", 1)]
        with pytest.raises(InvalidRowError, match="'b'"):
            await self.insert(backend, "t", {"a": "x"})

    @pytest.mark.parametrize(
        ("rows", "error", "says"),
        [
            ([{"id": 7, "oops": 1}], UnknownColumnError, "oops"),
            ([{"id": 7, "txet": "x"}], UnknownColumnError, "did you mean 'text'"),
            ([{"id": "7"}], DatatypeError, "row 0, column 'id'"),
            ([{"id": 7, "a": 1}, {"id": 8, "a": "one"}], DatatypeError, "row 1, column 'a'"),
            ([{"id": 7, "a": True}], DatatypeError, "bool"),
            ([{"id": 7, "a": 2**63}], DatatypeError, "column 'a'"),
            ([{"id": 7, "a": 1.5}], DatatypeError, "column 'a'"),
            ([{"id": 7, "f": 2**53 + 1}], DatatypeError, "nearest"),
            ([{"id": 7, "f": "1.5"}], DatatypeError, "column 'f'"),
            ([{"id": 7, "text": b"x"}], DatatypeError, "bytes"),
        ],
    )
    async def test_a_row_that_does_not_fit_is_refused_before_anything_is_written(
        self, backend: DataBackend, tmp_path: Path, rows: list[Any], error: type[AsyncDLError], says: str
    ) -> None:
        await self.insert(backend, "t", {"id": 1, "a": 1, "f": 1.5, "text": "x"})
        before = self.raw(tmp_path, "t")
        with pytest.raises(error, match=says):
            await self.insert(backend, "t", *rows)
        assert self.raw(tmp_path, "t") == before

    @pytest.mark.parametrize(
        ("rows", "error"),
        [
            ([{"a": 1}, {"a": "x"}], DatatypeError),
            ([{"a": datetime(2020, 1, 1)}, {"a": datetime(2020, 1, 1, tzinfo=UTC)}], DatatypeError),
            ([{"id": [1], "a": 1}], DatatypeError),
            ([{"a": 1, "A": 2}], QueryError),
            ([{"x" * 300: 1}], InvalidIdentifierError),
            ([{'a"; DROP TABLE t; --': 1}], InvalidIdentifierError),
        ],
    )
    async def test_rows_that_cannot_make_a_table(
        self, backend: DataBackend, tmp_path: Path, rows: list[Any], error: type[AsyncDLError]
    ) -> None:
        with pytest.raises(error):
            await self.insert(backend, "t", *rows)
        assert "t" not in self.raw_tables(tmp_path)

    async def test_what_is_not_there_is_named(self, backend: DataBackend) -> None:
        await self.insert(backend, "documents", {"id": 1, "text": "x"})
        with pytest.raises(TableNotFoundError, match="did you mean 'documents'"):
            await self.read(backend, self.language.table("document"))
        with pytest.raises(TableNotFoundError):
            await self.update(backend, "document", {"a": 1})
        with pytest.raises(UnknownColumnError, match="did you mean 'text'"):
            await backend.check(self.language.pick("documents", "id", "txet"), {})
        with pytest.raises(UnknownColumnError, match="did you mean 'text'"):
            await self.update(backend, "documents", {"txet": 1})
        with pytest.raises(TableNotFoundError):
            await self.insert(backend, "nothing")

    async def test_check_returns_the_columns_and_the_key(self, backend: DataBackend) -> None:
        await self.insert(backend, "t", {"id": 1, "v": np.zeros(3, "float32"), "d": Decimal("1.5")})
        found = await backend.check(self.language.pick("t", "id", "v"), {})
        assert dict(found.columns) == {"id": "int64", "v": "vector(float32, 3)"}
        assert found.primary_key == ("id",)
        planned = {"later": TableSchema("later", {"id": "string", "x": "image"}, ("id",))}
        found = await backend.check(self.language.pick("later", "id", "x"), {}, planned)
        assert dict(found.columns) == {"id": "string", "x": "image"}

    async def test_inference_and_storage_agree(self, backend: DataBackend) -> None:
        values: Sequence[Any] = [1, 2.5, 2**40]
        assert infer(values) == "float64"
        await self.insert(backend, "t", *({"id": at, "v": each} for at, each in enumerate(values)))
        assert await self.column(backend, "t", "v") == [1.0, 2.5, float(2**40)]
