"""Whether values fit a datatype: every value of a column is checked before anything is written.

What passes is one of Python's own classes (numpy's scalars and subclasses have become those), so that a database's
storage format can rely on it. Columns whose classes all fit as they are cost one pass over their types.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation, localcontext
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from asyncdl import codec
from asyncdl.datatypes.names import Parsed
from asyncdl.errors import DatatypeError

_NONE = type(None)
Describe = Callable[[int], str]
"""Says in a message where the value at this index is: ``"row 3, column 'text'"``."""


class Check:
    """A datatype's check.

    Parameters
    ----------
    datatype
        As messages name it.
    one
        Returns the value to be stored for one that is not None; raises `DatatypeError`.
    plain
        Classes whose values are stored as they are.
    fits
        Whether values of these classes, None among them, all fit.
    """

    __slots__ = ("_fits", "_one", "_plain", "datatype")

    def __init__(
        self,
        datatype: str,
        one: Callable[[Any], Any],
        plain: frozenset[type] = frozenset(),
        fits: Callable[[Sequence[Any]], bool] | None = None,
    ) -> None:
        self.datatype = datatype
        self._one = one
        self._plain = plain
        self._fits = fits

    def one(self, value: Any) -> Any:
        """Return the value to be stored; raises `DatatypeError`."""
        return None if value is None else self._one(value)

    def column(self, values: Sequence[Any], describe: Describe) -> Sequence[Any]:
        """Return a column of values to be stored: the same sequence, if all are as they should be.

        Raises
        ------
        DatatypeError
            One does not fit; the message begins with what ``describe`` says of its index.
        """
        classes = set(map(type, values))
        classes.discard(_NONE)
        if not classes or (classes <= self._plain and (self._fits is None or self._fits(values))):
            return values
        checked, one = [], self._one
        for index, value in enumerate(values):
            try:
                checked.append(None if value is None else one(value))
            except DatatypeError as error:
                raise DatatypeError(f"{describe(index)}: {error}") from error
        return checked


def refuse(datatype: str, value: Any, why: str = "") -> DatatypeError:
    """Return the error for a value that does not fit."""
    text = repr(value)
    shown = text if len(text) <= 80 else f"{text[:77]}..."
    return DatatypeError(f"{datatype} cannot hold the {codec.kind_of(value)} {shown}{f': {why}' if why else ''}")


def check_of(parsed: Parsed) -> Check:
    """Return the check of a datatype that is not one of asyncdl's own."""
    return _MAKERS[parsed.kind](parsed)


