"""The conformance suite of databackends: documents, each of which may have keys of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncdl.databackend.base import DataBackend
from asyncdl.databackend.tables import ANY, TableSchema
from asyncdl.errors import DatatypeError, QueryError
from asyncdl.testing.databackend_hooks import BackendHooks


class DocumentTests(BackendHooks):
    """Documents, of which no collection needs a declaration."""

    async def test_documents_of_a_collection_need_nothing_in_common(self, backend: DataBackend, tmp_path: Path) -> None:
        documents = [{"id": 1, "a": 1}, {"id": "1", "a": "one", "b": {"c": [1, "x"]}}, {"id": 2.5}]
        written = await self.insert(backend, "t", *documents)
        assert (written.ids, written.created) == ([1, "1", 2.5], None)
        assert self.raw(tmp_path, "t") == documents
        assert await self.read(backend, self.language.table("t")) == documents
        key = self.language.key
        assert await backend.schema("t") == TableSchema("t", {key: ANY}, (key,), open=True)

    async def test_what_is_not_there_has_no_documents(self, backend: DataBackend, other: DataBackend) -> None:
        assert await self.read(backend, self.language.table("t")) == []
        assert (await self.update(backend, "t", {"a": 1})).ids == []
        await self.insert(backend, "t", {"id": 1})
        assert await self.column(backend, "t", "nothing") == [None]
        await self.drop(other, "t")
        assert await self.read(backend, self.language.table("t")) == []
        assert (await self.delete(backend, "t")).ids == []

    async def test_what_is_declared_is_checked_and_what_is_not_is_kept(
        self, backend: DataBackend, tmp_path: Path
    ) -> None:
        await self.create(backend, TableSchema("t", {"id": "int64", "n": "int64"}, ("id",)))
        await self.insert(backend, "t", {"id": 1, "n": 1, "other": "x"})
        for bad in ({"id": 2, "n": "one"}, {"id": 2, "n": 2**63}, {"id": 2, "n": True}):
            with pytest.raises(DatatypeError, match=self.place.format(row=1, column="n")):
                await self.insert(backend, "t", {"id": 3}, bad)
        with pytest.raises(DatatypeError, match="'n'"):
            await self.update(backend, "t", {"n": "one"})
        assert self.raw(tmp_path, "t") == [{"id": 1, "n": 1, "other": "x"}]

    async def test_a_key_of_several_columns_cannot_be_declared(self, backend: DataBackend, tmp_path: Path) -> None:
        with pytest.raises(QueryError, match="_id"):
            await self.create(backend, TableSchema("t", {"a": "string", "b": "int64"}, ("a", "b")))
        assert "t" not in self.raw_tables(tmp_path)

    async def test_check_returns_the_key(self, backend: DataBackend) -> None:
        found = await backend.check(self.language.table("t"), {})
        assert (found.primary_key, found.open) == ((self.language.key,), True)
