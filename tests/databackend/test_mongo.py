"""The MongoDB databackend, on a replica set and on a standalone server."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import pymongo
import pytest
from hypothesis import strategies as st

from asyncdl.databackend.mongo import MongoDataBackend
from asyncdl.datatypes import Datatypes
from asyncdl.drivers.mongo import MongoDatabase
from asyncdl.testing.databackend_language import MongoLanguage
from asyncdl.testing.databackend_outputs import DocumentBackendTests
from asyncdl.testing.databackend_values import EXACT, VALUES

pytestmark = pytest.mark.anyio


def name_of(where: Path) -> str:
    return "test_" + hashlib.sha256(str(where).encode()).hexdigest()[:20]


def in_milliseconds(value: datetime) -> datetime:
    return value.replace(microsecond=value.microsecond // 1000 * 1000)


class OnMongoDB(DocumentBackendTests):
    language = MongoLanguage()
    key_in_errors = "_id"
    place = r"document {row}, key '{column}'"
    # BSON has integers of 64 bits, decimals of 34 digits, and datetimes in milliseconds
    exact = {**EXACT, "nested": [*EXACT["nested"][:3], [[2**60, 1.5, True]], *EXACT["nested"][4:]]}  # noqa: RUF012 - not changed
    strategies = {  # noqa: RUF012 - the same
        **VALUES,
        "decimal": st.decimals(-(10**20), 10**20, places=9),
        "timestamp": VALUES["timestamp"].map(in_milliseconds),
        "timestamp('UTC')": VALUES["timestamp('UTC')"].map(in_milliseconds),
    }
    # what BSON has not is binary data of asyncdl's own
    unordered = (*DocumentBackendTests.unordered, date, time)
    url: str

    @pytest.fixture(autouse=True)
    def _dropped(self, _server: None) -> Iterator[None]:
        self.made: set[str] = set()
        yield
        with pymongo.MongoClient[Any](self.url) as client:
            for name in self.made:
                client.drop_database(name)

    def make_backend(self, where: Path, datatypes: Datatypes) -> MongoDataBackend:
        self.made.add(name_of(where))
        return MongoDataBackend(MongoDatabase(self.url + name_of(where)), datatypes)

    def raw_tables(self, where: Path) -> set[str]:
        with pymongo.MongoClient[Any](self.url) as client:
            return set(client[name_of(where)].list_collection_names())

    def raw_rows(self, where: Path, table: str) -> list[dict[str, Any]]:
        with pymongo.MongoClient[Any](self.url) as client:
            return list(client[name_of(where)][table].find())

    def comes_out(self, value: Any) -> Any:
        if isinstance(value, datetime):
            return in_milliseconds(value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None))
        return list(value) if isinstance(value, tuple) else value


class TestMongoDataBackendOnReplicaSet(OnMongoDB):
    @pytest.fixture
    def _server(self, mongodb_replica_set: str) -> None:
        self.url = mongodb_replica_set


class TestMongoDataBackendOnStandalone(OnMongoDB):
    @pytest.fixture
    def _server(self, mongodb_standalone: str) -> None:
        self.url = mongodb_standalone
