"""MySQL's errors as asyncdl's, Python's values as SQL literals, and URLs as the driver takes them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit
from uuid import UUID

from asyncdl.drivers.sql import MARK
from asyncdl.errors import (
    AsyncDLError,
    ConfigurationError,
    ConflictError,
    ConstraintError,
    DuplicateKeyError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from asyncdl.settings import redact

if TYPE_CHECKING:
    from ssl import SSLContext

ERRORS: dict[int, type[AsyncDLError]] = {
    1022: DuplicateKeyError,
    1062: DuplicateKeyError,
    1586: DuplicateKeyError,
    1048: ConstraintError,  # not null
    1364: ConstraintError,  # no default
    1216: ConstraintError,  # foreign keys
    1217: ConstraintError,
    1451: ConstraintError,
    1452: ConstraintError,
    3819: ConstraintError,  # check, on MySQL
    4025: ConstraintError,  # check, on MariaDB
    1213: ConflictError,  # deadlock: the server has rolled back
    3058: ConflictError,  # deadlock of named locks
    1020: ConflictError,  # MariaDB: the row has changed since it was read
    1205: StoreTimeoutError,  # lock wait
    1969: StoreTimeoutError,  # max_statement_time, on MariaDB
    3024: StoreTimeoutError,  # max_execution_time, on MySQL
    1317: StoreTimeoutError,  # killed by an administrator
    1040: StoreUnavailableError,  # too many connections
    1203: StoreUnavailableError,
    1226: StoreUnavailableError,
    1044: StoreUnavailableError,  # may not use this database
    1045: StoreUnavailableError,  # wrong password
    1049: StoreUnavailableError,  # no such database
    1698: StoreUnavailableError,
    1053: StoreUnavailableError,  # shutting down
    1927: StoreUnavailableError,  # connection killed
    1047: StoreUnavailableError,  # Galera: not ready
    1021: StoreUnavailableError,  # disk full
    1290: StoreUnavailableError,  # read only
    1836: StoreUnavailableError,
    **dict.fromkeys((2002, 2003, 2006, 2013, 2055), StoreUnavailableError),
}
_HINTS = {
    1045: "is the password right, and may this user connect?",
    1044: "may this user use the database?",
    1049: "create the database first",
    1040: "raise max_connections, or run fewer processes",
    1142: "this user lacks the right",
    1153: "raise max_allowed_packet",
}
DEADLOCKS = frozenset({1213, 3058, 1020})
"""What is undone as a whole, and may as a whole be tried again."""


def code_of(error: BaseException | None) -> int:
    """Return MySQL's number of an error, or of what it was raised from; 0 if the driver did not raise it."""
    while error is not None:
        first = error.args[0] if error.args else None
        if type(error).__module__.startswith("asyncmy") and isinstance(first, int):
            return first
        error = error.__cause__
    return 0


def translate(error: Exception, url: str) -> Exception:
    """Return asyncdl's error for one of the driver's, by its number; one that is not about the database as it is."""
    if isinstance(error, AsyncDLError):
        return error
    code = code_of(error)
    if code:
        hint = _HINTS.get(code)
        text = f"{error.args[-1]} ({code})"
        return ERRORS.get(code, StoreError)(f"{url}: {text}{f' ({hint})' if hint else ''}")
    message = f"{url}: {str(error) or type(error).__name__}"
    if isinstance(error, TimeoutError):
        return StoreTimeoutError(message)
    if isinstance(error, OSError) or type(error).__module__.startswith("asyncmy"):
        return StoreUnavailableError(message)  # without a number: the connection is closed
    if isinstance(error, UnicodeEncodeError):
        return StoreError(f"{url}: a text holds a lone surrogate, which is no Unicode character: {error}")
    if isinstance(error, (OverflowError, ValueError, TypeError)):
        return StoreError(message)
    return error


# literals


def _float(value: float) -> bytes:
    if value - value != 0:
        raise ValueError(f"MySQL holds no {value!r}")
    text = repr(value)
    return (text if "e" in text else f"{text}e0").encode()  # with an exponent it is no decimal


def _text(value: str) -> bytes:
    return b"'" + value.encode().replace(b"\\", b"\\\\").replace(b"'", b"''") + b"'"


def _bytes(value: bytes) -> bytes:
    return b"_binary'" + value.replace(b"\\", b"\\\\").replace(b"'", b"''") + b"'"


def _interval(value: timedelta) -> bytes:
    total = value // timedelta(microseconds=1)
    seconds, micro = divmod(abs(total), 1_000_000)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"'{'-' if total < 0 else ''}{hours}:{minutes:02}:{seconds % 60:02}.{micro:06}'".encode()


