"""What the conformance suites of databackends need to know of an implementation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from asyncdl.databackend.base import DataBackend
from asyncdl.databackend.requests import ReadQuery, Written
from asyncdl.databackend.tables import OutputTable, TableSchema
from asyncdl.datatypes import Datatypes
from asyncdl.testing.databackend_language import Condition, IbisLanguage, Language


class BackendHooks(ABC):
    """What the suites need to know of a backend."""

    pytestmark = pytest.mark.anyio

    language: Language = IbisLanguage()
    """How its queries and writes are said."""

    key_in_errors = "id"
    """How an error names the primary key ``id`` when a row with it exists already."""

    place = r"row {row}, column '{column}'"
    """How an error names a value among the rows of a write."""

    every_float = True
    """Whether floats hold NaN, infinities and the sign of zero.

    A database that does not refuses the former with `DatatypeError`; -0.0, which equals 0.0, may come out as that.
    """

    years = (1, 9999)
    """The first and the last year of dates and timestamps; a database that has not all refuses others with `DatatypeError`."""

    as_text: tuple[type, ...] = ()
    """The types of values that are stored as text, with which conditions are refused with `QueryError`."""

    @abstractmethod
    def make_backend(self, where: Path, datatypes: Datatypes) -> DataBackend:
        """Return a backend, not open yet; two for one folder are on the same data, as if of two processes."""

    @abstractmethod
    def raw_tables(self, where: Path) -> set[str]:
        """Return the names of all tables as the database itself shows them, past the code under test."""

    @abstractmethod
    def raw_rows(self, where: Path, table: str) -> list[dict[str, Any]]:
        """Return a table's rows as the database itself shows them; booleans and numbers compare with Python's."""

    @pytest.fixture
    def datatypes(self) -> Datatypes:
        """Return the datatypes; pickles are allowed."""
        return Datatypes(allow_pickle=True)

    @pytest.fixture
    async def backend(self, tmp_path: Path, datatypes: Datatypes) -> AsyncIterator[DataBackend]:
        """Yield an open backend."""
        backend = self.make_backend(tmp_path, datatypes)
        await backend.open()
        yield backend
        await backend.aclose()

    @pytest.fixture
    async def other(self, backend: DataBackend, tmp_path: Path, datatypes: Datatypes) -> AsyncIterator[DataBackend]:
        """Yield a second backend on the same data."""
        other = self.make_backend(tmp_path, datatypes)
        await other.open()
        yield other
        await other.aclose()

    def held(self, value: Any) -> Any:
        """Return a value, a date or timestamp moved into the years that the database holds."""
        if not isinstance(value, date) or self.years[0] <= value.year <= self.years[1]:
            return value
        year = self.years[0] + 1 if value.year < self.years[0] else self.years[1] - 1  # in every zone
        return value.replace(year=year, day=min(value.day, 28) if value.month == 2 else value.day)

    def comes_out(self, value: Any) -> Any:
        """Return what a value is read as that was written to a column of no declared datatype: itself, if it is held exactly."""
        return value

    async def write(self, backend: DataBackend, request: Any) -> Written:
        """Write in a transaction of its own."""
        async with backend.transaction() as tx:
            return await backend.write(request, {}, tx)

    async def insert(self, backend: DataBackend, table: str, *rows: Any) -> Written:
        """Insert rows."""
        return await self.write(backend, self.language.insert(table, rows))

    async def upsert(self, backend: DataBackend, table: str, *rows: Any) -> Written:
        """Insert rows, or change what they name."""
        return await self.write(backend, self.language.upsert(table, rows))

    async def update(
        self, backend: DataBackend, table: str, changes: Mapping[str, Any], where: Condition | None = None
    ) -> Written:
        """Update rows."""
        return await self.write(backend, self.language.update(table, changes, where))

    async def delete(self, backend: DataBackend, table: str, where: Condition | None = None) -> Written:
        """Delete rows."""
        return await self.write(backend, self.language.delete(table, where))

    async def create(self, backend: DataBackend, schema: TableSchema) -> None:
        """Create a table."""
        async with backend.transaction() as tx:
            await backend.create_table(schema, tx)

    async def drop(self, backend: DataBackend, table: str) -> None:
        """Drop a table."""
        async with backend.transaction() as tx:
            await backend.drop_table(table, tx)

    async def read(
        self, backend: DataBackend, query: ReadQuery, outputs: Mapping[str, OutputTable] | None = None
    ) -> list[dict[str, Any]]:
        """Return all that a query gives."""
        found: list[dict[str, Any]] = []
        async for names, rows in backend.read(query, outputs or {}):
            found += self.language.rows(names, rows)
        return found

    async def column(self, backend: DataBackend, table: str, name: str) -> list[Any]:
        """Return a column in the order of the ids; None where a row lacks it."""
        rows = await self.read(backend, self.language.table(table))
        return [row.get(name) for row in sorted(rows, key=lambda row: row["id"])]

    async def ids(self, backend: DataBackend, query: ReadQuery) -> list[Any]:
        """Return the ids that a query gives, sorted."""
        return sorted(row["id"] for row in await self.read(backend, query))

    def raw(self, where: Path, table: str) -> list[dict[str, Any]]:
        """Return a table's rows as the database itself shows them, as rows of the suites'."""
        rows = self.raw_rows(where, table)
        return self.language.rows((), rows) if self.language.key != "id" else rows
