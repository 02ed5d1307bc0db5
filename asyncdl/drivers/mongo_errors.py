"""MongoDB's errors as asyncdl's: the one place where they are translated."""

from __future__ import annotations

from types import TracebackType
from typing import Any, NoReturn

from asyncdl.errors import (
    AsyncDLError,
    ClosedError,
    ConfigurationError,
    ConflictError,
    ConstraintError,
    DuplicateKeyError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from asyncdl.settings import redact

_UNAUTHORIZED = {13, 18, 8000}
_WRITE_CONFLICT = {112}
_TOO_LARGE = {10334, 17280, 17419, 17420}
_INVALID = {2, 9, 14, 121, 40352, 40353}


class translated:  # noqa: N801 - a context manager; not of contextlib's, which takes ten times as long, for each call there is
    """Raise asyncdl's errors for those of the driver."""

    __slots__ = ("_url",)

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(
            error, (OverflowError, UnicodeEncodeError)
        ):  # bson's, for integers beyond 64 bits, lone surrogates
            raise ConstraintError(f"{self._url}: MongoDB cannot store a value: {error}") from error
        if isinstance(error, Exception) and type(error).__module__.split(".")[0] in {"pymongo", "bson", "gridfs"}:
            _translate(self._url, error)


def _translate(url: str, error: Any) -> NoReturn:
    from bson.errors import BSONError  # noqa: PLC0415 - the driver is imported when it is used
    from pymongo import errors  # noqa: PLC0415 - the same

    text = redact(str(error))
    kind: type[AsyncDLError]
    if isinstance(error, errors.BulkWriteError):
        codes = {each.get("code") for each in error.details.get("writeErrors", ())}
        kind = _of_codes(codes) or StoreError
    elif isinstance(error, errors.InvalidOperation):
        kind = ConstraintError if isinstance(error, errors.DocumentTooLarge) else ClosedError
    elif isinstance(error, BSONError):
        kind = ConstraintError
    elif isinstance(error, (errors.NetworkTimeout, errors.ExecutionTimeout, errors.WTimeoutError)):
        kind = StoreTimeoutError
    elif isinstance(error, errors.ConnectionFailure):
        kind = StoreUnavailableError
    elif isinstance(error, (errors.ConfigurationError, errors.InvalidURI, errors.InvalidName)):
        kind = ConfigurationError
    elif isinstance(error, errors.OperationFailure):
        kind = _of_codes({error.code}) or StoreError
    else:
        kind = StoreError
    raise kind(f"{url}: {text}") from error


def _of_codes(codes: set[Any]) -> type[StoreError] | None:
    """Return the error that the server's codes mean, where one has a meaning for us."""
    for known, kind in (
        (_TOO_LARGE, ConstraintError),
        (_INVALID, ConstraintError),
        (_UNAUTHORIZED, StoreUnavailableError),
        (_WRITE_CONFLICT, ConflictError),
    ):
        if codes & known:
            return kind
    return DuplicateKeyError if codes and codes <= {11000, 11001} else None


def labelled(error: BaseException, label: str) -> bool:
    """Return whether the driver's error behind one of ours has a label, such as that it may be tried again."""
    found = getattr(error.__cause__, "has_error_label", None)
    return bool(found is not None and found(label))
