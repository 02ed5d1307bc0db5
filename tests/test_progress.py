"""The progress bar."""

from __future__ import annotations

import pytest

import asyncdl
from asyncdl import Listener, Model, progress
from tests import models

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("setting", "terminal", "shown"),
    [(None, True, True), (None, False, False), (True, False, True), (False, True, False)],
)
def test_when_it_is_wanted(setting, terminal, shown, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    assert progress.wanted(setting) is shown


@pytest.mark.parametrize("setting", [True, False])
async def test_it_is_drawn_on_standard_error_while_waiting(setting, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "AFTER", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes what is captured for a terminal
    uris = {"databackend": f"sqlite:///{tmp_path / 'a.db'}", "artifact_store": f"filesystem://{tmp_path / 'artifacts'}"}
    async with asyncdl.connect(**uris, progress=setting) as db:
        await db.execute(db["t"].insert([{"id": n, "x": n} for n in range(3000)]))
        added = await db.add(
            Listener("slowly", model=Model("slowly", models.unhurried, max_concurrency=50), key="x", select=db["t"])
        )
        await added.wait()
    out, err = capsys.readouterr()
    assert out == ""
    assert ("/3000" in err) is setting
