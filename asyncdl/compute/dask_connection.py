"""One connection to a Dask scheduler, from being made to being lost.

Dask's client reconnects by itself, but it forgets its tasks then, and it does not notice that a scheduler was restarted
between two looks, or went with a farewell. So we look ourselves; and a connection that is lost is not mended but replaced.
"""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

from asyncdl.compute import dask_worker
from asyncdl.compute.dask_crew import Crew, Needs
from asyncdl.compute.dask_traffic import Fetches, Submissions, Whom
from asyncdl.errors import ComputeError, ComputeUnavailableError, WorkerLostError
from asyncdl.together import end

Client = Any
Future = Any
"""Dask's, of which few methods have types; and importing it takes a third of a second."""

logger = logging.getLogger(__name__)

_PATIENCE = 10.0
"""Seconds for an answer of the scheduler that takes it milliseconds; it may be busy."""
_CLOSE = 1.0
_CONNECTION_LOST = "scheduler-connection-lost"
"""Dask's word for it."""
_LARGE = 1_000_000
"""Bytes from which inputs go straight to a worker, and the scheduler only hears of them."""


class LostError(Exception):
    """The scheduler is not there any more, or is another one."""


class DroppedError(Exception):
    """A task was dropped, with a worker that held what it needed."""


class Connection:
    """A client of a scheduler, and what it knows about its workers."""

    def __init__(self, client: Client, scheduler: str) -> None:
        self._client = client
        self._scheduler = scheduler
        self._submissions = Submissions(client)
        self._fetches = Fetches(client, self._aside)
        self._asides: set[asyncio.Future[Any]] = set()
        self.address: str = client.scheduler.address
        self.crew = Crew(dask_worker.versions())

    @classmethod
    async def open(cls, address: str, security: Any, seconds: float, name: str) -> Connection:
        """Connect to the scheduler at an address, and look at its workers.

        Raises
        ------
        ComputeUnavailableError
            It does not answer in time, or is no Dask scheduler.
        """
        from distributed import Client as AsynchronousClient  # noqa: PLC0415 - heavy: only where Dask is used

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of versions that differ: we look for ourselves, and say which matter
                client: Client = AsynchronousClient(
                    address, asynchronous=True, security=security, timeout=seconds, name=name, set_as_default=False
                )
                await client
        except (OSError, TimeoutError, ValueError) as error:
            raise ComputeUnavailableError(f"no Dask scheduler answers at {address}: {error}") from error
        try:
            connection = cls(client, (await client.scheduler.identity(n_workers=0))["id"])
            await connection.look()
        except BaseException:
            await client.close()
            raise
        return connection

    async def aclose(self) -> None:
        """Close the client; the scheduler drops what it was to do for us."""
        try:
            async with asyncio.timeout(_CLOSE):
                await self._client.close()
        except (TimeoutError, OSError) as error:
            logger.info("the connection to the Dask scheduler %s did not close well: %r", self.address, error)
        await end(self._asides)

    async def look(self) -> None:
        """See who is there, and get to know those who are new.

        Raises
        ------
        LostError
            The scheduler does not answer, or is another one than before.
        """
        try:
            async with asyncio.timeout(_PATIENCE):
                identity = await self._client.scheduler.identity(n_workers=0)
                threads = await self._client.scheduler.ncores()
        except (OSError, TimeoutError) as error:
            raise LostError(f"does not answer: {error!r}") from error
        if identity["id"] != self._scheduler or self._client.status != "running":
            raise LostError("was restarted")
        strangers = self.crew.strangers(threads)
        if strangers:
            if not self._fetches.direct:
                self._fetches.direct = await _reachable(self._client, strangers[0])
            for address, description in (await self.everywhere(dask_worker.describe, workers=strangers)).items():
                self.crew.meet(address, description)

    async def everywhere(
        self, function: Callable[..., Any], *args: Any, workers: list[str] | None = None, seconds: float = _PATIENCE
    ) -> dict[str, Any]:
        """Call a function on workers; return what it returned, or raised, by their addresses."""
        try:
            async with asyncio.timeout(seconds):
                found: dict[str, Any] = await self._client.run(function, *args, workers=workers, on_error="return")
                return found
        except (OSError, TimeoutError) as error:
            logger.info("Dask workers at %s could not be asked: %r", self.address, error)
            return {}

    async def run(
        self, key: str, needs: Needs, parcel: bytes, body: bytes, prefer: str | None = None, *, bundled: bool = False
    ) -> bytes:
        """Have a batch, or a bundle, run by a worker, one that is preferred if it is there, and return what it answered.

        Raises
        ------
        LostError
            The scheduler was lost.
        DroppedError
            The inputs were lost.
        WorkerLostError
            Several workers died of it, one after the other.
        ComputeError
            It could not be run.
        """
        refused = bool(self.crew.refused)
        only = tuple(self.crew.able(needs)) if refused else (prefer,) if prefer is not None else None
        what = body if len(body) < _LARGE else await self._placed(body, only)
        whom = Whom(needs, only, refused, bundled)
        return bytes(await self._result(await self._submissions.submit(key, whom, parcel, what)))

    async def deliver(self, name: str, payload: bytes, worker: str) -> None:
        """Bring a model to a worker that cannot get it by itself: once, and not through the scheduler where it can be so."""
        placed = await self._placed(payload, (worker,))
        key = f"asyncdl-deliver-{name}-{id(placed):x}"
        future = self._client.submit(dask_worker.deliver, name, placed, key=key, pure=False, workers=[worker])
        await self._result(future)

    async def _placed(self, data: bytes, workers: tuple[str, ...] | None) -> Future:
        among = None if workers is None else list(workers)
        try:
            [future] = await self._client.scatter([data], hash=False, workers=among, direct=self._fetches.direct)
        except (OSError, TimeoutError, KeyError) as error:
            raise DroppedError(f"{len(data)} bytes could not be brought to a worker: {error!r}") from error
        return future

    async def _result(self, future: Future) -> Any:
        from distributed import KilledWorker  # noqa: PLC0415 - as above
        from distributed.client import FutureCancelledError  # noqa: PLC0415

        gathering = self._aside(self._fetches.result(future))  # it ends when its key is cancelled
        try:
            return await asyncio.shield(gathering)
        except asyncio.CancelledError:
            self._aside(self._client.cancel([future], force=True))
            raise
        except FutureCancelledError as error:
            if error.reason == _CONNECTION_LOST:
                raise LostError("was lost") from error
            raise DroppedError(str(error)) from error
        except KilledWorker as error:
            raise WorkerLostError(
                f"{error.allowed_failures + 1} Dask workers died while they ran it, the last one at {error.last_worker}"
            ) from error
        except OSError as error:
            raise LostError(f"does not answer: {error!r}") from error
        except Exception as error:  # what Dask found wrong: a worker without asyncdl, for example
            raise ComputeError(f"a Dask worker could not run it: {type(error).__name__}: {error}") from error

    def _aside(self, work: Awaitable[Any]) -> asyncio.Future[Any]:
        task = asyncio.ensure_future(work)
        self._asides.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._asides.discard(task)
        if not task.cancelled():
            task.exception()  # whether anybody still waits for it or not: no warning


async def _reachable(client: Client, worker: str) -> bool:
    """Return whether we can talk to a worker without the scheduler between: not from outside of some networks."""
    from distributed.comm import connect  # noqa: PLC0415 - as above

    try:
        comm = await connect(worker, timeout=2, **client.connection_args)
        await comm.close()
    except (OSError, TimeoutError):
        return False
    return True
