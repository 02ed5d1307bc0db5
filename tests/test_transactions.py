"""Transactions of the user's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import asyncdl
from asyncdl import Datalayer, Listener, Model, RowsDeleted, RowsInserted, RowsUpdated
from asyncdl.errors import ClosedError, ConfigurationError, DuplicateKeyError, QueryError, UnknownColumnError
from tests import models
from tests.conftest import rows_of
from tests.postgresql import Server

pytestmark = pytest.mark.anyio
# ruff: noqa: PT012 - the block is what raises


@pytest.fixture(params=["sqlite", "postgresql"])
async def db(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Datalayer]:
    uri = f"sqlite:///{tmp_path / 'app.db'}"
    if request.param == "postgresql":
        server: Server = request.getfixturevalue("postgresql")
        uri = server.url(tmp_path)
    async with asyncdl.connect(uri, artifact_store=f"filesystem://{tmp_path / 'artifacts'}") as db:
        t = db["numbers"]
        await db.execute(t.insert([{"id": n, "x": n} for n in range(3)]))
        await db.execute(db["totals"].insert({"id": 0, "sum": 3}))
        await db.add(Listener("doubled", model=Model("double", models.double), key="x", select=t), wait=True)
        yield db


async def test_all_of_it_with_its_events(db):
    t, since = db["numbers"], await db.events.last()
    async with db.transaction() as tx:
        assert await tx.execute(t.insert([{"id": 7, "x": 7}])) == [7]
        assert await tx.execute(t.update({"x": 70}, where=t.id == 7)) == [7]
        assert await tx.execute(t.delete(where=t.id == 0)) == [0]
        await tx.execute(db["totals"].update({"sum": 73}, where=True))
    await tx.wait(60)
    assert await rows_of(db, t.outputs("doubled")) == [(1, 1, 2), (2, 2, 4), (7, 70, 140)]
    assert await rows_of(db, db["totals"]) == [(0, 73)]
    events = await db.events.read(since, RowsInserted, RowsUpdated, RowsDeleted)
    assert [(type(each).__name__, each.table, each.ids) for each in events] == [
        ("RowsInserted", "numbers", [7]),
        ("RowsUpdated", "numbers", [7]),
        ("RowsDeleted", "numbers", [0]),
        ("RowsUpdated", "totals", [0]),
    ]
    assert [each.seq for each in events] == list(range(events[0].seq, events[0].seq + 4))


@pytest.mark.parametrize("late", [False, True])
async def test_none_of_it(db, late):
    t, since, before = db["numbers"], await db.events.last(), await rows_of(db, db["numbers"])
    with pytest.raises(ZeroDivisionError if late else UnknownColumnError):
        async with db.transaction() as tx:
            await tx.execute(t.delete(where=t.id == 0))
            if not late:
                await tx.execute(t.update({"nothing": 1}, where=True))
            raise ZeroDivisionError
    with pytest.raises(ClosedError):
        await tx.wait()
    await (await db.execute(t.insert({"id": 9, "x": 9}))).wait(60)
    assert await rows_of(db, t) == [*before, (9, 9)]
    assert await db.events.read(since, RowsDeleted) == []
    assert len(await db.events.read(since, RowsInserted)) == 1


async def test_a_failure_that_is_caught_undoes_it_all_the_same(db):
    t, before = db["numbers"], await rows_of(db, db["numbers"])
    with pytest.raises((QueryError, DuplicateKeyError)):
        async with db.transaction() as tx:
            await tx.execute(t.delete(where=t.id == 0))
            with pytest.raises((DuplicateKeyError, UnknownColumnError)):
                await tx.execute(t.insert({"id": 1, "nothing": 1}))
    assert await rows_of(db, t) == before


async def test_a_key_that_is_taken(db):
    t, before = db["numbers"], await rows_of(db, db["numbers"])
    with pytest.raises(DuplicateKeyError):
        async with db.transaction() as tx:
            await tx.execute(t.delete(where=t.id == 0))
            await tx.execute(t.insert({"id": 1, "x": 1}))
    assert await rows_of(db, t) == before


async def test_it_takes_writes_while_it_lasts_and_is_empty_without(db):
    since = await db.events.last()
    async with db.transaction() as tx:
        pass
    await tx.wait()
    with pytest.raises(ClosedError, match="committed"):
        await tx.execute(db["numbers"].delete(where=True))
    with pytest.raises(QueryError, match="takes writes"):
        async with db.transaction() as tx:
            await tx.execute(db["numbers"])
    assert await db.events.last() == since


async def test_two_databases_have_no_transaction_in_common(tmp_path):
    uris = {
        "metadata_store": f"sqlite:///{tmp_path / 'meta.db'}",
        "artifact_store": f"filesystem://{tmp_path / 'artifacts'}",
    }
    async with asyncdl.connect(f"sqlite:///{tmp_path / 'data.db'}", **uris) as db:
        with pytest.raises(ConfigurationError, match="one database that has transactions"):
            async with db.transaction():
                pytest.fail("it has begun")
