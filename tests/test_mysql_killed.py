"""MariaDB killed under load: what was acknowledged is there, once, with its outputs."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

import asyncdl
from asyncdl import Listener, Model
from asyncdl.errors import DuplicateKeyError, StoreError
from tests import models
from tests.conftest import rows_of
from tests.mysql import OwnServer, why_no_own

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(why_no_own() is not None, reason=f"needs a server that may be killed: {why_no_own()}"),
]

KILLS = 10
WRITERS = 8


@pytest.mark.timeout(600)
async def test_a_server_killed_ten_times_under_load_loses_and_doubles_nothing(tmp_path: Path) -> None:
    chance = random.Random(7)
    with TemporaryDirectory(prefix="asyncdl-my-", ignore_cleanup_errors=True) as folder:
        server = await asyncio.to_thread(OwnServer, Path(folder))
        await asyncio.to_thread(server.start)
        try:
            await asyncio.to_thread(server.create_database, "app")
            async with asyncdl.connect(
                server.url_of("app"),
                artifact_store=f"filesystem://{tmp_path / 'artifacts'}",
                job_lease=2.0,
                job_backoff=0.1,
            ) as db:
                assert db.metadata.joins(db.databackend)
                t = db["numbers"]
                await db.execute(t.insert({"id": -1, "x": -1}))
                await db.add(Listener("doubled", model=Model("double", models.double), key="x", select=t), wait=True)
                acknowledged: set[int] = set()
                more = asyncio.Condition()
                ending = asyncio.Event()

                async def write(first: int) -> None:
                    n = first
                    while not ending.is_set():
                        try:
                            await db.execute(t.insert({"id": n, "x": n}))
                        except DuplicateKeyError:
                            pass  # it had been written when the server died before saying so
                        except StoreError:
                            continue
                        async with more:
                            acknowledged.add(n)
                            more.notify_all()
                        n += WRITERS

                async with asyncio.TaskGroup() as group:
                    for first in range(WRITERS):
                        group.create_task(write(first))
                    for _ in range(KILLS):
                        wanted = len(acknowledged) + chance.randint(1, 100)
                        async with more:
                            await more.wait_for(lambda wanted=wanted: len(acknowledged) >= wanted)
                        await asyncio.to_thread(server.kill)
                        await asyncio.to_thread(server.start)
                    wanted = len(acknowledged) + 50
                    async with more:
                        await more.wait_for(lambda: len(acknowledged) >= wanted)
                    ending.set()
                await db.wait_idle(timeout=240)
                rows = await rows_of(db, t)
                ids = [id for id, _ in rows]
                assert len(ids) == len(set(ids))
                assert acknowledged <= set(ids)
                found = await rows_of(db, t.outputs("doubled").select("id", "doubled"))
                assert sorted(found) == sorted((id, 2 * x) for id, x in rows)
                assert await db.jobs.list(state="failed") == []
        finally:
            await asyncio.to_thread(server.stop)
