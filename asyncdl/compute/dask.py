"""Compute on a Dask cluster."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlsplit

from asyncdl.compute.base import ComputeBackend, ComputeFuture, ModelCall, ModelLoader, ModelTask, Placement
from asyncdl.compute.dask_batches import Batches, Options, Place
from asyncdl.compute.local import processors
from asyncdl.errors import ClosedError, ConfigurationError
from asyncdl.settings import redact

_PORT = 8786


class DaskComputeBackend(ComputeBackend):
    """Runs models on the workers of a Dask cluster.

    A worker runs them as local compute does: functions on threads, those of ``on="process"`` in child processes, coroutine
    functions on its event loop.

    Parameters
    ----------
    where
        ``"dask://host:8786"``, ``"dask://"`` for a cluster of our own on this machine (``"dask://?workers=4&threads=1"``;
        by default a worker with one thread for each processor), a ready `distributed.Client`, or a ready cluster. What is
        handed over ready is not closed; a connection of our own is made to its scheduler.
    ahead
        Batches under way for each thread of the workers; more wait here.
    connect_timeout
        Seconds in which the scheduler has to answer when it is connected to.
    no_workers_timeout
        Seconds that a batch waits for a scheduler, or for a worker that it could run on, before it fails.
    """

    def __init__(
        self,
        where: Any = "dask://",
        *,
        ahead: int = 16,
        connect_timeout: float = 10.0,
        no_workers_timeout: float = 60.0,
    ) -> None:
        self.url, self._place = _parsed(where) if isinstance(where, str) else _ready(where)
        self._options = Options(ahead, connect_timeout, no_workers_timeout)
        if min(ahead, connect_timeout, no_workers_timeout) <= 0:
            raise ConfigurationError(f"{self.url}: ahead and timeouts must be positive")
        self._running: Batches | None = None

    async def open(self, loader: ModelLoader) -> None:
        """Start the cluster, if it is ours, and connect to it.

        Raises
        ------
        ComputeUnavailableError
            The scheduler does not answer. (Workers may come later.)
        """
        if self._running is None:
            running = Batches(loader, self._place, self._options)
            try:
                await running.open()
            except BaseException:
                await running.aclose()
                raise
            self._running = running

    async def aclose(self) -> None:
        """Cancel what is queued or runs, disconnect, and end the cluster if it is ours; closing twice is allowed."""
        if self._running is not None:
            running, self._running = self._running, None
            await running.aclose()

    def submit(self, task: ModelTask) -> ComputeFuture:
        """Submit a task as soon as there is room."""
        if self._running is None:
            raise ClosedError(f"the compute backend {self.url!r} is not open")
        return self._running.submit(task)

    async def wait_for_workers(self, count: int = 1, *, any_version: bool = False) -> None:
        """Wait until the cluster has at least so many workers; for 0: until it has none.

        Parameters
        ----------
        any_version
            Count also those that are given no work, because their versions differ.
        """
        if self._running is None:
            raise ClosedError(f"the compute backend {self.url!r} is not open")
        await self._running.wait_for_workers(count, any_version=any_version)

    def forget(self, uuid: str) -> None:
        """Drop a model here and on all workers; batches under way keep theirs."""
        if self._running is not None:
            self._running.forget(uuid)

    def runs_errands(self, call: ModelCall) -> bool:
        """Return that workers open stores by themselves."""
        return True

    def reachable_at(self, placement: Placement) -> str | None:
        """Return this machine's address on the way to the scheduler: workers are thought to be where that is."""
        if self._running is None:
            raise ClosedError(f"the compute backend {self.url!r} is not open")
        return self._running.own_address()

    @property
    def parallelism(self) -> int:
        """How many batches are worth having under way: two for each thread of the workers that are there now."""
        return max(1, 2 * self._running.threads) if self._running is not None else 1

    @property
    def loops(self) -> int:
        """How many batches of coroutine models the workers run at once: one for each thread, as of all batches."""
        return max(1, self._running.threads) if self._running is not None else 1


def _parsed(uri: str) -> tuple[str, Place]:
    """Return a URI without secrets, and the scheduler that it means."""
    shown = redact(uri)
    parts = urlsplit(uri)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.scheme != "dask" or parts.username is not None or parts.path.strip("/") or parts.fragment:
        raise ConfigurationError(f"{shown!r} is no Dask cluster; one looks like 'dask://host:8786', or 'dask://'")
    try:
        port = parts.port or _PORT
        counts = {name: int(options.pop(name)) for name in ("workers", "threads") if name in options}
    except ValueError as error:
        raise ConfigurationError(f"{shown!r}: {error}") from None
    if parts.hostname is None:
        if options or not all(count > 0 for count in counts.values()):
            raise ConfigurationError(
                f"{shown!r}: a cluster of our own has positive workers= and threads=, nothing else"
            )
        return "dask://", Place(own=(counts.get("workers", processors()), counts.get("threads", 1)))
    if parts.query:
        raise ConfigurationError(f"{shown!r}: a cluster that runs already takes no options")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"dask://{host}:{port}", Place(address=f"tcp://{host}:{port}")


def _ready(where: Any) -> tuple[str, Place]:
    """Return where a ready client's or cluster's scheduler is."""
    scheduler = getattr(where, "scheduler", None)
    address = getattr(where, "scheduler_address", None) or getattr(scheduler, "address", None)
    if not isinstance(address, str):
        raise ConfigurationError(f"{where!r} is neither a Dask URI nor a running distributed.Client or cluster")
    return f"dask://{address.partition('://')[2]}", Place(address=address, security=getattr(where, "security", None))
