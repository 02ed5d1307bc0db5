"""Whatever becomes of rows and models reaches every output, through chains and diamonds, and nothing else is computed."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pymongo
import pytest

import asyncdl
from asyncdl import Application, Datalayer, Listener, Model
from asyncdl.errors import InvalidComponentError, JobFailedError
from tests import models

pytestmark = pytest.mark.anyio


class Store:
    """A datalayer on one kind of database: how tests write to its table, also past asyncdl."""

    def __init__(self, db: Any, behind: Callable[[str], None]) -> None:
        self.db = db
        self.table: Any = db["numbers"]
        self.behind = behind
        """Does ``"insert"`` (rows 90 to 92), ``"truncate"`` or ``"drop"`` as another program."""

    key = "id"

    async def insert(self, rows: dict[int, int]) -> Any:
        return await self.db.execute(self.table.insert([{"id": id_, "x": x} for id_, x in rows.items()]))

    async def update(self, id_: int, x: int) -> Any:
        return await self.db.execute(self.table.update({"x": x}, where=self.table.id == id_))

    async def upsert(self, rows: dict[int, int]) -> Any:
        return await self.db.execute(self.table.upsert([{"id": id_, "x": x} for id_, x in rows.items()]))

    async def delete(self, ids: Sequence[int]) -> Any:
        return await self.db.execute(self.table.delete(where=self.table.id.isin(list(ids))))

    async def truncate(self) -> Any:
        return await self.db.execute(self.table.delete(where=self.table.id > -1))

    async def outputs(self, *names: str, key: Sequence[str] = ()) -> dict[Any, Any]:
        """Return the last of these listeners' outputs by row id; flattened ones in the place of a position as well."""
        rows = await (await self.db.execute(self.table.outputs(*names))).to_list()
        return {tuple(row[each] for each in (self.key, *key)) if key else row[self.key]: row[names[-1]] for row in rows}


class DocumentStore(Store):
    key = "_id"

    async def insert(self, rows: dict[int, int]) -> Any:
        return await self.db.execute(self.table.insert_many([{"_id": id_, "x": x} for id_, x in rows.items()]))

    async def update(self, id_: int, x: int) -> Any:
        return await self.db.execute(self.table.update_one({"_id": id_}, {"$set": {"x": x}}))

    async def upsert(self, rows: dict[int, int]) -> Any:
        handles = [
            await self.db.execute(self.table.replace_one({"_id": id_}, {"x": x}, upsert=True))
            for id_, x in rows.items()
        ]
        for each in handles[:-1]:
            await each.wait(60)
        return handles[-1]

    async def delete(self, ids: Sequence[int]) -> Any:
        return await self.db.execute(self.table.delete_many({"_id": {"$in": list(ids)}}))

    async def truncate(self) -> Any:
        return await self.db.execute(self.table.delete_many({}))


STATEMENTS = {
    "insert": "INSERT INTO numbers (id, x) VALUES (90, 5), (91, 6), (92, 7)",
    "truncate": "DELETE FROM numbers",
    "drop": "DROP TABLE numbers",
}


@contextmanager
def sqlite(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[str, Callable[[str], None]]]:
    path = folder / "app.db"

    def behind(what: str) -> None:
        with closing(sqlite3.connect(path, timeout=30)) as connection, connection:
            connection.execute(STATEMENTS[what])

    yield f"sqlite:///{path}", behind


@contextmanager
def postgresql(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[str, Callable[[str], None]]]:
    server = request.getfixturevalue("postgresql")
    url = server.url(folder)
    yield url, lambda what: server.run(STATEMENTS[what].replace("DELETE FROM", "TRUNCATE"), url=url)


@contextmanager
def mongodb(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[str, Callable[[str], None]]]:
    server, name = request.getfixturevalue("mongodb_replica_set"), f"test_{uuid4().hex[:20]}"
    with pymongo.MongoClient[Any](server) as client:
        numbers = client[name]["numbers"]
        done = {
            "insert": lambda: numbers.insert_many([{"_id": n, "x": n - 85} for n in (90, 91, 92)]),
            "truncate": lambda: numbers.delete_many({}),
            "drop": numbers.drop,
        }
        yield server + name, lambda what: done[what]()
        client.drop_database(name)


