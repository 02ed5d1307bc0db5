"""SQL databases: what the metadata store and the databackend share when both are one database.

A `Statement` is compiled SQL with positional parameters. A database runs statements; a transaction runs them
together. The stores build statements and never see a connection.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asyncdl.drivers.counted import Counted
from asyncdl.drivers.elsewhere import Elsewhere
from asyncdl.errors import AsyncDLError, ClosedError, ConflictError, StoreError
from asyncdl.together import raise_if_cancelled

if TYPE_CHECKING:
    from sqlalchemy import Executable
    from sqlalchemy.engine import Dialect

Row = tuple[Any, ...]

MARK = "\0"
"""The placeholder that PostgreSQL's statements are built with, and that its driver numbers: no SQL text can hold it."""

_POLL = 0.05
"""Seconds between two looks for commits of other processes, where the database cannot notify."""

_COMPILED: dict[tuple[str, str], tuple[str, Mapping[str, Any], tuple[str, ...]]] = {}
"""By dialect and name; compiling them anew is a quarter of what it costs to open a datalayer."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One compiled SQL statement with its positional parameters.

    Parameters
    ----------
    sql
        The text, in the driver's own parameter style.
    params
        One tuple of parameters; with ``many``, a sequence of them, run as one ``executemany``.
    many
        Whether ``params`` holds many parameter tuples.
    row
        The text of the one row behind ``VALUES``, which a driver may repeat in order to run many in one step.
    types
        The SQL types of that row's parameters (of the statement's own, without ``many``), where they tell more than the driver
        can infer.
    shared
        With ``many``, the last parameters of every row, which all have in common; only for a driver whose dialect says that it
        `shares_parameters`. ``row`` and ``types`` include them.
    fetch
        Whether the statement returns rows (a select, or a write with ``RETURNING``).
    expect
        The condition: this many rows must be affected (or returned, with ``fetch``), or the transaction fails with
        `asyncdl.errors.ConflictError`. None: any number.
    conflict, error
        The message and the type of that error.
    quiet
        Whether nobody looks at the outcome: then a driver may send the statement together with others.
    table
        The table that the statement makes or drops, for databases that end a transaction with such a statement.
    """

    sql: str
    params: Sequence[Any] = ()
    many: bool = False
    row: str = ""
    types: tuple[str, ...] = ()
    shared: tuple[Any, ...] = ()
    fetch: bool = False
    expect: int | None = None
    conflict: str = "a condition of the commit did not hold"
    error: type[AsyncDLError] = ConflictError
    quiet: bool = False
    table: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a statement did: how many rows it affected, and those that it returned."""

    rowcount: int
    rows: list[Row]

    def check(self, statement: Statement) -> Outcome:
        """Raise the statement's error unless the statement's condition held."""
        if statement.expect is not None:
            found = len(self.rows) if statement.fetch else self.rowcount
            if found != statement.expect:
                raise statement.error(statement.conflict)
        return self


class SQLTransaction(ABC):
    """A transaction in progress.

    `defer` queues statements whose outcome is not needed; they run, in order, before whatever runs next. So a write and
    the events about it become one round trip.
    """

    def __init__(self, database: SQLDatabase) -> None:
        self.database = database
        self._deferred: list[Statement] = []
        self._finished = False

    def defer(self, *statements: Statement) -> None:
        """Queue statements to run before the next `run` or `commit`."""
        self._check()
        self._deferred.extend(statements)

    async def run(self, *statements: Statement) -> list[Outcome]:
        """Run the deferred statements, then these, and return the outcomes of these."""
        return await self._hop(statements, commit=False)

    async def commit(self, *statements: Statement) -> list[Outcome]:
        """Run the deferred statements, then these, then commit; return the outcomes of these.

        The transaction is finished afterwards, also if this raises: then nothing of it was applied.
        """
        return await self._hop(statements, commit=True)

    @abstractmethod
    async def end(self, *, commit: bool) -> None:
        """Commit or roll back what is still open."""

    @abstractmethod
    async def _hop(self, statements: Sequence[Statement], *, commit: bool) -> list[Outcome]:
        """Run the deferred statements, then these, and commit, if that is asked for; return the outcomes of these."""

    def _check(self) -> None:
        if self._finished:
            raise ClosedError("this transaction has ended: it was committed, or an error rolled it back")


class SQLDatabase(Counted):
    """A pool of connections to one SQL database.

    Note for implementers: `transaction` must take the write lock at its start where the database has only one
    (SQLite: ``BEGIN IMMEDIATE``), or concurrent read-modify-writes are lost.
    """

    url: str
    """Where it is, without a password: fit for messages."""

    clock: str
    """The query for the database's clock, in seconds since 1970; only metadata stores need one."""

    def __init__(self) -> None:
        super().__init__()
        self._ending: set[asyncio.Task[Any]] = set()

    @property
    @abstractmethod
    def dialect(self) -> Dialect:
        """SQLAlchemy's dialect, for compiling."""

    @property
    def paramstyle(self) -> str:
        """The driver's DB-API parameter style."""
        return str(self.dialect.paramstyle)

    def elsewhere(self) -> Elsewhere[SQLDatabase] | None:
        """Return what connects to it in another process, with the password, None where it is this process's or machine's own."""
        return None

    @abstractmethod
    def _opened(self) -> Any:
        """Raise `ClosedError` unless it is open."""

    async def _finish(self, what: Coroutine[Any, Any, None]) -> None:
        """Do something to its end, also if the caller is cancelled meanwhile."""
        task = asyncio.create_task(what, name="asyncdl: end of a statement")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        await asyncio.shield(task)

    @abstractmethod
    async def fetch(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        """Run one reading statement outside any transaction and return all its rows."""

    @abstractmethod
    def stream(self, sql: str, params: Sequence[Any] = (), *, size: int = 1000) -> AsyncIterator[list[Row]]:
        """Run one reading statement and yield its rows in lists of at most ``size``, holding only one of them."""

    @abstractmethod
    def transaction(self) -> AbstractAsyncContextManager[SQLTransaction]:
        """Begin a transaction; it is committed at the end of the block, rolled back by an exception."""

    @abstractmethod
    async def version(self) -> int:
        """Return a number that changes when another connection has committed, as cheaply as the database can tell."""

    def lock(self, name: str) -> tuple[Statement, ...]:
        """Return the statements that wait until no other transaction has the lock of this name, and keep it to the end.

        None, where a transaction is alone from its start (SQLite). What runs behind them sees all that those before committed.
        """
        return ()

    def share(self, name: str) -> tuple[Statement, ...]:
        """Return the statements that wait for those who `exclude` others by this name, and keep such ones waiting.

        None, where the database cannot: then rows that others have locked cannot be passed over either (``SKIP LOCKED``).
        """
        return ()

    def exclude(self, name: str) -> tuple[Statement, ...]:
        """Return the statements that wait for those who `share` this name, and keep them waiting; none where nobody can."""
        return ()

    def announce(self, words: str) -> tuple[Statement, ...]:
        """Return the statements that tell those who iterate over `changes` of this transaction, once it is committed."""
        return ()

    def provisions(self) -> tuple[Statement, ...]:
        """Return the statements that make what `announce` and `version` need, where there is none."""
        return ()

    def ddl(self, construct: Any) -> Statement:
        """Return the statement of a SQLAlchemy construct that makes a table or an index."""
        return Statement(str(construct.compile(dialect=self.dialect)))

    async def changes(self) -> AsyncIterator[str]:
        """Yield whenever something may have been committed: what was announced, or an empty text if that is not known.

        A database that is away for a while is waited for. Note for implementers: yield at once, and again when a lost
        connection is back: what was committed in between is known to nobody.
        """
        known: int | None = None
        while True:
            try:
                found = await self.version()
            except StoreError:  # one that is away is noticed by those who use it
                raise_if_cancelled()
            else:
                if found != known:
                    known = found
                    yield ""
            await asyncio.sleep(_POLL)

    async def write(self, *statements: Statement) -> list[Outcome]:
        """Run statements in one transaction of their own."""
        async with self.transaction() as tx:
            return await tx.commit(*statements)

    def statement(
        self, name: str, build: Callable[[], Executable], values: dict[str, Any], **options: Any
    ) -> Statement:
        """Build and compile a SQLAlchemy construct, and fill in its named bind parameters.

        It is compiled once for each ``name`` and dialect in a process: a construct must follow from its name alone.

        Values pass to the driver as they are: no bind processing happens.
        """
        known = self.dialect.name, name
        found = _COMPILED.get(known)
        if found is None:
            found = _COMPILED[known] = self._compile(build())
        sql, defaults, names = found
        return Statement(sql, tuple(values[key] if key in values else defaults[key] for key in names), **options)

    def _compile(self, construct: Executable) -> tuple[str, Mapping[str, Any], tuple[str, ...]]:
        compiled = construct.compile(dialect=self.dialect)  # type: ignore[attr-defined]
        return str(compiled), dict(compiled.params), tuple(compiled.positiontup or ())
