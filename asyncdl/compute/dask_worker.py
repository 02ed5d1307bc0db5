"""What happens in a Dask worker: it runs models as local compute does, for it has a local compute backend of its own.

A batch is a Dask task: a coroutine function, so that it runs on the worker's event loop, and from there in a thread, in a
child process or on the loop, as its model wants. Timeouts, retries, rows that fail and processes that die are dealt with
where they are on one machine. An answer is bytes, pickled here: what cannot be pickled is its row's error, and Dask never
looks into it.
"""

from __future__ import annotations

import asyncio
import hashlib
import pickle
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any
from weakref import WeakKeyDictionary

from asyncdl.compute.base import ComputeFuture, Errand, Fetch, ModelCall, ModelTask, UnreachableError
from asyncdl.compute.calling import row_error
from asyncdl.compute.dask_sites import ErrandFailedError, Sites, site_reply
from asyncdl.compute.local import LocalComputeBackend
from asyncdl.compute.replies import FAILED, NO_OUTPUTS, outputs_reply
from asyncdl.errors import ModelError, ModelOutputError, WorkerLostError

LACKING, DROPPED, LOST = "lacking", "dropped", "lost"
"""The worker cannot get the model, and says who it is and why; the batch was cancelled here; a child process died."""

PACKAGES = ("asyncdl", "dask", "distributed", "cloudpickle", "msgpack", "tornado", "numpy", "pandas")

_UNUSED = 3600
"""Seconds after which a model that nobody called is dropped, when another one is loaded."""
_IN_PASSING = 100_000
"""Bytes up to which pickling is quicker than going to a thread for it."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """How a worker gets a model.

    Parameters
    ----------
    client
        Who uses it.
    call
        The model; its ``uuid`` is the name that it has on workers.
    sha256
        Of the pickled object.
    payload
        The pickled object, if it is small.
    fetch
        What gets it where it is not.
    """

    client: str
    call: ModelCall
    sha256: str
    payload: bytes | None = None
    fetch: Fetch | None = None


async def run_batch(parcel: bytes, body: bytes, key: bytes) -> bytes:
    """Run a batch: the task that the client submits.

    Parameters
    ----------
    parcel
        A pickled `Parcel`.
    body
        The pickled inputs.
    key
        The task's, as bytes: Dask replaces a string that is a task's key by that task's result.
    """
    return await (await _workplace()).run(parcel, body, key.decode())


async def run_bundle(parcel: bytes, bodies: bytes, key: bytes) -> bytes:
    """Run batches of one model, one after the other, and return the pickled seconds and answer of each.

    ``bodies`` is a pickled list of pickled inputs; the rest is as for `run_batch`.
    """
    return await (await _workplace()).run_bundle(parcel, bodies, key.decode())


async def skip(key: str, numbers: list[int], *, dask_worker: Any) -> None:
    """Leave out some batches of a bundle, if it is here."""
    if dask_worker in _workplaces and key in dask_worker.state.tasks:
        (await _workplaces[dask_worker]).skip(key, numbers)


async def deliver(name: str, payload: bytes) -> None:
    """Take in a model that the worker could not get by itself."""
    (await _workplace()).delivered[name] = payload


async def forget(prefix: str, *, dask_worker: Any) -> None:
    """Drop a model."""
    if dask_worker in _workplaces:
        (await _workplaces[dask_worker]).forget(prefix)


async def leave(client: str, *, dask_worker: Any) -> None:
    """Drop the models that only this client used."""
    if dask_worker in _workplaces:
        (await _workplaces[dask_worker]).leave(client)


def describe(dask_worker: Any) -> dict[str, Any]:
    """Return what a client wants to know of a worker before it gives it work."""
    return {"versions": versions(), "resources": dict(dask_worker.state.total_resources)}


def versions() -> dict[str, str]:
    """Return the versions of what client and workers have to agree on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = str(getattr(sys.modules.get(name), "__version__", None) or metadata.version(name))
        except metadata.PackageNotFoundError:
            continue
    return found


