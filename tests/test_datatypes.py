"""Datatypes: their names, their inference, their checks and their bytes."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from asyncdl.datatypes import Datatypes, infer, normalize
from asyncdl.errors import DatatypeError, UntrustedArtifactError


@pytest.fixture
def datatypes() -> Datatypes:
    return Datatypes(allow_pickle=True)


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("int", "int64"),
        (" str ", "string"),
        ("Int64", "int64"),
        ("decimal(10,2)", "decimal(10, 2)"),
        ("timestamp('UTC')", "timestamp('UTC')"),
        ("interval('s')", "interval"),
        ("array<int>", "array<int64>"),
        ("struct<a: int, b: array<string>>", "struct<a: int64, b: array<string>>"),
        ("map<string,float64>", "map<string, float64>"),
        ("vector( float32,384 )", "vector(float32, 384)"),
        ("datatype(mine)", "datatype(mine)"),
        ("!int64", "int64"),
        ("ndarray", "ndarray"),
        ("image", "image"),
        ("pickle", "pickle"),
    ],
)
def test_names_have_one_spelling(written: str, canonical: str) -> None:
    assert normalize(written) == canonical
    assert normalize(canonical) == canonical


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("strng", "did you mean 'string'"),
        ("vector(float32)", "did you mean 'vector"),
        ("vector(object1, 3)", "numbers of"),
        ("vector(float32, 0)", "positive"),
        ("", "there are"),
        ("geometry", "cannot store"),
        ("datatype(a b)", "is no datatype"),
        (int, "a datatype is a string"),
    ],
)
def test_unknown_names_are_refused(wrong: Any, says: str) -> None:
    with pytest.raises(DatatypeError, match=says):
        normalize(wrong)


@pytest.mark.parametrize(
    ("values", "datatype"),
    [
        ([], None),
        ([None, None], None),
        ([True, None], "boolean"),
        ([1, -(2**63)], "int64"),
        ([1, 2**63], "json"),
        ([1, 1.5], "float64"),
        ([2**53 + 1, 1.5], "json"),
        ([10**400, 1.5], "json"),
        ([np.int64(1), 2], "int64"),
        ([np.float32(1), 2.5], "float64"),
        ([np.bool_(True)], "boolean"),
        (["a", None], "string"),
        ([b"a", bytearray()], "binary"),
        ([Decimal(1)], "decimal"),
        ([datetime(2020, 1, 1)], "timestamp"),
        ([datetime(2020, 1, 1, tzinfo=UTC)], "timestamp('UTC')"),
        ([np.datetime64("2020-01-01")], "timestamp"),
        ([date(2020, 1, 1)], "date"),
        ([time(1)], "time"),
        ([time(1, tzinfo=UTC)], "json"),
        ([timedelta(1)], "interval"),
        ([UUID(int=1)], "uuid"),
        ([np.zeros(3, "float32"), None], "vector(float32, 3)"),
        ([np.zeros(3), np.zeros(4)], "ndarray"),
        ([np.zeros((1, 3))], "ndarray"),
        ([np.zeros(0)], "ndarray"),
        ([np.array(["a"])], "ndarray"),
        ([[1], (2,), {"a": 1}, {1}], "json"),
        ([[object()]], "pickle"),
        ([object()], "pickle"),
        ([1j], "pickle"),
    ],
)
def test_values_say_what_they_are(values: list[Any], datatype: str | None) -> None:
    assert infer(values) == datatype


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1, None, "a"], "value 0 is an int and value 2 a str"),
        ([True, 1], "value 0 is a bool and value 1 an int"),
        ([1.5, Decimal(1)], "float"),
        ([date(2020, 1, 1), datetime(2020, 1, 1)], "date"),
        ([[1], "a"], "list"),
        ([datetime(2020, 1, 1), datetime(2020, 1, 1, tzinfo=UTC)], "with and without a time zone"),
    ],
)
def test_mixed_values_are_refused(values: list[Any], says: str) -> None:
    with pytest.raises(DatatypeError, match=says):
        infer(values)


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("int64", 2**63),
        ("int64", -(2**63) - 1),
        ("int64", True),
        ("int64", 1.0),
        ("int64", "1"),
        ("uint8", -1),
        ("int8", 128),
        ("float64", 2**53 + 1),
        ("float64", 10**400),
        ("float64", False),
        ("boolean", 1),
        ("string", b"a"),
        ("string", "\udc00"),
        ("binary", "a"),
        ("decimal", 1.5),
        ("decimal", Decimal("NaN")),
        ("decimal(4, 2)", Decimal("100")),
        ("decimal(4, 2)", Decimal("1.005")),
        ("timestamp", datetime(2020, 1, 1, tzinfo=UTC)),
        ("timestamp", date(2020, 1, 1)),
        ("timestamp", np.datetime64("2020-01-01T00:00:00.000000001")),
        ("timestamp('UTC')", datetime(2020, 1, 1)),
        ("date", datetime(2020, 1, 1)),
        ("time", time(1, tzinfo=UTC)),
        ("interval", 5),
        ("uuid", "00000000-0000-0000-0000-000000000000"),
        ("array<int64>", [1, "a"]),
        ("array<int64>", "a"),
        ("struct<a: int64>", {"b": 1}),
        ("map<string, int64>", {"a": "b"}),
        ("vector(float32, 3)", [1.0, 2.0]),
        ("vector(float32, 3)", [[1.0], [2.0], [3.0]]),
        ("vector(int8, 1)", [1.5]),
        ("vector(int8, 1)", [200]),
        ("vector(float32, 3)", "abc"),
        ("ndarray", [1]),
        ("ndarray", np.array([object()])),
        ("ndarray", np.ma.masked_array([1], [True])),
        ("image", b"png"),
    ],
)
def test_values_that_do_not_fit_are_named(datatypes: Datatypes, datatype: str, value: Any) -> None:
    with pytest.raises(DatatypeError) as caught:
        datatypes.encode(datatype, value)
    assert "cannot hold" in str(caught.value)
    with pytest.raises(DatatypeError, match=r"^row 1: "):
        datatypes.check(datatype).column([None, value], "row {}".format)


def test_columns_that_fit_are_not_copied(datatypes: Datatypes) -> None:
    for datatype, values in {"int64": [1, None], "string": ["a", None], "float64": [1.5], "boolean": [None]}.items():
        assert datatypes.check(datatype).column(values, str) is values


def test_numpy_scalars_become_pythons(datatypes: Datatypes) -> None:
    found = datatypes.check("int64").column([np.int8(1), None, 2], str)
    assert [type(each) for each in found] == [int, type(None), int]
    assert datatypes.encode("timestamp", np.datetime64("2020-01-01")) == datetime(2020, 1, 1)
    assert datatypes.encode("decimal(6, 2)", 3) == Decimal("3.00")


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("vector(float32, 3)", np.array([1, np.nan, -0.0], "float32")),
        ("vector(uint64, 1)", np.array([2**64 - 1], "uint64")),
        ("ndarray", np.asfortranarray(np.arange(6).reshape(2, 3))),
        ("ndarray", np.array(5)),
        ("ndarray", np.zeros((2, 0), [("a", "i4"), ("b", "U3")])),
        ("ndarray", np.array(["2020-01-01"], "datetime64[ns]")),
        ("ndarray", np.arange(3, dtype=">i8")),
    ],
)
def test_arrays_keep_dtype_and_shape(datatypes: Datatypes, datatype: str, value: Any) -> None:
    found = datatypes.decode(datatype, datatypes.encode(datatype, value))
    assert (found.dtype, found.shape, found.tobytes()) == (value.dtype, value.shape, value.tobytes())
    assert found.flags.writeable


def test_lists_become_vectors(datatypes: Datatypes) -> None:
    found = datatypes.decode("vector(float32, 2)", datatypes.encode("vector(float32, 2)", [1, 2.5]))
    assert found.tolist() == [1.0, 2.5]
    assert found.dtype == "float32"


def test_pickles_need_the_setting(datatypes: Datatypes) -> None:
    data = datatypes.encode("pickle", {1, 2})
    assert datatypes.decode("pickle", data) == {1, 2}
    careful = Datatypes(allow_pickle=False)
    with pytest.raises(UntrustedArtifactError):
        careful.decode("pickle", data)
    with pytest.raises(DatatypeError, match="setting `pickle`"):
        careful.encode("pickle", {1, 2})
    with pytest.raises(DatatypeError, match="cannot be pickled"):
        datatypes.encode("pickle", (each for each in ()))


def test_declared_datatypes(datatypes: Datatypes) -> None:
    with pytest.raises(DatatypeError, match="no Datatype 'x' is installed"):
        datatypes.encode("datatype(x)", 1)
    datatypes.register("x", lambda value: value, bytes.decode)
    assert datatypes.decode("datatype(x)", datatypes.encode("datatype(x)", b"ab")) == "ab"
    with pytest.raises(DatatypeError, match="its encoder returned int"):
        datatypes.encode("datatype(x)", 1)
    with pytest.raises(DatatypeError, match="stored bytes are no datatype"):
        datatypes.decode("datatype(x)", b"\xff")
    datatypes.register("x", lambda value: 1 / 0, bytes.decode)
    with pytest.raises(DatatypeError, match="its encoder raised ZeroDivisionError"):
        datatypes.encode("datatype(x)", 1)


def test_broken_bytes_are_a_datatype_error(datatypes: Datatypes) -> None:
    for datatype in ("ndarray", "image", "pickle", "vector(float32, 2)"):
        with pytest.raises(DatatypeError, match="stored bytes are no"):
            datatypes.decode(datatype, b"broken")


def test_importing_loads_nothing_heavy() -> None:
    heavy = ("ibis", "numpy", "pandas", "PIL")
    code = f"import sys, asyncdl.datatypes; print([each for each in {heavy!r} if each in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
