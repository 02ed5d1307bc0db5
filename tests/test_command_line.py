"""The command line, as processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import asyncdl
from asyncdl import Listener, Model
from tests import models

pytestmark = pytest.mark.anyio


def run(*arguments, folder, **environment):
    command = [sys.executable, "-W", "error", "-m", "asyncdl.cli", *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_demo(tmp_path):
    found = run("demo", folder=tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    assert "RowsInserted docs · 79 rows" in found.stdout or "RowsInserted docs" in found.stdout
    assert "incomprehensibilities" in found.stdout
    assert "'assert' has now 0 outputs" in found.stdout
    assert list(tmp_path.iterdir()) == []


async def test_show(tmp_path):
    uri = f"sqlite:///{tmp_path / 'app.db'}"
    async with asyncdl.connect(uri, artifact_store=f"filesystem://{tmp_path / 'a'}") as db:
        await db.execute(db["t"].insert({"id": 1, "x": 1}))
        await db.add(Listener("doubled", model=Model("double", models.double), key="x", select=db["t"]), wait=True)
    assert run("show", "--databackend", uri, folder=tmp_path).stdout == "listener doubled\nmodel double\n"
    assert run("show", "model", "--databackend", uri, folder=tmp_path).stdout == "double\n"
    assert run("show", "model", "double", folder=tmp_path, ASYNCDL_DATABACKEND=uri).stdout == "0\n"
    record = run("show", "listener", "doubled", "0", folder=tmp_path, ASYNCDL_DATABACKEND=uri).stdout
    assert "'status': 'ready'" in record


def test_an_error_is_a_line(tmp_path):
    found = run("show", "--databackend", "redis://me:secret@here", folder=tmp_path)
    assert found.returncode == 1
    assert found.stderr.startswith("UnknownSchemeError: no databackend serves 'redis'")
    assert "Traceback" not in found.stderr
    assert "secret" not in found.stderr


def test_settings(tmp_path):
    found = run(
        "settings", folder=tmp_path, ASYNCDL_COMPUTE="local", ASYNCDL_METADATA_STORE="postgresql://u:secret@h/d"
    )
    assert found.returncode == 0
    assert "postgresql://u:***@h/d" in found.stdout
