"""BSON's own types in JSON: ObjectIds and the others that Python has no class for."""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Callable
from typing import Any

_HEX = 24


def encode_bson(value: Any, to_plain: Callable[[Any], Any]) -> tuple[str, Any] | None:
    """Return the tag and the plain content of a value of BSON's, or of a compiled pattern; None for any other.

    Parameters
    ----------
    to_plain
        Encodes what it holds.
    """
    if isinstance(value, re.Pattern):
        return "pattern", [to_plain(value.pattern), value.flags]
    if "bson" not in sys.modules or not type(value).__module__.startswith("bson"):
        return None
    encode = _ENCODERS.get(type(value).__name__)
    return None if encode is None else (type(value).__name__.lower(), encode(value, to_plain))


_ENCODERS: dict[str, Callable[[Any, Callable[[Any], Any]], Any]] = {
    "ObjectId": lambda value, to_plain: str(value),
    "Decimal128": lambda value, to_plain: str(value),
    "Binary": lambda value, to_plain: [value.subtype, base64.b64encode(value).decode()],
    "Regex": lambda value, to_plain: [to_plain(value.pattern), value.flags],
    "Timestamp": lambda value, to_plain: [value.time, value.inc],
    "DatetimeMS": lambda value, to_plain: int(value),
    "MinKey": lambda value, to_plain: None,
    "MaxKey": lambda value, to_plain: None,
    "Code": lambda value, to_plain: [str(value), to_plain(value.scope)],
    "DBRef": lambda value, to_plain: [value.collection, to_plain(value.id), value.database],
}


def decoders(from_plain: Callable[[Any], Any]) -> dict[str, Callable[[Any], Any]]:
    """Return what makes values of plain contents, by tag.

    Parameters
    ----------
    from_plain
        Decodes what they hold.
    """
    return {
        "pattern": lambda value: re.compile(from_plain(value[0]), value[1]),
        "objectid": lambda value: _bson("objectid", "ObjectId")(str(value)),
        "objectids": _object_ids,
        "decimal128": lambda value: _bson("decimal128", "Decimal128")(str(value)),
        "binary": lambda value: _bson("binary", "Binary")(base64.b64decode(value[1], validate=True), value[0]),
        "regex": lambda value: _bson("regex", "Regex")(from_plain(value[0]), value[1]),
        "timestamp": lambda value: _bson("timestamp", "Timestamp")(*value),
        "datetimems": lambda value: _bson("datetime_ms", "DatetimeMS")(int(value)),
        "minkey": lambda value: _bson("min_key", "MinKey")(),
        "maxkey": lambda value: _bson("max_key", "MaxKey")(),
        "code": lambda value: _bson("code", "Code")(value[0], from_plain(value[1])),
        "dbref": lambda value: _bson("dbref", "DBRef")(value[0], from_plain(value[1]), value[2]),
    }


def encode_object_ids(values: list[Any]) -> str:
    """Return a list that holds ObjectIds alone as one text, which is ten times as fast as one by one."""
    return b"".join([each.binary for each in values]).hex()


def _object_ids(text: str) -> list[Any]:
    make = _bson("objectid", "ObjectId")
    data = bytes.fromhex(text)
    if len(data) % (_HEX // 2):
        raise ValueError("a text of ObjectIds of a wrong length")
    return [make(data[at : at + _HEX // 2]) for at in range(0, len(data), _HEX // 2)]


def _bson(module: str, name: str) -> Any:
    import importlib  # noqa: PLC0415 - bson is imported only where its values are

    return getattr(importlib.import_module(f"bson.{module}"), name)
