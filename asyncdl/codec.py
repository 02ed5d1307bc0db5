"""JSON for any value that is stored: what is decoded equals what was encoded, in type too.

Plain JSON values stand for themselves. Everything else is an object with a tag: ``{"$": "decimal", "v": "1.50"}``. An object
of the user's that could be taken for one is tagged as well. numpy's scalars become Python's.
"""

from __future__ import annotations

import base64
import io
import math
import sys
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

from asyncdl import codec_bson
from asyncdl.errors import DatatypeError

_INT64 = 2**63
_MICROSECOND = timedelta(microseconds=1)
_SUBCLASSED: tuple[Any, ...] = (bool, int, float, str, bytes, datetime, date, list, tuple)
_LONG, _LONGEST = 16, 100_000_000
_PLAIN = ({int}, {str})
_FLOATS = {float}


def dumps(value: Any) -> bytes:
    """Return a value as JSON: UTF-8, with the keys of objects in their own order.

    Raises
    ------
    DatatypeError
        Something in it cannot be stored; the message says where.
    """
    try:
        return msgspec.json.encode(to_plain(value))
    except UnicodeEncodeError as error:
        raise DatatypeError(f"a text holds a lone surrogate, which is no Unicode character: {error}") from error


def loads(data: bytes | str) -> Any:
    """Return the value that `dumps` encoded.

    Raises
    ------
    DatatypeError
        This is no JSON, or has a tag that is not known.
    """
    try:
        tree = msgspec.json.decode(data)
        return from_plain(tree) if _has_tags(data) else tree
    except (msgspec.DecodeError, RecursionError) as error:
        raise DatatypeError(f"this is not the JSON of a value: {error}") from error


def _has_tags(data: bytes | str) -> bool:
    """Return whether there may be a tag in JSON: looking through the text is much faster than through what it decodes to."""
    if isinstance(data, str):
        return '"$"' in data or "\\u0024" in data
    return b'"$"' in data or b"\\u0024" in data


def to_plain(value: Any) -> Any:
    """Return a value as a tree of plain JSON values and tagged objects; raises `DatatypeError`."""
    try:
        return _encode(value, "")
    except RecursionError as error:
        raise DatatypeError("a value is nested too deeply, or holds itself") from error


def from_plain(tree: Any) -> Any:
    """Return the value that `to_plain` made the tree of; raises `DatatypeError`."""
    if isinstance(tree, list):
        kinds = set(map(type, tree))
        if kinds in _PLAIN or kinds == _FLOATS:
            return tree
        return [from_plain(each) for each in tree]
    if not isinstance(tree, dict):
        return tree
    if "$" not in tree:
        return {key: from_plain(each) for key, each in tree.items()}
    decode = _DECODERS.get(tree["$"]) if isinstance(tree["$"], str) else None
    if decode is None or set(tree) != {"$", "v"}:
        raise DatatypeError(f"stored JSON has the tag {tree['$']!r}, which this asyncdl does not know")
    try:
        return decode(tree["v"])
    except DatatypeError:
        raise
    except (ValueError, TypeError, AttributeError, ArithmeticError, LookupError) as error:
        raise DatatypeError(f"stored JSON has a {tree['$']} that cannot be decoded: {error}") from error


def copied(value: Any) -> Any:
    """Return what comes of a value that is stored and read again: a copy; raises `DatatypeError` where it cannot be stored."""
    try:
        return _copied(value)
    except (_NotPlainError, RecursionError):
        return from_plain(to_plain(value))


class _NotPlainError(Exception):
    """A value holds more than JSON's own types: it is to be encoded."""


def _copied(value: Any) -> Any:
    kind = type(value)
    if value is None or kind in _UNCHANGED:
        return value
    if kind is dict and all(type(key) is str for key in value):
        return {key: _copied(each) for key, each in value.items()}
    if kind is list:
        return [_copied(each) for each in value]
    if kind is tuple:
        return tuple([_copied(each) for each in value])
    raise _NotPlainError


def _encode(value: Any, path: str) -> Any:
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    encode = _ENCODERS.get(kind)
    if encode is not None:
        return encode(value, path)
    return _encode_other(value, path)


def _encode_other(value: Any, path: str) -> Any:
    """Encode what is found by more than its class: subclasses, and what needs a package that may not be loaded."""
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        if isinstance(value, numpy.ndarray):
            return _tag("ndarray", _npy(value, path))
        if isinstance(value, numpy.datetime64 | numpy.timedelta64):
            return _tag("numpy", _npy(numpy.asarray(value), path))
        if isinstance(value, numpy.generic):
            return _encode(value.item(), path)
    tagged = codec_bson.encode_bson(value, lambda inner: _encode(inner, path))
    if tagged is not None:
        return _tag(*tagged)
    if isinstance(value, Mapping):
        return _encode_mapping(dict(value), path)
    for base in _SUBCLASSED:
        if isinstance(value, base):
            plain = value if base in {datetime, date} else base(value)
            return _ENCODERS[base](plain, path) if base in _ENCODERS else plain
    where = f" (at {path})" if path else ""
    raise DatatypeError(f"a {kind_of(value)} cannot be stored as JSON{where}: {_shown(value)}")


