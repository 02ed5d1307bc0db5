"""Workers on Dask that read and write a backfill's rows by themselves, on real servers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pymongo
import pytest

import asyncdl
from asyncdl import Listener, Model
from asyncdl.databackend.base import DataBackend

pytestmark = pytest.mark.anyio

ROWS = 3000
STORES = ["postgresql", "postgresql, records elsewhere", "mongodb_replica_set", "mongodb_standalone"]


@contextmanager
def uris_of(request: pytest.FixtureRequest, folder: Path) -> Iterator[dict[str, Any]]:
    kind, _, apart = str(request.param).partition(", ")
    uris: dict[str, Any] = {"artifact_store": f"filesystem://{folder / 'artifacts'}"}
    if apart:
        uris["metadata_store"] = f"sqlite:///{folder / 'meta.db'}"
    server = request.getfixturevalue(kind)
    if kind == "postgresql":
        yield uris | {"databackend": server.url(folder)}
        return
    name = f"test_{uuid4().hex[:20]}"
    yield uris | {"databackend": server + name}
    with pymongo.MongoClient[Any](server) as client:
        client.drop_database(name)


@pytest.fixture(params=STORES)
def stores(request, tmp_path):
    with uris_of(request, tmp_path) as uris:
        yield uris


class Passing:
    """Counts the rows that pass this process on their way to a model, and back."""

    def __init__(self, databackend: DataBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inputs = self.outputs = 0
        scan, put = databackend.scan, databackend.put_outputs

        async def counted_scan(select: Any, outputs: Any, columns: Any, **how: Any) -> Any:
            rows = await scan(select, outputs, columns, **how)
            self.inputs += len(rows) if columns else 0
            return rows

        async def counted_put(table: Any, results: Any, **how: Any) -> None:
            self.outputs += len(results)
            await put(table, results, **how)

        monkeypatch.setattr(databackend, "scan", counted_scan)
        monkeypatch.setattr(databackend, "put_outputs", counted_put)


def rows_from(start: int, stop: int) -> list[dict[str, Any]]:
    return [{"_id": n, "id": n, "x": n} for n in range(start, stop)]


def table_of(db: asyncdl.Datalayer) -> Any:
    return db["numbers"]


async def fill(db: asyncdl.Datalayer, count: int = ROWS) -> Any:
    t = db["numbers"]
    if db.databackend.language == "mongodb":
        await db.execute(t.insert_many([{"_id": n, "x": n} for n in range(count)]))
    else:
        await db.execute(t.insert([{"id": n, "x": n} for n in range(count)]))
    return t


def select_of(db: asyncdl.Datalayer, t: Any) -> Any:
    return t.find({}) if db.databackend.language == "mongodb" else t


async def outputs_of(db: asyncdl.Datalayer, t: Any, name: str) -> dict[Any, Any]:
    found = await (await db.execute(t.outputs(name))).to_list()
    key = "_id" if db.databackend.language == "mongodb" else "id"
    assert len({row[key] for row in found}) == len(found)
    return {row[key]: row.get(name) for row in found}


async def test_rows_do_not_pass_the_client(stores, dask_cluster, monkeypatch):
    def model(x):
        return [x + 3, os.getpid()]

    async with asyncdl.connect(**stores, compute=dask_cluster.url) as db:
        t = await fill(db)
        passing = Passing(db.databackend, monkeypatch)
        model = Model("move", model, datatype="json")
        added = await db.add(Listener("moved", model=model, key="x", select=select_of(db, t)), wait=True)
        found = await outputs_of(db, t, "moved")
        assert {key: value[0] for key, value in found.items()} == {n: n + 3 for n in range(ROWS)}
        assert {value[1] for value in found.values()} == {each.pid for each in dask_cluster.workers}
        # the first batch makes the table of outputs
        assert passing.inputs == passing.outputs <= 16
        [job] = await db.jobs.list(state="succeeded")
        assert (job.done, job.total) == (ROWS, ROWS)
        assert added is not None
