"""What goes between us and a Dask scheduler, in few messages: each costs both sides about a millisecond, whatever is in it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from asyncdl.compute import dask_worker
from asyncdl.compute.dask_crew import Needs

Client = Any
Future = Any
"""Dask's."""

Spawn = Callable[[Coroutine[Any, Any, Any]], asyncio.Future[Any]]

_FETCHES = 2
"""Fetches under way at once: with one, small results would wait for large ones; with many, each would bring one result."""


@dataclass(frozen=True, slots=True)
class Whom:
    """Which workers may run a task, and by which function.

    Parameters
    ----------
    needs
        What they must have free.
    only
        Their addresses; None: any.
    strict
        Whether it must be one of ``only``, or had better be.
    bundled
        Whether it is for `dask_worker.run_bundle`.
    """

    needs: Needs
    only: tuple[str, ...] | None = None
    strict: bool = False
    bundled: bool = False


class Submissions:
    """Batches that are submitted in one turn of the event loop go together."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._waiting: defaultdict[Whom, list[tuple[str, bytes, Any, asyncio.Future[Future]]]] = defaultdict(list)

    async def submit(self, key: str, whom: Whom, parcel: bytes, body: Any) -> Future:
        """Have Dask run a batch, or a bundle; one that is cancelled before this returns is not run."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._send)
        submitted: asyncio.Future[Future] = loop.create_future()
        self._waiting[whom].append((key, parcel, body, submitted))
        return await submitted

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, defaultdict(list)
        for whom, batches in waiting.items():
            wanted = [each for each in batches if not each[-1].cancelled()]
            if not wanted:
                continue
            keys, parcels, bodies, submitted = zip(*wanted, strict=True)
            try:
                futures = self._client.map(
                    dask_worker.run_bundle if whom.bundled else dask_worker.run_batch,
                    parcels,
                    bodies,
                    [key.encode() for key in keys],
                    key=list(keys),
                    pure=False,
                    resources=dict(whom.needs) or None,
                    workers=None if whom.only is None else list(whom.only),
                    allow_other_workers=whom.only is not None and not whom.strict,
                )
            except Exception as error:  # whatever Dask raises is theirs who wait for it
                for each in submitted:
                    each.set_exception(error)
            else:
                for each, future in zip(submitted, futures, strict=True):
                    each.set_result(future)


class Fetches:
    """Results of tasks that have ended are fetched together: those that end meanwhile wait, and go with the next fetch.

    Parameters
    ----------
    spawn
        Starts a task that outlives whoever waits for it.
    """

    def __init__(self, client: Client, spawn: Spawn) -> None:
        self._client = client
        self._spawn = spawn
        self._ended: list[tuple[Future, asyncio.Future[Any]]] = []
        self._under_way = 0
        self.direct = False
        """Whether results go past the scheduler."""

    async def result(self, future: Future) -> Any:
        """Return a task's result when it has ended, or raise what Dask says of it.

        Note for implementers: who waits for this must not be cancelled, for Dask gathers for several what it gathers for one.
        """
        error = await future.exception()
        if error is not None:
            raise error
        fetched = asyncio.get_running_loop().create_future()
        self._ended.append((future, fetched))
        if self._under_way < _FETCHES:
            self._under_way += 1
            self._spawn(self._fetch())
        if await fetched is not None:
            return fetched.result()
        return await self._client.gather(future, direct=self.direct)

    async def _fetch(self) -> None:
        try:
            while self._ended:
                ended, self._ended = self._ended, []
                try:
                    results = await self._client.gather([future for future, _ in ended], direct=self.direct)
                except (
                    Exception
                ):  # one of them was lost after it had ended: each asks for itself, and learns of its own fate
                    results = [None] * len(ended)
                for (_, fetched), result in zip(ended, results, strict=True):
                    if not fetched.done():
                        fetched.set_result(result)
        finally:
            self._under_way -= 1
            for _, fetched in self._ended:  # this one was cancelled: the connection closes
                fetched.cancel()
