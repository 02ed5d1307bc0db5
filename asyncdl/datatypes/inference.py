"""Which datatype Python values have."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from itertools import islice
from typing import Any
from uuid import UUID

from asyncdl import codec
from asyncdl.errors import DatatypeError

_INT64 = 2**63
_EXACT = 2**53
_SAMPLE = 100

# The order matters: bool is an int, datetime a date.
_CLASSES: tuple[tuple[type, str], ...] = (
    (bool, "boolean"),
    (int, "int64"),
    (float, "float64"),
    (str, "string"),
    (bytes, "binary"),
    (bytearray, "binary"),
    (Decimal, "decimal"),
    (datetime, "timestamp"),
    (date, "date"),
    (time, "time"),
    (timedelta, "interval"),
    (UUID, "uuid"),
    (list, "json"),
    (tuple, "json"),
    (dict, "json"),
    (set, "json"),
    (frozenset, "json"),
)


def infer(values: Sequence[Any]) -> str | None:
    """Return the datatype that holds these values exactly, None if there are none but None.

    Raises
    ------
    DatatypeError
        They are of several kinds; the message names two of them, and where they are.
    """
    classes = set(map(type, values))
    classes.discard(type(None))
    if not classes:
        return None
    kinds = {_kind(each) for each in classes}
    if kinds == {"int64", "float64"}:
        return _mixed_numbers(values)
    if len(kinds) > 1:
        raise DatatypeError(_mixture(values, _kind))
    kind = kinds.pop()
    refine = _REFINE.get(kind)
    return refine(values) if refine is not None else kind


@lru_cache(maxsize=1024)
def _kind(cls: type) -> str:
    for base, kind in _CLASSES:
        if issubclass(cls, base):
            return kind
    numpy = sys.modules.get("numpy")
    if numpy is not None and issubclass(cls, (numpy.ndarray, numpy.generic)):
        return _numpy_kind(numpy, cls)
    image = sys.modules.get("PIL.Image")
    if image is not None and issubclass(cls, image.Image):
        return "image"
    return "pickle"


def _numpy_kind(numpy: Any, cls: type) -> str:
    scalars = {
        numpy.bool_: "boolean",
        numpy.integer: "int64",
        numpy.floating: "float64",
        numpy.str_: "string",
        numpy.bytes_: "binary",
        numpy.datetime64: "timestamp",
        numpy.timedelta64: "interval",
        numpy.ndarray: "ndarray",
    }
    # timedelta64 is a kind of integer to numpy
    if issubclass(cls, numpy.timedelta64):
        return "interval"
    return next((kind for base, kind in scalars.items() if issubclass(cls, base)), "json")


def _mixture(values: Sequence[Any], kind: Callable[[type], str]) -> str:
    first_at, first = next((at, each) for at, each in enumerate(values) if each is not None)
    at, other = next(
        (at, each) for at, each in enumerate(values) if each is not None and kind(type(each)) != kind(type(first))
    )
    return f"value {first_at} is {_a(first)} and value {at} {_a(other)}: one column holds values of one kind"


def _a(value: Any) -> str:
    name = codec.kind_of(value)
    return f"{'an' if name[0] in 'aeio' else 'a'} {name}"


def _mixed_numbers(values: Sequence[Any]) -> str:
    exact = all(
        -_EXACT <= each <= _EXACT or float(each) == each for each in values if isinstance(each, int) and _float(each)
    )
    fits = all(_float(each) for each in values if isinstance(each, int))
    return "float64" if exact and fits else "json"


def _float(value: int) -> bool:
    try:
        return float(value) == value
    except OverflowError:
        return False


def _integers(values: Sequence[Any]) -> str:
    present = [each for each in values if each is not None]
    return "int64" if min(present) >= -_INT64 and max(present) < _INT64 else "json"


def _timestamps(values: Sequence[Any]) -> str:
    zoned = {getattr(each, "tzinfo", None) is not None for each in values if each is not None}
    if len(zoned) > 1:
        present = [(at, each) for at, each in enumerate(values) if each is not None]
        first_at, first = present[0]
        at = next(at for at, each in present if (each.tzinfo is None) != (first.tzinfo is None))
        raise DatatypeError(
            f"values {first_at} and {at} are datetimes with and without a time zone: one column holds values of one kind"
        )
    return "timestamp('UTC')" if zoned.pop() else "timestamp"


def _times(values: Sequence[Any]) -> str:
    return "json" if any(each is not None and each.tzinfo is not None for each in values) else "time"


def _arrays(values: Sequence[Any]) -> str:
    shapes = {(each.dtype.name, each.shape) for each in values if each is not None}
    if len(shapes) == 1:
        dtype, shape = shapes.pop()
        sample = next(each for each in values if each is not None)
        if (
            len(shape) == 1
            and shape[0]
            and sample.dtype.kind in "fiu"
            and sample.dtype.itemsize <= 8
            and sample.dtype.isnative
        ):
            return f"vector({dtype}, {shape[0]})"
    return "ndarray"


def _nested(values: Sequence[Any]) -> str:
    try:
        for each in islice((each for each in values if each is not None), _SAMPLE):
            codec.dumps(each)
    except DatatypeError:
        return "pickle"
    return "json"


_REFINE: dict[str, Callable[[Sequence[Any]], str]] = {
    "int64": _integers,
    "timestamp": _timestamps,
    "time": _times,
    "ndarray": _arrays,
    "json": _nested,
}
