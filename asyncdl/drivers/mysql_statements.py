"""How statements run on a connection of asyncmy's: in scripts, since what is sent together takes one round trip.

MySQL ends a transaction with each statement that makes or drops a table. So tables are made on a connection beside the
transaction's, before, and dropped after it; until the transaction is committed (or the table is gone) a row in
``_asyncdl_changes`` says that the table is not there. Whoever holds the table's lock may clear away what such a row names: its
maker, or dropper, has died.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from asyncdl.drivers.mysql_values import filled, literal, template, translate
from asyncdl.drivers.pooled import PooledTransaction
from asyncdl.drivers.sql import Outcome, Statement
from asyncdl.errors import QueryError

if TYPE_CHECKING:
    from asyncdl.drivers.mysql import MySQLDatabase

CHANGES = "_asyncdl_changes"
MAKE_CHANGES = (
    f"CREATE TABLE IF NOT EXISTS {CHANGES} (name VARCHAR(64) PRIMARY KEY) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
)
LOCK = "SELECT 1 FROM (SELECT GET_LOCK("
_BYTES = 2**20
_ROWS = 1000


def quoted(name: str) -> str:
    """Return a name as MySQL quotes it."""
    return f"`{name.replace('`', '``')}`"


def texts(statement: Statement) -> Iterator[bytes]:
    """Yield a statement's SQL with its parameters: of many rows some hundred at a time."""
    if not statement.many:
        yield filled(statement.sql, statement.params)
        return
    if not statement.row:
        for row in statement.params:
            yield filled(statement.sql, row)
        return
    head, tail = (template(part) for part in statement.sql.split(statement.row, 1))
    one, rows, size = template(statement.row), [], 0
    for row in statement.params:
        rows.append(one % tuple(map(literal, row)))
        size += len(rows[-1])
        if len(rows) == _ROWS or size > _BYTES:
            yield head % () + b", ".join(rows) + tail % ()
            rows, size = [], 0
    if rows:
        yield head % () + b", ".join(rows) + tail % ()


async def run_script(driver: Any, script: Sequence[bytes]) -> tuple[list[Outcome], Exception | None]:
    """Send statements together; return the outcomes of those that ran, and the error of the one that ended them."""
    outcomes: list[Outcome] = []
    try:
        await driver.query(b";\n".join(script))
        while True:
            result = driver._result  # of a cursor's, which is but a handle to it
            rows = list(result.rows) if result.rows is not None else []
            found = Outcome(result.affected_rows if result.rows is None else len(rows), rows)
            if result.insert_id and result.rows is None:
                found = Outcome(found.rowcount, [(result.insert_id,)])
            outcomes.append(found)
            if not result.has_next:
                return outcomes, None
            await driver.next_result()
    except Exception as error:
        return outcomes, error


def _numbers(statement: Statement) -> bool:
    return statement.fetch and statement.sql.startswith("INSERT")


def _may_fail(statement: Statement) -> bool:
    return statement.expect is not None and not statement.sql.startswith(LOCK)