def unwrapped(value: Any) -> Any:
    """Return a numpy scalar as Python's own value, anything else as it is."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        return value.item()
    return value


def _integer(parsed: Parsed) -> Check:
    signed, bits = parsed.arguments
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)

    def one(value: Any) -> int:
        plain = unwrapped(value)
        if isinstance(plain, bool) or not isinstance(plain, int):
            raise refuse(parsed.text, value)
        if not low <= plain <= high:
            raise refuse(parsed.text, value, f"it holds {low} to {high}")
        return int(plain)

    def fits(values: Sequence[Any]) -> bool:
        try:
            return bool(low <= min(values) and max(values) <= high)
        except TypeError:  # None is among them
            present = [each for each in values if each is not None]
            return bool(low <= min(present) and max(present) <= high)

    return Check(parsed.text, one, frozenset({int}), fits)


def _float(parsed: Parsed) -> Check:
    def one(value: Any) -> float:
        plain = unwrapped(value)
        if isinstance(plain, bool) or not isinstance(plain, (int, float)):
            raise refuse(parsed.text, value)
        try:
            found = float(plain)
        except OverflowError:
            raise refuse(parsed.text, value, "it is too large") from None
        if not isinstance(plain, float) and found != plain:
            raise refuse(parsed.text, value, f"the nearest that it holds is {found!r}")
        return found

    return Check(parsed.text, one, frozenset({float}))


def _boolean(parsed: Parsed) -> Check:
    def one(value: Any) -> bool:
        plain = unwrapped(value)
        if not isinstance(plain, bool):
            raise refuse(parsed.text, value)
        return plain

    return Check(parsed.text, one, frozenset({bool}))


def _string(parsed: Parsed) -> Check:
    def one(value: Any) -> str:
        if not isinstance(value, str):
            raise refuse(parsed.text, value)
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise refuse(parsed.text, value, f"a lone surrogate is no character of Unicode ({error.reason})") from error
        return str.__str__(value)

    def fits(values: Sequence[Any]) -> bool:
        try:
            "".join(values if None not in values else [each for each in values if each is not None]).encode()
        except UnicodeEncodeError:
            return False
        return True

    return Check(parsed.text, one, frozenset({str}), fits)


def _binary(parsed: Parsed) -> Check:
    def one(value: Any) -> bytes:
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise refuse(parsed.text, value)
        return bytes(value)

    return Check(parsed.text, one, frozenset({bytes}))


def _decimal(parsed: Parsed) -> Check:
    precision, scale = parsed.arguments

    def one(value: Any) -> Decimal:
        plain = unwrapped(value)
        if isinstance(plain, bool) or not isinstance(plain, (Decimal, int)):
            raise refuse(parsed.text, value)
        exact = Decimal(plain)
        if not exact.is_finite():
            raise refuse(parsed.text, value, "only finite decimals can be stored")
        if precision is None or scale is None:
            return exact
        with localcontext() as context:
            context.prec = max(precision + abs(scale), len(exact.as_tuple().digits)) + 10
            try:
                scaled = exact.quantize(Decimal((0, (1,), -scale)))
            except InvalidOperation:
                raise refuse(parsed.text, value, "it has too many digits") from None
        if scaled != exact or scaled.adjusted() >= precision - scale:
            raise refuse(
                parsed.text, value, f"it holds {precision - scale} digits before the point and {scale} after it"
            )
        return scaled

    # Without a scale every finite decimal is stored as it is.
    def fits(values: Sequence[Any]) -> bool:
        return all(each is None or each.is_finite() for each in values)

    return Check(parsed.text, one, frozenset({Decimal}) if precision is None else frozenset(), fits)


def _moment(value: Any, datatype: str) -> datetime:
    """Return a datetime of Python's own class; no instant is rounded."""
    numpy = sys.modules.get("numpy")
    plain = value
    if numpy is not None and isinstance(value, numpy.datetime64):
        plain = value.astype("datetime64[us]").item() if value == value.astype("datetime64[us]") else None
    if not isinstance(plain, datetime) or plain != plain:  # noqa: PLR0124 - pandas' NaT is a datetime, not equal to itself
        raise refuse(datatype, value)
    if getattr(plain, "nanosecond", 0):
        raise refuse(datatype, value, "it holds microseconds, not nanoseconds")
    if type(plain) is datetime:
        return plain
    to_python = getattr(plain, "to_pydatetime", None)
    return to_python() if to_python is not None else datetime.combine(plain.date(), plain.timetz())


def _timestamp(parsed: Parsed) -> Check:
    (zone,) = parsed.arguments
    if zone is None:

        def naive(value: Any) -> datetime:
            moment = _moment(value, parsed.text)
            if moment.tzinfo is not None:
                raise refuse(
                    parsed.text, value, "it holds datetimes without a time zone; \"timestamp('UTC')\" holds instants"
                )
            return moment

        def all_naive(values: Sequence[Any]) -> bool:
            return all(each is None or each.tzinfo is None for each in values)

        return Check(parsed.text, naive, frozenset({datetime}), all_naive)

    zone_of(zone)

    def aware(value: Any) -> datetime:
        moment = _moment(value, parsed.text)
        if moment.utcoffset() is None:
            raise refuse(parsed.text, value, "it holds instants, and this datetime has no time zone")
        try:
            return moment.astimezone(UTC)
        except OverflowError:
            raise refuse(parsed.text, value, "in UTC it is outside the years 1 to 9999") from None

    return Check(parsed.text, aware)


