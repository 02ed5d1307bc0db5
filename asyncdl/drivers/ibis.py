"""Any database that ibis connects to, by ibis' own connection: one thread for each, which connects, makes every call and closes.

ibis' connections are not safe across threads, and one that streams a result cannot run another query meanwhile: so each
stream has a connection of its own, unless the database lives in its connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, TypeVar

from asyncdl.drivers.arrow_rows import Pages
from asyncdl.drivers.counted import Counted
from asyncdl.drivers.ibis_changes import Changes, ReplacingChanges, RewritingChanges, StatementChanges
from asyncdl.drivers.sql import Row
from asyncdl.errors import (
    AsyncDLError,
    ClosedError,
    ConfigurationError,
    MissingDependencyError,
    QueryError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from asyncdl.settings import redact

T = TypeVar("T")

_STREAMS = 8
_WAIT = 30.0
_CHANGES: Mapping[str, type[Changes]] = {
    "clickhouse": ReplacingChanges,
    "polars": RewritingChanges,
    "datafusion": RewritingChanges,
}
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "clickhouse": {
        "settings": {
            "final": 1,  # rows that a newer one replaces are not shown
            "mutations_sync": 2,  # writes that would be done later are done when they return, on all replicas
            "lightweight_deletes_sync": 2,
            "async_insert": 0,
            "insert_deduplicate": 0,  # replicas would drop a row that is inserted again after it was deleted
            "select_sequential_consistency": 1,  # they show what was inserted through another
            "join_use_nulls": 1,  # what a join does not find is NULL
        },
    },
}
_WITHIN = frozenset({"polars", "datafusion", "pyspark"})
"""Databases that live in their connection."""
_AWAY = ("OperationalError", "InterfaceError", "ServiceUnavailable", "TransportError")
"""How drivers call the error of a server that cannot be reached: their classes have no ancestor in common (PEP 249)."""
_REFUSED = (
    "ProgrammingError",
    "DataError",
    "NotSupportedError",
    "DatabaseError",
    "StreamFailureError",
    "ArrowInvalid",
    "ColumnNotFoundError",
)
"""... of a statement that the server refused, or whose rows are not what they were expected to be."""


class _Owner:
    """A connection, and the one thread that uses it."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._thread: ThreadPoolExecutor | None = ThreadPoolExecutor(1, thread_name_prefix="asyncdl-ibis")
        self._raw: Any = None

    async def open(self) -> None:
        def connect() -> None:
            self._raw = self._connect()

        try:
            await self._hop(connect)
        except BaseException:
            await self.aclose()
            raise

    async def call(self, function: Callable[[Any], T]) -> T:
        return await self._hop(lambda: function(self._raw))

    async def _hop(self, function: Callable[[], T]) -> T:
        if self._thread is None:
            raise ClosedError("the connection was closed meanwhile")
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def aclose(self) -> None:
        """Close, once what runs has ended; whoever is cancelled here does not keep it open."""
        thread, self._thread = self._thread, None
        if thread is not None:
            closing = asyncio.get_running_loop().run_in_executor(thread, self._disconnect)
            thread.shutdown(wait=False)
            await asyncio.shield(closing)

    def _disconnect(self) -> None:
        raw, self._raw = self._raw, None
        if raw is not None:
            # What goes wrong now concerns nobody: ibis' backends without a connection have no `disconnect` either.
            with suppress(Exception):
                raw.disconnect()


class IbisTransaction:
    """The turn to write: what is done in it is done at once, and stays."""


