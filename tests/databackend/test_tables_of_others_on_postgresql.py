"""Tables that other programs made, and change while we look, on PostgreSQL: end to end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import asyncdl
from asyncdl import Datalayer, Listener, Model
from asyncdl.drivers.postgresql import PostgreSQLDatabase
from asyncdl.drivers.sql import Statement
from asyncdl.errors import (
    AsyncDLError,
    ConstraintError,
    InvalidComponentError,
    QueryError,
    StoreError,
    StoreUnavailableError,
    TableNotFoundError,
)
from tests import models
from tests.conftest import rows_of
from tests.postgresql import Server

pytestmark = pytest.mark.anyio

Run = Callable[..., list[Any]]


@pytest.fixture
def run(postgresql: Server, tmp_path: Path) -> Run:
    return lambda sql: postgresql.run(sql, url=postgresql.url(tmp_path))


@pytest.fixture
async def db(postgresql: Server, tmp_path: Path) -> AsyncIterator[Datalayer]:
    artifacts = f"filesystem://{tmp_path / 'artifacts'}"
    async with asyncdl.connect(postgresql.url(tmp_path), artifact_store=artifacts) as db:
        yield db


def doubled(db: Datalayer, table: str, key: str = "x") -> Listener:
    return Listener("doubled", model=Model("double", models.double), key=key, select=db[table])


@pytest.mark.parametrize(
    "key",
    [
        "id serial PRIMARY KEY",
        "id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
        "id uuid PRIMARY KEY DEFAULT gen_random_uuid()",
        "id text PRIMARY KEY",
    ],
    ids=["serial", "identity", "uuid", "text"],
)
async def test_each_kind_of_key_is_followed(db: Datalayer, run: Run, key: str) -> None:
    run(f"CREATE TABLE theirs ({key}, x bigint)")
    if "text" not in key:
        run("INSERT INTO theirs (x) VALUES (1)")
    t = db["theirs"]
    await db.add(doubled(db, "theirs"), wait=True)
    written = await db.execute(t.insert([{"x": 2}, {"x": 3}]))
    assert len(set(written.ids)) == 2
    await written.wait()
    await (await db.execute(t.update({"x": t.x + 1}, where=t.id == written.ids[0]))).wait()
    await (await db.execute(t.delete(where=t.id == written.ids[1]))).wait()
    rows = await rows_of(db, t.outputs("doubled"))
    assert sorted(x for _, x, _ in rows) == ([3] if "text" in key else [1, 3])
    assert all(value == 2 * x for _, x, value in rows)
    columns = run("SELECT column_name FROM information_schema.columns WHERE table_name = 'theirs' "
                  "AND table_schema = current_schema()")  # fmt: skip
    assert len(columns) == 2


async def test_a_partitioned_table_is_one_table(db: Datalayer, run: Run) -> None:
    run(
        "CREATE TABLE parted (id int, region text, x bigint, PRIMARY KEY (region, id)) PARTITION BY LIST (region);"
        "CREATE TABLE parted_eu PARTITION OF parted FOR VALUES IN ('eu');"
        "CREATE TABLE parted_us PARTITION OF parted FOR VALUES IN ('us')"
    )
    t = db["parted"]
    await db.add(doubled(db, "parted"), wait=True)
    written = await db.execute(t.insert([{"id": n, "region": r, "x": n} for n in range(3) for r in ("eu", "us")]))
    await written.wait()
    assert len(await rows_of(db, t.outputs("doubled"))) == 6
    await (await db.execute(t.delete(where=t.region == "eu"))).wait()
    assert {row[1] for row in await rows_of(db, t.outputs("doubled"))} == {"us"}
    with pytest.raises(StoreError):
        await db.execute(t.insert({"id": 1, "region": "nowhere", "x": 1}))


async def test_a_composite_key_whose_columns_are_not_in_the_order_of_their_names(db: Datalayer, run: Run) -> None:
    run("CREATE TABLE pairs (a int, b int, x bigint, PRIMARY KEY (b, a))")
    t = db["pairs"]
    await db.add(doubled(db, "pairs"), wait=True)
    written = await db.execute(t.insert([{"a": n, "b": 10 * n + m, "x": n + m} for n in range(3) for m in range(3)]))
    await written.wait()
    await (await db.execute(t.update({"x": 100}, where=(t.a == 1) & (t.b == 12)))).wait()
    await (await db.execute(t.delete(where=t.a == 2))).wait()
    rows = await rows_of(db, t.outputs("doubled"))
    assert len(rows) == 6
    assert (1, 12, 100, 200) in rows
    assert all(value == 2 * x for *_, x, value in rows)
    assert await rows_of(db, t.missing_outputs("doubled")) == []


async def test_a_view_is_read_and_not_listened_to(db: Datalayer, run: Run) -> None:
    run("CREATE TABLE base (id int PRIMARY KEY, x bigint); CREATE VIEW seen AS SELECT id, x FROM base WHERE x > 1")
    await db.execute(db["base"].insert([{"id": n, "x": n} for n in range(4)]))
    assert await rows_of(db, db["seen"]) == [(2, 2), (3, 3)]
    with pytest.raises(InvalidComponentError, match="'seen' has no primary key"):
        await db.add(doubled(db, "seen"))
    assert await db.show() == []


async def test_mixed_case_and_quoted_names(db: Datalayer, run: Run) -> None:
    run('CREATE TABLE "MixedCase" ("Id" int PRIMARY KEY, "The X" bigint)')
    t = db["MixedCase"]
    await db.add(doubled(db, "MixedCase", "The X"), wait=True)
    await (await db.execute(t.insert({"Id": 1, "The X": 4}))).wait()
    assert await rows_of(db, t.outputs("doubled")) == [(1, 4, 8)]


async def test_a_constraint_violated_half_way_through_a_batch_writes_nothing(db: Datalayer, run: Run) -> None:
    run("CREATE TABLE strict (id int PRIMARY KEY, x bigint CHECK (x <> 3000))")
    t = db["strict"]
    await db.add(doubled(db, "strict"), wait=True)
    before = await db.events.last()
    with pytest.raises(ConstraintError):
        await db.execute(t.insert([{"id": n, "x": n} for n in range(5000)]))
    assert await rows_of(db, t) == []
    assert await db.events.last() == before


async def test_a_column_added_and_renamed_by_another_program(db: Datalayer, run: Run) -> None:
    run("CREATE TABLE changing (id int PRIMARY KEY, x bigint)")
    t = db["changing"]
    await db.add(doubled(db, "changing"), wait=True)
    await (await db.execute(t.insert({"id": 1, "x": 1}))).wait()
    run("ALTER TABLE changing ADD COLUMN note text DEFAULT 'new'")
    await asyncio.sleep(1.1)  # what is known of a table is looked at anew each second
    await (await db.execute(t.insert({"id": 2, "x": 2, "note": "n"}))).wait()
    assert await rows_of(db, t.outputs("doubled").select("id", "note", "doubled")) == [(1, "new", 2), (2, "n", 4)]
    run("ALTER TABLE changing RENAME COLUMN note TO remark")
    assert await rows_of(db, t) == [(1, 1, "new"), (2, 2, "n")]
    await db.execute(t.insert({"id": 3, "x": 3}))
    await db.wait_idle(timeout=30)
    assert await rows_of(db, t.outputs("doubled").select("id", "doubled")) == [(1, 2), (2, 4), (3, 6)]


async def test_a_table_dropped_behind_our_back(db: Datalayer, run: Run) -> None:
    run("CREATE TABLE gone (id int PRIMARY KEY, x bigint)")
    t = db["gone"]
    await db.execute(t.insert({"id": 1, "x": 1}))
    run("DROP TABLE gone")
    with pytest.raises(AsyncDLError, match="gone"):
        await db.execute(t.insert({"id": 2, "x": 2}))
    with pytest.raises((TableNotFoundError, QueryError)):
        await (await db.execute(t)).to_list()
    run("CREATE TABLE gone (id int PRIMARY KEY, x bigint, y text)")
    await asyncio.sleep(1.1)
    await db.execute(t.insert({"id": 2, "x": 2, "y": "back"}))
    assert await rows_of(db, t) == [(2, 2, "back")]


async def test_a_role_that_may_not_create_tables(postgresql: Server, run: Run, tmp_path: Path) -> None:
    role = f"reader_{tmp_path.name[-20:]}".lower().replace("-", "_")
    schema = run("SELECT current_schema()::text")[0][0]
    run(f"CREATE TABLE readable (id int PRIMARY KEY, x bigint); CREATE ROLE {role} LOGIN;"
        f"GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT SELECT ON readable TO {role}")  # fmt: skip
    url = postgresql.url(tmp_path).replace("://postgres@", f"://{role}@").replace("://root@", f"://{role}@")
    artifacts = f"filesystem://{tmp_path / 'artifacts'}"
    try:
        with pytest.raises(StoreError, match="permission denied"):
            async with asyncdl.connect(url, artifact_store=artifacts):
                pass
        sqlite = f"sqlite:///{tmp_path / 'meta.db'}"
        async with asyncdl.connect(url, metadata_store=sqlite, artifact_store=artifacts) as db:
            assert await rows_of(db, db["readable"]) == []
            with pytest.raises(StoreError, match="permission denied"):
                await db.execute(db["readable"].insert({"id": 1, "x": 1}))
            with pytest.raises(StoreError, match="permission denied"):
                await db.execute(db["new"].insert({"id": 1, "x": 1}))
    finally:
        run(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_a_transaction_that_lay_idle_for_too_long_is_lost(postgresql: Server, tmp_path: Path) -> None:
    database = PostgreSQLDatabase(f"{postgresql.url(tmp_path)}&idle_in_transaction_session_timeout=50")
    await database.open()

    async def dawdle() -> None:
        async with database.transaction() as tx:
            await tx.run(Statement("SELECT 1", fetch=True))
            while not any(each.is_closed() for each in database._lent):  # noqa: ASYNC110 - the server ends it
                await asyncio.sleep(0.01)
            await tx.run(Statement("SELECT 1", fetch=True))

    with pytest.raises(StoreUnavailableError):
        await dawdle()
    assert await database.fetch("SELECT 1") == [(1,)]
    await database.aclose()
