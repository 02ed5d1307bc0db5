"""A real MariaDB or MySQL server for tests: that of ``ASYNCDL_TEST_MYSQL`` (a URL), or one that is started here.

Each test has, by its folder, a database of its own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit
from uuid import uuid4

VARIABLE = "ASYNCDL_TEST_MYSQL"
_NOBODY = 65534
"""The user that a server runs as where we are root, who may not."""
_SBIN = ("/usr/sbin", "/usr/local/sbin")


def _binary(name: str) -> str | None:
    return shutil.which(name) or next((f"{each}/{name}" for each in _SBIN if Path(each, name).exists()), None)


class Server:
    """The session's server, for tests that are not asynchronous, too."""

    def __init__(self, url: str) -> None:
        self._base = url
        self._session = uuid4().hex[:8]
        self._databases: set[str] = set()
        self._connections: dict[str, Any] = {}

    def with_path(self, path: str, query: str = "") -> str:
        return urlunsplit(urlsplit(self._base)._replace(path=path, query=query))

    def url(self, where: Path) -> str:
        """Return the URL of a database that belongs to a folder; it is made when first asked for."""
        name = f"asyncdl_{self._session}_{hashlib.sha256(str(where).encode()).hexdigest()[:12]}"
        if name not in self._databases:
            self.run(f"CREATE DATABASE IF NOT EXISTS {name} CHARACTER SET utf8mb4", url=self._base)
            self._databases.add(name)
        return self.with_path(f"/{name}")

    def run(self, sql: str, *params: Any, url: str | None = None) -> list[Any]:
        """Run a statement past the code under test, and return its rows as dicts."""
        import pymysql

        parts = urlsplit(url or self._base)
        found = self._connections.get(parts.path)
        if found is None:
            found = self._connections[parts.path] = pymysql.connect(
                host=parts.hostname,
                port=parts.port or 3306,
                user=unquote(parts.username or ""),
                password=unquote(parts.password or ""),
                database=parts.path.strip("/") or None,
                autocommit=True,
                cursorclass=pymysql.cursors.DictCursor,
            )
        with found.cursor() as cursor:
            cursor.execute(sql, params or None)
            return list(cursor.fetchall())

    def stop(self) -> None:
        for name in self._databases:
            self.run(f"DROP DATABASE IF EXISTS {name}", url=self._base)
        for each in self._connections.values():
            each.close()


def why_not() -> str | None:
    """Return why there can be no server here, None if there can."""
    for package in ("asyncmy", "pymysql"):
        if find_spec(package) is None:
            return f"{package} is not installed: pip install 'asyncdl[test]'"
    if os.environ.get(VARIABLE) or (_binary("mariadbd") and _binary("mariadb-install-db")):
        return None
    return f"neither {VARIABLE} is set nor is there a mariadbd: apt-get install mariadb-server"


def why_no_own() -> str | None:
    """Return why no server can be started here, None if one can."""
    if find_spec("asyncmy") is None:
        return "asyncmy is not installed: pip install 'asyncdl[test]'"
    return None if _binary("mariadbd") and _binary("mariadb-install-db") else "apt-get install mariadb-server"


@contextmanager
def serve() -> Iterator[Server]:
    """Yield the session's server, whose databases go away afterwards."""
    with _somewhere() as url:
        server = Server(url)
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
    with tempfile.TemporaryDirectory(prefix="asyncdl-my-", ignore_cleanup_errors=True) as folder:
        own = OwnServer(Path(folder))
        own.start()
        try:
            yield own.url
        finally:
            own.stop()


class OwnServer:
    """A MariaDB server of the tests' own, on a folder, a free port and a socket."""

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o755)
        self._folder = folder
        self._log = folder / "log"
        self._as_user: dict[str, Any] = {}
        data = folder / "data"
        temporary = folder / "tmp"  # in a common one two servers delete each other's files
        self._environment = {**os.environ, "TMPDIR": str(temporary)}
        for each in (data, temporary):
            each.mkdir()
            if os.getuid() == 0:
                os.chown(each, _NOBODY, _NOBODY)
        if os.getuid() == 0:
            self._as_user = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"mysql://tests:tests@127.0.0.1:{self.port}/mysql"
        install = [_binary("mariadb-install-db"), "--no-defaults", f"--datadir={data}", "--skip-test-db"]
        self._run([*install, "--auth-root-authentication-method=normal"])

    def _run(self, command: list[Any]) -> None:
        done = subprocess.run(
            command, check=False, capture_output=True, cwd="/", timeout=100, env=self._environment, **self._as_user
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]}: {(done.stdout + done.stderr).decode(errors='replace')}")

    def url_of(self, database: str, options: str = "") -> str:
        """Return the URL of a database."""
        return f"mysql://tests:tests@127.0.0.1:{self.port}/{database}{options}"

    def create_database(self, name: str) -> None:
        """Make a database."""
        server = Server(self.url)
        server.run(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        server.stop()

    def start(self, *options: str) -> None:
        init = self._folder / "init.sql"
        init.write_text(
            "CREATE USER IF NOT EXISTS tests@'127.0.0.1' IDENTIFIED BY 'tests';\n"
            "GRANT ALL ON *.* TO tests@'127.0.0.1' WITH GRANT OPTION;\n"
        )
        data = self._folder / "data"
        given = [
            "--no-defaults",
            f"--datadir={data}",
            f"--socket={data / 's'}",
            f"--port={self.port}",
            f"--pid-file={data / 'pid'}",
            "--bind-address=127.0.0.1",
            "--skip-name-resolve",
            f"--init-file={init}",
            "--max-connections=300",
            "--innodb-buffer-pool-size=64M",
            "--max-allowed-packet=128M",
            "--innodb-flush-log-at-trx-commit=2",
        ]
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [str(_binary("mariadbd")), *given, *options],
                stdout=output,
                stderr=output,
                cwd="/",
                env=self._environment,
                **self._as_user,
            )
        deadline = time.monotonic() + 60
        while b"ready for connections" not in self._log.read_bytes():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"MariaDB did not start on port {self.port}: {self._log.read_text()}")
            time.sleep(0.02)

    def kill(self) -> None:
        """End it as a power cut would."""
        self._process.kill()
        self._process.wait(20)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)
