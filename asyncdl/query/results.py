"""What a query returns when it is executed: a cursor over its rows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from asyncdl.errors import ClosedError, QueryError
from asyncdl.query.frames import to_arrow, to_pandas

if TYPE_CHECKING:
    import pandas
    import pyarrow

Page = tuple[tuple[str, ...], list[tuple[Any, ...]]]
"""Column names, and some rows."""


class Cursor:
    """The rows of an executed query, read once.

    ``async for row in cursor`` streams them as dicts; `to_list`, `to_pandas` and `to_arrow` collect them. The database's own
    cursor is let go when the last row was read, by `aclose` (or ``async with``), and when the cursor is dropped.

    Parameters
    ----------
    pages
        Column names with rows, as `DataBackend.read` yields them. Nothing is read before it is asked for.
    columns
        The names of the columns, where they are known beforehand.
    """

    __slots__ = ("_closed", "_columns", "_exhausted", "_pages", "_read", "_rows", "_taken")

    def __init__(self, pages: AsyncIterator[Page], columns: Sequence[str] = ()) -> None:
        self._pages: AsyncIterator[Page] | None = pages
        self._columns = tuple(columns)
        self._rows: Sequence[tuple[Any, ...]] = ()
        self._taken = 0
        self._read = False
        self._closed = False
        self._exhausted = False

    @classmethod
    async def open(cls, pages: AsyncIterator[Page]) -> Self:
        """Return a cursor over pages such as `DataBackend.read` yields, after its first page has come.

        So what is wrong with a query is raised here, and not where its rows are read.
        """
        cursor = cls(pages)
        await cursor._turn()
        return cursor

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns; empty before the first page, unless they were given."""
        return self._columns

    def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        self._begin()
        return _Rows(self)

    async def to_list(self) -> list[dict[str, Any]]:
        """Return all rows."""
        return [self._shown(row) for row in await self._collect()]

    async def first(self) -> dict[str, Any] | None:
        """Return the first row, None if there is none, and close the cursor."""
        self._begin()
        try:
            row = await self._next()
        finally:
            await self.aclose()
        return None if row is None else self._shown(row)

    async def scalar(self) -> Any:
        """Return the only value of the only row, and close the cursor.

        Raises
        ------
        QueryError
            There are more or fewer rows or columns.
        """
        self._begin()
        try:
            row = await self._next()
            more = row is not None and await self._next() is not None
        finally:
            await self.aclose()
        if row is None or more or len(row) != 1:
            rows = "no" if row is None else "several" if more else "one"
            raise QueryError(
                f"scalar() needs one row of one column; there are {rows} rows of {len(self._columns)} columns"
            )
        return row[0]

    async def to_pandas(self) -> pandas.DataFrame:
        """Return all rows as a DataFrame, with every value kept exactly.

        Integers are ``int64``, with nulls among them ``Int64``, and beyond 64 bits Python's own; texts, dates, decimals, lists
        and arrays are Python's own objects. Converted in a thread.
        """
        return await asyncio.to_thread(to_pandas, self._columns, await self._collect())

    async def to_arrow(self) -> pyarrow.Table:
        """Return all rows as an Arrow table; converted in a thread.

        Raises
        ------
        DatatypeError
            A column holds values that have no common type in Arrow.
        """
        return await asyncio.to_thread(to_arrow, self._columns, await self._collect())

    async def aclose(self) -> None:
        """Let go of the database's cursor; what was not read is lost. Closing twice is allowed."""
        self._closed = True
        self._rows = ()
        pages, self._pages = self._pages, None
        if pages is not None:
            await _close(pages)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _shown(self, row: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self._columns, row, strict=True))

    def __repr__(self) -> str:
        state = "closed" if self._closed else "being read" if self._read else "unread"
        return f"<Cursor of {', '.join(self._columns) or 'no columns'}: {state}>"

    def __iter__(self) -> Any:
        raise TypeError("a cursor is asynchronous: `async for row in cursor`, or `await cursor.to_list()`")

    def _begin(self) -> None:
        if self._read:
            raise ClosedError(
                "a cursor is read once, and this one has been; execute the query again, or keep to_list()"
            )
        if self._closed:
            raise ClosedError("this cursor is closed; execute the query again")
        self._read = True

    async def _next(self) -> Sequence[Any] | None:
        """Return the next row, None after the last."""
        while self._taken >= len(self._rows):
            if not await self._turn():
                return None
        self._taken += 1
        return self._rows[self._taken - 1]

    async def _turn(self) -> bool:
        """Go on to the next page; whether there is one."""
        if self._exhausted:
            return False
        if self._pages is None:
            raise ClosedError("this cursor was closed while it was read")
        try:
            page = await anext(self._pages, None)
        except BaseException:
            await self.aclose()
            raise
        if page is None:
            self._exhausted = True
            await self.aclose()
            return False
        self._columns, self._rows = page
        self._taken = 0
        return True

    async def _collect(self) -> list[tuple[Any, ...]]:
        self._begin()
        rows = list(self._rows)
        while await self._turn():
            rows += self._rows
        return rows


class _Rows(AsyncIterator[dict[str, Any]]):
    """One pass over a cursor. It keeps the cursor alive, and nothing keeps it alive: no generator is left open."""

    __slots__ = ("_cursor",)

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor

    async def __anext__(self) -> dict[str, Any]:
        row = await self._cursor._next()
        if row is None:
            raise StopAsyncIteration
        return self._cursor._shown(row)


class DocumentCursor(Cursor):
    """The documents of an executed query, read once: as a `Cursor`, but that each has keys of its own."""

    __slots__ = ()

    def _shown(self, row: Any) -> dict[str, Any]:
        return row  # type: ignore[no-any-return]

    async def value(self) -> Any:
        """Return the only value of a query that gives one."""
        ((value,),) = await self._collect()
        return value

    async def to_pandas(self) -> pandas.DataFrame:
        """Return all documents as a DataFrame, with a column for each key that one of them has."""
        columns, rows = _table_of(await self._collect())
        return await asyncio.to_thread(to_pandas, columns, rows)

    async def to_arrow(self) -> pyarrow.Table:
        """Return all documents as an Arrow table, with a column for each key that one of them has; ObjectIds as texts."""
        columns, rows = _table_of(await self._collect())
        rows = [tuple(str(each) if type(each).__name__ == "ObjectId" else each for each in row) for row in rows]
        return await asyncio.to_thread(to_arrow, columns, rows)


def _table_of(documents: Sequence[Any]) -> tuple[list[str], list[tuple[Any, ...]]]:
    columns = list(dict.fromkeys(name for each in documents for name in each))
    return columns, [tuple(each.get(name) for name in columns) for each in documents]


async def first_row(pages: AsyncIterator[Page]) -> Any:
    """Return the first row of the first page, as it is, or None, and let go of the pages: of a query that gives one."""
    try:
        _, rows = await anext(pages)
    finally:
        await _close(pages)
    return rows[0] if rows else None


async def _close(pages: AsyncIterator[Page]) -> None:
    close = getattr(pages, "aclose", None)
    if close is not None:
        await close()
