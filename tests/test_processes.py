"""Several processes on one database, and processes that are killed."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import asyncdl
from asyncdl import ComponentAdded, ComponentReady
from tests.conftest import rows_of

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parent.parent

ADDING = """
import asyncio, json, sys, asyncdl
from asyncdl import Listener, Model
from tests import models

async def main(uri, artifacts):
    async with asyncdl.connect(uri, artifact_store=artifacts) as db:
        offset = 3
        def declare():
            return Listener("moved", model=Model("move", lambda x: x + offset), key="x", select=db["numbers"])
        handles = await asyncio.gather(*(db.add(declare()) for _ in range(5)))
        await handles[0].wait()
        print(json.dumps([[handle.created, handle.component.uuid] for handle in handles]))

asyncio.run(main(*sys.argv[1:]))
"""

WRITING = """
import asyncio, sys, asyncdl

async def main(uri, artifacts):
    async with asyncdl.connect(uri, artifact_store=artifacts, job_lease=0.5) as db:
        t = db["numbers"]
        for n in range(1_000_000):
            await db.execute(t.insert([{"id": n * 10 + each, "x": n} for each in range(10)]))
            if n % 3 == 2:
                await db.execute(t.update({"x": -n}, where=t.id == n * 10 - 5))
                await db.execute(t.delete(where=t.id == n * 10 - 4))
            print(n, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def uris(tmp_path):
    return f"sqlite:///{tmp_path / 'app.db'}", f"filesystem://{tmp_path / 'artifacts'}"


async def test_twenty_tasks_in_four_processes_add_one_version(uris):
    uri, artifacts = uris
    async with asyncdl.connect(uri, artifact_store=artifacts) as db:
        await db.execute(db["numbers"].insert([{"id": n, "x": n} for n in range(1000)]))
        processes = [start(ADDING, uri, artifacts) for _ in range(4)]
        answers = [await asyncio.to_thread(process.communicate) for process in processes]
        assert [process.returncode for process in processes] == [0] * 4
        handles = [handle for output, _ in answers for handle in json.loads(output)]
        assert len({uuid for _, uuid in handles}) == 1
        assert sum(created for created, _ in handles) == 1
        await db.wait_idle()
        assert len(await db.events.read(0, ComponentAdded)) == 2
        assert len([each for each in await db.events.read(0, ComponentReady) if each.identifier == "moved"]) == 1
        setups = [job for job in await db.jobs.list(kind="backfill") if "setup" in job.payload]
        assert len(setups) == 1  # whoever of them began it may have ended, and handed it over: `done` is the last one's
        outputs = db["numbers"].outputs("moved").select("id", "moved")
        assert await rows_of(db, outputs) == [(n, n + 3) for n in range(1000)]


async def test_a_writer_that_is_killed_leaves_whole_writes_and_all_their_outputs(uris):
    uri, artifacts = uris
    async with asyncdl.connect(uri, artifact_store=artifacts) as db:
        t = db["numbers"]
        await db.execute(t.insert({"id": -1, "x": 0}))
        offset = 3
        await db.add(
            asyncdl.Listener("moved", model=asyncdl.Model("move", lambda x: x + offset), key="x", select=t), wait=True
        )
    chance = random.Random(1)
    for _ in range(4):
        process = start(WRITING, uri, artifacts)
        assert process.stdout is not None
        for _ in range(chance.randint(5, 40)):
            await asyncio.to_thread(process.stdout.readline)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        async with asyncdl.connect(uri, artifact_store=artifacts) as db:
            await db.wait_idle()  # what the dead process had claimed is taken over when its leases have run out
            t = db["numbers"]
            rows = await rows_of(db, t)
            assert await rows_of(db, t.outputs("moved")) == [(id, x, x + 3) for id, x in rows]
            complete = {id // 10 for id, _ in rows if id >= 0}
            for n in complete:  # ten rows were one write; later ones took the seventh away
                assert {id for id, _ in rows if id // 10 == n} >= {n * 10 + each for each in range(10) if each != 6}
            await db.execute(t.delete(where=t.id >= 0))
            await db.wait_idle()
