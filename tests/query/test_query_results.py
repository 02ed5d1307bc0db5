from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from asyncdl.errors import ClosedError, DatatypeError, QueryError
from asyncdl.query import Cursor
from asyncdl.query.results import Page

pytestmark = pytest.mark.anyio


class Source:
    """Pages, and whether the generator that yields them was closed."""

    def __init__(
        self, *pages: list[tuple[Any, ...]], columns: tuple[str, ...] = ("id", "x"), fails: bool = False
    ) -> None:
        self.pages = pages
        self.columns = columns
        self.fails = fails
        self.given = 0
        self.closed = asyncio.Event()

    async def read(self) -> AsyncIterator[Page]:
        try:
            for page in self.pages:
                self.given += 1
                yield self.columns, page
            if self.fails:
                raise QueryError("the database broke")
        finally:
            self.closed.set()

    def cursor(self) -> Cursor:
        return Cursor(self.read(), self.columns)


async def test_streams_rows_as_dicts_page_by_page() -> None:
    source = Source([(1, "a"), (2, "b")], [], [(3, "c")])
    cursor = source.cursor()
    assert cursor.columns == ("id", "x")
    assert source.given == 0
    found = []
    async for row in cursor:
        found.append(row)
        assert source.given == (1 if len(found) < 3 else 3)
    assert found == [{"id": 1, "x": "a"}, {"id": 2, "x": "b"}, {"id": 3, "x": "c"}]
    assert source.closed.is_set()


async def test_open_reads_the_first_page_and_shows_errors() -> None:
    source = Source([(1, "a")])
    cursor = await Cursor.open(source.read())
    assert (source.given, cursor.columns) == (1, ("id", "x"))
    assert await cursor.to_list() == [{"id": 1, "x": "a"}]
    broken = Source(fails=True)
    with pytest.raises(QueryError, match="broke"):
        await Cursor.open(broken.read())
    assert broken.closed.is_set()


async def test_no_rows() -> None:
    assert await Source([]).cursor().to_list() == []
    assert await Source().cursor().first() is None
    assert (await Source([]).cursor().to_pandas()).columns.tolist() == ["id", "x"]
    assert (await Source([]).cursor().to_arrow()).schema.names == ["id", "x"]


async def test_first_and_scalar_close() -> None:
    source = Source([(1, "a")], [(2, "b")])
    assert await source.cursor().first() == {"id": 1, "x": "a"}
    assert source.closed.is_set()
    source = Source([(5,)], columns=("n",))
    assert await source.cursor().scalar() == 5
    assert source.closed.is_set()
    for bad in (Source([]), Source([(1, "a")]), Source([(1,)], [(2,)], columns=("n",)), Source([], columns=("n",))):
        with pytest.raises(QueryError, match="one row of one column"):
            await bad.cursor().scalar()
        assert bad.closed.is_set()


async def test_is_read_once() -> None:
    cursor = Source([(1, "a")]).cursor()
    await cursor.to_list()
    with pytest.raises(ClosedError, match="read once"):
        await cursor.to_list()
    with pytest.raises(ClosedError, match="read once"):
        aiter(cursor)
    with pytest.raises(TypeError, match="async for"):
        list(cursor)


async def test_a_closed_cursor_says_so() -> None:
    source = Source([(1, "a"), (2, "b")], [(3, "c")])
    async with source.cursor() as cursor:
        rows = aiter(cursor)
        assert await anext(rows) == {"id": 1, "x": "a"}
    assert source.closed.is_set()
    assert "closed" in repr(cursor)
    with pytest.raises(ClosedError, match="closed while"):
        await anext(rows)
    await cursor.aclose()
    unread = Source([(1, "a")]).cursor()
    await unread.aclose()
    with pytest.raises(ClosedError, match="is closed"):
        await unread.to_list()


async def test_an_error_on_the_way_closes() -> None:
    source = Source([(1, "a")], fails=True)
    rows = aiter(source.cursor())
    assert await anext(rows) == {"id": 1, "x": "a"}
    with pytest.raises(QueryError, match="broke"):
        await anext(rows)
    assert source.closed.is_set()


async def test_what_is_broken_off_and_dropped_is_closed() -> None:
    source = Source([(1, "a"), (2, "b")], [(3, "c")])
    async for row in source.cursor():
        assert row["id"] == 1
        break
    gc.collect()
    await asyncio.wait_for(source.closed.wait(), 10)
    assert source.given == 1


