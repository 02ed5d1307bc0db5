"""Where the rows and the records are that jobs are tested on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pymongo
import pytest

STORES = ["one database", "two databases", "postgresql", "mongodb_replica_set", "mongodb_standalone"]


@contextmanager
def uris_of(request: pytest.FixtureRequest, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the stores' URIs, for what a fixture with the params `STORES` is asked for; a database is dropped afterwards."""
    uris = {
        "databackend": f"sqlite:///{folder / 'app.db'}",
        "artifact_store": f"filesystem://{folder / 'artifacts'}",
    }
    if request.param == "postgresql":
        yield uris | {"databackend": request.getfixturevalue("postgresql").url(folder)}
    elif request.param == "two databases":
        yield uris | {"metadata_store": f"sqlite:///{folder / 'meta.db'}"}
    elif request.param.startswith("mongodb"):
        server, name = request.getfixturevalue(request.param), f"test_{uuid4().hex[:20]}"
        yield uris | {"metadata_store": server + name}
        with pymongo.MongoClient[Any](server) as client:
            client.drop_database(name)
    else:
        yield uris
