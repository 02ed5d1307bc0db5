"""DuckDB, in this process: no server, and no other process has the file open at the same time.

All that writes runs on one thread, which connects and closes too; reading has some threads beside it, each with a cursor
(a connection to the same database) of its own, and each stream has a cursor. DuckDB shows all of them what was committed
when their statement began.

Rows go in and come out as Arrow: exact, and some hundred times faster than one by one.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

from asyncdl.drivers.arrow_rows import Pages, rows_of
from asyncdl.drivers.duckdb_values import execute, run, translate
from asyncdl.drivers.single_writer import SingleWriterDatabase, SingleWriterTransaction
from asyncdl.drivers.sql import Outcome, Row, Statement
from asyncdl.errors import ClosedError, ConfigurationError, StoreTimeoutError, StoreUnavailableError

if TYPE_CHECKING:
    import duckdb
    from sqlalchemy.engine import Dialect

T = TypeVar("T")

_READERS = 4
_STREAMS = 16
_WAIT = 30.0
_PAUSE = 0.005
_WRITING: WeakValueDictionary[str, _Turn] = WeakValueDictionary()
"""Who writes, by file: of two transactions on one database at once DuckDB would fail the later."""


class _Turn:
    """The right to write, for all databases of this process on one file."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


class DuckDBTransaction(SingleWriterTransaction):
    """A transaction on the writing connection."""

    database: DuckDBDatabase

    def __init__(self, database: DuckDBDatabase) -> None:
        super().__init__(database)
        self._begun = False

    def _run_all(
        self,
        raw: duckdb.DuckDBPyConnection,
        deferred: Sequence[Statement],
        statements: Sequence[Statement],
        commit: bool,
    ) -> list[Outcome]:
        try:
            if not self._begun:
                self.database.begin(raw)
                self._begun = True
            for statement in deferred:
                self.database.run_statement(raw, statement).check(statement)
            outcomes = [self.database.run_statement(raw, each).check(each) for each in statements]
            if commit:
                self.database.commit(raw)
                self._begun = False
        except BaseException:
            self._roll_back(raw)
            raise
        return outcomes

    def _roll_back(self, raw: duckdb.DuckDBPyConnection) -> None:
        if self._begun:
            self._begun = False
            self.database.rollback(raw)