class MySQLTransaction(PooledTransaction):
    """A transaction on a connection of its own."""

    database: MySQLDatabase

    def __init__(self, database: MySQLDatabase, driver: Any) -> None:
        super().__init__(database, driver)
        self._made: list[str] = []
        self._dropped: list[str] = []
        self.unclean = False
        """Whether the connection may still be in the transaction, or hold its locks."""

    async def end(self, *, commit: bool) -> None:
        """Commit or roll back what is still open."""
        if commit and not self._finished and (self._begun or self._deferred):
            await self.commit()
        elif self._begun and not self._finished:
            self._finished = True
            await self._roll_back()
        self._finished = True

    async def _hop(self, statements: Sequence[Statement], *, commit: bool) -> list[Outcome]:
        self._check()
        deferred, self._deferred = self._deferred, []
        done = False
        try:
            outcomes = await self._run([*deferred, *statements], commit)
            done = True
        except Exception as error:
            with suppress(Exception):  # at once, so that nobody waits for its locks; what fails here is seen on return
                await self._roll_back()
            found = translate(error, self.database.url)
            if found is error:
                raise
            raise found from error
        finally:
            self._finished = commit or not done
        return outcomes[len(deferred) :]

    async def _run(self, statements: Sequence[Statement], commit: bool) -> list[Outcome]:
        outcomes: list[Outcome] = []
        batch: list[Statement] = []
        for statement in statements:
            if statement.table:
                await self._flush(batch, outcomes)
                outcomes.append(await self._change_table(statement))
                continue
            if _numbers(statement) and any(map(_may_fail, batch)):
                await self._flush(batch, outcomes)  # a number that was given stays given
            batch.append(statement)
        await self._flush(batch, outcomes)
        if commit and self._begun:
            await self._script([b"COMMIT"])
            self._begun = False
            await self._let_go()
        return outcomes

    async def _flush(self, batch: list[Statement], outcomes: list[Outcome]) -> None:
        """Run statements, as many of them together as a packet may hold."""
        script: list[bytes] = []
        owners: list[int] = []
        found = [Outcome(0, [])] * len(batch)
        size = 0
        for at, statement in enumerate(batch):
            for text in texts(self.database.adapted(statement)):
                if script and size + len(text) > _BYTES:
                    await self._send(script, owners, found, batch)
                    size = 0
                script.append(text)
                owners.append(at)
                size += len(text)
        await self._send(script, owners, found, batch)
        for statement, outcome in zip(batch, found, strict=True):
            outcome.check(statement)
        outcomes.extend(found)
        batch.clear()

    async def _send(
        self, script: list[bytes], owners: list[int], found: list[Outcome], batch: Sequence[Statement]
    ) -> None:
        if not script:
            return
        start = [] if self._begun else [b"START TRANSACTION"]
        self._begun = self.unclean = True
        outcomes, error = await run_script(self._driver, [*start, *script])
        for at, outcome in zip(owners, outcomes[len(start) :], strict=False):
            before = found[at]
            found[at] = Outcome(before.rowcount + outcome.rowcount, before.rows + outcome.rows)
        if error is not None:
            for at in range(owners[max(0, len(outcomes) - len(start))] if outcomes else 0):
                found[at].check(batch[at])  # what came before the error is the reason, if it did not hold
            raise error
        script.clear()
        owners.clear()

    async def _script(self, script: Sequence[bytes]) -> None:
        _, error = await run_script(self._driver, script)
        if error is not None:
            raise error

    async def _let_go(self) -> None:
        """After the transaction's end: clear away tables that are not there any more, and release the locks."""
        gone, self._made, self._dropped = self._dropped, [], []
        try:
            for name in gone:
                await self.database.clear(name)
        finally:
            await self._script([b"DO RELEASE_ALL_LOCKS()"])
            self.unclean = False

    async def _roll_back(self) -> None:
        await self._script([b"ROLLBACK"])
        self._begun = False
        self._dropped = self._made
        await self._let_go()

    async def abandon(self) -> None:
        """Clear away the tables of a transaction whose connection is lost."""
        for name in self._made:
            await self.database.clear(name)

    # tables

    async def _change_table(self, statement: Statement) -> Outcome:
        name = statement.table
        if name.startswith("_asyncdl"):  # asyncdl's own stay
            await self.database.beside(statement.sql)
            return Outcome(0, [])
        if statement.sql.startswith("CREATE") and name in self._dropped:
            raise QueryError(f"{self.database.url}: {name!r} cannot be dropped and made again in one transaction")
        if name in self._made:
            if statement.sql.startswith("DROP"):
                raise QueryError(f"{self.database.url}: {name!r} cannot be made and dropped in one transaction")
            return Outcome(0, [])
        batch = [*self.database.lock(f"table {name}")]
        await self._flush(batch, [])
        if statement.sql.startswith("DROP"):
            await self.database.beside(MAKE_CHANGES)
            record = f"INSERT IGNORE INTO {CHANGES} VALUES ({literal(name).decode()})"  # noqa: S608 - quoted
            self._dropped.append(name)
        else:
            # To its end, also if the caller is cancelled: or nobody knew what is to be cleared away.
            self._made.append(name)
            making = asyncio.create_task(self.database.make(name, statement.sql), name="asyncdl: making a table")
            try:
                made = await asyncio.shield(making)
            except asyncio.CancelledError:
                await asyncio.wait([making])
                raise
            if not made:
                self._made.remove(name)
                return Outcome(0, [])
            record = f"DELETE FROM {CHANGES} WHERE name = {literal(name).decode()}"  # noqa: S608 - quoted
        await self._flush([Statement(record)], [])
        return Outcome(0, [])
