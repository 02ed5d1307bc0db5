"""Real Dask schedulers and workers for the tests: each a process of its own, to be killed at will."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
_START = 60.0


def free_port() -> int:
    """Return a port that nobody uses at the moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Processes:
    """A scheduler, on a port that it keeps when it is started again, and workers without nannies."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"dask://127.0.0.1:{self.port}"
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.scheduler: subprocess.Popen[bytes] | None = None
        self.workers: list[subprocess.Popen[bytes]] = []
        self._folder = tempfile.TemporaryDirectory(prefix="asyncdl-dask-test-", ignore_cleanup_errors=True)
        self.log = Path(self._folder.name) / "log.txt"

    def start_scheduler(self, *options: str) -> None:
        """Start it, and wait until it listens."""
        self.scheduler = self._start("scheduler", "--host=127.0.0.1", f"--port={self.port}", "--no-dashboard", *options)
        until = time.monotonic() + _START
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                assert self.scheduler.poll() is None, self.log.read_text()
                assert time.monotonic() < until
                time.sleep(0.05)  # nobody tells when a port is listened to
            else:
                return

    def start_worker(self, *options: str, threads: int = 1, **environment: str) -> subprocess.Popen[bytes]:
        """Start a worker; it joins when it is up."""
        fixed = ["--no-nanny", "--no-dashboard", f"--nthreads={threads}", f"--local-directory={self._folder.name}"]
        worker = self._start("worker", self.address, "--host=127.0.0.1", *fixed, *options, **environment)
        self.workers.append(worker)
        return worker

    def _start(self, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "dask", *command],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
            )

    def kill_workers(self) -> None:
        """Kill all workers at once."""
        for each in self.workers:
            each.send_signal(signal.SIGKILL)
        for each in self.workers:
            each.wait()
        self.workers.clear()

    def kill_scheduler(self) -> None:
        """Kill the scheduler."""
        assert self.scheduler is not None
        self.scheduler.kill()
        self.scheduler.wait()

    def stop(self) -> None:
        """Kill everything."""
        self.kill_workers()
        self.kill_scheduler()
        self._folder.cleanup()