@pytest.fixture(params=[sqlite, postgresql, mongodb], ids=["sqlite", "postgresql", "mongodb"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    with request.param(request, tmp_path) as (uri, behind):
        artifacts = None if request.param is mongodb else f"filesystem://{tmp_path / 'artifacts'}"
        async with asyncdl.connect(uri, artifact_store=artifacts, job_backoff=0.05) as db:
            models.tagged.clear()
            models.gate.clear()
            models.began.clear()
            yield (DocumentStore if request.param is mongodb else Store)(db, behind)
            models.gate.set()


def listener(name: str, function: Any, key: Any, select: Any, **options: Any) -> Listener:
    return Listener(name, model=Model(f"{name}_model", function, datatype="int64"), key=key, select=select, **options)


def diamond(t: Any) -> Application:
    """From each row two ways down, which meet; and its digits, each of which goes on by itself."""
    return Application(
        "diamond",
        [
            listener("left", models.times_two, "x", t),
            listener("right", models.plus_one, "x", t),
            listener("both", models.sum_of, ("left", "right"), t.outputs("left", "right")),
            listener("digit", models.digits, "both", t.outputs("both"), flatten=True),
            listener("end", models.minus_one, "digit", t.outputs("digit")),
        ],
    )


def expected(rows: dict[int, int]) -> tuple[dict[Any, Any], dict[Any, Any]]:
    both = {id_: 3 * x + 1 for id_, x in rows.items()}
    end = {(id_, at): int(each) - 1 for id_, value in both.items() for at, each in enumerate(str(value))}
    return both, end


async def check(store: Store, rows: dict[int, int]) -> None:
    both, end = expected(rows)
    assert await store.outputs("both") == both
    assert await store.outputs("digit", "end", key=("digit_position",)) == end
    for name in ("left", "right", "both"):
        assert await (await store.db.execute(store.table.missing_outputs(name))).to_list() == []


async def test_every_kind_of_write_goes_through_a_diamond(store: Store) -> None:
    rows = {n: n * 7 for n in range(12)}
    await (await store.insert(rows)).wait(60)
    await (await store.db.add(diamond(store.table))).wait(60)
    await check(store, rows)

    rows |= {20: 333, 21: 4}
    await (await store.insert({20: 333, 21: 4})).wait(60)
    await check(store, rows)

    rows[3] = 5000  # more digits than before
    await (await store.update(3, 5000)).wait(60)
    rows[20] = 1  # fewer
    await (await store.update(20, 1)).wait(60)
    await check(store, rows)

    rows |= {4: 40, 30: 9}
    await (await store.upsert({4: 40, 30: 9})).wait(60)
    await check(store, rows)

    del rows[0], rows[30]
    await (await store.delete([0, 30])).wait(60)
    await check(store, rows)

    await (await store.truncate()).wait(60)
    await check(store, {})
    await (await store.insert({1: 2})).wait(60)  # a key that was there before
    await check(store, {1: 2})


@pytest.mark.parametrize("how", ["truncate", "drop"])
async def test_what_others_do_is_found_by_reconciling(store: Store, how: str) -> None:
    rows = {n: n * 7 for n in range(5)}
    await (await store.insert(rows)).wait(60)
    await (await store.db.add(diamond(store.table))).wait(60)
    store.behind(how)
    await (await store.db.reconcile()).wait(60)
    await store.db.wait_idle(60)
    if how == "truncate":
        await check(store, {})
        store.behind("insert")
        await (await store.db.reconcile()).wait(60)
        await store.db.wait_idle(60)
        await check(store, {90: 5, 91: 6, 92: 7})
    else:  # a table of this name that is made anew begins with nothing
        await (await store.insert({1: 50})).wait(60)
        await store.db.wait_idle(60)
        await check(store, {1: 50})


async def test_a_model_replaced_half_way_through_a_running_backfill(store: Store) -> None:
    rows = {n: n for n in range(40)}
    await (await store.insert(rows)).wait(60)
    t = store.table
    first = await store.db.add(listener("right", models.gated_plus_one, "x", t))
    chained = await store.db.add(listener("end", models.times_two, "right", t.outputs("right")))
    await asyncio.to_thread(models.began.wait, 60)  # its first batch is being computed
    replaced = await store.db.replace(Model("right_model", models.minus_one, datatype="int64"))
    models.gate.set()
    for each in (first, replaced, chained):  # of the first, too: that it was replaced is no failure
        await each.wait(60)
    await store.db.wait_idle(60)
    assert await store.outputs("right") == {n: n - 1 for n in rows}
    assert await store.outputs("right", "end") == {n: 2 * (n - 1) for n in rows}
    assert (await store.db.show("listener", "right", 0))["status"] == "retired"


async def test_an_output_that_is_written_while_a_backfill_computes_it_from_the_row_before_stays(store: Store) -> None:
    rows = {n: n for n in range(40)}
    await (await store.insert(rows)).wait(60)
    added = await store.db.add(listener("right", models.gated_below_100, "x", store.table))
    await asyncio.to_thread(models.began.wait, 60)  # its first batch is being computed
    await (await store.update(3, 100)).wait(60)
    assert await store.outputs("right") == {3: 101}
    models.gate.set()
    await added.wait(60)
    assert await store.outputs("right") == {n: n + 1 for n in rows} | {3: 101}


async def test_the_old_outputs_are_read_until_the_new_are_complete(store: Store) -> None:
    rows = {n: n for n in range(30)}
    await (await store.insert(rows)).wait(60)
    t = store.table
    await store.db.add(listener("right", models.times_two, "x", t), wait=True)
    await store.db.add(listener("end", models.minus_one, "right", t.outputs("right")), wait=True)
    replaced = await store.db.replace(Model("right_model", models.gated_plus_one, datatype="int64"))
    await asyncio.to_thread(models.began.wait, 60)
    assert await store.outputs("right") == {n: 2 * n for n in rows}
    assert await store.outputs("right", "end") == {n: 2 * n - 1 for n in rows}
    models.gate.set()
    await replaced.wait(60)
    assert await store.outputs("right") == {n: n + 1 for n in rows}
    assert await store.outputs("right", "end") == {n: n for n in rows}


async def test_a_change_recomputes_what_depends_on_it_and_nothing_else(store: Store) -> None:
    rows = {n: n for n in range(25)}
    await (await store.insert(rows)).wait(60)
    await (await store.db.add(diamond(store.table))).wait(60)
    await check(store, rows)

    def calls() -> dict[str, int]:
        found: Counter[str] = Counter()
        for (name, _), count in models.tagged.items():
            found[name] += count
        models.tagged.clear()
        return dict(found)

    await store.db.wait_idle(60)
    models.tagged.clear()
    before = await store.db.events.last()
    plan = await store.db.replace(Model("right_model", models.minus_one, datatype="int64"), dry_run=True)
    assert {each.identifier: (each.fate, each.rows) for each in plan if each.fate != "unchanged"} == {
        "right_model": ("changed", 0),
        "right": ("changed", 25),
        "both": ("recomputed", 25),
        "digit": ("recomputed", 25),
        "end": ("recomputed", len(expected(rows)[1])),
        "diamond": ("changed", 0),
    }
    assert (await store.db.events.last(), calls()) == (before, {})
    # one end of the diamond: not the other
    await store.db.replace(Model("right_model", models.minus_one, datatype="int64"), wait=True)
    digits = sum(len(str(abs(3 * n - 1))) for n in rows)
    assert calls() == {"minus_one": 25 + digits, "sum_of": 25, "digits": 25}
    assert await store.outputs("both") == {n: 3 * n - 1 for n in rows}
    # the last of the chain alone
    await store.db.replace(Model("end_model", models.times_two, datatype="int64"), wait=True)
    assert calls() == {"times_two": digits}
    # the same once more: nothing
    await store.db.replace(Model("end_model", models.times_two, datatype="int64"), wait=True)
    await store.db.wait_idle(60)
    assert calls() == {}
    # one row: its own way down
    await (await store.update(7, 70)).wait(60)
    found = calls()
    assert found.pop("minus_one") == 1
    most = {"times_two": 1 + 2 * 3, "sum_of": 2, "digits": 2}  # where two ways meet, once for each
    assert found.keys() == most.keys()
    assert all(found[each] <= most[each] for each in most)


async def test_two_of_a_chain_changed_at_once_are_computed_once(store: Store) -> None:
    rows = {n: n for n in range(25)}
    await (await store.insert(rows)).wait(60)
    t = store.table

    def chain(first: Any, second: Any) -> Application:
        return Application("chain", [listener("a", first, "x", t), listener("b", second, "a", t.outputs("a"))])

    await store.db.add(chain(models.times_two, models.plus_one), wait=True)
    models.tagged.clear()
    await store.db.add(chain(models.minus_one, models.times_two), wait=True)
    assert await store.outputs("a", "b") == {n: 2 * (n - 1) for n in rows}
    assert sum(models.tagged.values()) == 50


@pytest.mark.parametrize("flattened_first", [True, False])
async def test_readers_follow_when_a_listener_becomes_flattened_or_ceases_to_be(
    store: Store, flattened_first: bool
) -> None:
    rows = {1: 12, 2: 345, 3: 6}
    await (await store.insert(rows)).wait(60)
    t = store.table

    def upstream(flattened: bool) -> Listener:
        if flattened:
            return listener("a", models.digits, "x", t, flatten=True)
        return listener("a", models.times_two, "x", t)

    async def check(flattened: bool, rows: dict[int, int]) -> None:
        if flattened:
            wanted = {(id_, at): 2 * int(c) - 1 for id_, x in rows.items() for at, c in enumerate(str(x))}
            assert await store.outputs("a", "b", "c", key=("a_position",)) == wanted
        else:
            assert await store.outputs("a", "b", "c") == {id_: 4 * x - 1 for id_, x in rows.items()}

    await store.db.add(upstream(flattened_first), wait=True)
    await store.db.add(listener("b", models.times_two, "a", t.outputs("a")), wait=True)
    await store.db.add(listener("c", models.minus_one, "b", t.outputs("a", "b")), wait=True)
    await check(flattened_first, rows)
    # what reads it is linked to the version before this one
    await store.db.replace(replace(upstream(flattened_first).model, retries=1), wait=True)
    added = await store.db.add(upstream(not flattened_first), wait=True)
    await check(not flattened_first, rows)
    await (await store.insert({4: 789})).wait(60)
    await (await store.update(2, 10)).wait(60)
    rows = {1: 12, 2: 10, 3: 6, 4: 789}
    await check(not flattened_first, rows)
    assert [await store.db.show("listener", name) for name in "abc"] == [[0, 1, 2], [0, 1], [0, 1]]
    assert not (await store.db.add(upstream(not flattened_first))).created
    assert not (await store.db.add(listener("b", models.times_two, "a", t.outputs("a")))).created
    assert await store.db.jobs.list(state="failed") == []
    assert added.created


async def test_a_reader_that_is_added_before_the_new_form_is_complete_waits_for_it(store: Store) -> None:
    await (await store.insert({1: 12, 2: 345})).wait(60)
    t = store.table
    await store.db.add(listener("a", models.digits, "x", t, flatten=True), wait=True)
    await store.db.add(listener("a", models.gated_plus_one, "x", t))
    await asyncio.to_thread(models.began.wait, 60)
    added = await store.db.add(listener("b", models.times_two, "a", t.outputs("a")))
    inserted = await store.insert({3: 6})
    models.gate.set()
    await added.wait(60)
    await inserted.wait(60)
    await store.db.wait_idle(60)
    assert await store.outputs("a", "b") == {1: 26, 2: 692, 3: 14}
    assert await store.db.jobs.list(state=["failed", "upstream_failed"]) == []


async def test_a_new_form_that_a_reader_cannot_read_is_refused(db: Datalayer) -> None:
    t = db["numbers"]
    await db.execute(t.insert([{"id": 1, "x": 12}]))
    await db.add(listener("a", models.digits, "x", t, flatten=True), wait=True)
    reader = listener("b", models.times_two, "a", t.outputs("a").select("id", "a_position", "a"))
    await db.add(reader, wait=True)
    before = await db.events.last()
    with pytest.raises(InvalidComponentError, match=r"'b' reads the outputs of 'a'.*as one Application"):
        await db.add(listener("a", models.times_two, "x", t))
    assert await db.events.last() == before
    plain = listener("b", models.times_two, "a", t.outputs("a").select("id", "a"))
    await db.add(Application("app", [listener("a", models.times_two, "x", t), plain]), wait=True)
    assert await (await db.execute(t.outputs("b").select("id", "b"))).to_list() == [{"id": 1, "b": 48}]


async def test_a_version_that_fails_leaves_the_one_before_it_up_to_date(tmp_path: Path) -> None:
    uri, artifacts = f"sqlite:///{tmp_path / 'app.db'}", f"filesystem://{tmp_path / 'artifacts'}"
    async with asyncdl.connect(uri, artifact_store=artifacts, job_max_attempts=1) as db:
        t = db["numbers"]
        await db.execute(t.insert([{"id": n, "x": n} for n in range(5)]))

        def chain(first: Any, second: Any, **options: Any) -> Application:
            end = Model("b_model", second, datatype="int64", **options)
            reader = Listener("b", model=end, key="a", select=t.outputs("a"))
            return Application("chain", [listener("a", first, "x", t), reader])

        async def ends() -> dict[int, int]:
            return {row["id"]: row["b"] for row in await (await db.execute(t.outputs("b"))).to_list()}

        await db.add(chain(models.times_two, models.plus_one), wait=True)
        added = await db.add(chain(models.minus_one, models.one_too_few, batch=True))
        with pytest.raises(JobFailedError):
            await added.wait(60)
        await db.wait_idle(60)
        assert await ends() == {n: n for n in range(5)}  # the old model, on the new outputs
        assert (await db.show("listener", "b", -1))["status"] == "failed"
        await db.remove("application", "chain")
        await db.remove("listener", "b", 1)
        await db.wait_idle(60)
        assert await ends() == {n: n for n in range(5)}
        assert await db.show("listener", "b") == [0]


async def test_what_a_backfill_has_read_is_computed_again_if_a_joined_table_changes(db: Datalayer) -> None:
    models.gate.clear()
    models.began.clear()
    try:
        t, others = db["numbers"], db["others"]
        await db.execute(others.insert([{"id": 1, "y": 10}]))
        await db.execute(t.insert([{"id": n, "x": n, "other": 1} for n in range(5)]))
        joined = t.join(others.select(other="id", y="y"), "other")
        await db.add(listener("l", models.gated_plus_one, "y", joined.select("id", "y")))
        await asyncio.to_thread(models.began.wait, 60)  # it has read them
        await db.execute(others.update({"y": 20}, where=others.id == 1))
        seen = 0
        while not [job for job in await db.jobs.list(kind="recompute") if job.state != "pending"]:
            seen = await db.metadata.wait_for_commits(seen)
        models.gate.set()
        await db.wait_idle(60)
        rows = await (await db.execute(t.outputs("l").select("id", "l"))).to_list()
        assert {row["id"]: row["l"] for row in rows} == dict.fromkeys(range(5), 21)
    finally:
        models.gate.set()
