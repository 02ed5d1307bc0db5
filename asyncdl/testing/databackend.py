"""The conformance suite of databackends: rows, queries and writes; `DataBackendTests` adds a listener's work.

Derive a class named ``Test...`` from `DataBackendTests`, implement its hooks, and pytest runs the suite against your
databackend. It needs hypothesis, and the pytest plugin of anyio, on asyncio.
"""

from __future__ import annotations

import asyncio
import math
import struct
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncdl.databackend.base import DataBackend, OutputTable, ReadQuery, TableSchema, WriteKind, WriteRequest, Written
from asyncdl.datatypes import Datatypes, infer
from asyncdl.errors import (
    AsyncDLError,
    ClosedError,
    DatatypeError,
    DuplicateKeyError,
    InvalidIdentifierError,
    InvalidRowError,
    QueryError,
    TableNotFoundError,
    UnknownColumnError,
)

EAST = timezone(timedelta(hours=5, minutes=30))
NAN = struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000000))[0]

EXACT: dict[str, list[Any]] = {
    "integers": [2**60 + 1, -(2**63), 2**63 - 1, 0, None],
    "floats": [NAN, math.inf, -math.inf, -0.0, 0.1, 5e-324, 1.7976931348623157e308, None],
    "booleans": [True, False, None],
    "texts": ["", "a\0b", "naïve 🙂 日本語 \U0010ffff", "'; DROP TABLE rows; --", '"quoted"', "NaN", " x ", None],
    "bytes": [b"", b"\0\xff'", bytes(range(256)), None],
    "decimals": [Decimal("0.10"), Decimal("-1E+30"), Decimal("12345678901234567890.123456789"), Decimal("1E-20"), None],
    "timestamps": [datetime(1, 1, 1), datetime.max, datetime(2020, 2, 29, 1, 2, 3, 4), datetime(2020, 1, 1), None],
    "instants": [datetime(2020, 1, 1, 2, 3, 4, 5, tzinfo=EAST), datetime(1, 1, 2, tzinfo=UTC), None],
    "dates": [date.min, date.max, date(2024, 2, 29), None],
    "times": [time.min, time.max, time(1, 2, 3), None],
    "intervals": [timedelta(0), timedelta(days=-3, microseconds=1), timedelta(days=100_000_000), None],
    "uuids": [UUID(int=0), UUID(int=2**128 - 1), None],
    "nested": [{"a": [1, {"b": None}], "": "x"}, [], {}, [[2**70, 1.5, True]], {"$": "no tag"}, ("a", 1), None],
    "vectors": [np.arange(3, dtype="float32"), np.array([math.nan, -0.0, math.inf], "float32"), None],
    "arrays": [np.zeros((0, 2)), np.array("x"), np.ones((2, 1, 3), "complex64"), np.array([True]), None],
    "nothing": [None, None],
}
"""Values that come out as they went in, by kind: each list is a column."""

_integers = st.integers(-(2**63), 2**63 - 1)
_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _texts | st.binary(max_size=5) | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=6,
)
_dtypes = st.sampled_from(["int8", "uint64", "float16", "float64", "complex128", "bool", "<U3", "S2", "datetime64[ns]"])
_arrays = st.builds(
    lambda dtype, shape, seed: (
        np.frombuffer(np.random.default_rng(seed).bytes(4096), "u1")[: math.prod(shape)]
        .astype("u1")
        .reshape(shape)
        .astype(dtype)
    ),
    _dtypes,
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.integers(0, 9),
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int64": _integers,
    "float64": st.floats(),
    "boolean": st.booleans(),
    "string": _texts,
    "binary": st.binary(max_size=20),
    "decimal": st.decimals(allow_nan=False, allow_infinity=False),
    "decimal(20, 4)": st.decimals(-(10**15), 10**15, places=4),
    "timestamp": st.datetimes(),
    "timestamp('UTC')": st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.sampled_from([UTC, EAST])),
    "date": st.dates(),
    "time": st.times(),
    "interval": st.timedeltas(timedelta(days=-(10**8)), timedelta(days=10**8)),
    "uuid": st.uuids(),
    "json": _json,
    "array<int64>": st.lists(st.none() | _integers, max_size=4),
    "struct<a: int64, b: string>": st.fixed_dictionaries({"a": st.none() | _integers, "b": _texts}),
    "map<string, float64>": st.dictionaries(_texts, st.floats(), max_size=3),
    "ndarray": _arrays,
    "vector(float64, 2)": st.lists(st.floats(), min_size=2, max_size=2).map(np.array),
    "pickle": st.complex_numbers() | st.frozensets(st.integers()),
}
"""Strategies for the values of each datatype."""


