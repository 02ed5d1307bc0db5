"""PostgreSQL through SQLAlchemy's async engine and asyncpg.

The engine pools connections; statements run on asyncpg's own. Writing, reading and streaming have connections of their
own each, such that one who streams, or is in a transaction, can always read beside it.

Transactions read what is committed when each of their statements begins (``READ COMMITTED``). Who must be alone takes a
`PostgreSQLDatabase.lock`: an advisory one, which ends with the transaction.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit
from weakref import WeakSet

from asyncdl.drivers.elsewhere import Elsewhere
from asyncdl.drivers.pooled import (
    CLOSE_TIMEOUT,
    CONNECT_TIMEOUT,
    FETCHERS,
    STREAMS,
    WAIT,
    WRITERS,
    PooledDatabase,
    translated,
)
from asyncdl.drivers.postgresql_statements import PostgreSQLTransaction, numbered
from asyncdl.drivers.postgresql_urls import read_url
from asyncdl.drivers.postgresql_values import prepare, translate
from asyncdl.drivers.sql import Row, Statement
from asyncdl.errors import (
    ClosedError,
    MissingDependencyError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from asyncdl.together import raise_if_cancelled

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.pool import PoolProxiedConnection

_POOL = WRITERS + FETCHERS + STREAMS + 2
_CHANNEL = "asyncdl"
_SILENCE = 5.0
"""Seconds without a notification after which the listening connection is tried, and the database looked at."""
_BACKOFF = (0.05, 2.0)
_SETTINGS = {
    "application_name": "asyncdl",
    "timezone": "UTC",
    "jit": "off",  # it costs more than most statements take
    "lock_timeout": f"{WAIT:.0f}s",  # nothing hangs
    "tcp_keepalives_idle": "60",  # of a machine that is gone the locks go, too
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}


class PostgreSQLDatabase(PooledDatabase):
    """One PostgreSQL database.

    Parameters
    ----------
    url
        ``postgresql://user:password@host:port/database?option=value``, as libpq reads it: ``sslmode`` and its kin are
        options of the connection, what else there is is a setting of the session (``search_path``, ``statement_timeout``).

    Raises
    ------
    ConfigurationError
        That is no URL of a PostgreSQL database.
    MissingDependencyError
        asyncpg is not installed.
    """

    clock = "SELECT extract(epoch FROM clock_timestamp())::float8"

    def __init__(self, url: str) -> None:
        super().__init__()
        self._dsn, self.url, self.place = read_url(url)
        if importlib.util.find_spec("asyncpg") is None:
            raise MissingDependencyError(f"{self.url} needs asyncpg: pip install 'asyncdl[postgres]'")
        self._engine: AsyncEngine | None = None
        self._cursors: dict[Any, Any] = {}  # the transactions of streams
        self._made: WeakSet[Any] = WeakSet()
        self._unsettled: set[Any] = set()  # of which asyncpg does not know yet how their cancelled statement ended

    @property
    def dialect(self) -> Dialect:
        """SQLAlchemy's dialect, for compiling."""
        return self._opened().dialect

    def elsewhere(self) -> Elsewhere[PostgreSQLDatabase]:
        """Return what connects to it in another process, with the password."""
        return Elsewhere(PostgreSQLDatabase, self._dsn)

    def _start(self) -> None:
        from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415 - heavy: loaded on opening

        self._engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=self._new,
            json_deserializer=str,  # JSON is read as text, by those who know what stands in it
            pool_size=_POOL,
            max_overflow=0,
            pool_timeout=WAIT,
            pool_reset_on_return=None,  # `_give_back` does
        )

    async def _new(self) -> Any:
        import asyncpg  # noqa: PLC0415 - loaded when a database is opened

        given = {name.lower() for name, _ in parse_qsl(urlsplit(self._dsn).query)}
        connection = await asyncpg.connect(
            self._dsn,
            timeout=CONNECT_TIMEOUT,
            statement_cache_size=512,
            server_settings={name: value for name, value in _SETTINGS.items() if name not in given},
        )
        try:
            await prepare(connection)
        except BaseException:
            connection.terminate()
            raise
        self._made.add(connection)
        return connection

    async def _dispose(self) -> None:
        engine, self._engine = self._engine, None
        if self._ending:
            await asyncio.wait(self._ending, timeout=CLOSE_TIMEOUT)
        for driver in tuple(self._lent):  # streams that nobody ended: the pool does not close what it has lent
            driver.terminate()
        if self._ending:
            await asyncio.wait(self._ending)
        if engine is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await engine.dispose()
        for driver in self._made:  # of a server that does not answer
            driver.terminate()
        self._made.clear()

    def _opened(self) -> AsyncEngine:
        if self._engine is None:
            raise ClosedError(f"{self.url} is not open")
        return self._engine

    # connections

    @asynccontextmanager
    async def _lease(self) -> AsyncIterator[Any]:
        """Borrow a connection; what is left of a transaction or a cancelled statement is cleared away afterwards."""
        engine = self._opened()
        lent = await self._take()
        driver: Any = lent.driver_connection
        if self._engine is not engine:  # closed while this was made: nobody would close it in the pool that is gone
            self._drop(lent)
            raise ClosedError(f"{self.url} is not open")
        self._lent.add(driver)
        try:
            yield driver
        except BaseException:
            await self._finish(self._give_back(lent, driver))
            raise
        if driver.is_closed() or driver.is_in_transaction() or driver in self._unsettled:
            await self._finish(self._give_back(lent, driver))
        else:
            self._lent.discard(driver)
            lent.close()

    async def _take(self) -> PoolProxiedConnection:
        if self._opened().sync_engine.pool.checkedin():  # type: ignore[attr-defined]  # a QueuePool
            return await self._check_out()
        # A new one is made to its end, also for one who does not wait for it: neither asyncpg nor SQLAlchemy clear
        # away what is left of half a connection.
        task = asyncio.create_task(self._check_out(), name="asyncdl: connecting")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._unwanted)
            raise

    def _unwanted(self, task: asyncio.Task[PoolProxiedConnection]) -> None:
        if task.cancelled() or task.exception() is not None:
            return
        if self._engine is None:
            self._drop(task.result())
        else:
            task.result().close()

    @staticmethod
    def _drop(lent: PoolProxiedConnection) -> None:
        """Close a connection of a pool that is gone."""
        driver: Any = lent.driver_connection
        lent.detach()
        driver.terminate()

    async def _check_out(self) -> PoolProxiedConnection:
        from sqlalchemy import exc  # noqa: PLC0415 - heavy: loaded on opening
        from sqlalchemy.util import greenlet_spawn  # noqa: PLC0415

        try:
            while True:
                lent = await self._opened().raw_connection()
                driver: Any = lent.driver_connection
                if not driver.is_closed():
                    return lent
                await greenlet_spawn(lent.invalidate)  # the server closed it while it lay in the pool
        except ClosedError:
            raise
        except exc.TimeoutError as error:
            raise StoreTimeoutError(f"{self.url}: all of {_POOL} connections are in use") from error
        except TimeoutError as error:
            raise StoreUnavailableError(f"{self.url}: no answer within {CONNECT_TIMEOUT:.0f} s") from error
        except Exception as error:
            raise translate(error, self.url) from error

    async def _give_back(self, lent: PoolProxiedConnection, driver: Any) -> None:
        from sqlalchemy.util import greenlet_spawn  # noqa: PLC0415 - heavy: loaded on opening

        try:
            # asyncpg waits here for the end of a statement that was cancelled
            if not driver.is_closed():
                within = self._cursors.pop(driver, None)
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    if within is not None:
                        await within.rollback()
                    else:  # whether it is in a transaction asyncpg learns with the end of the statement
                        await driver.execute("ROLLBACK")
        except Exception:
            driver.terminate()
        finally:
            self._lent.discard(driver)
            self._cursors.pop(driver, None)
            self._unsettled.discard(driver)
            if driver.is_closed():
                await greenlet_spawn(lent.invalidate)
            else:
                lent.close()

    # reading and writing

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[PostgreSQLTransaction]:
        """Begin a transaction; it is committed at the end of the block, rolled back by an exception."""
        self._opened()
        async with self._writers, self._lease() as driver:
            tx = PostgreSQLTransaction(self, driver)
            try:
                yield tx
            except BaseException:
                await tx.end(commit=False)
                raise
            await tx.end(commit=True)
            if not tx.settled:
                self._unsettled.add(driver)

    async def fetch(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        """Run one reading statement outside any transaction and return all its rows."""
        self._opened()
        with translated(translate, self.url):
            async with self._fetchers, self._lease() as driver:
                return list(map(tuple, await driver.fetch(numbered(sql), *params)))

    async def stream(self, sql: str, params: Sequence[Any] = (), *, size: int = 1000) -> AsyncIterator[list[Row]]:
        """Run one reading statement and yield its rows in lists of at most ``size``, by a cursor on the server."""
        self._opened()
        async with self._room_to_stream():
            with translated(translate, self.url):
                async with self._lease() as driver:
                    self._cursors[driver] = within = driver.transaction(readonly=True)
                    await within.start()
                    cursor = await driver.cursor(numbered(sql), *params)
                    while len(rows := list(map(tuple, await cursor.fetch(size)))) == size:
                        yield rows
                    del self._cursors[driver]
                    await within.rollback()
        # The last page holds no connection: who reads more for each of its rows cannot run the pool dry.
        if rows:
            yield rows

    async def version(self) -> int:
        """Return a hash of which transactions have ended."""
        rows = await self.fetch("SELECT hashtextextended(pg_current_snapshot()::text, 0)")
        return int(rows[0][0])

    # locks and wake-ups

    def lock(self, name: str) -> tuple[Statement, ...]:
        """Return the statement that takes an advisory lock to the end of the transaction."""
        return (Statement(f"SELECT pg_advisory_xact_lock({_key(name)})", quiet=True),)

    def share(self, name: str) -> tuple[Statement, ...]:
        """Return the statement that shares an advisory lock to the end of the transaction."""
        return (Statement(f"SELECT pg_advisory_xact_lock_shared({_key(name)})", quiet=True),)

    def exclude(self, name: str) -> tuple[Statement, ...]:
        """Return the statement that has an advisory lock for itself to the end of the transaction."""
        return self.lock(name)

    def announce(self, words: str) -> tuple[Statement, ...]:
        """Return the statement that notifies those who listen."""
        quoted = words.replace("'", "''")
        return (Statement(f"NOTIFY {_CHANNEL}, '{quoted}'", quiet=True),)

    async def changes(self) -> AsyncIterator[str]:
        """Yield what was announced, from one listening connection; it is made anew when it is lost."""
        shortest, longest = _BACKOFF
        wait = shortest
        while True:
            try:
                async with self._lease() as driver:
                    with translated(translate, self.url):
                        heard = await self._listen(driver)
                    wait = shortest
                    try:
                        yield ""
                        while not driver.is_closed():
                            yield await self._hear(driver, heard)
                    finally:
                        driver.terminate()  # it would go on to listen in the pool
            except StoreError:
                raise_if_cancelled()
            self._opened()
            await asyncio.sleep(wait)
            wait = min(2 * wait, longest)

    @staticmethod
    async def _listen(driver: Any) -> asyncio.Queue[str]:
        heard: asyncio.Queue[str] = asyncio.Queue()
        await driver.add_listener(_CHANNEL, lambda _driver, _pid, _name, words: heard.put_nowait(words))
        driver.add_termination_listener(lambda _driver: heard.put_nowait(""))
        return heard

    async def _hear(self, driver: Any, heard: asyncio.Queue[str]) -> str:
        try:
            async with asyncio.timeout(_SILENCE):
                return await heard.get()
        except TimeoutError:
            pass
        try:
            # a sign of life that changes nothing, and shows in pg_stat_activity what the connection is for
            await driver.execute(f'LISTEN "{_CHANNEL}"', timeout=_SILENCE)
        except Exception as error:
            driver.terminate()
            raise StoreUnavailableError(f"{self.url}: the listening connection is lost") from error
        return ""


def _key(lock: str) -> int:
    return int.from_bytes(hashlib.sha256(f"asyncdl {lock}".encode()).digest()[:8], "big", signed=True)
