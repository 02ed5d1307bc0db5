from __future__ import annotations

from collections import UserDict
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from ibis import _
from query_catalog import Database

from asyncdl.databackend.requests import WriteRequest
from asyncdl.errors import InvalidRowError, QueryError
from asyncdl.query import Query, Write, table

t = table("docs")


def rows(write: Write) -> list[dict[str, Any]]:
    return [dict(row) for row in write.request().rows]


@pytest.mark.parametrize(
    "given",
    [
        {"id": 1, "text": "a"},
        [{"id": 1, "text": "a"}],
        ({"id": 1, "text": "a"},),
        iter([{"id": 1, "text": "a"}]),
        (row for row in [{"id": 1, "text": "a"}]),
        UserDict({"id": 1, "text": "a"}),
        pd.DataFrame({"id": [1], "text": ["a"]}),
        pd.DataFrame({"text": ["a"]}, index=pd.Index([1], name="id")),
        pa.table({"id": [1], "text": ["a"]}),
        pa.RecordBatch.from_pydict({"id": [1], "text": ["a"]}),
    ],
    ids=lambda given: type(given).__name__,
)
def test_rows_come_in_many_forms(given: Any) -> None:
    write = t.insert(given)
    assert rows(write) == [{"id": 1, "text": "a"}]
    assert (write.kind, write.table) == ("insert", "docs")


def test_rows_are_copies() -> None:
    row = {"id": 1}
    write = t.upsert([row])
    row["id"] = 2
    assert rows(write) == [{"id": 1}]
    assert write.request().kind == "upsert"


def test_no_rows_are_no_error() -> None:
    assert rows(t.insert([])) == []
    assert rows(t.insert(pd.DataFrame({"id": []}))) == []


async def _rows() -> AsyncIterator[dict[str, Any]]:
    yield {"id": 1}


@pytest.mark.parametrize(
    "given",
    [
        "text",
        b"bytes",
        3,
        None,
        [1],
        [{"id": 1}, ("id", 2)],
        {1: 2},
        [{"": 1}],
        [{None: 1}],
        t,
        _rows(),
        pd.DataFrame({1: [2]}),
        pd.DataFrame([[1, 2]], columns=["a", "a"]),
        pd.Series([1]),
        pa.table([[1], [2]], names=["a", "a"]),
    ],
    ids=lambda given: f"{type(given).__name__}",
)
def test_what_are_no_rows_is_refused(given: Any) -> None:
    with pytest.raises(InvalidRowError):
        t.insert(given)


def test_a_bad_row_is_named() -> None:
    with pytest.raises(InvalidRowError, match=r"row 1 is a builtins\.tuple"):
        t.insert([{"id": 1}, ("id", 2)])


def test_pandas_is_taken_exactly() -> None:
    when = datetime(2020, 1, 2, 3, 4, 5, 678901)
    frame = pd.DataFrame(
        {
            "big": np.array([2**60 + 1, 2**62 + 1]),
            "nullable": pd.array([2**60 + 1, None], dtype="Int64"),
            "unsigned": np.array([2**64 - 1, 0], dtype="uint64"),
            "float": [float("nan"), 1.5],
            "Float64": pd.array([0.1, None], dtype="Float64"),
            "flag": pd.array([True, None], dtype="boolean"),
            "text": pd.array(["a", None], dtype="string"),
            "object": pd.Series([Decimal("1.10"), float("nan")], dtype=object),
            "list": pd.Series([[1, None], None], dtype=object),
            "array": pd.Series([np.array([1.0, 2.0]), None], dtype=object),
            "when": pd.Series([when, None], dtype="datetime64[ns]"),
            "zoned": pd.Series([when.replace(tzinfo=UTC), None], dtype="datetime64[us, UTC]"),
            "span": pd.Series([timedelta(microseconds=3), None], dtype="timedelta64[ns]"),
            "category": pd.Categorical(["x", None]),
        }
    )
    first, second = rows(t.insert(frame))
    array = first.pop("array")
    assert array.tolist() == [1.0, 2.0]
    assert np.isnan(first.pop("float"))
    assert first == {
        "big": 2**60 + 1,
        "nullable": 2**60 + 1,
        "unsigned": 2**64 - 1,
        "Float64": 0.1,
        "flag": True,
        "text": "a",
        "object": Decimal("1.10"),
        "list": [1, None],
        "when": when,
        "zoned": when.replace(tzinfo=UTC),
        "span": timedelta(microseconds=3),
        "category": "x",
    }
    assert {
        name: type(value) for name, value in first.items() if name in {"big", "nullable", "flag", "when", "span"}
    } == {
        "big": int,
        "nullable": int,
        "flag": bool,
        "when": datetime,
        "span": timedelta,
    }
    assert second.pop("big") == 2**62 + 1
    assert second.pop("unsigned") == 0
    assert second.pop("float") == 1.5
    assert set(second.values()) == {None}