def kind_of(value: Any) -> str:
    """Return a value's class as messages name it."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _tag(name: str, value: Any) -> dict[str, Any]:
    return {"$": name, "v": value}


def _npy(array: Any, path: str) -> str:
    import numpy as np  # noqa: PLC0415 - heavy: only where an array is stored

    if array.dtype.hasobject:
        raise DatatypeError(f"a numpy array of objects cannot be stored{f' (at {path})' if path else ''}")
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return base64.b64encode(buffer.getbuffer()).decode()


def _from_npy(text: str) -> Any:
    import numpy as np  # noqa: PLC0415 - heavy: only where an array is read

    return np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False)


def _encode_int(value: int, path: str) -> Any:
    return value if -_INT64 <= value < _INT64 else _tag("int", str(value))


def _encode_float(value: float, path: str) -> Any:
    # JSON has no NaN and no infinities, and a decoder may read "-0.0" or "1e300" as it likes only for whole numbers
    return value if math.isfinite(value) else _tag("float", repr(value))


def _encode_list(value: list[Any], path: str) -> Any:
    kinds = set(map(type, value))
    if kinds in _PLAIN and (int not in kinds or -_INT64 <= min(value) <= max(value) < _INT64):
        # A list of ids, mostly: as it is, ten times faster; consecutive ones, as a table has them, in a few characters.
        first, count = value[0], len(value)
        if (
            count > _LONG
            and int in kinds
            and value[-1] == first + count - 1
            and value == list(range(first, first + count))
        ):
            return _tag("range", [first, first + count])
        return value
    if kinds == _FLOATS and all(map(math.isfinite, value)):  # a vector, mostly: ten times faster, too
        return value
    if len(value) > 1 and len(kinds) == 1 and value[0].__class__.__module__ == "bson.objectid":
        return _tag("objectids", codec_bson.encode_object_ids(value))
    return [_encode(each, f"{path}[{at}]") for at, each in enumerate(value)]


def _encode_mapping(value: dict[Any, Any], path: str) -> Any:
    if all(type(key) is str for key in value) and "$" not in value:
        return {key: _encode(each, f"{path}.{key}" if path else key) for key, each in value.items()}
    return _tag("dict", [[_encode(key, path), _encode(each, f"{path}[{key!r}]")] for key, each in value.items()])


def _encode_set(name: str) -> Callable[[Any, str], Any]:
    def encode(value: Any, path: str) -> Any:
        return _tag(name, sorted((_encode(each, path) for each in value), key=msgspec.json.encode))

    return encode


def _encode_zoned(value: datetime | time, path: str) -> str:
    zone = getattr(value.tzinfo, "key", None)
    text = value.isoformat()
    if isinstance(value, datetime) and value.tzinfo is not None and value.utcoffset() is None:
        raise DatatypeError(
            f"a datetime whose zone has no offset cannot be stored{f' (at {path})' if path else ''}: {value!r}"
        )
    # zoneinfo's name is kept beside the offset: the rules of the zone belong to the value
    return f"{text}[{zone}]" if zone and isinstance(value, datetime) else text


def _decode_datetime(text: str) -> datetime:
    stamp, _, zone = text.partition("[")
    value = datetime.fromisoformat(stamp)
    if not zone:
        return value
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # noqa: PLC0415 - rarely needed

    try:
        local = value.astimezone(ZoneInfo(zone[:-1]))
    except (ZoneInfoNotFoundError, ValueError):
        return value  # the instant is exact, with its offset, also where the zone is not known
    return local if local.utcoffset() == value.utcoffset() else value


_UNCHANGED = frozenset([bool, str, int, float, bytes])
_ENCODERS: dict[type, Callable[[Any, str], Any]] = {
    int: _encode_int,
    float: _encode_float,
    list: _encode_list,
    dict: _encode_mapping,
    tuple: lambda value, path: _tag("tuple", _encode_list(value, path)),
    set: _encode_set("set"),
    frozenset: _encode_set("frozenset"),
    bytes: lambda value, path: _tag("bytes", base64.b64encode(value).decode()),
    bytearray: lambda value, path: _tag("bytearray", base64.b64encode(value).decode()),
    Decimal: lambda value, path: _tag("decimal", str(value)),
    datetime: lambda value, path: _tag("datetime", _encode_zoned(value, path)),
    date: lambda value, path: _tag("date", value.isoformat()),
    time: lambda value, path: _tag("time", _encode_zoned(value, path)),
    timedelta: lambda value, path: _tag("timedelta", value // _MICROSECOND),
    UUID: lambda value, path: _tag("uuid", str(value)),
    complex: lambda value, path: _tag("complex", [repr(value.real), repr(value.imag)]),
}


def _from_range(start: int, stop: int) -> list[int]:
    if stop - start > _LONGEST:
        raise DatatypeError(f"a range of {stop - start} numbers is more than was ever stored as one")
    return list(range(start, stop))


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "int": int,
    "float": float,
    "range": lambda value: _from_range(*value),
    "tuple": lambda value: tuple(from_plain(each) for each in value),
    "set": lambda value: {from_plain(each) for each in value},
    "frozenset": lambda value: frozenset(from_plain(each) for each in value),
    "dict": lambda value: {from_plain(key): from_plain(each) for key, each in value},
    "bytes": lambda value: base64.b64decode(value, validate=True),
    "bytearray": lambda value: bytearray(base64.b64decode(value, validate=True)),
    "decimal": Decimal,
    "datetime": _decode_datetime,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda value: value * _MICROSECOND,
    "uuid": UUID,
    "complex": lambda value: complex(float(value[0]), float(value[1])),
    "ndarray": _from_npy,
    "numpy": lambda value: _from_npy(value)[()],
    **codec_bson.decoders(from_plain),
}
