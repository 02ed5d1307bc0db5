"""The databases that benchmarks run on: those of the tests' own servers, or any by its URI."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests import mongodb, postgresql

NAMES = ("sqlite", "postgresql", "mongodb")


@contextmanager
def database(wanted: str, folder: Path) -> Iterator[str]:
    """Yield the URI of an empty database: of one of `NAMES`, which is started and stopped again, or as it is given."""
    folder.mkdir(parents=True, exist_ok=True)
    if wanted == "sqlite":
        yield f"sqlite:///{folder}/app.db"
    elif wanted == "postgresql":
        with postgresql.serve() as server:
            yield server.url(folder)
    elif wanted == "mongodb":
        mongod = mongodb.Mongod(replica_set=True)
        mongod.start()
        try:
            yield f"{mongod.url}benchmark_{uuid4().hex[:8]}"
        finally:
            mongod.stop()
    else:
        yield wanted


def scheme(uri: str) -> str:
    """Return the kind of a database."""
    return uri.partition(":")[0]