def test_nanoseconds_are_refused_and_not_cut() -> None:
    frame = pd.DataFrame({"when": pd.to_datetime(["2020-01-01T00:00:00.000000001"])})
    with pytest.raises(InvalidRowError, match="nanoseconds"):
        t.insert(frame)
    with pytest.raises(InvalidRowError, match="nanoseconds"):
        t.insert(pa.table({"when": pa.array([1], pa.timestamp("ns"))}))


def test_arrow_is_taken_exactly() -> None:
    when = datetime(2020, 1, 2, 3, 4, 5, 678901)
    given = pa.table(
        {
            "int": pa.array([2**60 + 1, None]),
            "float": pa.array([float("inf"), None]),
            "when": pa.array([when, None], pa.timestamp("ns")),
            "decimal": pa.array([Decimal("1.10"), None]),
            "struct": pa.array([{"a": [1]}, None]),
        }
    )
    found = rows(t.insert(given))
    assert found[0] == {
        "int": 2**60 + 1,
        "float": float("inf"),
        "when": when,
        "decimal": Decimal("1.10"),
        "struct": {"a": [1]},
    }
    assert type(found[0]["when"]) is datetime
    assert set(found[1].values()) == {None}


def test_updates(database: Database) -> None:
    write = t.update({"year": t.year + 1, "text": "new", "other": _.id}, where=_.year == 1999)
    request = write.request()
    assert isinstance(request, WriteRequest)
    assert (request.kind, request.table, request.changes["text"]) == ("update", "docs", "new")
    assert isinstance(request.where, Query)
    assert request.where.equals(t.filter(t.year == 1999))
    assert [row["id"] for row in database.rows(request.where)] == [1]
    assert request.changes["year"].equals(t.year + 1)
    assert request.changes["other"].equals(t.id)
    assert request.where.equals(t.update({"x": 1}, where=lambda x: x.year == 1999).request().where)


def test_literals_of_updates_stay_what_they_are() -> None:
    value = {"a": [1, float("nan")]}
    assert t.update({"x": value}, where=True).request().changes["x"] is value


def test_deletes() -> None:
    assert t.delete(where=True).request() == WriteRequest("delete", "docs")
    where = t.delete(where=t.id == 3).request().where
    assert isinstance(where, Query)
    assert where.equals(t.filter(t.id == 3))


@pytest.mark.parametrize("where", [None, False])
def test_everything_is_written_only_when_asked(where: Any) -> None:
    with pytest.raises(QueryError, match="where=True"):
        t.delete(where=where)
    with pytest.raises(QueryError, match="where=True"):
        t.update({"a": 1}, where=where)


@pytest.mark.parametrize("where", [3, "id = 3", t, t.filter(t.id == 3), {"id": 3}])
def test_conditions_are_expressions(where: Any) -> None:
    with pytest.raises(QueryError, match="condition"):
        t.delete(where=where)


@pytest.mark.parametrize("changes", [{}, None, [("a", 1)], {1: 2}])
def test_changes_are_a_dict(changes: Any) -> None:
    with pytest.raises(QueryError, match="dict of columns"):
        t.update(changes, where=True)


def test_only_tables_are_written() -> None:
    for query in (t.filter(t.id == 1), t.year, t.outputs("length")):
        for write in (
            lambda query=query: query.insert([]),
            lambda query=query: query.upsert([]),
            lambda query=query: query.update({"a": 1}, where=True),
            lambda query=query: query.delete(where=True),
        ):
            with pytest.raises(QueryError, match="asked of a table itself"):
                write()


def test_what_writes_read() -> None:
    write = t.update({"a": table("notes").id.max()}, where=t.id.isin(t.outputs("length").id))
    assert write.tables() == {"docs", "notes"}
    assert write.listeners() == {"length"}
    assert t.insert([]).tables() == {"docs"}


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (t.insert({"id": 1}), "docs.insert([{'id': 1}])"),
        (t.insert([{"id": each} for each in range(1000)]), "docs.insert(<1,000 rows>)"),
        (t.update({"year": t.year + 1}, where=t.id == 1), "docs.update({'year': docs.year + 1}, where=docs.id == 1)"),
        (t.delete(where=True), "docs.delete(where=True)"),
        (t.delete(where=t.id == 1), "docs.delete(where=docs.id == 1)"),
    ],
)
def test_writes_are_shown_short(write: Write, text: str) -> None:
    assert repr(write) == text
    assert len(repr(t.insert([{"a": "x" * 10_000}]))) < 200
