"""Batches under way on a Dask cluster: submitted, supplied with their models, watched, and cancelled.

A batch is an asyncio task of ours, from `submit` to its outputs. It waits for its place among those that workers can be
busy with, alone or with others of its kind, is submitted, and gathered; what Dask may lose on the way is submitted again,
under another key, and alone.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import socket
import uuid
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from asyncdl.compute import dask_worker
from asyncdl.compute.base import ComputeFuture, ModelLoader, ModelTask
from asyncdl.compute.dask_bundles import SMALL, Load, goes_alone
from asyncdl.compute.dask_carrier import Carrier, UnsendableError
from asyncdl.compute.dask_cluster import OwnCluster
from asyncdl.compute.dask_connection import Connection, DroppedError, LostError
from asyncdl.compute.dask_crew import Needs, needs_of
from asyncdl.compute.dask_models import Models, lost
from asyncdl.compute.dask_sites import SITE_REPLIES, site_error
from asyncdl.compute.dask_worker import DROPPED, LACKING, LOST
from asyncdl.compute.futures import TaskFuture
from asyncdl.compute.replies import NO_OUTPUTS, OUTPUTS
from asyncdl.errors import AsyncDLError, ComputeUnavailableError, ModelError, ModelOutputError, WorkerLostError
from asyncdl.together import is_ours

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LOOK = 0.5
"""Seconds between looks at the cluster."""
_RECONNECT = 3.0
_FAREWELLS = 5
"""How often what runs is told to stop."""
_TRIES = 5
"""How often a batch is submitted, when what it needed went with a worker, or a worker lacked the model."""
_DISCARD = 9


@dataclass(frozen=True, slots=True)
class Options:
    """What `DaskComputeBackend` documents."""

    ahead: int
    connect_timeout: float
    no_workers_timeout: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where the scheduler is: at an address, or with so many workers and threads in a cluster of our own."""

    address: str | None = None
    security: Any = None
    own: tuple[int, int] = (1, 1)


@dataclass(eq=False, slots=True)
class _Flight:
    """A batch under way."""

    needs: Needs
    task: asyncio.Task[list[Any]] | None = None
    aboard: Connection | None = None
    hopeless_since: float | None = None
    failure: AsyncDLError | None = None

    def fail(self, failure: AsyncDLError) -> None:
        """Have it raise this, wherever it waits."""
        if self.task is not None and self.failure is None:
            self.failure = failure
            self.task.cancel()


