"""How models get to the workers of a Dask cluster: with each batch, from a store, or brought to a worker that lacks one."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import cloudpickle

from asyncdl.compute.base import Fetch, ModelCall, ModelLoader
from asyncdl.compute.dask_bundles import Pace
from asyncdl.compute.dask_connection import Connection, LostError
from asyncdl.compute.dask_crew import Crew
from asyncdl.compute.dask_worker import Parcel
from asyncdl.compute.futures import Loads
from asyncdl.errors import ModelError, WorkerLostError

_INLINE = 16_384
"""Bytes of a pickled model up to which it travels with each batch."""


@dataclass(eq=False, slots=True)
class Packed:
    """A model, as it gets to workers, and how its batches do there."""

    client: str
    sha256: str
    payload: bytes | None
    fetch: Fetch | None
    in_thread: Callable[..., Awaitable[Any]]
    pace: Pace = field(default_factory=Pace)
    last: tuple[ModelCall, bytes] | None = None

    def name(self, call: ModelCall) -> str:
        """Return the model's name on workers."""
        return f"{call.uuid}@{self.sha256[:16]}"

    async def pickled(self, call: ModelCall) -> bytes:
        """Return the pickled `Parcel` for a call, the same as for the call before if that was the same call.

        Raises
        ------
        ModelError
            The call's arguments cannot be pickled.
        """
        if self.last is not None and _same(self.last[0], call):
            return self.last[1]
        small = self.payload if self.payload is not None and len(self.payload) <= _INLINE else None
        parcel = Parcel(self.client, replace(call, uuid=self.name(call)), self.sha256, small, self.fetch)
        try:
            pickled: bytes = await self.in_thread(cloudpickle.dumps, parcel)
        except Exception as error:  # pickling runs anybody's code
            raise ModelError(f"model {call.uuid}: its arguments cannot be sent to a worker: {error}") from error
        self.last = call, pickled
        return pickled


def _same(one: ModelCall, other: ModelCall) -> bool:
    return one is other or (not one.kwargs and not other.kwargs and one == other)  # arrays do not compare well


class Models:
    """The models that were packed, and those under way to workers.

    Parameters
    ----------
    client
        Who uses them.
    hurry
        Has somebody look whether a connection still stands.
    spawn, in_thread
        Start a task; call a function in a thread.
    """

    def __init__(
        self,
        loader: ModelLoader,
        client: str,
        hurry: Callable[[], None],
        spawn: Callable[..., asyncio.Task[Any]],
        in_thread: Callable[..., Awaitable[Any]],
    ) -> None:
        self._loader = loader
        self._client = client
        self._hurry = hurry
        self._spawn = spawn
        self._in_thread = in_thread
        self._packed: Loads[Packed] = Loads(self._pack, spawn)
        self._deliveries: dict[tuple[str, str], asyncio.Task[None]] = {}
        self.get = self._packed.get
        self.forget = self._packed.forget

    async def _pack(self, call: ModelCall) -> Packed:
        fetch = self._loader.fetch() if call.artifact is not None else None
        if call.artifact is not None and fetch is not None:
            return Packed(self._client, call.artifact, None, fetch, self._in_thread)
        payload = await self._loader.payload(call)
        sha256 = await self._in_thread(lambda: hashlib.sha256(payload).hexdigest())
        return Packed(self._client, sha256, payload if call.artifact is None else None, None, self._in_thread)

    async def deliver(self, call: ModelCall, name: str, packed: Packed, worker: str, by: Connection) -> None:
        """Bring a model to a worker that cannot get it by itself; once, however many batches it lacks it for."""
        delivery = self._deliveries.get((worker, name))
        if delivery is None:
            delivery = self._spawn(self._delivering(call, name, packed, worker, by), "asyncdl: delivering a model")
            self._deliveries[worker, name] = delivery
            delivery.add_done_callback(lambda _: self._deliveries.pop((worker, name), None))
        await asyncio.shield(delivery)

    async def _delivering(self, call: ModelCall, name: str, packed: Packed, worker: str, by: Connection) -> None:
        payload = packed.payload if packed.payload is not None else await self._loader.payload(call)
        try:
            await by.deliver(name, payload, worker)
        except LostError as error:
            self._hurry()
            raise lost(by, error) from error

    def give_up(self, crew: Crew) -> None:
        """Bring nothing more to workers that are gone."""
        for (worker, _), delivery in self._deliveries.items():
            if worker not in crew:
                delivery.cancel()


def lost(connection: Connection, error: LostError) -> WorkerLostError:
    """Return what befell batches under way by a connection that was lost."""
    return WorkerLostError(
        f"the Dask scheduler at {connection.address} {error}, and what it had to run is lost with it"
    )
