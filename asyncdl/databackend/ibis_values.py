"""How values are stored in databases that only ibis knows: in the few types that all of them have, else as text.

- integers, floats, booleans, texts, dates, timestamps in microseconds, and decimals that are declared with at most 38 digits: as
  they are;
- UUIDs, times, other decimals, JSON, arrays, structs and maps: as text; intervals: as microseconds;
- bytes, vectors, images and other datatypes of asyncdl's own: as text in base 64.

What is stored as text is exact, and equal where the values are; the database computes with it as with text. Tables of other
programs keep their types, in which Arrow brings values and takes them.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from asyncdl import codec
from asyncdl.databackend.sql_dialect import FromStorage, Storage, ToStorage
from asyncdl.databackend.sql_values import Values
from asyncdl.datatypes import Parsed
from asyncdl.datatypes.checks import refuse, zone_of
from asyncdl.datatypes.names import OWN

_DIGITS = 38
_MICROSECOND = timedelta(microseconds=1)
_NESTED = frozenset({"json", "array", "struct", "map"})
_PLAIN = {"float": "float64", "boolean": "boolean", "date": "date", "interval": "int64"}


def _is_native(datatype: Parsed) -> bool:
    """Return whether a decimal is stored as one."""
    precision, scale = datatype.arguments
    return precision is not None and scale is not None and precision <= _DIGITS and 0 <= scale <= precision


class IbisStorage(Storage):
    """Values in tables that asyncdl makes.

    Parameters
    ----------
    years
        The years of dates and timestamps that the database holds.
    """

    def __init__(self, years: tuple[int, int] = (1, 9999)) -> None:
        self._years = years

    def dtype(self, datatype: Parsed) -> str:
        """Return how ibis is told of a column, which is how it is stored."""
        if datatype.kind == "integer":
            return datatype.text
        if datatype.kind == "decimal":
            return datatype.text if _is_native(datatype) else "string"
        if datatype.kind == "timestamp":
            return "timestamp(6)" if datatype.arguments == (None,) else "timestamp('UTC', 6)"
        return _PLAIN.get(datatype.kind, "string")

    def to_storage(self, datatype: Parsed) -> ToStorage | None:
        """Return what turns a checked value into what Arrow takes."""
        kind = datatype.kind
        if kind == "decimal":
            return None if _is_native(datatype) else str
        if kind in {"date", "timestamp"}:
            return self._dated(datatype)
        if kind in _NESTED:
            return _to_json
        if kind == "binary" or kind in OWN:
            return _to_base64
        return _TO_TEXT.get(kind)

    def _dated(self, datatype: Parsed) -> ToStorage | None:
        first, last = self._years
        zoned = datatype.kind == "timestamp" and datatype.arguments != (None,)
        if not zoned and (first, last) == (1, 9999):
            return None

        def store(value: Any) -> Any:
            found = value.astimezone(UTC) if zoned else value
            if not first <= found.year <= last:
                raise refuse(datatype.text, value, f"this database holds the years {first} to {last}")
            return found

        return store

    def from_storage(self, datatype: Parsed, *, computed: bool) -> FromStorage | None:
        """Return what turns a column into Python's values: of a table of asyncdl's, or in a type of the database's own."""
        one = _moment_reader(datatype) if datatype.kind == "timestamp" else _READ.get(datatype.kind)
        if one is None:
            return None
        return lambda values: [None if each is None else one(each) for each in values]


class NativeStorage(IbisStorage):
    """Values in tables of other programs: Arrow takes them as they are."""

    def to_storage(self, datatype: Parsed) -> ToStorage | None:
        """Return what turns a checked value into what Arrow takes."""
        if datatype.kind == "json":
            return _to_json
        return str if datatype.kind == "uuid" else None


class IbisValues(Values[IbisStorage]):
    """Encodes and decodes columns."""

    def _make_decoder(self, datatype: str, computed: bool) -> FromStorage | None:
        own = self.datatypes.decoder(datatype)
        if own is None:
            return super()._make_decoder(datatype, computed)
        return lambda values: [None if each is None else own(_from_base64(each)) for each in values]


def _to_json(value: Any) -> str:
    return codec.dumps(value).decode()


def _to_base64(value: bytes) -> str:
    return b64encode(value).decode()


def _from_base64(value: Any) -> Any:
    return b64decode(value) if isinstance(value, str) else value


def _from_json(value: Any) -> Any:
    return codec.loads(value) if isinstance(value, str) else value


def _pairs(value: Any) -> Any:
    return dict(value) if isinstance(value, list) else _from_json(value)  # Arrow shows maps as pairs


def _read_interval(value: Any) -> timedelta:
    return value if isinstance(value, timedelta) else value * _MICROSECOND


def _read_uuid(value: Any) -> UUID:
    return UUID(bytes=value) if isinstance(value, bytes) else value if isinstance(value, UUID) else UUID(value)


def _plain(value: Any) -> Any:
    """Return a datetime of Python's own class for one of nanoseconds, which Arrow returns as pandas'."""
    return value if type(value) is datetime else value.to_pydatetime(warn=False)


def _moment_reader(datatype: Parsed) -> Callable[[Any], Any]:
    (zone,) = datatype.arguments
    if zone is None:
        return lambda value: _plain(value).replace(tzinfo=None)
    into = zone_of(zone)
    return lambda value: _plain(value).astimezone(into)


def _read_date(value: Any) -> date:
    return value.date() if isinstance(value, datetime) else value


_TO_TEXT: dict[str, ToStorage] = {
    "uuid": str,
    "time": lambda value: value.isoformat("microseconds"),
    "interval": lambda value: value // _MICROSECOND,
    "null": _to_json,
}
_READ: dict[str, Callable[[Any], Any]] = {
    "boolean": bool,
    "date": _read_date,
    "uuid": _read_uuid,
    "time": lambda value: time.fromisoformat(value) if isinstance(value, str) else value,
    "interval": _read_interval,
    "decimal": lambda value: value if isinstance(value, Decimal) else Decimal(str(value)),
    "binary": _from_base64,
    "map": _pairs,
    **dict.fromkeys(OWN, _from_base64),
    **dict.fromkeys(("json", "array", "struct", "null"), _from_json),
}
