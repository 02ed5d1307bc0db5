"""The examples, each as a process of its own, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import asyncdl
from asyncdl import Listener, Model, OutputsWritten
from tests import models, openai_service

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def running(*command: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run an example in an empty folder; it must end well when it is interrupted."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ASYNCDL_DATABACKEND": f"sqlite:///{folder / 'app.db'}"}
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode in {0, -signal.SIGINT}, errors
        assert "Traceback" not in errors
    finally:
        process.kill()
        process.communicate()


def client(process: subprocess.Popen[str], port: int) -> httpx.Client:
    """Return a client once the server answers; connecting again and again is all that another process offers."""
    url = f"http://127.0.0.1:{port}"
    while process.poll() is None:
        try:
            httpx.get(url, timeout=30)
        except httpx.ConnectError:
            continue
        return httpx.Client(base_url=url, timeout=30)
    raise AssertionError(process.communicate()[1])


def test_fastapi(tmp_path):
    port = free_port()
    command = ("-m", "uvicorn", "examples.fastapi_app:app", "--port", str(port), "--log-level", "warning")
    with running(*command, folder=tmp_path) as process, client(process, port) as http:
        made = http.post("/notes", json={"text": "Bread needs flour; flour needs grain, and grain needs rain"})
        assert made.status_code == 201
        note = made.json()
        assert note["words"] == ["needs", "flour", "grain"]
        assert http.get("/notes").json() == [note]
        changed = http.put(f"/notes/{note['id']}", json={"text": "Water"}).json()
        assert changed == {"id": note["id"], "text": "Water", "words": ["water"]}
        assert http.delete(f"/notes/{note['id']}").status_code == 204
        assert http.get(f"/notes/{note['id']}").status_code == 404
    with running(*command, folder=tmp_path) as process, client(process, port) as http:  # again, on what is there
        assert http.get("/notes").json() == []
        assert http.post("/notes", json={"text": "again and again"}).json()["words"] == ["again"]


def test_aiohttp(tmp_path):
    port = free_port()
    command = (str(ROOT / "examples" / "aiohttp_app.py"), str(port))
    with running(*command, folder=tmp_path) as process, client(process, port) as http:
        assert http.get("/length", params={"text": "hello"}).json() == {"length": 5}
        written = http.post("/words", content="one\nthree\nfive")
        assert written.status_code == 202
        rows: list[dict[str, object]] = []
        while len(rows) < 3:  # the answer did not wait for the outputs
            rows = http.get("/words").json()
        assert [(row["id"], row["text"], row["length"]) for row in rows] == [
            (id, text, len(text)) for id, text in zip(written.json()["ids"], ["one", "three", "five"], strict=True)
        ]


async def test_subscriber(tmp_path):
    uri = f"sqlite:///{tmp_path / 'app.db'}"
    command = (str(ROOT / "examples" / "subscriber.py"), uri)
    async with asyncdl.connect(uri, artifact_store=f"filesystem://{tmp_path / 'artifacts'}") as db:
        t = db["numbers"]
        await db.execute(t.insert({"id": 0, "x": 0}))
        await db.add(Listener("doubled", model=Model("double", models.double), key="x", select=t), wait=True)

        async def write(id: int) -> None:
            await (await db.execute(t.insert({"id": id, "x": id}))).wait()

        with running(*command, folder=tmp_path) as process:
            seen = 0
            while await db.metadata.cursor("subscriber:printer") is None:
                seen = await db.metadata.wait_for_commits(seen)
            await write(1)
            assert (await line(process))["ids"] == [1]
            printed = (await db.events.read(0, OutputsWritten))[-1].seq
            seen = 0
            while (await db.metadata.cursor("subscriber:printer") or 0) < printed:  # until it is acknowledged
                seen = await db.metadata.wait_for_commits(seen)
        await write(2)  # while it is not there
        with running(*command, folder=tmp_path) as process:
            assert (await line(process))["ids"] == [2]


async def line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(await asyncio.to_thread(process.stdout.readline))
    return found


def finished(*command: str, folder: Path) -> list[str]:
    """Run an example to its end, and return the lines that it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (found.returncode, found.stderr) == (0, "")
    return found.stdout.splitlines()


def check_digits(lines: list[str]) -> None:
    accuracy, f1, recognised = lines
    assert float(accuracy.removeprefix("accuracy: ")) > 0.97
    assert float(f1.removeprefix("f1: ")) > 0.97
    right, of, total, *rest = recognised.split()
    assert (of, total, rest) == ("of", "297", ["new", "digits", "were", "recognised"])
    assert int(right) > 270


def test_digits(tmp_path):
    command = (str(ROOT / "examples" / "digits.py"), f"sqlite:///{tmp_path / 'digits.db'}")
    check_digits(finished(*command, folder=tmp_path))
    check_digits(finished(*command, folder=tmp_path))  # nothing is trained again; rows may come again


def test_digits_on_two_dask_workers(tmp_path, dask_cluster):
    command = (str(ROOT / "examples" / "digits_on_dask.py"), f"sqlite:///{tmp_path / 'digits.db'}", dask_cluster.url)
    check_digits(finished(*command, folder=tmp_path))


async def test_answers_of_an_api(tmp_path):
    environment = {"OPENAI_API_KEY": "a key", "ASYNCDL_DATABACKEND": f"sqlite:///{tmp_path / 'app.db'}"}
    async with openai_service.serve() as service:
        service.refusals = [429, 500]

        async def run() -> str:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, str(ROOT / "examples" / "answers.py"), "backwards", "2000"),
                cwd=tmp_path,
                env=os.environ | environment | {"OPENAI_BASE_URL": service.url, "PYTHONPATH": str(ROOT)},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            printed, errors = await process.communicate()
            assert process.returncode == 0, errors.decode()
            return printed.decode()

        printed = await run()
        assert printed.splitlines() == [
            "What is 0 squared? -> squared? 0 is What",
            "What is 1 squared? -> squared? 1 is What",
            "What is 2 squared? -> squared? 2 is What",
            "1000 answers",
        ]
        assert len(service.requests) == 1000 + 2
        assert service.most <= 20
        assert await run() == printed
        assert len(service.requests) == 1000 + 2  # nothing is asked twice