def zone_of(name: str) -> Any:
    """Return a time zone; raises `DatatypeError` for one that is not known."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise DatatypeError(f"there is no time zone {name!r}") from error


def _date(parsed: Parsed) -> Check:
    def one(value: Any) -> date:
        plain = unwrapped(value)
        if isinstance(plain, datetime) or not isinstance(plain, date):
            raise refuse(parsed.text, value)
        return date(plain.year, plain.month, plain.day)

    return Check(parsed.text, one, frozenset({date}))


def _time(parsed: Parsed) -> Check:
    def one(value: Any) -> time:
        if not isinstance(value, time):
            raise refuse(parsed.text, value)
        if value.tzinfo is not None:
            raise refuse(parsed.text, value, "it holds times without a time zone")
        return value

    return Check(
        parsed.text, one, frozenset({time}), lambda values: all(each is None or each.tzinfo is None for each in values)
    )


def _interval(parsed: Parsed) -> Check:
    def one(value: Any) -> timedelta:
        plain = unwrapped(value)
        if not isinstance(plain, timedelta) or plain != plain or getattr(plain, "nanoseconds", False):  # noqa: PLR0124 - NaT
            raise refuse(parsed.text, value)
        return timedelta(plain.days, plain.seconds, plain.microseconds)

    return Check(parsed.text, one, frozenset({timedelta}))


def _uuid(parsed: Parsed) -> Check:
    def one(value: Any) -> UUID:
        if not isinstance(value, UUID):
            raise refuse(parsed.text, value)
        return value

    return Check(parsed.text, one, frozenset({UUID}))


def _json(parsed: Parsed) -> Check:
    def one(value: Any) -> Any:
        codec.to_plain(value)
        return value

    return Check(parsed.text, one)


def _array(parsed: Parsed) -> Check:
    element = check_of(parsed.arguments[0])

    def one(value: Any) -> list[Any]:
        numpy = sys.modules.get("numpy")
        plain = value.tolist() if numpy is not None and isinstance(value, numpy.ndarray) else value
        if not isinstance(plain, (list, tuple)):
            raise refuse(parsed.text, value)
        return list(element.column(plain, "element {}".format))

    return Check(parsed.text, one)


def _map(parsed: Parsed) -> Check:
    key, element = (check_of(each) for each in parsed.arguments)

    def one(value: Any) -> dict[Any, Any]:
        if not isinstance(value, Mapping):
            raise refuse(parsed.text, value)
        keys = key.column(list(value), "key {}".format)
        return dict(zip(keys, element.column(list(value.values()), "value {}".format), strict=True))

    return Check(parsed.text, one)


def _struct(parsed: Parsed) -> Check:
    fields = {name: check_of(each) for name, each in parsed.arguments}

    def one(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping) or not set(value) <= set(fields):
            raise refuse(parsed.text, value)
        checked = {}
        for name, check in fields.items():
            try:
                checked[name] = check.one(value.get(name))
            except DatatypeError as error:
                raise DatatypeError(f"field {name!r}: {error}") from error
        return checked

    return Check(parsed.text, one)


def _null(parsed: Parsed) -> Check:
    def one(value: Any) -> Any:
        raise refuse(parsed.text, value)

    return Check(parsed.text, one)


_MAKERS: dict[str, Callable[[Parsed], Check]] = {
    "integer": _integer,
    "float": _float,
    "boolean": _boolean,
    "string": _string,
    "binary": _binary,
    "decimal": _decimal,
    "timestamp": _timestamp,
    "date": _date,
    "time": _time,
    "interval": _interval,
    "uuid": _uuid,
    "json": _json,
    "array": _array,
    "map": _map,
    "struct": _struct,
    "null": _null,
}