async def test_cancelling_closes() -> None:
    reached, closed = asyncio.Event(), asyncio.Event()

    async def read() -> AsyncIterator[Page]:
        try:
            reached.set()
            await asyncio.Event().wait()
            yield ("id",), []
        finally:
            closed.set()

    task = asyncio.create_task(Cursor(read()).to_list())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed.is_set()


WHEN = datetime(2020, 1, 2, 3, 4, 5, 678901)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([2**60 + 1, -(2**63)], "int64"),
        ([2**60 + 1, None], "Int64"),
        ([2**63, 1], "object"),
        ([2**70, None], "object"),
        ([True, False], "bool"),
        ([True, None], "boolean"),
        ([1, True], "object"),
        ([1, 1.5], "object"),
        ([1.5, None], "float64"),
        ([WHEN, None], "datetime64[us]"),
        ([WHEN.replace(tzinfo=UTC), None], "datetime64[us, UTC]"),
        ([WHEN, WHEN.replace(tzinfo=UTC)], "object"),
        (["a", None], "object"),
        ([None, None], "object"),
        ([date(2020, 1, 2), None], "object"),
        ([Decimal("1.10"), None], "object"),
        ([UUID(int=3), None], "object"),
        ([b"a", None], "object"),
        ([[1, 2], [3]], "object"),
        ([{"a": 1}, None], "object"),
        ([(1, 2), (3, 4)], "object"),
    ],
    ids=repr,
)
async def test_pandas_is_exact(values: list[Any], dtype: str) -> None:
    frame = await Source([(at, each) for at, each in enumerate(values)]).cursor().to_pandas()
    assert str(frame["x"].dtype) == dtype
    found = [None if each is pd.NaT or each is pd.NA else each for each in frame["x"].tolist()]
    if dtype == "float64":
        assert np.isnan(found.pop())
        values = values[:-1]
    assert found == values
    if dtype == "object":
        assert list(map(type, found)) == list(map(type, values))


async def test_nan_and_null_stay_apart_in_pandas() -> None:
    frame = await Source([(1, float("nan")), (2, None)]).cursor().to_pandas()
    assert np.isnan(frame["x"][0])
    assert frame["x"][1] is None
    floats = await Source([(1, float("nan")), (2, 1.0)]).cursor().to_pandas()
    assert str(floats["x"].dtype) == "float64"


async def test_arrays_stay_arrays_in_pandas() -> None:
    arrays = [np.array([[1, 2]]), np.array([[3, 4]])]
    frame = await Source(list(enumerate(arrays))).cursor().to_pandas()
    assert frame["x"][0] is arrays[0]
    assert frame["x"][1] is arrays[1]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([2**60 + 1, None], "int64"),
        ([2**64 - 1, None], "uint64"),
        ([2**70, -1], "decimal256(76, 0)"),
        ([1.5, None], "double"),
        ([float("nan"), None], "double"),
        (["a", None], "string"),
        ([None, None], "null"),
        ([WHEN, None], "timestamp[us]"),
        ([WHEN.replace(tzinfo=UTC)], "timestamp[us, tz=UTC]"),
        ([Decimal("1.10"), None], "decimal128(3, 2)"),
        ([b"a"], "binary"),
        ([UUID(int=3)], "string"),
        ([[1, 2], None], "list<item: int64>"),
        ([np.array([1.0, 2.0])], "list<item: double>"),
        ([np.array([[1.0], [2.0]])], "list<item: list<item: double>>"),
        ([{"a": 1}], "struct<a: int64>"),
    ],
    ids=repr,
)
async def test_arrow_has_the_type_of_the_values(values: list[Any], kind: str) -> None:
    found = await Source([(at, each) for at, each in enumerate(values)]).cursor().to_arrow()
    assert isinstance(found, pa.Table)
    assert str(found.schema.field("x").type) == kind
    plain = [
        str(each) if isinstance(each, UUID) else getattr(each, "tolist", lambda each=each: each)() for each in values
    ]
    assert repr(found["x"].to_pylist()) == repr([Decimal(each) for each in plain] if "256" in kind else plain) or (
        found["x"].to_pylist() == plain
    )


async def test_arrow_names_the_column_without_a_type() -> None:
    with pytest.raises(DatatypeError, match="'x'"):
        await Source([(1, "a"), (2, 3)]).cursor().to_arrow()
    with pytest.raises(DatatypeError, match="'x'"):
        await Source([(1, 10**80)]).cursor().to_arrow()
