"""The datalayer, end to end, with its metadata on MariaDB."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import asyncdl
from asyncdl import Listener, Model
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


def test_a_missing_driver_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncmy", None)
    with pytest.raises(MissingDependencyError, match=r"asyncdl\[mysql\]"):
        asyncdl.connect(metadata_store="mysql://localhost/app")


@pytest.mark.parametrize("uri", ["mysql://[::1/app", "mysql://u:secret@host:port/app", "mysql://u:secret@host"])
def test_what_is_no_url_is_refused_at_once(uri: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        asyncdl.connect(metadata_store=uri)
    assert "secret" not in str(caught.value)
