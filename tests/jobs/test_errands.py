"""Errands: what happens while a worker reads and writes rows by itself, on real servers."""

from __future__ import annotations

import asyncio
import pickle
from dataclasses import replace
from typing import Any

import pytest

import asyncdl
from asyncdl import Datatype, Listener, Model
from asyncdl.components.registry import ListenerState
from asyncdl.compute.base import ModelCall, UnreachableError
from asyncdl.errors import JobCancelledError, LeaseLostError
from asyncdl.jobs.errands import Report
from asyncdl.jobs.sites import DataSite, Errands
from tests.jobs.errands_here import ErrandsHere
from tests.places import stores_of

pytestmark = pytest.mark.anyio

ROWS = 200
STORES = [("postgresql", "own"), *((kind, kind) for kind in ("postgresql", "mysql", "replica set", "standalone"))]


@pytest.fixture(params=STORES, ids=" + ".join)
def stores(request, tmp_path):
    with stores_of(request, tmp_path) as uris:
        yield uris


@pytest.fixture
def compute() -> ErrandsHere:
    return ErrandsHere()


def on_mongodb(db: asyncdl.Datalayer) -> bool:
    return db.databackend.language == "mongodb"


async def filled(db: asyncdl.Datalayer, count: int = ROWS) -> tuple[Any, Any]:
    """Return a table with rows that nobody has to be told of any more, and the query for all of them."""
    t = db["numbers"]
    if on_mongodb(db):
        select = t.find({})
        await db.execute(t.insert_many([{"_id": n, "x": n} for n in range(count)]))
    else:
        select = t
        await db.execute(t.insert([{"id": n, "x": n} for n in range(count)]))
    await db.wait_idle(60)
    return t, select


async def outputs_of(db: asyncdl.Datalayer, t: Any, name: str) -> dict[Any, Any]:
    """Return the outputs by the rows' keys: one for each."""
    found = await (await db.execute(t.outputs(name))).to_list()
    key = "_id" if on_mongodb(db) else "id"
    assert len({row[key] for row in found}) == len(found)
    return {row[key]: row[name] for row in found if name in row}


def double(x: int) -> int:
    return 2 * x


def once(compute: ErrandsHere, what: Any) -> None:
    """Have something done in the middle of the first errand, when its outputs are computed and not written yet."""

    async def computed(errand: Any) -> None:
        compute.computed = None
        await what(errand)

    compute.computed = computed


async def listening(db: asyncdl.Datalayer, select: Any, **how: Any) -> Any:
    return await db.add(Listener("doubled", model=Model("double", double), key="x", select=select, **how))


async def test_an_errand_that_runs_twice_is_counted_once(stores, compute):
    compute.times = 2
    async with asyncdl.connect(**stores, compute=compute) as db:
        t, select = await filled(db)
        added = await listening(db, select)
        await added.wait()
        assert await outputs_of(db, t, "doubled") == {n: 2 * n for n in range(ROWS)}
        assert all(isinstance(each, Report) for each in compute.ended)
        [job] = await db.jobs.list(kind="backfill")
        assert (job.done, job.total) == (ROWS, ROWS)


async def test_rows_that_change_in_the_middle(stores, compute):
    async with asyncdl.connect(**stores, compute=compute) as db:
        t, select = await filled(db)
        seen: list[Any] = []

        async def change(errand: Any) -> None:
            changed, gone = errand.ids[0], errand.ids[1]
            if on_mongodb(db):
                await db.execute(t.update_one({"_id": changed}, {"$set": {"x": 1000}}))
                await db.execute(t.delete_one({"_id": gone}))
            else:
                await db.execute(t.update({"x": 1000}, where=t.id == changed))
                await db.execute(t.delete(where=t.id == gone))
            seen.extend([changed, gone])

        once(compute, change)
        await (await listening(db, select)).wait()
        await db.wait_idle(60)
        changed, gone = seen
        expected = {n: 2 * n for n in range(ROWS)} | {changed: 2000}
        del expected[gone]
        assert await outputs_of(db, t, "doubled") == expected
        [record] = await db.metadata.components(type_id="listener")
        assert await db.databackend.current(ListenerState.loads(record.state).output, [gone], 0) == set()


async def test_a_job_that_is_cancelled_in_the_middle(stores, compute):
    async with asyncdl.connect(**stores, compute=compute) as db:
        t, select = await filled(db)
        written: list[Any] = []

        async def cancel(errand: Any) -> None:
            [job] = await db.jobs.list(state="running")
            await db.jobs.cancel(job.id)
            written.extend(errand.ids)

        once(compute, cancel)
        added = await listening(db, select)
        with pytest.raises(JobCancelledError):
            await added.wait()
        await compute.settled()
        if db.metadata.joins(db.databackend):  # it was the errand's own commit that was refused
            assert any(isinstance(each, LeaseLostError) for each in compute.ended)
            assert not set(written) & set(await outputs_of(db, t, "doubled"))