def same(one: Any, other: Any) -> bool:
    """Return whether two values are equal in every bit: of one type, NaN and the sign of zero included."""
    if isinstance(one, np.ndarray):
        fits = isinstance(other, np.ndarray) and one.dtype == other.dtype and one.shape == other.shape
        return fits and one.tobytes() == other.tobytes()
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other) or (one != one and other != other)  # noqa: PLR0124 - NaN
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, datetime) and one.tzinfo is not None:
        return one == other and other.tzinfo is not None
    return bool(one == other)


class BackendHooks(ABC):
    """What the suite needs to know of a backend."""

    pytestmark = pytest.mark.anyio

    key_in_errors = "id"
    """How an error names the primary key ``id`` when a row with it exists already."""

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

    @abstractmethod
    def table(self, name: str) -> ReadQuery:
        """Return the query for a whole table."""

    @abstractmethod
    def where(self, name: str, column: str, operator: str, value: Any) -> ReadQuery:
        """Return the query for rows by a condition: ``==``, ``>`` or ``<``."""

    @abstractmethod
    def pick(self, name: str, *columns: str) -> ReadQuery:
        """Return the query for some columns."""

    @abstractmethod
    def joined(self, name: str, *identifiers: str) -> ReadQuery:
        """Return the query for a table's rows with the outputs of listeners."""

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

    async def write(self, backend: DataBackend, kind: WriteKind, table: str, *rows: Any, **options: Any) -> Written:
        """Write in a transaction of its own."""
        async with backend.transaction() as tx:
            return await backend.write(WriteRequest(kind, table, rows=rows, **options), {}, tx)

    async def read(
        self, backend: DataBackend, query: ReadQuery, outputs: Mapping[str, OutputTable] | None = None
    ) -> list[dict[str, Any]]:
        """Return all that a query gives."""
        found: list[dict[str, Any]] = []
        async for names, rows in backend.read(query, outputs or {}):
            found.extend(dict(zip(names, row, strict=True)) for row in rows)
        return found

    def in_years(self, values: Sequence[Any]) -> list[Any]:
        """Return the values without dates that the database does not hold."""
        first, last = self.years
        return [each for each in values if not isinstance(each, date) or first <= each.year <= last]

    async def column(self, backend: DataBackend, table: str, name: str) -> list[Any]:
        """Return a column in the order of the ids."""
        rows = await self.read(backend, self.table(table))
        return [row[name] for row in sorted(rows, key=lambda row: row["id"])]

    async def ids(self, backend: DataBackend, query: ReadQuery) -> list[Any]:
        """Return the ids that a query gives, sorted."""
        return sorted(row["id"] for row in await self.read(backend, query))


