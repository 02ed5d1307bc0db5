"""A Dask cluster of our own, on this machine: ``compute="dask://"``.

It lives in a child process: its scheduler has an event loop of its own, a script that starts it needs no
``if __name__ == "__main__"``, and it ends when we do, even when we are killed, because its standard input then ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile

from asyncdl.errors import ComputeUnavailableError

_MAIN = "import sys; sys.path[:] = sys.argv[4:]; from asyncdl.compute.dask_cluster import main; main()"
_START = 60.0
_END = 1.5
"""Seconds that it has to end by itself."""


class OwnCluster:
    """A scheduler and workers, started and ended with us.

    Parameters
    ----------
    workers, threads
        Worker processes, and batches that each has under way at once.
    """

    def __init__(self, workers: int, threads: int) -> None:
        self._workers = workers
        self._threads = threads
        self._process: asyncio.subprocess.Process | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    async def address(self) -> str:
        """Return the scheduler's address; start the cluster unless it runs.

        Raises
        ------
        ComputeUnavailableError
            It does not start.
        """
        if self._process is not None and self._process.returncode is None:
            return self._address
        await self.aclose()
        self._folder = tempfile.TemporaryDirectory(prefix="asyncdl-dask-", ignore_cleanup_errors=True)
        arguments = [str(self._workers), str(self._threads), self._folder.name, *sys.path]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _MAIN,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            process_group=0,  # ended with all that it started; the terminal's Ctrl-C does not reach it
        )
        assert self._process.stdout is not None  # noqa: S101 - we asked for a pipe
        try:
            async with asyncio.timeout(_START):
                self._address = (await self._process.stdout.readline()).decode().strip()
        except BaseException as error:
            await self.aclose()
            if not isinstance(error, TimeoutError):
                raise
        if not self._address:
            await self.aclose()
            raise ComputeUnavailableError("a local Dask cluster did not start; its last words are on standard error")
        return self._address

    _address = ""

    async def aclose(self) -> None:
        """End all processes, and remove their files."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None  # noqa: S101 - as above
            process.stdin.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_END):
                    await process.wait()
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # it, or what it left behind
            await process.wait()
        if self._folder is not None:
            folder, self._folder = self._folder, None
            await asyncio.to_thread(folder.cleanup)


def main() -> None:
    """Run a cluster until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    told = os.dup(1)
    os.dup2(2, 1)  # what models print goes to standard error
    workers, threads, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    asyncio.run(_serve(workers, threads, folder, told))


async def _serve(workers: int, threads: int, folder: str, told: int) -> None:
    from distributed import LocalCluster  # noqa: PLC0415 - heavy: only where Dask is used

    cluster = LocalCluster(
        asynchronous=True,
        n_workers=workers,
        threads_per_worker=threads,
        processes=True,
        host="127.0.0.1",
        dashboard_address=None,
        local_directory=folder,
    )
    async with cluster:
        os.write(told, f"{cluster.scheduler_address}\n".encode())
        os.close(told)
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(0, ended.set)  # nothing is ever written to it
        await ended.wait()
