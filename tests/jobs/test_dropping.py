"""Output tables go for good, although a job makes them again by a write that was under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pymongo
import pytest

import asyncdl
from asyncdl import Datalayer, Listener, Model
from asyncdl.databackend.mongo import MongoDataBackend
from asyncdl.databackend.tables import Key, Outputs, OutputTable
from asyncdl.datatypes import Datatypes
from asyncdl.drivers.mongo import MongoDatabase
from tests import models
from tests.proof.notes import nothing_is_left_over, output_of

pytestmark = pytest.mark.anyio


class LateDataBackend(MongoDataBackend):
    """Writes the outputs of one table only when it is let: as a server may that has got the write, whatever becomes of us."""

    def __init__(self, database: MongoDatabase) -> None:
        super().__init__(database, Datatypes(allow_pickle=True))
        self.late = ""
        self.begun = asyncio.Event()
        self.let = asyncio.Event()
        self.writes: list[asyncio.Task[Any]] = []

    async def put_outputs(
        self, table: OutputTable, results: Outputs, *, as_of: int, replaced: Sequence[Key] | None, tx: Any
    ) -> None:
        unit = _Unit() if table.name == self.late else tx
        await super().put_outputs(table, results, as_of=as_of, replaced=replaced, tx=unit)
        if unit is not tx:
            tx.defer(lambda session: self._later(unit.write(session)))

    async def _later(self, write: Any) -> None:
        async def later() -> None:
            await self.let.wait()
            await write

        self.writes.append(asyncio.create_task(later()))
        self.begun.set()
        await asyncio.shield(self.writes[-1])


class _Unit:
    def defer(self, write: Any) -> None:
        self.write = write


@pytest.fixture
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[LateDataBackend]:
    url = request.getfixturevalue(getattr(request, "param", "mongodb_standalone")) + f"test_{uuid4().hex[:20]}"
    yield LateDataBackend(MongoDatabase(url))
    with pymongo.MongoClient[Any](url) as client:
        client.drop_database(client.get_default_database().name)


def opened(backend: LateDataBackend, folder: Path) -> Datalayer:
    return asyncdl.connect(
        backend,
        metadata_store=f"sqlite:///{folder / 'meta.db'}",
        artifact_store=f"filesystem://{folder / 'artifacts'}",
        job_lease=1.0,
        progress=False,
    )


async def write_late(db: Datalayer, backend: LateDataBackend) -> None:
    """Have a job be at a write of outputs that is under way."""
    listener = Listener("doubled", model=Model("double", models.double), key="x", select=db["docs"].find())
    await db.execute(db["docs"].insert_one({"_id": 1, "x": 1}))
    await db.add(listener, wait=True)
    backend.late = (await output_of(db))["doubled"].name
    await db.execute(db["docs"].insert_one({"_id": 2, "x": 2}))
    await backend.begun.wait()


async def collections(backend: LateDataBackend) -> set[str]:
    return set(await backend.database.documents("docs").database.list_collection_names())


async def test_a_listener_removed_while_its_outputs_are_written(backend: LateDataBackend, tmp_path: Path) -> None:
    await backend.open()
    async with opened(backend, tmp_path) as db:
        await write_late(db, backend)
        await db.remove("listener", "doubled")
        assert backend.late not in await collections(backend)
        backend.let.set()
        await asyncio.wait(backend.writes)
        await nothing_is_left_over(db)
    await backend.aclose()


@pytest.mark.parametrize("backend", ["mongodb_standalone", "mongodb_replica_set"], indirect=True)
async def test_a_listener_replaced_while_its_outputs_are_written(backend: LateDataBackend, tmp_path: Path) -> None:
    await backend.open()
    async with opened(backend, tmp_path) as db:
        await write_late(db, backend)
        moved = Listener("doubled", model=Model("double", models.plus_one), key="x", select=db["docs"].find())
        await (await db.add(moved)).wait(60)
        backend.let.set()
        await asyncio.wait(backend.writes)
        await db.wait_idle(60)
        await nothing_is_left_over(db)
        rows = await (await db.execute(db["docs"].outputs("doubled"))).to_list()
        assert {row["_id"]: row["doubled"] for row in rows} == {1: 2, 2: 3}
    await backend.aclose()