class _Work:
    """A function that runs on a reading thread, and can be interrupted there."""

    def __init__(self, function: Callable[[duckdb.DuckDBPyConnection], Any]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._cursor: duckdb.DuckDBPyConnection | None = None
        self._interrupted = False

    def run(self, cursor: duckdb.DuckDBPyConnection) -> Any:
        with self._lock:
            if self._interrupted:
                raise ClosedError("cancelled before it began")
            self._cursor = cursor
        try:
            return self._function(cursor)
        finally:
            with self._lock:
                self._cursor = None

    def interrupt(self) -> None:
        with self._lock:
            self._interrupted = True
            if self._cursor is not None:
                self._cursor.interrupt()


class DuckDBDatabase(SingleWriterDatabase):
    """One DuckDB database.

    Parameters
    ----------
    path
        The file; it and its folder are made when missing. None: in memory, gone when it is closed.
    config
        DuckDB's own options: ``{"memory_limit": "1GB", "threads": "2"}``.
    """

    def __init__(self, path: str | Path | None, config: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.path = None if path is None else Path(path)
        self.url = f"duckdb://{'' if path is None else path}"
        self.config = dict(config or {})
        self._among_others = _Turn()
        self._raw: duckdb.DuckDBPyConnection | None = None
        self._file: tuple[int, int] | None = None
        self._writer: ThreadPoolExecutor | None = None
        self._readers: ThreadPoolExecutor | None = None
        self._cursors: list[duckdb.DuckDBPyConnection] = []
        self._at_work: set[_Work] = set()

    @property
    def dialect(self) -> Dialect:
        """SQLAlchemy's dialect: there is none, so that it holds no metadata."""
        raise ConfigurationError(f"{self.url} holds rows and outputs; the metadata store is elsewhere")

    # opening and closing

    def _make_room(self) -> None:
        super()._make_room()
        self._streams = asyncio.Semaphore(_STREAMS)

    async def _connect(self) -> None:
        """Connect, and create the file when missing."""
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="asyncdl-duckdb-writer")
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="asyncdl-duckdb-reader")
        try:
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._writer, self.connect))
        except BaseException:
            await self._dispose()
            raise

    def connect(self) -> None:
        """Connect, on the writing thread."""
        import duckdb  # noqa: PLC0415 - loaded when a database is opened

        try:
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._among_others = _WRITING.setdefault(str(self.path.resolve()), self._among_others)
            self._raw = self._prepared(duckdb.connect(self.path or ":memory:", config=dict(self.config)))
            self._file = self._identity()
        except OSError as error:
            raise StoreUnavailableError(f"{self.url}: {error}") from error
        except duckdb.Error as error:
            raise translate(error, self.url, opening=True) from error

    def _prepared(self, raw: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
        raw.execute("SET TimeZone = 'UTC'")
        return raw

    def _identity(self) -> tuple[int, int] | None:
        if self.path is None:
            return None
        found = self.path.stat()
        return found.st_dev, found.st_ino

    def check_file(self) -> None:
        """Raise unless the file is the one that was opened: what is written into one that was deleted is lost."""
        try:
            found = self._identity()
        except OSError as error:
            raise StoreUnavailableError(f"{self.url}: the file has gone while it was open: {error}") from error
        if found != self._file:
            raise StoreUnavailableError(f"{self.url}: another file has taken its place while it was open")

    async def _dispose(self) -> None:
        """Close everything; what reads is interrupted."""
        writer, readers = self._writer, self._readers
        self._writer = self._readers = None
        while self._at_work:  # more than once: DuckDB forgets an interrupt that comes just before a statement begins
            for work in tuple(self._at_work):
                work.interrupt()
            await asyncio.sleep(_PAUSE)
        if readers is not None:
            await asyncio.to_thread(readers.shutdown, wait=True, cancel_futures=True)
        if writer is not None:
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(writer, self.disconnect))
            await asyncio.to_thread(writer.shutdown, wait=True)

    def disconnect(self) -> None:
        """Close all connections, on the writing thread."""
        cursors, self._cursors = self._cursors, []
        raw, self._raw = self._raw, None
        for each in (*cursors, raw):
            if each is not None:
                each.close()

    def _opened(self) -> ThreadPoolExecutor:
        if self._readers is None or self._openers == 0:
            raise ClosedError(f"{self.url} is not open")
        return self._readers

    # writing

    async def call_writer(self, function: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        """Run a function on the writing thread; one that writes is a transaction's, which has the turn."""
        self._opened()
        assert self._writer is not None  # noqa: S101 - `open` sets both
        return await asyncio.get_running_loop().run_in_executor(self._writer, lambda: self._translated(function))

    def _translated(self, function: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        import duckdb  # noqa: PLC0415 - loaded when a database is opened
        import pyarrow as pa  # noqa: PLC0415

        if self._raw is None:
            raise ClosedError(f"{self.url} was closed")
        try:
            return function(self._raw)
        except (duckdb.Error, pa.ArrowException, OverflowError) as error:
            raise translate(error, self.url) from error

    def begin(self, raw: duckdb.DuckDBPyConnection) -> None:
        """Begin a transaction, on the writing thread."""
        self.check_file()
        raw.execute("BEGIN TRANSACTION")

    def run_statement(self, raw: duckdb.DuckDBPyConnection, statement: Statement) -> Outcome:
        """Run a statement, on the writing thread."""
        return run(raw, statement)

    def commit(self, raw: duckdb.DuckDBPyConnection) -> None:
        """Commit, on the writing thread."""
        self.check_file()
        raw.execute("COMMIT")

    def rollback(self, raw: duckdb.DuckDBPyConnection) -> None:
        """Roll back, on the writing thread."""
        import duckdb  # noqa: PLC0415 - loaded when a database is opened

        with suppress(duckdb.TransactionException):  # a failed commit has ended the transaction already
            raw.execute("ROLLBACK")

    def _begin(self) -> DuckDBTransaction:
        return DuckDBTransaction(self)

    async def _take_turn(self) -> None:
        await self._turn.acquire()
        try:
            deadline = time.monotonic() + _WAIT
            while not self._among_others.lock.acquire(blocking=False):
                if time.monotonic() > deadline:
                    raise StoreTimeoutError(
                        f"{self.url}: another datalayer of this process has written for {_WAIT:.0f} s"
                    )
                await asyncio.sleep(_PAUSE)
        except BaseException:
            self._turn.release()
            raise

    def _pass_turn(self) -> None:
        self._among_others.lock.release()
        self._turn.release()

    # reading

    async def fetch(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        """Run one reading statement outside any transaction and return all its rows."""
        return await self._read(lambda cursor: rows_of(execute(cursor, sql, params).to_arrow_table()))

    async def _read(
        self, function: Callable[[duckdb.DuckDBPyConnection], T], cursor: duckdb.DuckDBPyConnection | None = None
    ) -> T:
        """Run a function on a reading thread, with a cursor of its own; who is cancelled interrupts it."""
        readers, work = self._opened(), _Work(function)
        self._at_work.add(work)
        future = asyncio.get_running_loop().run_in_executor(readers, lambda: self._work(work, cursor))
        future.add_done_callback(lambda _: self._at_work.discard(work))
        try:
            found: T = await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(_ignored)
            self._interrupt(work, future)
            raise
        return found

    def _interrupt(self, work: _Work, future: asyncio.Future[Any]) -> None:
        """Interrupt work until it ends: DuckDB forgets an interrupt that comes just before a statement begins."""
        if not future.done():
            work.interrupt()
            asyncio.get_running_loop().call_later(_PAUSE, self._interrupt, work, future)

    def _work(self, work: _Work, cursor: duckdb.DuckDBPyConnection | None) -> Any:
        """Do work on this thread."""

        def do(raw: duckdb.DuckDBPyConnection) -> Any:
            self.check_file()
            if cursor is not None:
                return work.run(cursor)
            try:
                own = self._cursors.pop()
            except IndexError:
                own = self._prepared(raw.cursor())
            try:
                return work.run(own)
            finally:
                self._cursors.append(own)

        return self._translated(do)

    async def stream(self, sql: str, params: Sequence[Any] = (), *, size: int = 1000) -> AsyncIterator[list[Row]]:
        """Run one reading statement and yield its rows in lists of at most ``size``."""
        self._opened()
        try:
            await asyncio.wait_for(self._streams.acquire(), _WAIT)
        except TimeoutError as error:
            raise StoreTimeoutError(f"{self.url}: {_STREAMS} queries are being read, and none ends") from error
        try:
            cursor = await self._read(lambda raw: self._prepared(raw.cursor()))
            try:
                reader = await self._read(lambda raw: execute(raw, sql, params).to_arrow_reader(size), cursor)
                pages = Pages(reader, size)
                while len(rows := await self._read(lambda _: pages.next(), cursor)) == size:
                    yield rows
            finally:
                await self._close(cursor)
        finally:
            self._streams.release()
        # The last page holds no connection: who reads more for each of its rows cannot run dry.
        if rows:
            yield rows

    async def _close(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Close a stream's cursor, once the thread that uses it has let go."""
        if self._readers is not None:
            cursor.interrupt()
            with suppress(ClosedError, RuntimeError):  # closed meanwhile
                await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._readers, cursor.close))

    async def version(self) -> int:
        """Return a constant: nobody else writes, and no metadata are here that anybody would wait for."""
        return 0


def _ignored(future: asyncio.Future[Any]) -> None:
    """Take note of how work ended that nobody waits for any more."""
    if not future.cancelled():
        future.exception()
