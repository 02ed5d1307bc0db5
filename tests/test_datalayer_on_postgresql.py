"""The datalayer, end to end, on PostgreSQL."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import asyncdl
from asyncdl import Application, Datalayer, Listener, Model
from asyncdl.drivers.postgresql import PostgreSQLDatabase
from asyncdl.errors import (
    ComponentInUseError,
    ConfigurationError,
    MissingDependencyError,
    StoreUnavailableError,
)
from asyncdl.settings import redact
from tests import models
from tests.conftest import rows_of
from tests.postgresql import Server

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["one database", "metadata in sqlite", "rows in sqlite", "two schemas"])
async def db(request: pytest.FixtureRequest, postgresql: Server, tmp_path: Path) -> AsyncIterator[Datalayer]:
    url, sqlite = postgresql.url(tmp_path), f"sqlite:///{tmp_path / 'app.db'}"
    stores = {
        "one database": (url, None),
        "metadata in sqlite": (url, sqlite),
        "rows in sqlite": (sqlite, url),
        "two schemas": (url, postgresql.url(tmp_path / "other")),
    }
    databackend, metadata_store = stores[request.param]
    artifacts = f"filesystem://{tmp_path / 'artifacts'}"
    async with asyncdl.connect(databackend, metadata_store=metadata_store, artifact_store=artifacts) as db:
        assert db.metadata.joins(db.databackend) == (request.param == "one database")
        yield db


async def test_what_is_there_comes_and_goes_is_followed(db: Datalayer) -> None:
    t = db["numbers"]
    await db.execute(t.insert([{"id": n, "x": n * 10} for n in range(3)]))
    added = await db.add(Listener("doubled", model=Model("double", models.double), key="x", select=t))
    await added.wait()
    assert await rows_of(db, t.outputs("doubled")) == [(0, 0, 0), (1, 10, 20), (2, 20, 40)]
    await (await db.execute(t.insert({"id": 3, "x": 5}))).wait()
    await (await db.execute(t.update({"x": t.x + 1}, where=t.id == 0))).wait()
    await (await db.execute(t.upsert([{"id": 1, "x": 7}, {"id": 4, "x": 8}]))).wait()
    await (await db.execute(t.delete(where=t.id == 2))).wait()
    assert await rows_of(db, t.outputs("doubled")) == [(0, 1, 2), (1, 7, 14), (3, 5, 10), (4, 8, 16)]
    assert await rows_of(db, t.missing_outputs("doubled")) == []
    assert (await (await db.execute(t.insert({"x": 1}))).wait()) is None
    await db.remove("listener", "doubled")
    assert await db.databackend.tables() == ["numbers"]


async def test_chained_and_flattened_listeners(db: Datalayer) -> None:
    texts = db["texts"]
    await db.execute(texts.insert([{"id": "a", "text": "one two three"}, {"id": "b", "text": ""}]))
    split = Listener("word", model=Model("words", models.words), key="text", select=texts, flatten=True)
    select = texts.outputs("word").select("id", "word_position", "word")
    shout = Listener("loud", model=Model("upper", models.upper), key="word", select=select)
    added = await db.add(Application("both", [split, shout]))
    await added.wait()
    query = texts.outputs("word", "loud").select("id", "word_position", "loud")
    assert await rows_of(db, query) == [("a", 0, "ONE"), ("a", 1, "TWO"), ("a", 2, "THREE")]
    await (await db.execute(texts.update({"text": "just one"}, where=texts.id == "a"))).wait()
    await (await db.execute(texts.update({"text": "four"}, where=texts.id == "b"))).wait()
    assert await rows_of(db, query) == [("a", 0, "JUST"), ("a", 1, "ONE"), ("b", 0, "FOUR")]
    with pytest.raises(ComponentInUseError):
        await db.remove("listener", "word")


async def test_an_error_with_nul_in_its_message_is_recorded(db: Datalayer) -> None:
    def fail(x: int) -> int:
        raise RuntimeError("a\0b")

    t = db["t"]
    await db.execute(t.insert([{"id": 1, "x": 1}]))
    added = await db.add(Listener("bad", model=Model("bad", fail), key="x", select=t))
    await added.wait()
    [(key, error)] = await db.errors("bad")
    assert (key, error.message) == (1, "a\0b")


async def test_concurrent_writers_of_one_table_are_all_followed(postgresql: Server, tmp_path: Path) -> None:
    url, artifacts = postgresql.url(tmp_path), f"filesystem://{tmp_path / 'artifacts'}"
    async with (
        asyncdl.connect(url, artifact_store=artifacts) as one,
        asyncdl.connect(url, artifact_store=artifacts) as two,
    ):
        t = one["numbers"]
        await one.execute(t.insert([{"id": -1, "x": 0}]))
        listener = Listener("doubled", model=Model("double", models.double), key="x", select=t)
        added = await asyncio.gather(*(each.add(listener) for each in (one, two) for _ in range(5)))
        await asyncio.gather(*(each.wait() for each in added))
        written = await asyncio.gather(
            *((one, two)[n % 2].execute(t.insert([{"id": n * 10 + at, "x": n} for at in range(10)])) for n in range(40))
        )
        await asyncio.gather(*(each.wait() for each in written))
        await asyncio.gather(
            *((one, two)[n % 2].execute(t.update({"x": t.x + 1}, where=t.id < 100)) for n in range(20))
        )
        await one.wait_idle(timeout=60)
        rows = await rows_of(two, t.outputs("doubled").select("id", "x", "doubled"))
        assert len(rows) == 401
        assert all(doubled == 2 * x for _, x, doubled in rows)
        assert [x for key, x, _ in rows if key == -1] == [20]
        assert len(await one.show("listener", "doubled")) == 1


PROGRAM = """
    import asyncio, sys, asyncdl
    from asyncdl import Listener, Model
    from tests import models

    async def main(url, artifacts):
        async with asyncdl.connect(url, artifact_store=artifacts, job_lease=1.0) as db:
            t = db["numbers"]
            await db.add(Listener("doubled", model=Model("double", models.double), key="x", select=t))
            for n in range(10_000):
                await db.execute(t.insert([{"x": n} for _ in range(20)]))
                print(n, flush=True)

    asyncio.run(main(*sys.argv[1:]))
