"""Units of work: what several stores on one MongoDB write together, in one transaction where the server has them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

from asyncdl.drivers.mongo import MongoDatabase
from asyncdl.drivers.mongo_calls import MongoTransaction
from asyncdl.drivers.mongo_errors import labelled
from asyncdl.errors import ClosedError, StoreError, StoreTimeoutError

T = TypeVar("T")
Work = Callable[[MongoTransaction | None], Awaitable[T]]
"""A piece of work; it may be run again, in another transaction. Without transactions it gets None."""

MARKS = "_asyncdl_marks"
"""Where a transaction leaves a document that says it is asyncdl's, if it writes nothing else that does."""
_KEPT = 3600
"""Seconds for which the server keeps marks."""
_PATIENCE = 90.0


class MongoUnit:
    """Work that is done together: queued, and then one transaction; or begun at once, where its outcome is needed before.

    Where the metadata store is in the database, the transaction begins with the document that all its commits write (the
    gate): so of two at once one starts again before it has done anything.
    """

    def __init__(self, database: MongoDatabase) -> None:
        self.database = database
        self._queued: list[Work[Any]] = []
        self._afterwards: list[Work[Any]] = []
        self._stack: AsyncExitStack | None = None
        self._begun: MongoTransaction | None = None
        self._ended = False

    @property
    def fresh(self) -> bool:
        """Whether nothing has been done or queued in it."""
        return self._begun is None and not self._queued

    def defer(self, work: Work[Any]) -> None:
        """Queue work, to be done at the commit."""
        self._queued.append(work)

    def afterwards(self, work: Work[Any]) -> None:
        """Queue what is done after the commit, outside the transaction: what cannot be in one."""
        self._afterwards.append(work)

    async def run(self, work: Work[T]) -> T:
        """Do what was queued, then this, and return its outcome; it is committed with the rest."""
        tx = await self._begin() if self.database.transactional else None
        await self._work_off(tx)
        return await work(tx)

    async def _begin(self) -> MongoTransaction:
        if self._begun is None:
            stack = AsyncExitStack()
            try:
                if self.database.gate is not None:
                    await stack.enter_async_context(self.database.turn)
                self._begun = await stack.enter_async_context(self.database.transaction())
                self._stack = stack
                await open_gate(self.database, self._begun)
            except BaseException as error:
                self._stack = None
                await stack.__aexit__(type(error), error, error.__traceback__)
                raise
        return self._begun

    async def _work_off(self, tx: MongoTransaction | None) -> None:
        queued, self._queued = self._queued, []
        for each in queued:
            await each(tx)

    async def commit(self, body: Callable[[MongoTransaction, Callable[[], Awaitable[None]]], Awaitable[T]]) -> T:
        """Do what was queued, and more, and commit.

        Parameters
        ----------
        body
            Gets the transaction, and what does the queued work; it must write the gate first.
        """
        self._end()
        if self._begun is not None:
            tx = self._begun
            result = await body(tx, lambda: self._work_off(tx))
            await self._commit_begun()
        else:
            queued = list(self._queued)

            async def attempt(tx: MongoTransaction) -> T:
                self._queued = list(queued)
                return await body(tx, lambda: self._work_off(tx))

            async with self.database.turn:
                result = await self.database.transact(attempt)
        await self._finish()
        return result

    async def _commit_begun(self) -> None:
        stack, self._stack = self._stack, None
        assert stack is not None, "it was begun"  # noqa: S101 - tells mypy
        await stack.aclose()

    async def close(self) -> None:
        """Commit, unless that was done."""
        if self._ended:
            return
        self._end()
        if self._begun is not None:
            await self._work_off(self._begun)
            await self._commit_begun()
        elif self._queued and self.database.transactional:
            queued = list(self._queued)

            async def attempt(tx: MongoTransaction) -> None:
                self._queued = list(queued)
                await open_gate(self.database, tx)
                await self._work_off(tx)

            await self.database.transact(attempt)
        else:
            await self._work_off(None)
        await self._finish()

    async def _finish(self) -> None:
        for each in self._afterwards:
            await each(None)

    async def abort(self, error: BaseException) -> None:
        """Roll back what has been begun."""
        self._ended = True
        stack, self._stack = self._stack, None
        if stack is not None:
            await stack.__aexit__(type(error), error, error.__traceback__)

    def _end(self) -> None:
        if self._ended:
            raise ClosedError("a transaction is committed once")
        self._ended = True


async def open_gate(database: MongoDatabase, tx: MongoTransaction) -> None:
    """Begin a transaction by saying that it is asyncdl's."""
    if database.gate is not None:
        collection, key = database.gate
        await database.find_and_update(collection, {"_id": key}, {"$inc": {"joined": 1}}, upsert=True, tx=tx)
    else:
        await leave_mark(database, tx)


async def leave_mark(database: MongoDatabase, tx: MongoTransaction | None = None) -> None:
    """Write what says that it is asyncdl's, and wakes whoever waits for changes."""
    from bson import ObjectId  # noqa: PLC0415 - the driver is imported when it is used

    mark = {"$set": {"by": "asyncdl"}, "$currentDate": {"at": True}}
    await database.find_and_update(MARKS, {"_id": ObjectId()}, mark, upsert=True, tx=tx)


async def prepare_marks(database: MongoDatabase) -> None:
    """Have the server forget old marks."""
    collection = database.documents(MARKS)
    await database.call(lambda: collection.create_index("at", expireAfterSeconds=_KEPT), to_the_end=True)


@asynccontextmanager
async def unit(database: MongoDatabase) -> AsyncIterator[MongoUnit]:
    """Begin a unit of work: committed at the end of the block, rolled back by an exception where there are transactions."""
    begun = MongoUnit(database)
    try:
        yield begun
        await begun.close()
    except BaseException as error:
        await begun.abort(error)
        raise


async def retrying(attempt: Callable[[], Awaitable[T]]) -> T:
    """Make an attempt, again when the server undid its transaction because it met another one, or a member went away."""
    begun, tries = time.monotonic(), 0
    while True:
        tries += 1
        try:
            return await attempt()
        except (StoreError, ClosedError) as error:
            if not labelled(error, "TransientTransactionError"):
                raise
            if time.monotonic() - begun > _PATIENCE:
                raise StoreTimeoutError(
                    f"a transaction was undone again and again, for {_PATIENCE:.0f} s: {error}"
                ) from error
        await asyncio.sleep(random.random() * min(0.05, 0.001 * 2 ** min(tries, 10)))  # noqa: S311 - no secret