class IbisDatabase(Counted):
    """One database, by a URI that `ibis.connect` understands.

    Parameters
    ----------
    uri
        ``clickhouse://user:password@host:8123/database``, ``snowflake://...``, as ibis documents them.
    extra
        The extra of asyncdl that installs what it needs, for the message when that is missing.
    """

    def __init__(self, uri: str, extra: str = "") -> None:
        super().__init__()
        self.uri = uri
        self.url = redact(uri)
        self.backend = uri.partition("://")[0].lower()
        self.within = self.backend in _WITHIN
        self.place = uri
        self._extra = extra or self.backend
        self.changes = _CHANGES.get(self.backend, StatementChanges)()
        self._owner: _Owner | None = None
        self._idle: list[_Owner] = []

    # opening and closing

    def _make_room(self) -> None:
        self._streams = asyncio.Semaphore(_STREAMS)
        self._turn = asyncio.Lock()

    async def _connect(self) -> None:
        owner = _Owner(self._made)
        await owner.open()
        self._owner = owner

    def _made(self) -> Any:
        import ibis  # noqa: PLC0415 - heavy: loaded when a database is opened

        try:
            return ibis.connect(self.uri, **_OPTIONS.get(self.backend, {}))
        except ImportError as error:
            raise MissingDependencyError(
                f"{self.url} needs ibis' {self.backend} backend: pip install 'asyncdl[{self._extra}]'"
            ) from error
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"{self.url}: ibis cannot connect by this URI: {redact(str(error))}") from error
        except Exception as error:  # each of ibis' backends has exceptions of its own
            raise StoreUnavailableError(f"{self.url}: {redact(str(error))}") from error

    def _quiet(self) -> AbstractAsyncContextManager[object]:
        return self._turn

    async def _dispose(self) -> None:
        owner, self._owner = self._owner, None
        idle, self._idle = self._idle, []
        for each in (owner, *idle):
            if each is not None:
                await each.aclose()

    def _opened(self) -> _Owner:
        if self._owner is None:
            raise ClosedError(f"{self.url} is not open")
        return self._owner

    # using it

    async def call(self, function: Callable[[Any], T]) -> T:
        """Run a function with ibis' connection, on its thread."""
        return await self._opened().call(self._translated(function))

    def _translated(self, function: Callable[[Any], T]) -> Callable[[Any], T]:
        def run(raw: Any) -> T:
            if raw is None:
                raise ClosedError(f"{self.url} was closed")
            try:
                return function(raw)
            except AsyncDLError:
                raise
            except Exception as error:  # each of ibis' backends has exceptions of its own
                raise self._error(error) from error

        return run

    def _error(self, error: Exception) -> AsyncDLError:
        """Return asyncdl's error for one of ibis' or of a driver's, by its class and those that it comes from."""
        from ibis.common.exceptions import IbisError  # noqa: PLC0415 - loaded when a database is opened
        from sqlglot.errors import SqlglotError  # noqa: PLC0415

        message = f"{self.url}: {redact(str(error)) or type(error).__name__}"
        names = {each.__name__ for each in type(error).__mro__}
        if isinstance(error, (IbisError, SqlglotError, NotImplementedError)) or type(error).__name__ in _REFUSED:
            return QueryError(message)
        if self.within and isinstance(error, KeyError):
            return QueryError(f"{self.url}: there is no {error}")
        if isinstance(error, TimeoutError):
            return StoreTimeoutError(message)
        if isinstance(error, ConnectionError) or not names.isdisjoint(_AWAY):
            return StoreUnavailableError(message)
        if not names.isdisjoint(_REFUSED):
            return QueryError(message)
        return StoreError(message)

    async def stream(self, expression: Any, *, size: int) -> AsyncIterator[list[Row]]:
        """Run an ibis table expression and yield its rows in lists of at most ``size``, holding few of them."""
        self._opened()
        try:
            await asyncio.wait_for(self._streams.acquire(), _WAIT)
        except TimeoutError as error:
            raise StoreTimeoutError(f"{self.url}: {_STREAMS} queries are being read, and none ends") from error
        owner: _Owner | None = None
        ended = False
        try:
            owner = await self._reader()
            pages = await owner.call(self._translated(lambda raw: Pages(_batches(raw, expression, size), size)))
            while len(rows := await owner.call(self._translated(lambda _: pages.next()))) == size:
                yield rows
            ended = True
        finally:
            self._streams.release()
            if owner is not None and owner is not self._owner:
                await self._put_back(owner, ended)
        # The last page holds no connection: who reads more for each of its rows cannot run dry.
        if rows:
            yield rows

    async def _reader(self) -> _Owner:
        """Return a connection that nobody else uses until it is put back."""
        if self.within:
            return self._opened()
        if self._idle:
            return self._idle.pop()
        owner = _Owner(self._made)
        await owner.open()
        return owner

    async def _put_back(self, owner: _Owner, ended: bool) -> None:
        """Keep a connection for the next stream; one whose stream was left half-way is closed."""
        if ended and self._owner is not None:
            self._idle.append(owner)
        else:
            await owner.aclose()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[IbisTransaction]:
        """Wait for the turn to write."""
        self._opened()
        try:
            async with asyncio.timeout(_WAIT):
                await self._turn.acquire()
        except TimeoutError as error:
            raise StoreTimeoutError(f"{self.url}: another write has taken {_WAIT:.0f} s") from error
        try:
            yield IbisTransaction()
        finally:
            self._turn.release()


def _batches(raw: Any, expression: Any, size: int) -> Any:
    return raw.to_pyarrow_batches(expression, chunk_size=size)
