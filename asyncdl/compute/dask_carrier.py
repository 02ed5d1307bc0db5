"""Bundles of batches on their way to a Dask cluster and back."""

from __future__ import annotations

import asyncio
import itertools
import pickle
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import cloudpickle

from asyncdl.compute import dask_worker
from asyncdl.compute.dask_bundles import SMALL, Line, Load
from asyncdl.compute.dask_connection import Connection, DroppedError, LostError
from asyncdl.compute.dask_crew import Crew, Needs
from asyncdl.compute.dask_models import lost
from asyncdl.errors import WorkerLostError


class UnsendableError(Exception):
    """A batch's inputs cannot be pickled."""


class Carrier:
    """Takes batches that stand in line to the cluster, each to its answer.

    Parameters
    ----------
    session
        What tells our keys from other clients'.
    aboard
        Waits for a connection.
    hurry
        Has somebody look whether a connection still stands.
    spawn, in_thread
        Start a task; call a function in a thread.
    """

    def __init__(
        self,
        session: str,
        aboard: Callable[[], Awaitable[Connection]],
        hurry: Callable[[], None],
        spawn: Callable[..., asyncio.Task[Any]],
        in_thread: Callable[..., Awaitable[Any]],
    ) -> None:
        self._session = session
        self._aboard = aboard
        self._hurry = hurry
        self._spawn = spawn
        self._in_thread = in_thread
        self._numbers = itertools.count(1)
        self._lines: dict[Needs, Line] = {}

    def stand_in_line(self, needs: Needs, load: Load) -> bool:
        """Have a batch wait for its place, and then for its answer; return whether the line is new, and wants a size."""
        new = needs not in self._lines
        if new:
            self._lines[needs] = Line(partial(self._send, needs))
        self._lines[needs].join(load)
        return new

    def resize(self, ahead: int, crew: Crew) -> None:
        """Let so many bundles be under way for each thread."""
        for needs, line in self._lines.items():
            threads = crew.threads(needs)
            line.resize(ahead * threads, threads)

    def _send(self, needs: Needs, line: Line, loads: list[Load]) -> None:
        bundle = self._spawn(self._carry(needs, line, loads), f"asyncdl: {loads[0].key} and {len(loads) - 1} more")
        for load in loads:
            load.answer.add_done_callback(partial(_stop_if_unwanted, bundle, loads))

    async def _carry(self, needs: Needs, line: Line, loads: list[Load]) -> None:
        try:
            bodies = await self._in_thread(_all_pickled, [load.inputs for load in loads])
            connection = await self._aboard()
            together: list[tuple[Load, bytes]] = []
            ways: list[Coroutine[Any, Any, None]] = []
            for load, body in zip(loads, bodies, strict=True):
                if isinstance(body, BaseException):
                    load.fail(UnsendableError(str(body)))
                elif load.alone or len(body) > SMALL:
                    ways.append(self._ended(connection, [load], self._one(connection, needs, load, body)))
                elif not load.answer.done():
                    together.append((load, body))
            if together:
                ways.append(
                    self._ended(connection, [load for load, _ in together], self._several(connection, needs, together))
                )
            await asyncio.gather(*ways)
        except asyncio.CancelledError:
            for load in loads:
                load.answer.cancel()
            raise
        finally:
            line.left()

    async def _ended(self, connection: Connection, loads: list[Load], way: Awaitable[None]) -> None:
        """See to it that each batch has its answer, or learns what befell it."""
        for load in loads:
            load.flight.aboard = connection
        failure: Exception
        try:
            await way
            return
        except LostError as error:
            self._hurry()
            failure = lost(connection, error)
            failure.__cause__ = error
        except WorkerLostError as error:
            # One of them may be what kills workers; the others are to have their outputs.
            failure = error if len(loads) == 1 else DroppedError(str(error))
        except Exception as error:  # whatever it is, it is theirs who wait
            failure = error
        finally:
            for load in loads:
                load.flight.aboard = None
        for load in loads:
            load.fail(failure)

    def _key(self, load: Load) -> str:
        return f"{load.key}-{self._session}{next(self._numbers)}"

    async def _one(self, connection: Connection, needs: Needs, load: Load, body: bytes) -> None:
        load.pace.sent(len(body))
        load.succeed((None, await connection.run(self._key(load), needs, load.parcel, body, load.prefer)))

    async def _several(self, connection: Connection, needs: Needs, loads: list[tuple[Load, bytes]]) -> None:
        first, _ = loads[0]
        for load, body in loads:
            load.pace.sent(len(body))
        key = self._key(first)
        bodies = pickle.dumps([body for _, body in loads])
        with _Skips(key, connection, self._spawn, [load for load, _ in loads]):
            answer = await connection.run(key, needs, first.parcel, bodies, first.prefer, bundled=True)
        # The answers in it are bytes: this is quick, however large they are.
        for (load, _), each in zip(loads, pickle.loads(answer), strict=True):  # noqa: S301 - our worker's
            load.succeed(each)


class _Skips:
    """Tells workers which batches of a bundle need not be run any more, while others of it are waited for."""

    def __init__(self, key: str, connection: Connection, spawn: Callable[..., Any], loads: list[Load]) -> None:
        self._key = key
        self._connection = connection
        self._spawn = spawn
        self._loads = loads
        self._unwanted: list[int] = []
        self._over = False

    def __enter__(self) -> None:
        for number, load in enumerate(self._loads):
            load.answer.add_done_callback(partial(self._done, number))

    def __exit__(self, *_: object) -> None:
        self._over = True

    def _done(self, number: int, answer: asyncio.Future[Any]) -> None:
        if answer.cancelled() and not self._over:
            if not self._unwanted:
                asyncio.get_running_loop().call_soon(self._tell)  # with those that are cancelled in the same turn
            self._unwanted.append(number)

    def _tell(self) -> None:
        numbers, self._unwanted = self._unwanted, []
        if not self._over and not all(load.answer.done() for load in self._loads):
            self._spawn(self._connection.everywhere(dask_worker.skip, self._key, numbers), "asyncdl: skipping batches")


def _stop_if_unwanted(bundle: asyncio.Task[Any], loads: list[Load], answer: asyncio.Future[Any]) -> None:
    if answer.cancelled() and all(load.answer.done() for load in loads):
        bundle.cancel()


def _all_pickled(batches: list[Any]) -> list[bytes | BaseException]:
    return [_pickled(inputs) for inputs in batches]


def _pickled(inputs: Any) -> bytes | BaseException:
    try:
        pickled: bytes = cloudpickle.dumps(inputs)
    except BaseException as error:  # pickling runs anybody's code
        return error
    return pickled
