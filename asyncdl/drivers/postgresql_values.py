"""PostgreSQL's errors as asyncdl's, and values that asyncpg would not return as they went in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

from asyncdl.errors import (
    AsyncDLError,
    ConflictError,
    ConstraintError,
    DuplicateKeyError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)

# By SQLSTATE, or by its class where only two characters are given; the longer one counts.
STATES: dict[str, type[AsyncDLError]] = {
    "23505": DuplicateKeyError,
    "23": ConstraintError,
    "40001": ConflictError,  # could not serialize
    "40P01": ConflictError,  # deadlock
    "55P03": StoreTimeoutError,  # lock timeout
    "57014": StoreTimeoutError,  # statement timeout, or cancelled by an administrator
    "57": StoreUnavailableError,  # shutting down, starting up, terminated by an administrator
    "08": StoreUnavailableError,  # connection lost
    "28": StoreUnavailableError,  # wrong password, or no entry in pg_hba.conf
    "3D": StoreUnavailableError,  # no such database
    "53": StoreUnavailableError,  # too many connections, no memory, disk full
    "25P03": StoreUnavailableError,  # idle in a transaction for too long: terminated
}
_HINTS = {
    "28": "is the password right, and may this user connect?",
    "3D000": "create the database first",
    "53300": "raise max_connections, or run fewer processes",
}


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it was raised from: SQLAlchemy wraps the driver's when it connects."""
    while error is not None:
        yield error
        error = error.__cause__


def sqlstate(error: BaseException | None) -> str:
    """Return PostgreSQL's code for an error, "" if the server did not raise it."""
    found = (getattr(each, "sqlstate", None) for each in causes(error))
    return next((str(each) for each in found if each), "")


def translate(error: Exception, url: str) -> Exception:
    """Return asyncdl's error for one of the driver's, by its code; one that is not about the database as it is."""
    import asyncpg  # noqa: PLC0415 - loaded when a database is opened

    if isinstance(error, AsyncDLError):
        return error
    state = sqlstate(error)
    if state:
        kind = STATES.get(state) or STATES.get(state[:2], StoreError)
        hint = _HINTS.get(state) or _HINTS.get(state[:2])
        root = next(each for each in causes(error) if getattr(each, "sqlstate", None))
        return kind(f"{url}: {root}{f' ({hint})' if hint else ''}")
    root = list(causes(error))[-1]
    message = f"{url}: {str(root) or type(root).__name__}"
    if isinstance(root, TimeoutError):
        return StoreTimeoutError(message)
    if isinstance(root, OSError):
        return StoreUnavailableError(message)
    if isinstance(root, UnicodeEncodeError):
        return StoreError(f"{url}: a text holds a lone surrogate, which is no Unicode character: {root}")
    if isinstance(root, asyncpg.DataError):
        return StoreError(message)
    if isinstance(
        root, asyncpg.InternalClientError
    ):  # as when the connection is lost between two messages of a statement
        return StoreUnavailableError(message)
    if isinstance(root, asyncpg.InterfaceError):
        closed = "connection" in str(root) and "clos" in str(root)
        return StoreUnavailableError(message) if closed else StoreError(message)
    if isinstance(root, (OverflowError, ValueError)):
        return StoreError(message)
    return error


# asyncpg takes the first and last moments of Python's for minus and plus infinity, and has a UUID of its own.

_EPOCH = datetime(2000, 1, 1)
_AWARE_EPOCH = _EPOCH.replace(tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_DAY = date(2000, 1, 1).toordinal()
_INFINITE, _INFINITE_DAYS = 2**63 - 1, 2**31 - 1


def _encode_timestamp(value: datetime) -> tuple[int]:
    return ((value - _EPOCH) // _MICROSECOND,)


def _decode_timestamp(value: tuple[int]) -> datetime:
    (found,) = value
    if abs(found) >= _INFINITE:
        return datetime.max if found > 0 else datetime.min
    return _EPOCH + timedelta(microseconds=found)


def _encode_instant(value: datetime) -> tuple[int]:
    return ((value - _AWARE_EPOCH) // _MICROSECOND,)


def _decode_instant(value: tuple[int]) -> datetime:
    (found,) = value
    if abs(found) >= _INFINITE:
        return (datetime.max if found > 0 else datetime.min).replace(tzinfo=UTC)
    return _AWARE_EPOCH + timedelta(microseconds=found)


def _encode_date(value: date) -> tuple[int]:
    return (value.toordinal() - _DAY,)


def _decode_date(value: tuple[int]) -> date:
    (found,) = value
    if abs(found) >= _INFINITE_DAYS:
        return date.max if found > 0 else date.min
    return date.fromordinal(found + _DAY)


def _decode_uuid(value: bytes) -> UUID:
    return UUID(bytes=value)


CODECS: tuple[tuple[str, str, Callable[[Any], Any], Callable[[Any], Any]], ...] = (
    ("timestamp", "tuple", _encode_timestamp, _decode_timestamp),
    ("timestamptz", "tuple", _encode_instant, _decode_instant),
    ("date", "tuple", _encode_date, _decode_date),
    ("uuid", "binary", lambda value: value.bytes, _decode_uuid),
)
"""Type, format, encoder and decoder, as asyncpg's ``set_type_codec`` takes them."""


async def prepare(connection: Any) -> None:
    """Have a new connection of asyncpg's return values as they went in."""
    for name, form, encoder, decoder in CODECS:
        await connection.set_type_codec(name, schema="pg_catalog", encoder=encoder, decoder=decoder, format=form)
