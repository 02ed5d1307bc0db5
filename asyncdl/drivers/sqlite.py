"""SQLite through SQLAlchemy's async engine and aiosqlite.

SQLite has one writer at a time. A `SQLiteDatabase` keeps one connection for writing, handed from transaction to
transaction in the order of asking (SQLite's own busy handler polls, and starves), and a pool for reading beside it
(WAL: readers and the writer do not block each other). A transaction begins with ``BEGIN IMMEDIATE``, so that what it
reads cannot change before it writes.

What a transaction runs together goes to the connection's thread in one hop: 0.07 ms a commit instead of 0.9 ms for a
hop per statement (``benchmarks/commit.py``).
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from asyncdl.drivers.single_writer import SingleWriterDatabase, SingleWriterTransaction
from asyncdl.drivers.sql import Outcome, Row, Statement
from asyncdl.errors import (
    AsyncDLError,
    ClosedError,
    ConstraintError,
    DuplicateKeyError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    import aiosqlite
    from sqlalchemy.engine import Dialect
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

T = TypeVar("T")

_READERS = 16
_FETCHERS = 3
_BUSY_TIMEOUT = 30.0
_ROWS_IN_A_STEP = (256, 64, 16, 4, 1)
_UNIQUE = {sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_ROWID}
_PRAGMAS = (
    "PRAGMA synchronous=NORMAL",  # with WAL: safe against a killed process; a power cut may lose the last commits
    f"PRAGMA busy_timeout={int(_BUSY_TIMEOUT * 1000)}",
    "PRAGMA foreign_keys=ON",
    "PRAGMA temp_store=MEMORY",
)


def translate(error: sqlite3.Error, url: str) -> AsyncDLError:
    """Return asyncdl's error for one of sqlite3's, by its error code."""
    code = getattr(error, "sqlite_errorcode", None)
    message = f"{url}: {error}"
    if code in _UNIQUE:
        return DuplicateKeyError(message)
    if isinstance(error, sqlite3.IntegrityError):
        return ConstraintError(message)
    primary = None if code is None else code & 0xFF
    if primary in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return StoreTimeoutError(f"{message} (another process held the write lock for {_BUSY_TIMEOUT:.0f} s)")
    if primary in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY}:
        return StoreUnavailableError(message)
    return StoreError(message)


def _run(connection: sqlite3.Connection, statement: Statement) -> Outcome:
    cursor = connection.cursor()
    try:
        if statement.many and statement.row:
            return Outcome(_run_rows(connection, cursor, statement), [])
        if statement.many:
            cursor.executemany(statement.sql, statement.params)
        else:
            cursor.execute(statement.sql, statement.params)
        rows = cursor.fetchall() if statement.fetch else []
        return Outcome(cursor.rowcount, rows)
    finally:
        cursor.close()


def _run_rows(connection: sqlite3.Connection, cursor: sqlite3.Cursor, statement: Statement) -> int:
    """Run an insert of many rows, some hundred in one step; return how many it affected.

    ``executemany`` gives up the GIL for each row and has to get it back, which, while another thread computes in Python,
    costs a switch interval a row: 850 microseconds in place of 2.4 (``benchmarks/many_rows.py``). Alone it takes twice as
    long.
    """
    rows, affected, at = statement.params, 0, 0
    room = connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)
    for size in _ROWS_IN_A_STEP:
        if len(rows) - at < size or size * len(rows[0]) > room:
            continue
        sql = statement.sql.replace(statement.row, ", ".join([statement.row] * size), 1)
        while len(rows) - at >= size:
            cursor.execute(sql, list(chain.from_iterable(rows[at : at + size])))
            affected += cursor.rowcount
            at += size
    return affected


class SQLiteTransaction(SingleWriterTransaction):
    """A transaction on the one writing connection."""

    def _run_all(
        self, raw: sqlite3.Connection, deferred: Sequence[Statement], statements: Sequence[Statement], commit: bool
    ) -> list[Outcome]:
        try:
            if not raw.in_transaction:
                raw.execute("BEGIN IMMEDIATE")
            for statement in deferred:
                _run(raw, statement).check(statement)
            outcomes = [_run(raw, statement).check(statement) for statement in statements]
            if commit:
                raw.execute("COMMIT")
        except BaseException:
            self._roll_back(raw)
            raise
        return outcomes

    def _roll_back(self, raw: sqlite3.Connection) -> None:
        if raw.in_transaction:
            raw.execute("ROLLBACK")


class SQLiteDatabase(SingleWriterDatabase):
    """One SQLite file.

    Parameters
    ----------
    path
        The file; it and its folder are made when missing.
    """

    clock = "SELECT (julianday('now') - 2440587.5) * 86400.0"

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self.url = f"sqlite://{path}"
        self._stack = AsyncExitStack()
        self._engine: AsyncEngine | None = None
        self._writer: aiosqlite.Connection | None = None
        self._watcher: aiosqlite.Connection | None = None
        self._fetching: dict[aiosqlite.Connection, int] = {}
        self._reading: set[aiosqlite.Connection] = set()
        self._applied: WeakKeyDictionary[aiosqlite.Connection, int] = WeakKeyDictionary()
        self._prepared: list[Callable[[sqlite3.Connection], None]] = []

    @property
    def dialect(self) -> Dialect:
        """SQLAlchemy's dialect, for compiling."""
        return self._opened().dialect

    @property
    def place(self) -> Path:
        """Which file this is, whatever it was called."""
        return self.path.absolute().resolve()

    async def _connect(self) -> None:
        """Connect, and create the file when missing."""
        try:
            await self._open()
        except BaseException:
            await self._stack.aclose()
            raise

    async def _open(self) -> None:
        from sqlalchemy import event  # noqa: PLC0415 - heavy: loaded when a database is opened
        from sqlalchemy.engine import URL  # noqa: PLC0415
        from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415

        try:
            await asyncio.to_thread(self.path.parent.mkdir, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailableError(f"{self.url}: cannot make the folder {self.path.parent}: {error}") from error
        engine = create_async_engine(
            URL.create("sqlite+aiosqlite", database=str(self.path)),
            pool_size=_READERS + _FETCHERS + 2,
            max_overflow=0,
            connect_args={"timeout": _BUSY_TIMEOUT, "isolation_level": None, "check_same_thread": False},
        )

        @event.listens_for(engine.sync_engine, "connect")
        def prepare(connection: Any, record: Any) -> None:
            cursor = connection.cursor()
            for pragma in _PRAGMAS:
                cursor.execute(pragma)
            cursor.close()

        self._engine = engine
        self._stack.push_async_callback(self._disconnect)
        self._writer = await _driver(await self._take(self._stack))
        await self._use_wal(self._writer)
        self._watcher = await _driver(await self._take(self._stack))
        self._fetching = {await _driver(await self._take(self._stack)): 0 for _ in range(_FETCHERS)}

    async def _use_wal(self, driver: aiosqlite.Connection) -> None:
        """Put the file into WAL mode, where it stays.

        Of two who open a new file at once each would hold the lock that the other waits for: so none waits with a lock.
        """

        def switch(raw: sqlite3.Connection) -> None:
            raw.execute("PRAGMA busy_timeout=0")
            try:
                raw.execute("PRAGMA journal_mode=WAL").fetchall()
            finally:
                raw.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT * 1000:.0f}")

        deadline = time.monotonic() + _BUSY_TIMEOUT
        while True:
            try:
                return await self._call(driver, switch)
            except StoreTimeoutError:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(random.uniform(0.01, 0.05))  # noqa: S311 - such that the two do not meet again

    async def _take(self, stack: AsyncExitStack) -> AsyncConnection:
        """Take a connection from the pool, until the stack is closed."""
        from sqlalchemy import exc  # noqa: PLC0415 - heavy: loaded when a database is opened

        try:
            return await stack.enter_async_context(self._opened().connect())
        except exc.TimeoutError as error:
            raise StoreTimeoutError(f"{self.url}: all of {_READERS} connections for reading are in use") from error
        except exc.DBAPIError as error:
            cause = error.orig if isinstance(error.orig, sqlite3.Error) else error.__cause__
            if isinstance(cause, sqlite3.Error):
                raise translate(cause, self.url) from error
            raise StoreUnavailableError(f"{self.url}: {error}") from error

    async def _dispose(self) -> None:
        await self._stack.aclose()

    async def _disconnect(self) -> None:
        engine, self._engine = self._engine, None
        self._writer = self._watcher = None
        self._fetching = {}
        for driver in tuple(self._reading):  # streams that nobody ended: the pool does not close what it has lent
            await driver.close()
        if engine is not None:
            await engine.dispose()

    def _opened(self) -> AsyncEngine:
        if self._engine is None:
            raise ClosedError(f"{self.url} is not open")
        return self._engine

    async def call_writer(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function on the writing connection's thread; only a transaction, which has the turn, may."""
        self._opened()
        assert self._writer is not None  # noqa: S101 - open() sets both
        return await self._call(self._writer, function)

    async def prepare(self, register: Callable[[sqlite3.Connection], None]) -> None:
        """Have every connection prepared, those to come too: with functions that queries call, say."""
        if register in self._prepared:
            return
        self._prepared.append(register)
        assert self._writer is not None  # noqa: S101 - open() sets both
        assert self._watcher is not None  # noqa: S101
        for driver in (self._writer, self._watcher, *self._fetching):
            await self._call(driver, register)

    async def _call(self, driver: aiosqlite.Connection, function: Callable[[sqlite3.Connection], T]) -> T:
        # aiosqlite has no public way to run several statements in one hop; `_execute` has been stable since 0.11.
        if not driver._running:
            raise ClosedError(f"{self.url} was closed")
        try:
            result: T = await driver._execute(function, driver._conn)  # type: ignore[no-untyped-call]
            return result
        except sqlite3.Error as error:
            raise translate(error, self.url) from error
        except OverflowError as error:
            raise StoreError(f"{self.url}: SQLite holds integers of at most 64 bits: {error}") from error
        except UnicodeEncodeError as error:
            raise StoreError(
                f"{self.url}: a text holds a lone surrogate, which is no Unicode character: {error}"
            ) from error

    def _begin(self) -> SQLiteTransaction:
        return SQLiteTransaction(self)

    async def fetch(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        """Run one reading statement outside any transaction and return all its rows."""
        self._opened()
        # One hop and nothing is left of it: so a connection serves many, and none is taken out of the pool and put back.
        driver = min(self._fetching, key=self._fetching.__getitem__)
        self._fetching[driver] += 1
        try:
            return await self._call(driver, lambda raw: raw.execute(sql, params).fetchall())
        finally:
            if driver in self._fetching:
                self._fetching[driver] -= 1

    async def stream(self, sql: str, params: Sequence[Any] = (), *, size: int = 1000) -> AsyncIterator[list[Row]]:
        """Run one reading statement and yield its rows in lists of at most ``size``."""
        async with self._reader() as driver:
            cursor = await self._call(driver, lambda raw: raw.execute(sql, params))
            try:
                while len(rows := await self._call(driver, lambda raw: cursor.fetchmany(size))) == size:
                    yield rows
            finally:
                with suppress(ClosedError):
                    await asyncio.shield(self._call(driver, lambda raw: cursor.close()))
        # The last page holds no connection: who reads more for each of its rows cannot run the pool dry.
        if rows:
            yield rows

    @asynccontextmanager
    async def _reader(self) -> AsyncIterator[aiosqlite.Connection]:
        """Borrow a connection for reading."""
        async with AsyncExitStack() as stack:
            connection = await self._take(stack)
            driver = await _driver(connection)
            self._reading.add(driver)
            try:
                for register in self._prepared[self._applied.get(driver, 0) :]:
                    await self._call(driver, register)
                self._applied[driver] = len(self._prepared)
                yield driver
            finally:
                self._reading.discard(driver)
                if not driver._running:  # closed under us: not to go back to a pool that is gone
                    await connection.invalidate()

    async def version(self) -> int:
        """Return ``PRAGMA data_version``, which changes when any other connection has committed."""
        self._opened()
        assert self._watcher is not None  # noqa: S101 - open() sets both
        rows = await self._call(self._watcher, lambda raw: raw.execute("PRAGMA data_version").fetchall())
        return int(rows[0][0])


async def _driver(connection: AsyncConnection) -> aiosqlite.Connection:
    raw = await connection.get_raw_connection()
    driver: aiosqlite.Connection = raw.driver_connection  # type: ignore[assignment]
    return driver
