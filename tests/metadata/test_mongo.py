"""The MongoDB metadata store, on a replica set and on a standalone server."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pymongo
import pytest

from asyncdl.drivers.mongo import MongoDatabase
from asyncdl.metadata.mongo import MongoMetadataStore
from asyncdl.testing.metadata import MetadataStoreTests, RecordKind

pytestmark = pytest.mark.anyio


def name_of(where: Path) -> str:
    return "test_" + hashlib.sha256(str(where).encode()).hexdigest()[:20]


class OnMongoDB(MetadataStoreTests):
    url: str

    @pytest.fixture(autouse=True)
    def _dropped(self, tmp_path: Path, _server: None) -> Iterator[None]:
        yield
        with pymongo.MongoClient(self.url) as client:
            client.drop_database(name_of(tmp_path))

    def make_store(self, where: Path) -> MongoMetadataStore:
        return MongoMetadataStore(MongoDatabase(self.url + name_of(where)))

    async def raw(self, where: Path, kind: RecordKind) -> Sequence[Any]:
        with pymongo.MongoClient(self.url) as client:
            database = client[name_of(where)]
            if kind in {"links", "artifacts"}:
                field = "children" if kind == "links" else kind
                found = database["_asyncdl_components"].find({"gone": None})
                return [(each["_id"], name) for each in found for name in each[field]]
            return [without(each) for each in database[f"_asyncdl_{kind}"].find({"gone": None})]


def without(document: dict[str, Any]) -> dict[str, Any]:
    """Leave out the number of the commit that wrote it last."""
    return {name: value for name, value in sorted(document.items()) if name != "_v"}


class TestMongoMetadataStoreOnReplicaSet(OnMongoDB):
    @pytest.fixture
    def _server(self, mongodb_replica_set: str) -> None:
        self.url = mongodb_replica_set


class TestMongoMetadataStoreOnStandalone(OnMongoDB):
    @pytest.fixture
    def _server(self, mongodb_standalone: str) -> None:
        self.url = mongodb_standalone
