"""Places for rows and records, one of its own for each test, on every kind of server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pymongo
import pytest

from asyncdl.drivers.mongo import MongoDatabase
from asyncdl.drivers.mysql import MySQLDatabase
from asyncdl.drivers.postgresql import PostgreSQLDatabase
from asyncdl.drivers.sqlite import SQLiteDatabase
from asyncdl.metadata.base import MetadataStore
from asyncdl.metadata.mongo import MongoMetadataStore
from asyncdl.metadata.sql import SQLMetadataStore

Place = Callable[[pytest.FixtureRequest, Path], AbstractContextManager[str]]


def _in_folder(scheme: str, name: str) -> Place:
    @contextmanager
    def place(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
        folder.mkdir(exist_ok=True)
        yield f"{scheme}:///{folder / name}"

    return place


def _on_server(fixture: str) -> Place:
    @contextmanager
    def place(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
        yield request.getfixturevalue(fixture).url(folder)

    return place


def _in_mongodb(fixture: str) -> Place:
    @contextmanager
    def place(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
        server, name = request.getfixturevalue(fixture), f"test_{uuid4().hex[:20]}"
        yield server + name
        with pymongo.MongoClient[Any](server) as client:
            client.drop_database(name)

    return place


PLACES: dict[str, Place] = {
    "sqlite": _in_folder("sqlite", "app.db"),
    "postgresql": _on_server("postgresql"),
    "mysql": _on_server("mysql"),
    "duckdb": _in_folder("duckdb", "app.duckdb"),
    "frames": _in_folder("frames", "frames"),
    "replica set": _in_mongodb("mongodb_replica_set"),
    "standalone": _in_mongodb("mongodb_standalone"),
}
"""By name: what yields a URI that belongs to a folder, and clears it away."""

METADATA = ["sqlite", "postgresql", "mysql", "replica set", "standalone"]
"""The names of those that hold records, too."""

PAIRS = [
    ("sqlite", "sqlite"),
    ("sqlite", "own"),
    ("postgresql", "postgresql"),
    ("sqlite", "replica set"),
    ("sqlite", "standalone"),
]
"""Databackend and metadata store, for `stores_of`, where tests ask the latter for most."""


@contextmanager
def stores_of(request: pytest.FixtureRequest, folder: Path) -> Iterator[dict[str, str]]:
    """Yield the URIs of a pair of names in `PLACES`: databackend and metadata store, one database where both are the same."""
    data, metadata = request.param
    with ExitStack() as stack:
        enter = stack.enter_context
        made = {"databackend": enter(PLACES[data](request, folder))}
        if metadata != data:
            place = PLACES["sqlite" if metadata == "own" else metadata]
            made["metadata_store"] = enter(place(request, folder / "metadata"))
        made["artifact_store"] = f"filesystem://{folder / 'artifacts'}"
        yield made


def metadata_store(uri: str) -> MetadataStore:
    """Return the store at one of these places, not open yet; two of one place have nothing in common but that."""
    scheme, _, rest = uri.partition("://")
    if scheme == "mongodb":
        return MongoMetadataStore(MongoDatabase(uri))
    if scheme == "sqlite":
        return SQLMetadataStore(SQLiteDatabase(rest.removeprefix("/")))
    return SQLMetadataStore({"postgresql": PostgreSQLDatabase, "mysql": MySQLDatabase}[scheme](uri))
