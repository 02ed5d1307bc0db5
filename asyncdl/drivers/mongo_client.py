"""Making motor's client from a URI."""

from __future__ import annotations

import asyncio
import os
import re
from types import ModuleType
from typing import Any
from urllib.parse import unquote

from asyncdl.errors import ConfigurationError, MissingDependencyError
from asyncdl.settings import redact

_THREADS = 128
"""motor's threads, unless the environment says otherwise: its own 5 per core starve as soon as a few calls wait."""
_OPTIONS = {"serverSelectionTimeoutMS": 5000, "connectTimeoutMS": 5000, "socketTimeoutMS": 60_000, "appname": "asyncdl"}
"""Options of the connection, unless the URI has its own: a server that is not there is told of within seconds."""
DRIVER = "asyncdl:"
"""With the database's name behind it, how the server knows our connections."""


def database_name(uri: str) -> str:
    """Return the name of the database that a URI means.

    Raises
    ------
    ConfigurationError
        It is no name of a database, or the URI names no server.
    """
    servers, _, path = uri.partition("://")[2].partition("?")[0].partition("/")
    if not servers:
        raise ConfigurationError(f"{redact(uri)!r} names no server; one looks like 'mongodb://localhost:27017/name'")
    name = unquote(path).partition(".")[0] or "asyncdl"
    if len(name.encode()) > 63 or set(name) & set('/\\ "$*<>:|?\x00'):
        raise ConfigurationError(f"{name!r}, in {redact(uri)!r}, cannot be the name of a MongoDB database")
    return name


def new_client(uri: str, name: str, loop: asyncio.AbstractEventLoop) -> Any:
    """Return a client for a URI, not connected yet; blocks while it imports the driver and asks the DNS."""
    motor, given = _motor(), uri.partition("?")[2]
    from pymongo.driver_info import DriverInfo  # noqa: PLC0415 - the driver is imported when it is used

    _check_options(given)
    names = {each.partition("=")[0].lower() for each in re.split("[&;]", given)}
    options = {name: value for name, value in _OPTIONS.items() if name.lower() not in names}
    client = motor.AsyncIOMotorClient(uri, io_loop=loop, **options)
    # Not motor's own argument: together with motor's name it is one that newer PyMongos refuse.
    client.delegate.append_metadata(DriverInfo(DRIVER + name))
    return client


def _check_options(given: str) -> None:
    """Refuse options that the driver would only warn of, and leave out: ``tls=ture`` would be no TLS."""
    from pymongo.uri_parser import split_options  # noqa: PLC0415 - the driver is imported when it is used

    if given:
        try:
            split_options(given, validate=True, warn=False)
        except (ValueError, TypeError, OSError) as error:  # OSError: a certificate that is not there
            raise ConfigurationError(f"an option of a mongodb URI cannot be used: {redact(str(error))}") from None


def _motor() -> ModuleType:
    """Import motor, with enough threads: it reads their number from the environment, once."""
    name = "MOTOR_MAX_WORKERS"
    own = os.environ.get(name) is None
    if own:
        os.environ[name] = str(_THREADS)
    try:
        import motor.motor_asyncio  # noqa: PLC0415 - when a MongoDB is opened, and not when asyncdl is imported
    except ImportError as error:
        raise MissingDependencyError("MongoDB needs motor: pip install 'motor>=3.7.1'") from error
    finally:
        if own:
            os.environ.pop(name, None)
    return motor.motor_asyncio
