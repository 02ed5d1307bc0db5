"""Databases on a server: transactions, queries and streams have connections of their own each.

So one who streams, or is in a transaction, can always read beside it.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any

from asyncdl.drivers.sql import SQLDatabase, SQLTransaction
from asyncdl.errors import StoreTimeoutError

WRITERS = 8
FETCHERS = 6
STREAMS = 8
WAIT = 30
"""Seconds for which one waits for a lock, or for a connection."""
CONNECT_TIMEOUT = 10.0
CLOSE_TIMEOUT = 1.0

Translate = Callable[[Exception, str], Exception]


@contextmanager
def translated(translate: Translate, url: str) -> Any:
    """Raise the driver's errors in this block as our own."""
    try:
        yield
    except Exception as error:
        found = translate(error, url)
        if found is error:
            raise
        raise found from error


class PooledTransaction(SQLTransaction):
    """A transaction on a connection of its own, begun with its first statement; an error in it is its end."""

    def __init__(self, database: SQLDatabase, driver: Any) -> None:
        super().__init__(database)
        self._driver = driver
        self._begun = False


class PooledDatabase(SQLDatabase):
    """A database with a pool of connections."""

    def __init__(self) -> None:
        super().__init__()
        self._lent: set[Any] = set()

    def _make_room(self) -> None:
        self._writers = asyncio.Semaphore(WRITERS)
        self._fetchers = asyncio.Semaphore(FETCHERS)
        self._streams = asyncio.Semaphore(STREAMS)

    async def _connect(self) -> None:
        self._start()
        try:
            async with self._lease():
                pass
        except BaseException:
            await self._dispose()
            raise

    @abstractmethod
    def _start(self) -> None:
        """Make the pool, without a connection in it."""

    @abstractmethod
    def _lease(self) -> AbstractAsyncContextManager[Any]:
        """Borrow a connection; what is left of a transaction or a cancelled statement is cleared away afterwards."""

    @asynccontextmanager
    async def _quiet(self) -> AsyncIterator[None]:
        taken = 0
        try:
            for _ in range(WRITERS):
                await self._writers.acquire()
                taken += 1
            yield
        finally:
            for _ in range(taken):
                self._writers.release()

    @asynccontextmanager
    async def _room_to_stream(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(WAIT):
                await self._streams.acquire()
        except TimeoutError as error:
            raise StoreTimeoutError(f"{self.url}: all of {STREAMS} connections for streams are in use") from error
        try:
            yield
        finally:
            self._streams.release()
