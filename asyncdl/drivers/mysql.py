"""MySQL and MariaDB through asyncmy.

Writing, reading and streaming have connections of their own each, such that one who streams, or is in a transaction, can
always read beside it. A connection on which a statement was cancelled is closed, and the server told to end what it did.

Transactions read what is committed when each of their statements begins (``READ COMMITTED``). Who must be alone takes a
`MySQLDatabase.lock`: a named one (``GET_LOCK``), which is released behind the commit. Named locks belong to one server: a
cluster with several writers needs one of them for asyncdl.

asyncmy and not aiomysql: it parses results in C, several times faster, and closes a connection whose statement was cancelled.
Parameters are sent as literals and several statements together: a metadata commit takes two round trips in place of one for
each statement, and of many rows some hundred go in one.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import re
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from asyncdl.drivers.elsewhere import Elsewhere
from asyncdl.drivers.mysql_statements import CHANGES, LOCK, MAKE_CHANGES, MySQLTransaction, quoted, run_script
from asyncdl.drivers.mysql_values import DEADLOCKS, code_of, filled, literal, read_url, translate
from asyncdl.drivers.pooled import CLOSE_TIMEOUT, CONNECT_TIMEOUT, WAIT, PooledDatabase, translated
from asyncdl.drivers.sql import MARK, Outcome, Row, Statement
from asyncdl.errors import (
    ClosedError,
    ConflictError,
    MissingDependencyError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from asyncdl.together import raise_if_cancelled

if TYPE_CHECKING:
    from sqlalchemy import Executable
    from sqlalchemy.engine import Dialect

_POLL = 0.05
_ATTEMPTS = 5
_COMMITS = "_asyncdl_commits"
_SHARED = 2
"""The id of its row that is locked, and never written to."""
_SKIPS_LOCKED = {True: (10, 6), False: (8, 0)}
"""The first version, of MariaDB and of MySQL, that passes over locked rows."""
_SETTINGS = {
    "sql_mode": "STRICT_ALL_TABLES,NO_AUTO_VALUE_ON_ZERO,NO_ENGINE_SUBSTITUTION,ERROR_FOR_DIVISION_BY_ZERO",
    "time_zone": "+00:00",
    "innodb_lock_wait_timeout": f"{WAIT}",  # nothing hangs
    "lock_wait_timeout": f"{WAIT}",
    "group_concat_max_len": f"{2**24}",
}


class MySQLDatabase(PooledDatabase):
    """One MySQL or MariaDB database.

    Parameters
    ----------
    url
        ``mysql://user:password@host:3306/database?option=value`` (or ``mariadb://``): ``ssl-mode``, ``ssl-ca``, ``ssl-cert``,
        ``ssl-key`` as the ``mysql`` client has them, ``socket``; what else there is is a variable of the session.

    Raises
    ------
    ConfigurationError
        That is no URL of a MySQL database.
    MissingDependencyError
        asyncmy is not installed.
    """

    clock = "SELECT timestampdiff(MICROSECOND, '1970-01-01', utc_timestamp(6)) / 1e6"

    def __init__(self, url: str) -> None:
        super().__init__()
        self._address = read_url(url)
        self._uri = url
        self.url = self._address.shown
        self.place = self._address.place
        if importlib.util.find_spec("asyncmy") is None:
            raise MissingDependencyError(f"{self.url} needs asyncmy: pip install 'asyncdl[mysql]'")
        self._is_open = False
        self._idle: deque[Any] = deque()
        self._dialect: Dialect | None = None
        self.mariadb = True
        self.skips_locked = False
        """Whether the server passes over locked rows when it is asked to."""
        self.collation = "utf8mb4_nopad_bin"
        """In which texts compare by code point, and spaces at their ends count."""

    @property
    def dialect(self) -> Dialect:
        """SQLAlchemy's dialect, for compiling."""
        self._opened()
        if self._dialect is None:
            from sqlalchemy.dialects.mysql.mariadb import MariaDBDialect  # noqa: PLC0415 - heavy: loaded on opening

            self._dialect = MariaDBDialect(paramstyle="qmark")
            self._dialect.insert_returning = True  # which `adapted` makes of MySQL's own ways
        return self._dialect

    def _compile(self, construct: Executable) -> tuple[str, Any, tuple[str, ...]]:
        sql, defaults, names = super()._compile(construct)
        return sql.replace("?", MARK), defaults, names

    def ddl(self, construct: Any) -> Statement:
        """Return the statement that makes a table or an index of SQLAlchemy's, with texts that compare exactly."""
        sql = str(construct.compile(dialect=self.dialect)).rstrip()
        if sql.startswith("CREATE TABLE"):
            return Statement(f"{sql} ENGINE=InnoDB CHARACTER SET utf8mb4 COLLATE {self.collation}")
        return Statement(sql if self.mariadb else sql.replace(" IF NOT EXISTS", "", 1))

    def elsewhere(self) -> Elsewhere[MySQLDatabase]:
        """Return what connects to it in another process, with the password."""
        return Elsewhere(MySQLDatabase, self._uri)

    def _start(self) -> None:
        self._is_open = True

    async def _new(self) -> Any:
        import asyncmy  # noqa: PLC0415 - loaded when a database is opened
        from asyncmy.constants.CLIENT import FOUND_ROWS  # noqa: PLC0415

        address = self._address
        options: dict[str, Any] = {"unix_socket": address.socket} if address.socket else {}
        if (context := address.context()) is not None:
            options["ssl"] = context
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                driver = await asyncmy.connect(
                    host=address.host,
                    port=address.port,
                    user=address.user or None,
                    password=address.password,
                    database=address.database,
                    charset="utf8mb4",
                    autocommit=True,
                    client_flag=FOUND_ROWS,  # an update counts the rows that it found, changed or not
                    program_name="asyncdl",
                    **options,
                )
                try:
                    await self._prepare(driver)
                except BaseException:
                    driver.close()
                    raise
        except TimeoutError as error:
            raise StoreUnavailableError(f"{self.url}: no answer within {CONNECT_TIMEOUT:.0f} s") from error
        except Exception as error:
            raise translate(error, self.url) from error
        return driver

    async def _connected(self) -> Any:
        """Connect, in a task of its own: asyncmy's `asyncio.wait_for` may swallow a cancellation (before Python 3.12)."""
        task = asyncio.create_task(self._new(), name="asyncdl: connecting")
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._ending.add(task)
            task.add_done_callback(self._unwanted)
            raise

    def _unwanted(self, task: asyncio.Task[Any]) -> None:
        self._ending.discard(task)
        if not task.cancelled() and task.exception() is None:
            task.result().close()

    async def _prepare(self, driver: Any) -> None:
        shown = driver.get_server_info().lower()
        self.mariadb = "mariadb" in shown
        version = re.search(r"(\d+)\.(\d+)", shown.removeprefix("5.5.5-"))  # MariaDB's old clients took 10 for 1
        self.skips_locked = version is not None and tuple(map(int, version.groups())) >= _SKIPS_LOCKED[self.mariadb]
        self.collation = "utf8mb4_nopad_bin" if self.mariadb else "utf8mb4_0900_bin"
        values = {**_SETTINGS, **dict(self._address.settings)}
        given = {name: int(each) if re.fullmatch(r"\d+", each) else each for name, each in values.items()}
        sets = ", ".join(f"SESSION {name} = {literal(each).decode()}" for name, each in given.items())
        script = [
            f"SET NAMES utf8mb4 COLLATE {self.collation}",
            "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
            f"SET {sets}",
        ]
        _, error = await run_script(driver, [each.encode() for each in script])
        if error is not None:
            raise error

    async def _dispose(self) -> None:
        self._is_open = False
        if self._ending:
            await asyncio.wait(self._ending, timeout=CLOSE_TIMEOUT)
        for driver in tuple(self._lent):  # streams that nobody ended
            driver.close()
        if self._ending:
            await asyncio.wait(self._ending)
        idle, self._idle = self._idle, deque()
        await asyncio.gather(*map(_quit, idle))

    def _opened(self) -> None:
        if not self._is_open:
            raise ClosedError(f"{self.url} is not open")

    # connections

    @asynccontextmanager
    async def _lease(self) -> AsyncIterator[Any]:
        """Borrow a connection; one that a statement was cancelled on, or that is lost, does not come back."""
        self._opened()
        driver = None
        while self._idle and driver is None:
            driver = self._idle.pop()
            if _broken(driver):  # the server closed it while it lay in the pool
                driver.close()
                driver = None
        if driver is None:
            driver = await self._connected()
        self._lent.add(driver)
        clean = False
        try:
            yield driver
            clean = True
        except Exception as error:
            clean = not isinstance(error, (StoreUnavailableError, GeneratorExit)) and not _broken(driver)
            raise
        finally:
            if clean and not _broken(driver) and self._is_open:
                self._lent.discard(driver)
                self._idle.append(driver)
            else:
                await self._finish(self._end(driver))

    async def _end(self, driver: Any) -> None:
        """Close a connection, and have the server end what it does for it: a lost one alone it would not notice."""
        try:
            thread = driver.thread_id()
            alone = driver._proto is None or driver._proto.eof  # the server has closed it
            driver.close()
            if self._is_open and not alone:
                with suppress(Exception):
                    async with asyncio.timeout(CONNECT_TIMEOUT):
                        await self.beside(f"KILL {int(thread)}")
        finally:
            self._lent.discard(driver)

    async def beside(self, *script: str) -> list[Outcome]:
        """Run statements on a connection beside all others, outside transactions."""
        with translated(translate, self.url):
            async with self._lease() as driver:
                outcomes, error = await run_script(driver, [each.encode() for each in script])
                if error is not None:
                    raise error
                return outcomes

    # reading and writing

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[MySQLTransaction]:
        """Begin a transaction; it is committed at the end of the block, rolled back by an exception."""
        self._opened()
        async with self._writers:
            tx: MySQLTransaction | None = None
            try:
                async with self._lease() as driver:
                    tx = MySQLTransaction(self, driver)
                    try:
                        yield tx
                    except Exception:
                        await tx.end(commit=False)
                        raise
                    await tx.end(commit=True)
                    if tx.unclean:  # the connection still has locks: it must not go back
                        driver.close()
            except BaseException:
                if tx is not None and tx.unclean:
                    await self._finish(self._abandon(tx))
                raise

    @staticmethod
    async def _abandon(tx: MySQLTransaction) -> None:
        with suppress(Exception):  # whoever makes the table next, or opens the database, clears it away
            await tx.abandon()

    async def write(self, *statements: Statement) -> list[Outcome]:
        """Run statements in one transaction of their own; after a deadlock, which undid it, again."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await super().write(*statements)
            except ConflictError as error:
                if code_of(error) not in DEADLOCKS or attempt == _ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    def adapted(self, statement: Statement) -> Statement:
        """Return a statement as this server takes it: MySQL's inserts return nothing, but tell the number they gave."""
        if self.mariadb or not (statement.fetch and statement.sql.startswith("INSERT")):
            return statement
        return replace(statement, sql=statement.sql.rpartition(" RETURNING ")[0])

    async def fetch(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        """Run one reading statement outside any transaction and return all its rows."""
        self._opened()
        with translated(translate, self.url):
            async with self._fetchers, self._lease() as driver:
                await driver.query(filled(sql, params))
                return list(driver._result.rows or ())

    async def stream(self, sql: str, params: Sequence[Any] = (), *, size: int = 1000) -> AsyncIterator[list[Row]]:
        """Run one reading statement and yield its rows in lists of at most ``size``, as they come from the server."""
        from asyncmy.cursors import SSCursor  # noqa: PLC0415 - loaded when a database is opened

        self._opened()
        async with self._room_to_stream():
            with translated(translate, self.url):
                async with self._lease() as driver:
                    cursor = driver.cursor(SSCursor)
                    ended = False
                    try:
                        await cursor.execute(filled(sql, params).decode())
                        while len(rows := list(await cursor.fetchmany(size))) == size:
                            yield rows
                        ended = True
                    finally:
                        if not ended:  # what is still to come is not read
                            self._discard(driver)
        # The last page holds no connection: who reads more for each of its rows cannot run the pool dry.
        if rows:
            yield rows

    @staticmethod
    def _discard(driver: Any) -> None:
        result = driver._result
        if result is not None and result.unbuffered_active:
            result.unbuffered_active = False
            driver.close()

    # tables

    async def make(self, name: str, sql: str) -> bool:
        """Make a table that is not there until its row in ``_asyncdl_changes`` is deleted; False: there is one."""
        _, left = await self.beside(
            MAKE_CHANGES,
            f"SELECT 1 FROM {CHANGES} WHERE name = {literal(name).decode()}",  # noqa: S608 - quoted
        )
        if left.rows:
            await self.beside(f"DROP TABLE IF EXISTS {quoted(name)}")
        there = (
            "SELECT 1 FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = "  # noqa: S608 - quoted
            f"{literal(name).decode()}"
        )
        [found] = await self.beside(there)
        if found.rows:
            return False
        await self.beside(f"INSERT IGNORE INTO {CHANGES} VALUES ({literal(name).decode()})", sql)  # noqa: S608 - quoted
        return True

    async def clear(self, name: str) -> None:
        """Drop a table that is not to be there, and forget that."""
        await self.beside(
            f"DROP TABLE IF EXISTS {quoted(name)}",
            f"DELETE FROM {CHANGES} WHERE name = {literal(name).decode()}",  # noqa: S608 - quoted
        )

    async def recover(self) -> None:
        """Clear away the tables of transactions whose process died before they were committed, or dropped them."""
        present = await self.fetch(
            f"SELECT 1 FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = '{CHANGES}'"  # noqa: S608
        )
        if not present:
            return
        for (name,) in await self.fetch(f"SELECT name FROM {CHANGES}"):  # noqa: S608 - a constant
            with suppress(StoreError):  # somebody is about it
                async with self.transaction() as tx:
                    [lock] = self.lock(f"table {name}", wait=0)
                    await tx.run(lock)
                    still = Statement(f"SELECT 1 FROM {CHANGES} WHERE name = {MARK}", (name,), fetch=True)  # noqa: S608
                    [found] = await tx.run(still)
                    if found.rows:
                        await self.clear(name)

    # locks and wake-ups

    def lock(self, name: str, *, wait: int = WAIT) -> tuple[Statement, ...]:
        """Return the statement that takes a named lock until behind the end of the transaction."""
        digest = hashlib.sha256(f"{self._address.database} {name}".encode()).hexdigest()[:40]
        sql = f"{LOCK}'asyncdl {digest}', {wait}) AS taken) AS asked WHERE taken = 1"
        busy = f"{self.url}: another process held the lock {name!r} for {wait} s"
        return (Statement(sql, fetch=True, expect=1, conflict=busy, error=StoreTimeoutError),)

    def share(self, name: str) -> tuple[Statement, ...]:
        """Return the statement that locks a row for sharing: of named locks there are none to share, and all names are one."""
        if not self.skips_locked:
            return ()
        return (Statement(f"SELECT id FROM {_COMMITS} WHERE id = {_SHARED} LOCK IN SHARE MODE", fetch=True, expect=1),)  # noqa: S608

    def exclude(self, name: str) -> tuple[Statement, ...]:
        """Return the statement that locks that row."""
        if not self.skips_locked:
            return ()
        return (Statement(f"SELECT id FROM {_COMMITS} WHERE id = {_SHARED} FOR UPDATE", fetch=True, expect=1),)  # noqa: S608

    def provisions(self) -> tuple[Statement, ...]:
        """Return the statements that make the counter of commits, and the row that is locked for sharing."""
        return (
            Statement(
                f"CREATE TABLE IF NOT EXISTS {_COMMITS} (id INT PRIMARY KEY, n BIGINT NOT NULL, words VARCHAR(200) NOT NULL) "
                f"ENGINE=InnoDB CHARACTER SET utf8mb4 COLLATE {self.collation}"
            ),
            Statement(f"INSERT IGNORE INTO {_COMMITS} VALUES (1, 0, ''), ({_SHARED}, 0, '')"),  # noqa: S608 - constants
        )

    def announce(self, words: str) -> tuple[Statement, ...]:
        """Return the statement that counts a commit; who has the lock of commits is alone with it."""
        return (Statement(f"UPDATE {_COMMITS} SET n = n + 1, words = {MARK} WHERE id = 1", (words[:200],), quiet=True),)  # noqa: S608

    async def version(self) -> int:
        """Return how many commits were announced."""
        return int((await self.fetch(f"SELECT n FROM {_COMMITS} WHERE id = 1"))[0][0])  # noqa: S608 - a constant

    async def changes(self) -> AsyncIterator[str]:
        """Yield what was announced, by looking for it some times a second; "" where several commits came between."""
        known: int | None = None
        while True:
            try:
                [(found, words)] = await self.fetch(f"SELECT n, words FROM {_COMMITS} WHERE id = 1")  # noqa: S608
            except StoreError:  # one that is away is noticed by those who use it
                raise_if_cancelled()
            else:
                if found != known:
                    single = known is not None and found == known + 1
                    known = found
                    yield words if single else ""
            await asyncio.sleep(_POLL)


async def _quit(driver: Any) -> None:
    """Close a connection, and tell the server, if it listens."""
    with suppress(Exception):
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await driver.ensure_closed()
    driver.close()


def _broken(driver: Any) -> bool:
    return not driver.connected or bool(driver._stream_broken)