_workplaces: WeakKeyDictionary[Any, asyncio.Task[Workplace]] = WeakKeyDictionary()


async def _workplace() -> Workplace:
    from distributed import get_worker  # noqa: PLC0415 - heavy: only where Dask is used

    worker = get_worker()
    opening = _workplaces.get(worker)
    if opening is None:
        opening = _workplaces[worker] = asyncio.create_task(_open(worker), name="asyncdl: opening on a Dask worker")
    return await asyncio.shield(opening)


async def _open(worker: Any) -> Workplace:
    workplace = Workplace(worker.address, worker.state.nthreads)
    await workplace.backend.open(workplace)
    await worker.plugin_add(_plugin(workplace), name="asyncdl")
    return workplace


def _plugin(workplace: Workplace) -> Any:
    from distributed import WorkerPlugin  # noqa: PLC0415 - as above

    class Following(WorkerPlugin):  # type: ignore[misc]
        """Tells of tasks that are cancelled while they run, and of the worker's end."""

        def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
            if start == "executing" and finish in {"cancelled", "released", "forgotten"}:
                workplace.cancel(str(key))
            if finish == "forgotten":
                workplace.skipped.pop(str(key), None)

        async def teardown(self, worker: Any) -> None:
            await workplace.backend.aclose()
            await workplace.sites.aclose()

    return Following()


class _LackingError(ModelError):
    """The worker cannot get a model by itself."""


