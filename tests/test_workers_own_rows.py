"""Workers on Dask that read and write a backfill's rows by themselves, on real servers."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

import asyncdl
from asyncdl import Listener, Model
from asyncdl.databackend.base import DataBackend
from asyncdl.jobs.sites import DataSite
from tests.dask_processes import ROOT
from tests.places import stores_of
from tests.postgresql import embedded

pytestmark = pytest.mark.anyio

ROWS = 3000
STORES = [("postgresql", "own"), *((kind, kind) for kind in ("postgresql", "replica set", "standalone"))]


@pytest.fixture(params=STORES, ids=" + ".join)
def stores(request, tmp_path):
    with stores_of(request, tmp_path) as uris:
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


async def fill(db: asyncdl.Datalayer, count: int = ROWS) -> Any:
    t = db["numbers"]
    if db.databackend.language == "mongodb":
        await db.execute(t.insert_many([{"_id": n, "x": n} for n in range(count)]))
    else:
        await db.execute(t.insert([{"id": n, "x": n} for n in range(count)]))
    await db.wait_idle(60)  # else another job has outputs for these rows, too
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


class Meeting:
    """A model that says in a folder in which process it has come to a row, and waits there until it may go on."""

    def __init__(self, folder: Path, row: int) -> None:
        self.folder, self.row = str(folder), row

    def __call__(self, x: int) -> int:
        if x == self.row:
            Path(self.folder, f"at-{os.getpid()}").touch()
            while not Path(self.folder, "go").exists():
                time.sleep(0.01)
        return x + 3

    async def reached(self, count: int) -> list[int]:
        """Wait until so many processes have come to it; return them."""
        async with asyncio.timeout(60):
            while True:
                found = await asyncio.to_thread(lambda: [int(each.name[3:]) for each in Path(self.folder).glob("at-*")])
                if len(found) >= count:
                    return found
                await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "stores", [("postgresql", "postgresql"), ("replica set", "replica set")], ids=" + ".join, indirect=True
)
async def test_a_worker_that_dies_in_the_middle(stores, dask, tmp_path):
    workers = [dask.start_worker(), dask.start_worker()]
    (tmp_path / "met").mkdir()
    meeting = Meeting(tmp_path / "met", row=1000)
    async with asyncdl.connect(**stores, compute=dask.url) as db:
        await db.compute.wait_for_workers(2)
        t = await fill(db)
        model = Model("meeting", meeting)
        added = await db.add(Listener("met", model=model, key="x", select=select_of(db, t)))
        [pid] = await meeting.reached(1)
        next(each for each in workers if each.pid == pid).kill()
        assert len(await meeting.reached(2)) == 2
        (tmp_path / "met" / "go").touch()
        await added.wait()
        assert await outputs_of(db, t, "met") == {n: n + 3 for n in range(ROWS)}
        [job] = await db.jobs.list(kind="backfill")
        assert (job.state, job.done, job.attempts) == ("succeeded", ROWS, 1)


@pytest.fixture
def broken_driver(tmp_path) -> str:
    """A folder for the path of Python, in which PostgreSQL's driver cannot be imported."""
    folder = tmp_path / "broken" / "asyncpg"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('not for this worker')")
    return f"{folder.parent}:{ROOT}"


async def test_workers_that_cannot_reach_the_databackend(
    postgresql, dask, tmp_path, broken_driver, monkeypatch, caplog
):
    dask.start_worker(PYTHONPATH=broken_driver)
    dask.start_worker(PYTHONPATH=broken_driver)
    stores = {"databackend": postgresql.url(tmp_path), "artifact_store": f"filesystem://{tmp_path / 'artifacts'}"}
    async with asyncdl.connect(**stores, compute=dask.url) as db:
        t = await fill(db)
        passing = Passing(db.databackend, monkeypatch)
        for name in ("one", "two"):
            model = Model(name, lambda x: x + 3)
            await db.add(Listener(name, model=model, key="x", select=t), wait=True)
            assert await outputs_of(db, t, name) == {n: n + 3 for n in range(ROWS)}
        assert passing.outputs == 2 * ROWS
        assert {job.attempts for job in await db.jobs.list(kind="backfill")} == {1}
    [warning] = [each for each in caplog.records if each.name == "asyncdl.jobs" and each.levelno == logging.WARNING]
    assert "rows go through this process" in warning.getMessage()
    assert "not for this worker" in warning.getMessage()


PASSWORD = "a-secret-that-nobody-sees"


async def test_passwords_show_nowhere(dask, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    dask.start_worker()
    with tempfile.TemporaryDirectory(prefix="asyncdl-pg-") as folder, embedded(Path(folder), PASSWORD) as url:
        uri = url.replace("postgres@", f"postgres:{PASSWORD}@")
        artifacts = f"filesystem://{tmp_path / 'artifacts'}"
        async with asyncdl.connect(uri, artifact_store=artifacts, compute=dask.url) as db:
            t = await fill(db)

            def model(x: int) -> int:
                if x == 1000:
                    raise ValueError("not this one")
                return x

            await db.add(Listener("same", model=Model("same", model), key="x", select=t), wait=True)
            assert len(await outputs_of(db, t, "same")) == ROWS - 1
            [(_, error)] = await db.errors("same")
            site = DataSite.of(db.databackend, db.metadata)
            assert site is not None
            events = await db.metadata.events(0, limit=1000)
            told = [error, site, events, await db.jobs.list(), await db.metadata.jobs(), db]
            assert PASSWORD not in repr(told)
            assert PASSWORD.encode() not in pickle.dumps(site)  # not where a pickle is shown as it is, either
    assert PASSWORD not in caplog.text
    assert PASSWORD not in dask.log.read_text()


async def test_workers_disconnect_when_the_last_client_leaves(postgresql, dask_cluster, tmp_path):
    stores = {"databackend": postgresql.url(tmp_path), "artifact_store": f"filesystem://{tmp_path / 'artifacts'}"}
    connected = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'asyncdl' AND client_port > 0"

    def connections() -> int:
        return int(postgresql.run(connected)[0][0])

    before = await asyncio.to_thread(connections)
    async with asyncdl.connect(**stores, compute=dask_cluster.url) as db:
        t = await fill(db)
        await db.add(Listener("same", model=Model("same", lambda x: x), key="x", select=t), wait=True)
        assert await asyncio.to_thread(connections) > before

    def until_gone() -> None:
        until = time.monotonic() + 30
        while connections() > before:
            assert time.monotonic() < until, "workers are still connected"
            time.sleep(0.05)  # nobody tells when a server has noticed

    await asyncio.to_thread(until_gone)