class RowTests(BackendHooks):
    """Tables, rows and queries."""

    async def test_use_before_open_and_after_close_is_refused(self, tmp_path: Path, datatypes: Datatypes) -> None:
        backend = self.make_backend(tmp_path, datatypes)
        await backend.aclose()
        for _ in range(2):
            with pytest.raises(ClosedError):
                await backend.tables()
            with pytest.raises(ClosedError):
                await self.read(backend, self.table("t"))
            await backend.open()
            assert await backend.tables() == []
            await backend.aclose()
            await backend.aclose()

    # exactness

    @pytest.mark.parametrize("kind", EXACT)
    async def test_what_goes_in_comes_out(self, backend: DataBackend, kind: str) -> None:
        values = EXACT[kind]
        if kind == "floats" and not self.every_float:
            values = [each if each is None else each + 0.0 for each in values if each is None or math.isfinite(each)]
        values = self.in_years(values)
        await self.write(backend, "insert", "t", *({"id": at, "v": each} for at, each in enumerate(values)))
        found = await self.column(backend, "t", "v")
        assert all(same(one, other) for one, other in zip(values, found, strict=True)), found

    @pytest.mark.parametrize("datatype", VALUES)
    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def test_any_value_comes_out_as_it_went_in(self, datatype: str, data: Any) -> None:
        strategy = VALUES[datatype]
        if datatype == "float64" and not self.every_float:
            strategy = st.floats(allow_nan=False, allow_infinity=False).map(lambda value: value + 0.0)
        if self.years != (1, 9999) and datatype in {"date", "timestamp", "timestamp('UTC')"}:
            first, last = datetime(self.years[0], 1, 2), datetime(self.years[1], 12, 30)
            zones = st.just(UTC) if "UTC" in datatype else st.none()
            strategy = st.datetimes(first, last, timezones=zones)
            strategy = strategy.map(datetime.date) if datatype == "date" else strategy
        values = data.draw(st.lists(st.none() | strategy, max_size=20))
        schema = TableSchema("t", {"id": "int64", "v": datatype}, ("id",))

        async def there_and_back(where: Path) -> list[Any]:
            backend = self.make_backend(where, Datatypes(allow_pickle=True))
            await backend.open()
            try:
                async with backend.transaction() as tx:
                    await backend.create_table(schema, tx)
                    rows = [{"id": at, "v": each} for at, each in enumerate(values)]
                    await backend.write(WriteRequest("insert", "t", rows=rows), {}, tx)
                assert await backend.schema("t") == schema
                return await self.column(backend, "t", "v")
            finally:
                await backend.aclose()

        with TemporaryDirectory() as folder:
            found = asyncio.run(there_and_back(Path(folder)))
        assert all(same(one, other) for one, other in zip(values, found, strict=True)), found

    async def test_a_row_is_stored_where_other_programs_find_it(self, backend: DataBackend, tmp_path: Path) -> None:
        await self.write(backend, "insert", "t", {"id": 1, "text": "a", "n": 1.5, "yes": True, "none": None})
        assert self.raw_rows(tmp_path, "t") == [{"id": 1, "text": "a", "n": 1.5, "yes": True, "none": None}]

    async def test_images_are_lossless(self, backend: DataBackend) -> None:
        image = pytest.importorskip("PIL.Image")
        images = [image.effect_noise((5, 4), 50).convert(mode) for mode in ("1", "L", "RGB", "RGBA", "CMYK", "F", "I")]
        await self.write(backend, "insert", "t", *({"id": at, "v": each} for at, each in enumerate(images)))
        found = await self.column(backend, "t", "v")
        assert [(each.mode, each.tobytes()) for each in found] == [(each.mode, each.tobytes()) for each in images]

    async def test_a_registered_datatype_encodes_and_decodes(self, backend: DataBackend, datatypes: Datatypes) -> None:
        datatypes.register("reversed", lambda value: value[::-1].encode(), lambda data: data.decode()[::-1])
        async with backend.transaction() as tx:
            schema = TableSchema("t", {"id": "int64", "v": "datatype(reversed)"}, ("id",))
            await backend.create_table(schema, tx)
        await self.write(backend, "insert", "t", {"id": 1, "v": "abc"})
        assert await self.column(backend, "t", "v") == ["abc"]
        with pytest.raises(DatatypeError, match=r"row 0, column 'v'.*reversed"):
            await self.write(backend, "insert", "t", {"id": 2, "v": 3})

    # comparing

    @pytest.mark.parametrize(
        ("values", "pivot"),
        [
            ([1, 2, 2**60, 2**60 + 1], 2**60),
            ([-1.5, -0.0, 2.0, math.inf], 2.0),
            (["a", "b", "b\0", "ü"], "b"),
            ([Decimal("9.5"), Decimal("10.25"), Decimal(100), Decimal("-1")], Decimal("10.25")),
            ([datetime(2020, 1, 1), datetime(2020, 1, 1, 0, 0, 0, 1), datetime(999, 1, 1)], datetime(2020, 1, 1)),
            (
                [datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, 3, tzinfo=EAST)],
                datetime(2020, 1, 1, 5, 30, tzinfo=EAST),
            ),
            ([date(2020, 1, 1), date(900, 1, 1), date(2021, 1, 1)], date(2020, 1, 1)),
            ([time(1), time(1, 0, 0, 5), time(23)], time(1, 0, 0, 5)),
            ([False, True], True),
            ([b"a", b"b", b"\xff"], b"b"),
            ([UUID(int=1), UUID(int=2)], UUID(int=2)),
        ],
    )
    async def test_conditions_compare_as_values_do(self, backend: DataBackend, values: list[Any], pivot: Any) -> None:
        if not self.every_float:
            values = [9.5 if each == math.inf else each for each in values]
        values = self.in_years(values)
        await self.write(backend, "insert", "t", *({"id": at, "v": each} for at, each in enumerate([*values, None])))
        if isinstance(pivot, self.as_text):
            with pytest.raises(QueryError, match="not comparable"):
                await self.ids(backend, self.where("t", "v", "==", pivot))
            return
        assert await self.ids(backend, self.where("t", "v", "==", pivot)) == [
            at for at, v in enumerate(values) if v == pivot
        ]
        if not isinstance(pivot, (UUID, bytes)):
            expected = [at for at, v in enumerate(values) if v > pivot]
            assert await self.ids(backend, self.where("t", "v", ">", pivot)) == expected
            expected = [at for at, v in enumerate(values) if v < pivot]
            assert await self.ids(backend, self.where("t", "v", "<", pivot)) == expected

    async def test_dates_of_other_years_are_refused(self, backend: DataBackend) -> None:
        first, last = self.years
        if self.years == (1, 9999):
            return
        await self.write(backend, "insert", "t", {"id": 0, "d": date(2000, 1, 1), "t": datetime(2000, 1, 1)})
        for bad in ({"d": date(first - 1, 12, 31)}, {"d": date(last + 1, 1, 1)}, {"t": datetime(last + 1, 1, 1)}):
            with pytest.raises(DatatypeError, match=f"row 1.*{first} to {last}"):
                await self.write(backend, "insert", "t", {"id": 1}, {"id": 2, **bad})
        assert await self.ids(backend, self.table("t")) == [0]

    async def test_nan_is_found_and_is_not_smaller(self, backend: DataBackend) -> None:
        if not self.every_float:
            await self.write(backend, "insert", "t", {"id": 0, "v": 1.0})
            for value in (math.nan, math.inf, -math.inf):
                with pytest.raises(DatatypeError, match=r"row 1, column 'v'"):
                    await self.write(backend, "insert", "t", {"id": 1, "v": 2.0}, {"id": 2, "v": value})
            assert await self.column(backend, "t", "v") == [1.0]
            return
        await self.write(
            backend, "insert", "t", *({"id": at, "v": v} for at, v in enumerate([1.0, math.nan, None, 9.0]))
        )
        assert await self.ids(backend, self.where("t", "v", "<", 5.0)) == [0]
        assert await self.ids(backend, self.where("t", "v", "==", 9.0)) == [3]

    # tables that come into being

    async def test_the_first_insert_makes_the_table(self, backend: DataBackend, tmp_path: Path) -> None:
        written = await self.write(
            backend, "insert", "t", {"id": 1, "a": None}, {"id": 2, "b": "x"}, {"id": 3, "a": 1.5}
        )
        assert written.created == TableSchema("t", {"id": "int64", "a": "float64", "b": "string"}, ("id",))
        assert written.ids == [1, 2, 3]
        assert await backend.schema("t") == written.created
        assert await backend.tables() == ["t"]
        assert [row["b"] for row in self.raw_rows(tmp_path, "t")] == [None, "x", None]
        assert (await self.write(backend, "insert", "t", {"id": 4})).created is None

    async def test_ids_are_made_in_order(self, backend: DataBackend) -> None:
        ids: list[str] = []
        for _ in range(3):
            ids += (await self.write(backend, "insert", "t", *({"a": at} for at in range(100)))).ids
        assert ids == sorted(set(ids))
        assert {type(each) for each in ids} == {str}
        assert await self.ids(backend, self.table("t")) == ids

    async def test_a_rolled_back_table_is_not_there(self, backend: DataBackend, tmp_path: Path) -> None:
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is the transaction
            async with backend.transaction() as tx:
                await backend.write(WriteRequest("insert", "t", rows=[{"id": 1, "a": "x"}]), {}, tx)
                await backend.write(WriteRequest("insert", "t", rows=[{"id": 2, "a": "y"}]), {}, tx)
                raise ZeroDivisionError
        if not backend.atomic:
            assert await self.column(backend, "t", "a") == ["x", "y"]
            return
        assert await backend.schema("t") is None
        assert "t" not in self.raw_tables(tmp_path)
        assert (await self.write(backend, "insert", "t", {"id": "1", "a": 1})).created is not None
        assert await self.read(backend, self.table("t")) == [{"id": "1", "a": 1}]

    async def test_a_table_that_another_process_replaced_is_seen(
        self, backend: DataBackend, other: DataBackend
    ) -> None:
        await self.write(backend, "insert", "t", {"id": 1, "a": 1})
        assert await self.read(backend, self.table("t")) == [{"id": 1, "a": 1}]
        async with other.transaction() as tx:
            await other.drop_table("t", tx)
        await self.write(other, "insert", "t", {"id": "x", "b": 1.5})
        assert await self.read(backend, self.table("t")) == [{"id": "x", "b": 1.5}]
        async with other.transaction() as tx:
            await other.drop_table("t", tx)
        with pytest.raises((TableNotFoundError, QueryError)):
            await self.read(backend, self.table("t"))

    async def test_composite_keys(self, backend: DataBackend) -> None:
        async with backend.transaction() as tx:
            schema = TableSchema("t", {"a": "string", "b": "int64", "v": "string"}, ("a", "b"))
            await backend.create_table(schema, tx)
        written = await self.write(backend, "insert", "t", {"a": "x", "b": 1, "v": "p"}, {"a": "x", "b": 2, "v": "q"})
        assert written.ids == [("x", 1), ("x", 2)]
        written = await self.write(backend, "update", "t", changes={"v": "z"}, where=self.where("t", "b", "==", 2))
        assert written.ids == [("x", 2)]
        assert (await self.write(backend, "upsert", "t", {"a": "x", "b": 1, "v": "y"})).ids == [("x", 1)]
        rows = await self.read(backend, self.table("t"))
        assert sorted(row["v"] for row in rows) == ["y", "z"]
        assert (await self.write(backend, "delete", "t", where=self.where("t", "b", "==", 1))).ids == [("x", 1)]
        with pytest.raises(InvalidRowError, match="'b'"):
            await self.write(backend, "insert", "t", {"a": "x"})

    # upsert, update, delete

    async def test_an_upsert_replaces_only_what_its_rows_name(self, backend: DataBackend) -> None:
        await self.write(backend, "insert", "t", {"id": 1, "a": 1, "b": "x"}, {"id": 2, "a": 2, "b": "y"})
        written = await self.write(backend, "upsert", "t", {"id": 1, "a": 10}, {"id": 2, "b": "z"}, {"id": 3, "a": 3})
        assert written.ids == [1, 2, 3]
        assert await self.column(backend, "t", "a") == [10, 2, 3]
        assert await self.column(backend, "t", "b") == ["x", "z", None]

    async def test_update_and_delete_return_the_ids(self, backend: DataBackend) -> None:
        await self.write(backend, "insert", "t", *({"id": at, "a": at} for at in range(6)))
        written = await self.write(backend, "update", "t", changes={"a": 0}, where=self.where("t", "a", ">", 3))
        assert sorted(written.ids) == [4, 5]
        assert await self.column(backend, "t", "a") == [0, 1, 2, 3, 0, 0]
        written = await self.write(backend, "delete", "t", where=self.where("t", "a", "==", 0))
        assert sorted(written.ids) == [0, 4, 5]
        assert await self.ids(backend, self.table("t")) == [1, 2, 3]
        assert sorted((await self.write(backend, "delete", "t")).ids) == [1, 2, 3]

    # bad input

    @pytest.mark.parametrize(
        ("rows", "error", "says"),
        [
            ([{"id": 1}], DuplicateKeyError, "the key"),
            ([{"id": 7, "a": 1}, {"id": 7, "a": 2}], DuplicateKeyError, "rows 0 and 1"),
            ([{"id": 7, "oops": 1}], UnknownColumnError, "oops"),
            ([{"id": 7, "txet": "x"}], UnknownColumnError, "did you mean 'text'"),
            ([{"id": None}], InvalidRowError, "row 0"),
            ([{"id": "7"}], DatatypeError, "row 0, column 'id'"),
            ([{"id": 7, "a": 1}, {"id": 8, "a": "one"}], DatatypeError, "row 1, column 'a'"),
            ([{"id": 7, "a": True}], DatatypeError, "bool"),
            ([{"id": 7, "a": 2**63}], DatatypeError, "column 'a'"),
            ([{"id": 7, "a": 1.5}], DatatypeError, "column 'a'"),
            ([{"id": 7, "f": 2**53 + 1}], DatatypeError, "nearest"),
            ([{"id": 7, "f": "1.5"}], DatatypeError, "column 'f'"),
            ([{"id": 7, "text": "\ud800"}], DatatypeError, "surrogate"),
            ([{"id": 7, "text": b"x"}], DatatypeError, "bytes"),
            (["id"], InvalidRowError, "row 0"),
            ([{1: 2}], InvalidRowError, "column 1"),
        ],
    )
    async def test_a_bad_row_is_refused_before_anything_is_written(
        self, backend: DataBackend, tmp_path: Path, rows: list[Any], error: type[AsyncDLError], says: str
    ) -> None:
        await self.write(backend, "insert", "t", {"id": 1, "a": 1, "f": 1.5, "text": "x"})
        before = self.raw_rows(tmp_path, "t")
        with pytest.raises(error, match=self.key_in_errors if says == "the key" else says):
            await self.write(backend, "insert", "t", *rows)
        assert self.raw_rows(tmp_path, "t") == before

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
            await self.write(backend, "insert", "t", *rows)
        assert "t" not in self.raw_tables(tmp_path)

    @pytest.mark.parametrize("name", ["", "a b", "a/b", 'a"b', "x" * 300, "🙂", "_asyncdl_events", "a;b"])
    async def test_hostile_table_names_are_refused(self, backend: DataBackend, tmp_path: Path, name: str) -> None:
        before = self.raw_tables(tmp_path)
        with pytest.raises((InvalidIdentifierError, TableNotFoundError)):
            await self.write(backend, "insert", name, {"a": 1})
        assert self.raw_tables(tmp_path) == before

    async def test_unusual_column_names_work(self, backend: DataBackend) -> None:
        row = {"id": 1, "select": 1, "größe": 2.5, "a b-c": "x", "日本": True, "0": None}
        await self.write(backend, "insert", "t", row)
        assert await self.read(backend, self.table("t")) == [row]
        assert await self.ids(backend, self.where("t", "a b-c", "==", "x")) == [1]

    async def test_what_is_not_there_is_named(self, backend: DataBackend) -> None:
        await self.write(backend, "insert", "documents", {"id": 1, "text": "x"})
        with pytest.raises(TableNotFoundError, match="did you mean 'documents'"):
            await self.read(backend, self.table("document"))
        with pytest.raises(TableNotFoundError):
            await self.write(backend, "update", "document", changes={"a": 1})
        with pytest.raises(UnknownColumnError, match="did you mean 'text'"):
            await backend.check(self.pick("documents", "id", "txet"), {})
        with pytest.raises(UnknownColumnError, match="did you mean 'text'"):
            await self.write(backend, "update", "documents", changes={"txet": 1})
        with pytest.raises(QueryError, match="primary key"):
            await self.write(backend, "update", "documents", changes={"id": 2})
        with pytest.raises(TableNotFoundError):
            await self.write(backend, "insert", "nothing")

    async def test_check_returns_the_columns_and_the_key(self, backend: DataBackend) -> None:
        await self.write(backend, "insert", "t", {"id": 1, "v": np.zeros(3, "float32"), "d": Decimal("1.5")})
        found = await backend.check(self.pick("t", "id", "v"), {})
        assert dict(found.columns) == {"id": "int64", "v": "vector(float32, 3)"}
        assert found.primary_key == ("id",)
        planned = {"later": TableSchema("later", {"id": "string", "x": "image"}, ("id",))}
        found = await backend.check(self.pick("later", "id", "x"), {}, planned)
        assert dict(found.columns) == {"id": "string", "x": "image"}

    # many at once

    async def test_concurrent_writers_and_readers(self, backend: DataBackend, other: DataBackend) -> None:
        await self.write(backend, "insert", "t", {"id": 0, "who": "first"})

        async def insert(at: int) -> None:
            await self.write(backend if at % 2 else other, "insert", "t", {"id": at, "who": str(at)})

        async def look() -> int:
            return len(await self.read(backend, self.table("t")))

        async with asyncio.TaskGroup() as group:
            for at in range(1, 61):
                group.create_task(insert(at))
            counts = [group.create_task(look()) for _ in range(30)]
        assert all(1 <= each.result() <= 61 for each in counts)
        assert await self.ids(other, self.table("t")) == list(range(61))

    async def test_reading_streams_in_batches(self, backend: DataBackend) -> None:
        await self.write(backend, "insert", "t", *({"id": at} for at in range(2500)))
        sizes = [len(rows) async for _, rows in backend.read(self.table("t"), {}, size=1000)]
        assert sizes == [1000, 1000, 500]
        names = [names async for names, rows in backend.read(self.where("t", "id", "<", 0), {})]
        assert names == [("id",)]

    async def test_inference_and_storage_agree(self, backend: DataBackend) -> None:
        values: Sequence[Any] = [1, 2.5, 2**40]
        assert infer(values) == "float64"
        await self.write(backend, "insert", "t", *({"id": at, "v": each} for at, each in enumerate(values)))
        assert await self.column(backend, "t", "v") == [1.0, 2.5, float(2**40)]