async def test_a_listener_that_is_removed_in_the_middle(stores, compute):
    async with asyncdl.connect(**stores, compute=compute, job_lease=5.0) as db:
        _, select = await filled(db)
        removed = asyncio.Event()
        tables: list[Any] = []

        async def remove(errand: Any) -> None:
            tables.append(errand.work.table)
            await db.remove("listener", "doubled")
            removed.set()

        once(compute, remove)
        await listening(db, select)
        await removed.wait()
        await compute.settled()
        await settled(db)  # a table that was made once more is dropped once more
        assert await physical_tables(db, tables[0].name) == []


async def settled(db: asyncdl.Datalayer) -> None:
    """Wait until no table is left to be dropped."""
    async with asyncio.timeout(30):
        since = 0
        while any("dropping" in each.payload for each in await db.metadata.intents()):
            since = await db.metadata.wait_for_commits(since)


async def physical_tables(db: asyncdl.Datalayer, name: str) -> list[str]:
    database: Any = db.databackend.database  # type: ignore[attr-defined]
    if on_mongodb(db):
        return [each for each in await database._majority.list_collection_names() if each == name]
    return [each for each in await _names(database) if each == name]


async def _names(database: Any) -> list[str]:
    return [each for (each,) in await database.fetch("SELECT table_name FROM information_schema.tables")]


async def test_errors_of_single_rows_and_lists(stores, compute):
    def parts(x: int) -> list[int]:
        if x == 100:
            raise ValueError("not this one")
        return [x] * (x % 3)

    async with asyncdl.connect(**stores, compute=compute) as db:
        t, select = await filled(db)
        model = Model("parts", parts)
        await db.add(Listener("parts", model=model, key="x", select=select, flatten=True), wait=True)
        upstream = t.outputs("parts")
        await db.add(Listener("more", model=Model("double", double), key="parts", select=upstream), wait=True)
        [(key, error)] = await db.errors("parts")
        assert (key, error.message) == (100, "not this one")
        found = await (await db.execute(t.outputs("parts", "more"))).to_list()
        assert sorted(row["more"] for row in found) == sorted(
            2 * n for n in range(ROWS) if n != 100 for _ in range(n % 3)
        )
        assert {each.errors for each in compute.ended} == {0, 1}

        # another version of what it reads: all is computed again, by workers too
        compute.ended.clear()
        await (await db.replace(replace(model, object=lambda x: [x, x]))).wait()
        await db.wait_idle(60)
        found = await (await db.execute(t.outputs("parts", "more"))).to_list()
        assert sorted(row["more"] for row in found) == sorted(2 * n for n in range(ROWS) for _ in range(2))
        assert compute.ended


async def test_datatypes_go_along(stores, compute):
    reverse = Datatype("reversed", encoder=lambda x: x[::-1].encode(), decoder=lambda data: data.decode()[::-1])

    async with asyncdl.connect(**stores, compute=compute) as db:
        await db.add(reverse)
        t, select = await filled(db)
        model = Model("text", lambda x: f"<{x}>", datatype=reverse.column)
        await db.add(Listener("text", model=model, key="x", select=select), wait=True)
        assert await outputs_of(db, t, "text") == {n: f"<{n}>" for n in range(ROWS)}
        assert compute.ended

    async with asyncdl.connect(**stores, compute=compute, pickle=False) as db:
        db.databackend.datatypes.register("reversed", reverse.encoder, reverse.decoder)
        assert DataSite.of(db.databackend, db.metadata) is None


async def test_an_output_that_cannot_be_stored_is_its_rows_error(stores, compute):
    async with asyncdl.connect(**stores, compute=compute) as db:
        t, select = await filled(db)
        model = Model("some", lambda x: x if x != 150 else "text", datatype="int64")
        await db.add(Listener("some", model=model, key="x", select=select), wait=True)
        assert await outputs_of(db, t, "some") == {n: n for n in range(ROWS) if n != 150}
        [(key, error)] = await db.errors("some")
        assert (key, error.type) == (150, "DatatypeError")
        assert sum(each.errors for each in compute.ended) == 1


async def test_another_database_is_not_taken_for_the_right_one(stores, compute):
    async with asyncdl.connect(**stores, compute=compute) as db:
        site = DataSite.of(db.databackend, db.metadata)
        assert site is not None
        assert pickle.loads(pickle.dumps(site)) == site
        if db.metadata.joins(db.databackend):
            with pytest.raises(UnreachableError, match="another database"):
                await replace(site, identity="0" * 32).open()
        else:
            await (await site.open()).aclose()


async def test_embedded_databackends_are_the_clients(tmp_path, compute):
    apart = {"artifact_store": f"filesystem://{tmp_path / 'a'}", "metadata_store": f"sqlite:///{tmp_path / 'meta.db'}"}
    kinds = [
        f"sqlite:///{tmp_path / 'app.db'}",
        f"duckdb:///{tmp_path / 'app.duckdb'}",
        f"frames://{tmp_path / 'frames'}",
    ]
    for uri in kinds:
        async with asyncdl.connect(uri, **apart, compute=compute) as db:
            assert Errands(db.metadata, db.databackend, compute).site(ModelCall("model")) is None