"""


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent)


async def test_a_killed_process_loses_no_output(postgresql: Server, tmp_path: Path) -> None:
    url, artifacts = postgresql.url(tmp_path), f"filesystem://{tmp_path / 'artifacts'}"
    postgresql.run("CREATE TABLE numbers (id serial PRIMARY KEY, x bigint)", url=url)
    acknowledged = 0
    for life in range(3):
        command = [sys.executable, "-c", textwrap.dedent(PROGRAM), url, artifacts]
        process = start(command)
        assert process.stdout is not None
        for _ in range(10 + life):
            acknowledged += bool(await asyncio.to_thread(process.stdout.readline))
        process.kill()
        await asyncio.to_thread(process.communicate)
    async with asyncdl.connect(url, artifact_store=artifacts, job_lease=1.0) as db:
        await db.wait_idle(timeout=60)
        t = db["numbers"]
        rows = await rows_of(db, t.outputs("doubled").select("x", "doubled"))
        assert len(rows) == len(await rows_of(db, t))
        assert len(rows) >= acknowledged * 20
        assert all(doubled == 2 * x for x, doubled in rows)
        assert await rows_of(db, t.missing_outputs("doubled")) == []


# connecting


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
async def test_one_database_is_one_pool(postgresql: Server, tmp_path: Path, scheme: str) -> None:
    url = postgresql.url(tmp_path)
    other = f"{scheme}://{url.partition('://')[2]}"
    artifacts = f"filesystem://{tmp_path / 'artifacts'}"
    async with asyncdl.connect(url, metadata_store=other, artifact_store=artifacts) as db:
        assert db.metadata.joins(db.databackend)
    async with asyncdl.connect(db.databackend, metadata_store=other, artifact_store=artifacts) as db:
        assert db.metadata.joins(db.databackend)


def test_a_missing_driver_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(MissingDependencyError, match=r"asyncdl\[postgres\]"):
        asyncdl.connect("postgresql://localhost/app")


@pytest.mark.parametrize("uri", ["postgresql://[::1/app", "postgresql://u:secret@host:port/app"])
def test_what_is_no_url_is_refused_at_once(uri: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        asyncdl.connect(uri)
    assert "secret" not in str(caught.value)


async def test_passwords_are_shown_nowhere(postgresql: Server, tmp_path: Path) -> None:
    address = urlsplit(postgresql.session_url).netloc.rpartition("@")[2]
    for uri in (
        f"postgresql://nobody:s3cr@t@{address}/nothing",
        f"postgresql://{address}/nothing?user=nobody&password=s3cr@t",
    ):
        assert "s3cr" not in repr(asyncdl.connect(uri))
        assert "s3cr" not in redact(uri)
        assert "s3cr" not in PostgreSQLDatabase(uri).url
        with pytest.raises(StoreUnavailableError) as caught:
            await asyncdl.connect(uri, artifact_store=f"filesystem://{tmp_path}")
        error: BaseException | None = caught.value
        while error is not None:
            assert "s3cr" not in str(error)
            error = error.__cause__