_LITERALS: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"NULL",
    bool: lambda value: b"1" if value else b"0",
    int: lambda value: b"%d" % value,
    float: _float,
    str: _text,
    bytes: _bytes,
    Decimal: lambda value: format(value, "f").encode(),
    datetime: lambda value: f"'{value.replace(tzinfo=None).isoformat(' ')}'".encode(),
    date: lambda value: f"'{value.isoformat()}'".encode(),
    time: lambda value: f"'{value.isoformat()}'".encode(),
    timedelta: _interval,
    UUID: lambda value: f"'{value}'".encode(),
}


def literal(value: Any) -> bytes:
    """Return a value as SQL; backslashes escape, as they do unless ``sql_mode`` says otherwise."""
    found = _LITERALS.get(type(value))
    if found is None:
        raise TypeError(f"MySQL takes no {type(value).__name__}: {value!r:.80}")
    return found(value)


@lru_cache(maxsize=4096)
def template(sql: str) -> bytes:
    """Return a statement as what ``%`` fills in its parameters."""
    return sql.replace("%", "%%").replace(MARK, "%s").encode()


def filled(sql: str, params: Any) -> bytes:
    """Return a statement with its parameters as literals."""
    return template(sql) % tuple(map(literal, params)) if MARK in sql else sql.encode()


# URLs

_SCHEMES = {"mysql", "mariadb"}
_SSL = {"ssl", "ssl-mode", "ssl-ca", "ssl-capath", "ssl-cert", "ssl-key", "ssl-cipher"}
_MODES = {"disabled", "preferred", "required", "verify_ca", "verify_identity"}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a database is, and how one connects to it."""

    shown: str
    host: str
    port: int
    user: str
    password: str = field(repr=False)
    database: str = ""
    socket: str | None = None
    ssl: tuple[tuple[str, str], ...] = ()
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def place(self) -> tuple[Any, ...]:
        """What tells databases apart."""
        where = self.socket or (self.host, self.port)
        return (where, self.database, self.user, self.settings)

    def context(self) -> SSLContext | None:
        """Return how TLS is to be spoken, None for not at all; reads the files that the URL names."""
        import ssl  # noqa: PLC0415 - only where it is asked for

        given = dict(self.ssl)
        on = given.get("ssl", "").lower() in {"1", "true", "yes", "on"}
        mode = given.get("ssl-mode", "").lower()
        if mode == "disabled" or not (on or mode or len(given) > (1 if "ssl" in given else 0)):
            return None
        ca, capath = given.get("ssl-ca"), given.get("ssl-capath")
        try:
            context = ssl.create_default_context(cafile=ca, capath=capath)
            if "ssl-cert" in given:
                context.load_cert_chain(given["ssl-cert"], given.get("ssl-key"))
            if "ssl-cipher" in given:
                context.set_ciphers(given["ssl-cipher"])
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"{self.shown}: its TLS files cannot be used: {error}") from error
        context.check_hostname = mode == "verify_identity" or (not mode and bool(ca or capath))
        trusted = context.check_hostname or mode == "verify_ca" or bool(ca or capath)
        context.verify_mode = ssl.CERT_REQUIRED if trusted else ssl.CERT_NONE
        return context


def read_url(url: str) -> Address:
    """Return what a URL says; raises `ConfigurationError` for one of no MySQL database."""
    try:
        parts = urlsplit(url)
        port = parts.port or 3306
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
    except ValueError as error:
        raise ConfigurationError(f"{redact(url)!r} is no URL: {error}") from None
    database = unquote(parts.path.strip("/"))
    if parts.scheme not in _SCHEMES or not database or "/" in database:
        raise ConfigurationError(f"{redact(url)!r} is no URL of a MySQL database: 'mysql://user@host:3306/database'")
    host, socket = (parts.hostname or "localhost").lower(), None
    tls: dict[str, str] = {}
    settings: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name.replace("_", "-") in _SSL:
            tls[name.replace("_", "-")] = value
        elif name in {"socket", "unix_socket"}:
            socket = value
        elif name in {"user", "password"}:
            user, password = (value, password) if name == "user" else (user, value)
        elif re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            settings[name] = value
        else:
            raise ConfigurationError(f"{redact(url)!r}: {name!r} is no setting of a session")
    mode = tls.get("ssl-mode", "required").lower()
    if mode not in _MODES:
        raise ConfigurationError(f"{redact(url)!r}: ssl-mode is one of {', '.join(sorted(_MODES))}")
    at = f"{user}@" if user else ""
    named = f"[{host}]" if ":" in host else host
    shown = f"mysql://{at}{named}:{port}/{database}"
    return Address(
        shown, host, port, user, password, database, socket, tuple(sorted(tls.items())), tuple(sorted(settings.items()))
    )
