"""How datatypes are written."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from asyncdl.errors import DatatypeError

OWN = frozenset({"vector", "ndarray", "image", "pickle", "datatype"})
"""The kinds that ibis does not have: stored as bytes."""

_PLAIN = {
    **{name: name for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
    **{name: name for name in ("float32", "float64", "boolean", "string", "binary", "date", "time", "timestamp")},
    **{name: name for name in ("decimal", "interval", "uuid", "json", "ndarray", "image", "pickle")},
    "int": "int64",
    "float": "float64",
    "double": "float64",
    "bool": "boolean",
    "str": "string",
    "text": "string",
    "varchar": "string",
    "bytes": "binary",
    "datetime": "timestamp",
    "timedelta": "interval",
    "jsonb": "json",
}
_SPELLINGS = (*_PLAIN, "decimal(10, 2)", "timestamp('UTC')", "vector(float32, 384)", "datatype(name)", "array<int64>")
_VECTOR = re.compile(r"vector\(\s*([a-z]+[0-9]+)\s*,\s*([0-9]+)\s*\)")
_DATATYPE = re.compile(r"datatype\(\s*([A-Za-z_][A-Za-z0-9_-]*)\s*\)")
_DECIMAL = re.compile(r"decimal\((\d+), (-?\d+)\)")
_TIMESTAMP = re.compile(r"timestamp(?:\((?:'([^']*)')?(?:, )?(\d+)?\))?")
_VECTOR_DTYPES = frozenset(
    {"float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
)
_KINDS = {
    **{f"{sign}int{bits}": "integer" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": "float" for bits in (16, 32, 64)},
}


@dataclass(frozen=True, slots=True)
class Parsed:
    """A datatype taken apart.

    Parameters
    ----------
    text
        Its canonical spelling.
    kind
        ``integer``, ``float``, ``boolean``, ``string``, ``binary``, ``decimal``, ``timestamp``, ``date``, ``time``,
        ``interval``, ``uuid``, ``json``, ``array``, ``struct``, ``map``, ``null``, or one of `OWN`.
    arguments
        What the kind needs: ``(precision, scale)`` of a decimal (None: any), ``(zone,)`` of a timestamp, ``(dtype, length)`` of
        a vector, ``(name,)`` of a declared datatype, ``(signed, bits)`` of an integer, the parts of a nested one.
    """

    text: str
    kind: str
    arguments: tuple[Any, ...] = ()


def normalize(datatype: str) -> str:
    """Return a datatype in its canonical spelling.

    Raises
    ------
    DatatypeError
        There is no such datatype.
    """
    return parse(datatype).text


def parse(datatype: str) -> Parsed:
    """Return a datatype taken apart; raises `DatatypeError`."""
    if not isinstance(datatype, str):
        raise DatatypeError(f"a datatype is a string such as 'int64', not {datatype!r}")
    return _parse(datatype)


@lru_cache(maxsize=1024)
def _parse(datatype: str) -> Parsed:
    text = _canonical(datatype)
    if text in _KINDS:
        return Parsed(text, _KINDS[text], (not text.startswith("u"), int(text.lstrip("uintfloa"))))
    if found := _VECTOR.fullmatch(text):
        return Parsed(text, "vector", (found[1], int(found[2])))
    if found := _DATATYPE.fullmatch(text):
        return Parsed(text, "datatype", (found[1],))
    if text.startswith("decimal"):
        found = _DECIMAL.fullmatch(text)
        return Parsed(text, "decimal", (int(found[1]), int(found[2])) if found else (None, None))
    if found := _TIMESTAMP.fullmatch(text):
        return Parsed(text, "timestamp", (found[1],))
    if text.partition("<")[0] in {"array", "struct", "map"}:
        return _parse_nested(text)
    return Parsed(text, text)


def _canonical(datatype: str) -> str:
    stripped = datatype.strip()
    plain = _PLAIN.get(stripped)
    if plain is not None:
        return plain
    if found := _VECTOR.fullmatch(stripped):
        if found[1] not in _VECTOR_DTYPES or int(found[2]) == 0:
            raise DatatypeError(
                f"{datatype!r} is no datatype: a vector has a positive length, and numbers of {', '.join(sorted(_VECTOR_DTYPES))}"
            )
        return f"vector({found[1]}, {int(found[2])})"
    if found := _DATATYPE.fullmatch(stripped):
        return f"datatype({found[1]})"
    return _canonical_ibis(datatype)


def _canonical_ibis(datatype: str) -> str:
    import ibis  # noqa: PLC0415 - heavy: only for the spellings that are not in the table above
    from ibis.common.exceptions import IbisError  # noqa: PLC0415
    from parsy import ParseError  # type: ignore[import-untyped]  # noqa: PLC0415

    try:
        found = ibis.dtype(datatype.strip())
    except (ParseError, IbisError, ValueError, TypeError) as error:
        near = difflib.get_close_matches(datatype.strip().lower(), _SPELLINGS, n=1, cutoff=0.5)
        hint = (
            f"; did you mean {near[0]!r}?" if near else f" (there are: {', '.join(sorted(set(_PLAIN.values())))}, ...)"
        )
        raise DatatypeError(f"{datatype!r} is no datatype{hint}") from error
    if found.is_interval():
        return "interval"
    text = str(found.copy(nullable=True))
    root = text.partition("(")[0].partition("<")[0]
    if root not in {*_PLAIN, "array", "struct", "map", "float16", "null"}:
        raise DatatypeError(f"{datatype!r} is a datatype of ibis' that asyncdl cannot store")
    return text


def _parse_nested(text: str) -> Parsed:
    import ibis  # noqa: PLC0415 - see above

    found = ibis.dtype(text)
    if found.is_array():
        return Parsed(text, "array", (_inner(found.value_type),))
    if found.is_map():
        return Parsed(text, "map", (_inner(found.key_type), _inner(found.value_type)))
    return Parsed(text, "struct", tuple((name, _inner(each)) for name, each in found.items()))


def _inner(dtype: Any) -> Parsed:
    return parse(str(dtype.copy(nullable=True)))
