"""The datalayer, end to end, on MariaDB or MySQL, and with its metadata alone there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import asyncdl
from asyncdl import Application, Listener, Model
from asyncdl.errors import ConfigurationError, MissingDependencyError
from tests import models
from tests.conftest import rows_of
from tests.mysql import Server

pytestmark = pytest.mark.anyio


async def test_rows_in_sqlite_are_followed_with_metadata_on_mysql(mysql: Server, tmp_path: Path) -> None:
    rows, artifacts = f"sqlite:///{tmp_path / 'app.db'}", f"filesystem://{tmp_path / 'artifacts'}"
    async with asyncdl.connect(rows, metadata_store=mysql.url(tmp_path), artifact_store=artifacts) as db:
        t = db["numbers"]
        await db.execute(t.insert([{"id": n, "x": n * 10} for n in range(3)]))
        added = await db.add(Listener("doubled", model=Model("double", models.double), key="x", select=t))
        await added.wait()
        await (await db.execute(t.insert({"id": 3, "x": 5}))).wait()
        await (await db.execute(t.update({"x": t.x + 1}, where=t.id == 0))).wait()
        await (await db.execute(t.delete(where=t.id == 2))).wait()
        assert await rows_of(db, t.outputs("doubled")) == [(0, 1, 2), (1, 10, 20), (3, 5, 10)]
        await db.remove("listener", "doubled")
        assert await db.databackend.tables() == ["numbers"]


async def test_rows_events_and_outputs_in_one_database(mysql: Server, tmp_path: Path) -> None:
    artifacts = f"filesystem://{tmp_path / 'artifacts'}"
    async with asyncdl.connect(mysql.url(tmp_path), artifact_store=artifacts) as db:
        assert db.metadata.joins(db.databackend)
        texts = db["texts"]
        await db.execute(texts.insert([{"id": "a", "text": "one two three"}, {"id": "b", "text": ""}]))
        split = Listener("word", model=Model("words", models.words), key="text", select=texts, flatten=True)
        select = texts.outputs("word").select("id", "word_position", "word")
        shout = Listener("loud", model=Model("upper", models.upper), key="word", select=select)
        await (await db.add(Application("both", [split, shout]))).wait()
        query = texts.outputs("word", "loud").select("id", "word_position", "loud")
        assert await rows_of(db, query) == [("a", 0, "ONE"), ("a", 1, "TWO"), ("a", 2, "THREE")]
        await (await db.execute(texts.update({"text": "just one"}, where=texts.id == "a"))).wait()
        await (await db.execute(texts.upsert([{"id": "b", "text": "four"}]))).wait()
        assert await rows_of(db, query) == [("a", 0, "JUST"), ("a", 1, "ONE"), ("b", 0, "FOUR")]
        await (await db.execute(texts.delete(where=texts.id == "a"))).wait()
        assert await rows_of(db, query) == [("b", 0, "FOUR")]


@pytest.mark.parametrize(
    "kind", ["utf8mb4 COLLATE utf8mb4_bin", "utf8mb4 COLLATE utf8mb4_general_ci", "latin1", "latin1 COLLATE latin1_bin"]
)
async def test_texts_in_another_collation_are_keys(mysql: Server, tmp_path: Path, kind: str) -> None:
    """Of two binary collations MySQL chooses neither (error 1267); asyncdl's texts are in one of them."""
    url, artifacts = mysql.url(tmp_path), f"filesystem://{tmp_path / 'artifacts'}"
    mysql.run(
        f"CREATE TABLE texts (part INT, code VARCHAR(50), text TEXT, PRIMARY KEY (part, code)) CHARACTER SET {kind}",
        url=url,
    )
    mysql.run("INSERT INTO texts VALUES (1, 'a', 'one two'), (1, 'b', 'three'), (2, 'a', '')", url=url)
    async with asyncdl.connect(url, artifact_store=artifacts) as db:
        texts = db["texts"]
        split = Listener("word", model=Model("words", models.words), key="text", select=texts, flatten=True)
        select = texts.outputs("word").select("part", "code", "word_position", "word")
        shout = Listener("loud", model=Model("upper", models.upper), key="word", select=select)
        await (await db.add(Application("both", [split, shout]))).wait()
        query = texts.outputs("word", "loud").select("part", "code", "loud").order_by("part", "code", "loud")
        assert await rows_of(db, query) == [(1, "a", "ONE"), (1, "a", "TWO"), (1, "b", "THREE")]
        await (await db.execute(texts.update({"text": "four"}, where=texts.code == "a"))).wait()
        await (await db.execute(texts.delete(where=texts.code == "b"))).wait()
        await (await db.execute(texts.upsert([{"part": 3, "code": "c", "text": "five"}]))).wait()
        assert await rows_of(db, query) == [(1, "a", "FOUR"), (2, "a", "FOUR"), (3, "c", "FIVE")]
        mysql.run("DELETE FROM texts WHERE part = 2", url=url)
        await db.reconcile()
        await db.wait_idle(timeout=60)
        assert await rows_of(db, query) == [(1, "a", "FOUR"), (3, "c", "FIVE")]


async def test_a_table_of_another_program_is_followed(mysql: Server, tmp_path: Path) -> None:
    url, artifacts = mysql.url(tmp_path), f"filesystem://{tmp_path / 'artifacts'}"
    mysql.run(
        "CREATE TABLE texts (code VARCHAR(50) PRIMARY KEY, text TEXT) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci",
        url=url,
    )
    mysql.run("INSERT INTO texts VALUES ('a', 'one'), ('B', 'two')", url=url)
    async with asyncdl.connect(url, artifact_store=artifacts) as db:
        texts = db["texts"]
        await (await db.add(Listener("loud", model=Model("upper", models.upper), key="text", select=texts))).wait()
        await (await db.execute(texts.insert({"code": "c", "text": "three"}))).wait()
        await (await db.execute(texts.delete(where=texts.code == "a"))).wait()
        query = texts.outputs("loud").select("code", "loud")
        assert await rows_of(db, query) == [("B", "TWO"), ("c", "THREE")]


async def test_a_transaction_that_fails_leaves_neither_rows_nor_events_nor_its_table(
    mysql: Server, tmp_path: Path
) -> None:
    artifacts = f"filesystem://{tmp_path / 'artifacts'}"
    async with asyncdl.connect(mysql.url(tmp_path), artifact_store=artifacts) as db:
        await db.execute(db["there"].insert({"id": 1, "x": 1}))
        since = await db.events.last()
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is the transaction
            async with db.transaction() as tx:
                await tx.execute(db["there"].insert({"id": 2, "x": 2}))
                await tx.execute(db["made"].insert({"id": 1, "x": 1}))
                raise ZeroDivisionError
        assert await rows_of(db, db["there"]) == [(1, 1)]
        assert await db.databackend.tables() == ["there"]
        assert await db.events.last() == since


def test_a_missing_driver_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncmy", None)
    with pytest.raises(MissingDependencyError, match=r"asyncdl\[mysql\]"):
        asyncdl.connect(metadata_store="mysql://localhost/app")


@pytest.mark.parametrize("uri", ["mysql://[::1/app", "mysql://u:secret@host:port/app", "mysql://u:secret@host"])
def test_what_is_no_url_is_refused_at_once(uri: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        asyncdl.connect(metadata_store=uri)
    assert "secret" not in str(caught.value)