class Batches:
    """What exists between a backend's opening and its closing."""

    def __init__(self, loader: ModelLoader, place: Place, options: Options) -> None:
        self._loader = loader
        self._place = place
        self._options = options
        self._cluster = OwnCluster(*place.own) if place.address is None else None
        self._session = uuid.uuid4().hex[:8]
        self._connection: Connection | None = None
        self._connected = asyncio.Event()
        self._hurry = asyncio.Event()
        self._looked = asyncio.Event()
        self._flights: set[_Flight] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._trouble = ""
        self._closing = False
        # Pickling waits for nobody else's work, and nobody for it.
        self._executor = ThreadPoolExecutor(2, thread_name_prefix="asyncdl-dask")
        self._models = Models(loader, self._session, self._hurry.set, self._spawn, self._in_thread)
        self._carrier = Carrier(self._session, self._aboard, self._hurry.set, self._spawn, self._in_thread)

    async def open(self) -> None:
        """Connect."""
        await self._connect(self._options.connect_timeout)
        self._spawn(self._watch(), name="asyncdl: watching Dask")

    async def aclose(self) -> None:
        """Cancel everything, have the workers drop our models, and disconnect."""
        self._closing = True
        for _ in range(_FAREWELLS):  # Dask may take a cancellation for the end of what it was about, and go on
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=0.2)
        connection, self._connection = self._connection, None
        if connection is not None:
            if self._cluster is None:
                await connection.everywhere(dask_worker.leave, self._session, seconds=0.5)
            await connection.aclose()
        if self._cluster is not None:
            await self._cluster.aclose()
        await asyncio.to_thread(self._executor.shutdown)

    def submit(self, task: ModelTask) -> ComputeFuture:
        """Submit a task as soon as there is room."""
        flight = _Flight(needs_of(task.call.resources))
        flight.task = self._spawn(self._fly(task, flight), name=f"asyncdl: {task.key}")
        future = TaskFuture(flight.task)
        self._flights.add(flight)
        flight.task.add_done_callback(lambda _: self._flights.discard(flight))
        return future

    async def wait_for_workers(self, count: int, *, any_version: bool) -> None:
        """Wait until there are so many workers; for 0: none."""
        while True:
            crew = self._connection.crew if self._connection is not None else None
            able = len(crew.able(())) if crew is not None else 0
            found = able + len(crew.refused) if any_version and crew is not None else able
            if found >= count and (count or not found):
                return
            self._looked.clear()
            await self._looked.wait()

    def forget(self, uuid: str) -> None:
        """Drop a model here and on the workers."""
        self._models.forget(uuid)
        if self._connection is not None:
            self._spawn(self._connection.everywhere(dask_worker.forget, f"{uuid}@"), name="asyncdl: forgetting")

    def own_address(self) -> str:
        """Return this machine's address on the way to the scheduler."""
        connection = self._connected_to()
        host = connection.address.partition("://")[2].rpartition(":")[0].strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as found:
            found.connect((host, _DISCARD))  # no packet is sent
            address: str = found.getsockname()[0]
            return address

    @property
    def threads(self) -> int:
        """Threads of the workers that are there."""
        return self._connection.crew.threads() if self._connection is not None else 0

    def _spawn(self, work: Coroutine[Any, Any, T], name: str | None = None) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)

    # a batch

    async def _fly(self, task: ModelTask, flight: _Flight) -> list[Any]:
        try:
            return await self._run(task, flight)
        except asyncio.CancelledError:
            if flight.failure is not None:
                raise flight.failure from None
            raise

    async def _run(self, task: ModelTask, flight: _Flight) -> list[Any]:
        packed = await self._models.get(task.call)
        name = packed.name(task.call)
        parcel = await packed.pickled(task.call)
        worker, trouble, alone = None, "", task.errand is not None or goes_alone(task.call)
        what = task.inputs if task.errand is None else task.errand
        for _ in range(_TRIES):
            try:
                load = Load(task.key, flight, parcel, what, packed.pace, worker, alone)
                kind, value = await self._answer(task, flight.needs, load)
                if kind == LACKING:
                    worker, trouble = value
                    await self._models.deliver(task.call, name, packed, worker, await self._aboard())
                elif kind == DROPPED:
                    trouble = "a worker dropped it"
                else:
                    return _outputs(kind, value, name, task)
            except DroppedError as error:
                worker, trouble, alone = None, str(error), True
            except asyncio.CancelledError as error:
                if is_ours(error):
                    raise
                worker, trouble = None, "the worker went while the model was brought to it"
        raise WorkerLostError(
            f"a batch of {task.size} for model {task.call.uuid} was submitted {_TRIES} times, the last time: {trouble}"
        )

    async def _answer(self, task: ModelTask, needs: Needs, load: Load) -> tuple[str, Any]:
        if self._carrier.stand_in_line(needs, load):
            self._resize()
        try:
            seconds, answer = await load.answer
        except UnsendableError as error:
            raise ModelError(f"model {task.call.uuid}: its inputs cannot be sent to a worker: {error}") from error
        try:
            kind, value = await self._unpickled(answer)
        except Exception as error:
            raise ModelError(f"model {task.call.uuid}: its outputs cannot be unpickled: {error}") from error
        if seconds is not None and kind == OUTPUTS:
            load.pace.took(seconds)
        return kind, value

    async def _unpickled(self, answer: bytes) -> tuple[str, Any]:
        if len(answer) < SMALL:
            return pickle.loads(answer)  # type: ignore[no-any-return]  # noqa: S301 - our worker's
        return await self._in_thread(pickle.loads, answer)

    async def _aboard(self) -> Connection:
        while self._connection is None:  # it may be lost again before we hear that there is one
            await self._connected.wait()
        return self._connection

    def _connected_to(self) -> Connection:
        assert self._connection is not None, "the event is set"  # noqa: S101 - tells mypy
        return self._connection

    # the cluster

    async def _connect(self, seconds: float) -> None:
        address = self._place.address or await self._own_cluster().address()
        self._connection = await Connection.open(address, self._place.security, seconds, "asyncdl")
        self._connected.set()
        self._resize()

    def _own_cluster(self) -> OwnCluster:
        assert self._cluster is not None, "it is ours where no address was given"  # noqa: S101 - tells mypy
        return self._cluster

    async def _watch(self) -> None:
        """Look who is there, connect again when the connection is lost, and end what has waited in vain."""
        while not self._closing:
            try:
                async with asyncio.timeout(_LOOK):
                    await self._hurry.wait()
            except TimeoutError:
                pass
            self._hurry.clear()
            try:
                await self._look()
            except Exception:  # whatever Dask raises: nobody would look after the batches any more
                logger.exception("cannot look at the Dask cluster; trying again")
            self._looked.set()
            self._end_the_hopeless()

    async def _look(self) -> None:
        if self._connection is not None:
            try:
                await self._connection.look()
            except LostError as error:
                await self._disconnect(self._connection, error)
        if self._connection is None:
            try:
                await self._connect(_RECONNECT)
            except ComputeUnavailableError as error:
                self._trouble = str(error)
                return
            logger.info("connected to the Dask scheduler at %s again", self._connected_to().address)
        self._resize()

    async def _disconnect(self, connection: Connection, error: LostError) -> None:
        logger.warning("the Dask scheduler at %s %s", connection.address, error)
        self._connection = None
        self._connected.clear()
        for flight in list(self._flights):
            if flight.aboard is connection:
                flight.fail(lost(connection, error))
        await connection.aclose()

    def _resize(self) -> None:
        if self._connection is None:
            return  # those inside wait for the next one
        crew = self._connection.crew
        self._carrier.resize(self._options.ahead, crew)
        self._models.give_up(crew)

    def _end_the_hopeless(self) -> None:
        """Fail the batches for which there has been no worker, or no scheduler, for too long."""
        now = asyncio.get_running_loop().time()
        for flight in list(self._flights):
            reason = self._why_hopeless(flight.needs)
            if reason is None:
                flight.hopeless_since = None
                continue
            if flight.hopeless_since is None:
                flight.hopeless_since = now
            if now - flight.hopeless_since >= self._options.no_workers_timeout:
                waited = f"a batch has waited for {self._options.no_workers_timeout:g} s"
                flight.fail(ComputeUnavailableError(f"{waited}: {reason}"))

    def _why_hopeless(self, needs: Needs) -> str | None:
        if self._connection is None:
            return self._trouble or "the connection to the Dask scheduler is lost"
        crew = self._connection.crew
        return None if crew.able(needs) else crew.why_none(needs)


def _outputs(kind: str, value: Any, name: str, task: ModelTask) -> list[Any]:
    """Return a worker's outputs, or raise what it reports, in the model's own name."""
    if kind == OUTPUTS:
        outputs: list[Any] = value
        return outputs
    if kind in SITE_REPLIES:
        raise site_error(kind, value)
    message = str(value).replace(name, task.call.uuid)
    if kind == NO_OUTPUTS:
        raise ModelOutputError(message)
    if kind == LOST:
        raise WorkerLostError(message)
    raise ModelError(message if task.call.uuid in message else f"model {task.call.uuid}: {message}")