class Workplace:
    """Models, and what calls them, on one worker; also their loader.

    Parameters
    ----------
    address
        The worker's.
    threads
        Batches that Dask gives it at once.
    """

    def __init__(self, address: str, threads: int) -> None:
        self.address = address
        self.backend = LocalComputeBackend(threads, threads, grace=1.0)
        self.sites = Sites(address)
        self.delivered: dict[str, bytes] = {}
        self._parcels: dict[str, Parcel] = {}
        self._users: defaultdict[str, set[str]] = defaultdict(set)
        self._used: dict[str, float] = {}
        self._running: dict[str, asyncio.Task[list[Any]] | ComputeFuture] = {}
        self._bundles: dict[str, str] = {}
        self.skipped: defaultdict[str, set[int]] = defaultdict(set)

    async def run(self, pickled: bytes, body: bytes, key: str) -> bytes:
        """Return the answer for a batch."""
        try:
            parcel: Parcel = pickle.loads(pickled)  # noqa: S301 - our client's
            inputs = await _aside(len(body), pickle.loads, body)
        except BaseException as error:  # unpickling runs anybody's code
            what = row_error(error)
            reason = f"its inputs cannot be read on {self.address}: {what.type}: {what.message}\n{what.traceback}"
            return pickle.dumps((FAILED, reason))
        self._uses(parcel)
        running: asyncio.Task[list[Any]] | ComputeFuture
        if isinstance(inputs, Errand):
            running = asyncio.create_task(self._errand(parcel, inputs, key), name=f"asyncdl: {key}")
        else:
            running = self.backend.submit(ModelTask(key, parcel.call, inputs))
        self._running[key] = running
        del inputs
        try:
            outputs = await running
        except asyncio.CancelledError:
            if key in self._running:  # it is the worker that ends
                running.cancel()
                raise
            return pickle.dumps((DROPPED, None))
        except _LackingError as error:
            return pickle.dumps((LACKING, (self.address, str(error))))
        except ModelOutputError as error:
            return pickle.dumps((NO_OUTPUTS, str(error)))
        except WorkerLostError as error:
            return pickle.dumps((LOST, f"on {self.address}: {error}"))
        except ModelError as error:
            return pickle.dumps((FAILED, str(error)))
        except (UnreachableError, ErrandFailedError) as error:
            return pickle.dumps(site_reply(error))
        finally:
            self._running.pop(key, None)
        return await asyncio.to_thread(outputs_reply, outputs)

    async def _errand(self, parcel: Parcel, errand: Errand, key: str) -> list[Any]:
        async def compute(inputs: Sequence[Any]) -> list[Any]:
            future = self.backend.submit(ModelTask(key, parcel.call, inputs))
            try:
                return await future
            except asyncio.CancelledError:
                future.cancel()
                raise

        return await self.sites.run(errand, parcel.client, compute)

    async def run_bundle(self, pickled: bytes, bodies: bytes, key: str) -> bytes:
        """Return the seconds and answers for batches that came together."""
        answers: list[tuple[float, bytes]] = []
        self._bundles[key] = ""
        try:
            for number, body in enumerate(pickle.loads(bodies)):  # noqa: S301 - our client's
                begun = time.perf_counter()
                if key in self._bundles and number not in self.skipped.get(key, ()):
                    self._bundles[key] = each = _batch_of(key, number)
                    answer = await self.run(pickled, body, each)
                else:  # Dask may want a task again that it had cancelled: there is an answer for each
                    answer = pickle.dumps((DROPPED, None))
                answers.append((time.perf_counter() - begun, answer))
        finally:
            self._bundles.pop(key, None)
            self.skipped.pop(key, None)
        return bytes(await _aside(sum(len(answer) for _, answer in answers), pickle.dumps, answers))

    def skip(self, key: str, numbers: list[int]) -> None:
        """Leave out some batches of a bundle; stop the one among them that runs."""
        self.skipped[key].update(numbers)
        for number in numbers:
            self.cancel(_batch_of(key, number))

    def cancel(self, key: str) -> None:
        """Stop a batch, or a bundle, whose result nobody wants any more."""
        running = self._running.pop(self._bundles.pop(key, key), None)
        if running is not None:
            running.cancel()

    # the loader

    async def __call__(self, call: ModelCall) -> Any:
        """Return the live object."""
        return await asyncio.to_thread(pickle.loads, await self.payload(call))

    async def payload(self, call: ModelCall) -> bytes:
        """Return the object pickled, its hash checked."""
        self._forget_unused()
        parcel = self._parcels[call.uuid]
        if parcel.payload is not None:
            return parcel.payload
        delivered = self.delivered.pop(call.uuid, None)
        if delivered is not None:
            if await asyncio.to_thread(_sha256, delivered) != parcel.sha256:
                raise ModelError(f"model {call.uuid} came to {self.address} as other bytes than were sent")
            return delivered
        if parcel.fetch is None:
            raise _LackingError("it is not in a store that workers can reach")
        try:
            return await parcel.fetch(parcel.sha256)
        except Exception as error:
            raise _LackingError(f"{type(error).__name__}: {error}") from error

    def fetch(self) -> None:
        """Return nothing: from here it goes no further."""

    # keeping and dropping models

    def _uses(self, parcel: Parcel) -> None:
        name = parcel.call.uuid
        self._parcels[name] = parcel
        self._users[name].add(parcel.client)
        self._used[name] = time.monotonic()

    def forget(self, prefix: str) -> None:
        """Drop the models whose names begin so."""
        for name in [each for each in self._parcels if each.startswith(prefix)]:
            self.backend.forget(name)
            for kept in (self._parcels, self.delivered, self._users, self._used):
                kept.pop(name, None)

    def leave(self, client: str) -> None:
        """Drop the models, and close the sites, that only this client used."""
        self.sites.leave(client)
        for name, users in list(self._users.items()):
            users.discard(client)
            if not users:
                self.forget(name)

    def _forget_unused(self) -> None:
        """Drop what was left here by clients that died."""
        since = time.monotonic() - _UNUSED
        for name in [each for each, used in self._used.items() if used < since]:
            self.forget(name)


def _batch_of(key: str, number: int) -> str:
    return f"{key}/{number}"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def _aside(size: int, function: Any, *args: Any) -> Any:
    """Call a function here if that is short, else in a thread."""
    return function(*args) if size < _IN_PASSING else await asyncio.to_thread(function, *args)
