"""A bounded number of threads, each for one batch at a time.

Why not `concurrent.futures`: it joins its threads when the interpreter exits, so that one model stuck in a C call would
keep the process from ending, and it cannot replace a thread. These threads are daemons, and one that is stuck is given
up. All decisions are taken on the event loop; a thread only takes work from its own queue and reports back, so that
there is nothing to lock.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from asyncdl.compute.turns import Turns

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MOST_LOST = 64
"""Stuck threads that are replaced; beyond them a model that always hangs has to wait for its own threads."""


class Resource(Protocol):
    """What a thread works with: a flag to stop it by, or a process that it talks to."""

    def begin(self) -> None:
        """Forget an interruption of the work before; called on the loop."""

    def interrupt(self) -> None:
        """Ask the work under way to end; called on the loop, must not block."""

    def close(self) -> None:
        """Let go of everything; called in the thread, as the last thing."""


R = TypeVar("R", bound=Resource)


class Worker(Generic[R]):
    """One thread and its resource."""

    def __init__(self, name: str, resource: R) -> None:
        self.resource = resource
        self.busy = False
        self._loop = asyncio.get_running_loop()
        self._inbox: SimpleQueue[tuple[asyncio.Future[Any] | None, Callable[[R], Any]] | None] = SimpleQueue()
        self._left: Callable[[Worker[R]], None] | None = None
        self._gone = asyncio.Event()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[R], T]) -> T:
        """Run work in the thread; a cancelled wait interrupts it."""
        self.resource.begin()
        self.busy = True
        outcome: asyncio.Future[T] = self._loop.create_future()
        self._inbox.put((outcome, work))
        try:
            return await outcome
        except asyncio.CancelledError:
            self.resource.interrupt()
            raise

    def tell(self, work: Callable[[R], Any]) -> None:
        """Have work done some time, after what is under way; nobody waits for it."""
        self._inbox.put((None, work))

    def leave(self, then: Callable[[Worker[R]], None]) -> None:
        """Call ``then`` as soon as the thread is free."""
        if self.busy:
            self._left = then
        else:
            then(self)

    def dismiss(self) -> None:
        """Let the thread end after what is under way."""
        self._inbox.put(None)

    async def gone(self) -> None:
        """Wait for the thread's end."""
        await self._gone.wait()
        self._thread.join(1)  # it has said its last word: a matter of microseconds

    # in the thread

    def _serve(self) -> None:
        try:
            while (item := self._inbox.get()) is not None:
                outcome, work = item
                result, error = _outcome(work, self.resource)
                if outcome is not None:
                    self._loop.call_soon_threadsafe(self._finished, outcome, result, error)
                del item, outcome, work, result, error  # while it waits, a thread keeps no batch alive
            self.resource.close()
            self._loop.call_soon_threadsafe(self._gone.set)
        except RuntimeError:  # the loop is closed, and nobody closed us before
            self.resource.close()

    # on the loop

    def _finished(self, outcome: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        self.busy = False
        if not outcome.done():
            if error is None:
                outcome.set_result(result)
            else:
                outcome.set_exception(error)
        if self._left is not None:
            left, self._left = self._left, None
            left(self)


def _outcome(work: Callable[[R], Any], resource: R) -> tuple[Any, BaseException | None]:
    try:
        return work(resource), None
    except BaseException as error:  # it is raised where it is awaited
        return None, error


class Workers(Generic[R]):
    """Up to ``size`` workers, started when there is work for them.

    Parameters
    ----------
    name
        What the threads' names begin with.
    resource
        Makes a worker's resource.
    """

    def __init__(self, name: str, size: int, resource: Callable[[], R]) -> None:
        self._name = name
        self._resource = resource
        self._turns = Turns(size)
        self._all: set[Worker[R]] = set()
        self._idle: list[Worker[R]] = []
        self._leased: dict[Worker[R], str] = {}
        """The workers that are not free, with who has them; not those that were given up."""
        self._lost: set[Worker[R]] = set()
        self._hired = 0

    @asynccontextmanager
    async def lease(self, whose: str) -> AsyncIterator[Worker[R]]:
        """Wait for a free worker, and one's turn; it is free again when what it ran has come to its end."""
        await self._turns.take(whose)
        try:
            worker = self._idle.pop() if self._idle else self._hire()
        except BaseException:  # no more threads are to be had
            self._turns.give_back(whose)
            raise
        self._leased[worker] = whose
        try:
            yield worker
        finally:
            worker.leave(self._returned)

    def give_up(self, worker: Worker[R]) -> None:
        """Replace a leased worker that does not come back, so that others need not wait for it."""
        if worker.busy and len(self._lost) < _MOST_LOST:
            self._lost.add(worker)
            self._turns.give_back(self._leased.pop(worker))

    def tell(self, work: Callable[[R], Any]) -> None:
        """Have all workers do something some time."""
        for worker in self._all:
            worker.tell(work)

    async def aclose(self, grace: float) -> None:
        """End all threads; those that are still busy after ``grace`` seconds are left behind, as daemons."""
        for worker in self._all:
            if worker.busy:
                worker.resource.interrupt()
            worker.dismiss()
        waits = [asyncio.create_task(worker.gone()) for worker in self._all]
        if not waits:
            return
        _, pending = await asyncio.wait(waits, timeout=grace)
        for wait in pending:
            wait.cancel()
        if pending:
            logger.warning(
                "%d of %s's threads are stuck in a model's call and are left behind", len(pending), self._name
            )
            await asyncio.wait(pending)
        self._all.clear()
        self._idle.clear()

    def _hire(self) -> Worker[R]:
        self._hired += 1
        worker = Worker(f"{self._name}-{self._hired}", self._resource())
        self._all.add(worker)
        return worker

    def _returned(self, worker: Worker[R]) -> None:
        if worker in self._lost:
            self._lost.discard(worker)
            self._all.discard(worker)
            worker.dismiss()
        else:
            self._idle.append(worker)
            self._turns.give_back(self._leased.pop(worker))


async def in_time(workers: Workers[R], worker: Worker[R], work: Callable[[R], T], seconds: float | None) -> T:
    """Run work on a leased worker, and give the worker up when it takes longer.

    Raises
    ------
    TimeoutError
        It took longer.
    """
    try:
        async with asyncio.timeout(seconds):
            return await worker.run(work)
    except TimeoutError:
        workers.give_up(worker)
        raise
