"""The conformance suite of databackends: what goes in comes out, and compares as Python has it.

It needs hypothesis.
"""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Mapping
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

from asyncdl.databackend.base import DataBackend
from asyncdl.databackend.tables import TableSchema
from asyncdl.datatypes import Datatypes
from asyncdl.errors import DatatypeError, QueryError
from asyncdl.testing.databackend_hooks import BackendHooks

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


class ValueTests(BackendHooks):
    """Values."""

    exact: Mapping[str, list[Any]] = EXACT
    """Values of every kind that columns of no declared datatype can hold; an own one says what a database cannot."""

    strategies: Mapping[str, st.SearchStrategy[Any]] = VALUES
    """Strategies for what columns of each datatype hold exactly; an own one says what a database cannot."""

    unordered: tuple[type, ...] = (UUID, bytes)
    """Of what types values compare only as equal or not."""

    # exactness

    @pytest.mark.parametrize("kind", EXACT)
    async def test_what_goes_in_comes_out(self, backend: DataBackend, kind: str) -> None:
        values = [self.held(each) for each in self.exact[kind]]
        if kind == "floats" and not self.every_float:
            values = [each if each is None else each + 0.0 for each in values if each is None or math.isfinite(each)]
        await self.insert(backend, "t", *({"id": at, "v": each} for at, each in enumerate(values)))
        found = await self.column(backend, "t", "v")
        expected = map(self.comes_out, values)
        assert all(same(one, other) for one, other in zip(expected, found, strict=True)), found

    @pytest.mark.parametrize("datatype", VALUES)
    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def test_any_value_comes_out_as_it_went_in(self, datatype: str, data: Any) -> None:
        strategy = self.strategies[datatype].map(self.held)
        if datatype == "float64" and not self.every_float:
            strategy = st.floats(allow_nan=False, allow_infinity=False).map(lambda value: value + 0.0)
        values = data.draw(st.lists(st.none() | strategy, max_size=20))
        schema = TableSchema("t", {"id": "int64", "v": datatype}, ("id",))

        async def there_and_back(where: Path) -> list[Any]:
            backend = self.make_backend(where, Datatypes(allow_pickle=True))
            await backend.open()
            try:
                rows = [{"id": at, "v": each} for at, each in enumerate(values)]
                async with backend.transaction() as tx:
                    await backend.create_table(schema, tx)
                    if rows:
                        await backend.write(self.language.insert("t", rows), {}, tx)
                assert await backend.schema("t") == backend.as_made(schema)
                return await self.column(backend, "t", "v")
            finally:
                await backend.aclose()

        with TemporaryDirectory() as folder:
            found = asyncio.run(there_and_back(Path(folder)))
        assert all(same(one, other) for one, other in zip(values, found, strict=True)), found

    async def test_a_row_is_stored_where_other_programs_find_it(self, backend: DataBackend, tmp_path: Path) -> None:
        await self.insert(backend, "t", {"id": 1, "text": "a", "n": 1.5, "yes": True, "none": None})
        assert self.raw(tmp_path, "t") == [{"id": 1, "text": "a", "n": 1.5, "yes": True, "none": None}]

    async def test_images_are_lossless(self, backend: DataBackend) -> None:
        image = pytest.importorskip("PIL.Image")
        images = [image.effect_noise((5, 4), 50).convert(mode) for mode in ("1", "L", "RGB", "RGBA", "CMYK", "F", "I")]
        await self.insert(backend, "t", *({"id": at, "v": each} for at, each in enumerate(images)))
        found = await self.column(backend, "t", "v")
        assert [(each.mode, each.tobytes()) for each in found] == [(each.mode, each.tobytes()) for each in images]

    async def test_a_registered_datatype_encodes_and_decodes(self, backend: DataBackend, datatypes: Datatypes) -> None:
        datatypes.register("reversed", lambda value: value[::-1].encode(), lambda data: data.decode()[::-1])
        await self.create(backend, TableSchema("t", {"id": "int64", "v": "datatype(reversed)"}, ("id",)))
        await self.insert(backend, "t", {"id": 1, "v": "abc"})
        assert await self.column(backend, "t", "v") == ["abc"]
        with pytest.raises(DatatypeError, match=self.place.format(row=0, column="v") + ".*reversed"):
            await self.insert(backend, "t", {"id": 2, "v": 3})

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
        values = [self.held(each) for each in values]
        await self.insert(backend, "t", *({"id": at, "v": each} for at, each in enumerate([*values, None])))
        if isinstance(pivot, self.as_text):
            with pytest.raises(QueryError, match="not comparable"):
                await self.ids(backend, self.language.where("t", ("v", "==", pivot)))
            return
        exact, values, pivot = pivot, list(map(self.comes_out, values)), self.comes_out(pivot)
        assert await self.ids(backend, self.language.where("t", ("v", "==", exact))) == [
            at for at, v in enumerate(values) if v == pivot
        ]
        if type(pivot) not in self.unordered:
            expected = [at for at, v in enumerate(values) if v > pivot]
            assert await self.ids(backend, self.language.where("t", ("v", ">", exact))) == expected
            expected = [at for at, v in enumerate(values) if v < pivot]
            assert await self.ids(backend, self.language.where("t", ("v", "<", exact))) == expected

    @pytest.mark.parametrize(
        ("datatype", "values"),
        [
            ("int64", [1, 2, 2**60]),
            ("string", ["a", "b", "ü"]),
            ("decimal", [Decimal("9.5"), Decimal("10.25"), Decimal(100)]),
            ("date", [date(900, 1, 1), date(2020, 1, 1), date(2021, 1, 1)]),
            ("timestamp", [datetime(999, 1, 1), datetime(2020, 1, 1), datetime(2020, 1, 1, 0, 0, 1)]),
            ("timestamp('UTC')", [datetime(year, 1, 1, tzinfo=EAST) for year in (999, 2020, 2021)]),
        ],
    )  # fmt: skip
    async def test_conditions_on_declared_columns(self, backend: DataBackend, datatype: str, values: list[Any]) -> None:
        if isinstance(values[0], self.as_text):
            return
        values = [self.held(each) for each in values]
        await self.create(backend, TableSchema("t", {"id": "int64", "v": datatype, "n": "int64"}, ("id",)))
        await self.insert(backend, "t", *({"id": at, "v": each, "n": 0} for at, each in enumerate([*values, None])))
        for operator, expected in (("==", [1]), (">", [2]), ("<", [0])):
            assert await self.ids(backend, self.language.where("t", ("v", operator, values[1]))) == expected
            assert (await self.update(backend, "t", {"n": 1}, ("v", operator, values[1]))).ids == expected
        assert await self.column(backend, "t", "n") == [1, 1, 1, 0]
        assert (await self.delete(backend, "t", ("v", "<", values[2]))).ids in ([0, 1], [1, 0])

    async def test_dates_of_other_years_are_refused(self, backend: DataBackend) -> None:
        first, last = self.years
        if self.years == (1, 9999):
            return
        await self.insert(backend, "t", {"id": 0, "d": date(2000, 1, 1), "t": datetime(2000, 1, 1)})
        for bad in ({"d": date(first - 1, 12, 31)}, {"d": date(last + 1, 1, 1)}, {"t": datetime(last + 1, 1, 1)}):
            with pytest.raises(DatatypeError, match=f"row 1.*{first} to {last}"):
                await self.insert(backend, "t", {"id": 1}, {"id": 2, **bad})
        assert await self.ids(backend, self.language.table("t")) == [0]

    async def test_nan_is_found_and_is_not_smaller(self, backend: DataBackend) -> None:
        if not self.every_float:
            await self.insert(backend, "t", {"id": 0, "v": 1.0})
            for value in (math.nan, math.inf, -math.inf):
                with pytest.raises(DatatypeError, match=self.place.format(row=1, column="v")):
                    await self.insert(backend, "t", {"id": 1, "v": 2.0}, {"id": 2, "v": value})
            assert await self.column(backend, "t", "v") == [1.0]
            return
        await self.insert(backend, "t", *({"id": at, "v": v} for at, v in enumerate([1.0, math.nan, None, 9.0])))
        assert await self.ids(backend, self.language.where("t", ("v", "<", 5.0))) == [0]
        assert await self.ids(backend, self.language.where("t", ("v", "==", 9.0))) == [3]
