"""Small inserts of many tasks, written together."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import asyncdl
from asyncdl import Datalayer, Listener, Model, RowsInserted
from asyncdl.databackend.requests import WriteRequest
from asyncdl.errors import ClosedError, DatatypeError, DuplicateKeyError, StoreUnavailableError, UnknownColumnError
from asyncdl.grouping import GroupedInserts
from asyncdl.testing.faults import Fault, Faults, faulty
from tests import models
from tests.conftest import rows_of

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["sqlite", "postgresql"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    uri = f"sqlite:///{tmp_path / 'app.db'}"
    if request.param == "postgresql":
        uri = request.getfixturevalue("postgresql").url(tmp_path)
    async with asyncdl.connect(uri, artifact_store=f"filesystem://{tmp_path / 'artifacts'}") as db:
        await db.execute(db["t"].insert({"id": 0, "x": 0}))
        yield db


async def test_each_gets_its_own_ids_and_waits_for_its_own_outputs(store: Datalayer) -> None:
    t = store["t"]
    await store.add(Listener("doubled", model=Model("double", models.double), key="x", select=t), wait=True)
    written = await asyncio.gather(*(store.execute(t.insert([{"x": n}, {"x": -n}])) for n in range(1, 101)))
    ids = [each for one in written for each in one.ids]
    assert sorted(ids) == list(range(1, 201))
    await asyncio.gather(*(each.wait() for each in written))
    found = {id: (x, doubled) for id, x, doubled in await rows_of(store, t.outputs("doubled"))}
    for n, one in enumerate(written, 1):
        assert [found[id] for id in one.ids] == [(n, 2 * n), (-n, -2 * n)]
    told = [id for event in await store.events.read(0, RowsInserted) for id in event.ids]
    assert sorted(told) == list(range(201))  # each row once


async def test_nobody_gets_the_error_of_another(store: Datalayer) -> None:
    t = store["t"]
    rows: list[dict[str, Any]] = [{"id": n, "x": n} for n in range(1, 40)]
    rows[5] = {"id": 0, "x": 1}
    rows[11] = {"id": 100, "x": "no number"}
    rows[17] = {"id": 101, "y": 1}
    rows[23] = {"id": 1, "x": 5}  # as another, and either may come first
    results = await asyncio.gather(*(store.execute(t.insert(row)) for row in rows), return_exceptions=True)
    failed = {at: type(each) for at, each in enumerate(results) if isinstance(each, Exception)}
    assert {failed.get(0), failed.get(23)} == {None, DuplicateKeyError}
    others = {at: kind for at, kind in failed.items() if at not in {0, 23}}
    assert others == {5: DuplicateKeyError, 11: DatatypeError, 17: UnknownColumnError}
    expected = {0, *(row["id"] for at, row in enumerate(rows) if at not in failed)}
    assert {id for id, _ in await rows_of(store, t)} == expected


async def test_callers_who_go_away_leave_whole_writes(store: Datalayer) -> None:
    t = store["t"]
    tasks = [asyncio.create_task(store.execute(t.insert([{"x": n}, {"x": n}]))) for n in range(1, 61)]
    for _ in range(5):
        await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert not any(isinstance(each, Exception) for each in results)
    await store.execute(t.insert({"x": -1}))  # behind all of them
    found = [x for _, x in await rows_of(store, t) if x > 0]
    assert {found.count(x) for x in found} == {2}
    assert {n for n in range(1, 61) if n % 2 == 0} <= set(found)


async def test_closing_waits_for_inserts_under_way(tmp_path: Path) -> None:
    uris = {"databackend": f"sqlite:///{tmp_path / 'app.db'}", "artifact_store": f"filesystem://{tmp_path / 'a'}"}
    async with asyncdl.connect(**uris) as db:
        t = db["t"]
        await db.execute(t.insert({"id": 0}))
        tasks = [asyncio.create_task(db.execute(t.insert({"id": n}))) for n in range(1, 20)]
        await asyncio.sleep(0)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(not isinstance(each, Exception) or isinstance(each, ClosedError) for each in results)
    async with asyncdl.connect(**uris) as db:
        kept = {id for (id,) in await rows_of(db, db["t"])}
        assert {n for n, each in enumerate(results, 1) if not isinstance(each, BaseException)} <= kept


async def test_what_may_have_been_written_is_not_written_again() -> None:
    tried: list[int] = []

    async def write(request: WriteRequest) -> Any:
        await asyncio.sleep(0)
        tried.append(len(request.rows))
        if len(request.rows) > 1:
            raise StoreUnavailableError("gone")
        return [0], []

    inserts = GroupedInserts(write)
    requests = [WriteRequest("insert", "t", rows=[{"x": n}]) for n in range(10)]
    results = await asyncio.gather(*map(inserts.write, requests), return_exceptions=True)
    assert sum(isinstance(each, StoreUnavailableError) for each in results) == max(tried)
    assert sum(tried) == 10
    await inserts.aclose()


@pytest.mark.parametrize("fault", ["hung", "reached"])
async def test_idle_waits_for_inserts_under_way_whose_callers_have_gone(tmp_path: Path, fault: Fault) -> None:
    uris = {"databackend": f"sqlite:///{tmp_path / 'app.db'}", "artifact_store": f"filesystem://{tmp_path / 'a'}"}
    async with asyncdl.connect(**uris) as real:
        await real.execute(real["t"].insert({"id": 0, "x": 0}))
        faults = Faults()
        async with asyncdl.connect(
            faulty(real.databackend, faults), metadata_store=real.metadata, artifact_store=real.artifact_store
        ) as db:
            await db.wait_idle(60)
            faults.arm(3, fault)  # the schema, the transaction's begin, and the write
            caller = asyncio.create_task(db.execute(db["t"].insert({"id": 1, "x": 1})))
            await faults.reached.wait()
            assert faults.calls[-1] == "databackend.write"
            caller.cancel()
            await asyncio.wait({caller})
            if fault == "hung":
                with pytest.raises(TimeoutError):
                    await db.wait_idle(0.2)
            faults.heal()
            await db.wait_idle(60)
            rows = await rows_of(db, db["t"])
            assert rows == ([(0, 0)] if fault == "hung" else [(0, 0), (1, 1)])
            events = await db.events.read(0, RowsInserted)
            assert sorted(id for event in events for id in event.ids) == [id for id, _ in rows]
