"""How statements run on a connection of asyncpg's: those of a transaction, and one of many rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from typing import Any

from asyncdl.drivers.pooled import PooledTransaction
from asyncdl.drivers.postgresql_values import translate
from asyncdl.drivers.sql import MARK, Outcome, Row, SQLDatabase, Statement

_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"

_ROWS = 4096
_ROWS_IN_A_STEP = (256, 64, 16, 4, 1)
_BYTES = 2**24
_PARAMETERS = 32_767


@lru_cache(maxsize=4096)
def numbered(sql: str) -> str:
    """Return a statement with its `MARK`s as ``$1``, ``$2``, ...; one without is as the driver takes it already."""
    if MARK not in sql:
        return sql
    first, *parts = sql.split(MARK)
    return first + "".join(f"${at}{part}" for at, part in enumerate(parts, 1))


async def run_statement(driver: Any, statement: Statement) -> Outcome:
    """Run a statement and return what it did."""
    if statement.many:
        return Outcome(await _run_many(driver, statement), [])
    sql = numbered(statement.sql)
    if statement.fetch:
        rows = list(map(tuple, await driver.fetch(sql, *statement.params)))
        return Outcome(len(rows), rows)
    return Outcome(_affected(await driver.execute(sql, *statement.params)), [])


def _affected(status: str) -> int:
    """Return the number at the end of a command's tag, as in ``INSERT 0 5``."""
    last = status.rpartition(" ")[2]
    return int(last) if last.isdigit() else 0


async def _run_many(driver: Any, statement: Statement) -> int:
    rows: Sequence[Row] = statement.params
    if not rows:
        return 0
    if not statement.row:
        sql = numbered(statement.sql)
        if statement.expect is None:
            await driver.executemany(sql, rows)  # which does not tell how many it affected
            return len(rows)
        return sum([_affected(await driver.execute(sql, *row)) for row in rows])
    if statement.types and not any(each.endswith("[]") for each in statement.types):
        return await _run_columns(driver, statement, rows)
    if statement.shared:
        rows = [(*row, *statement.shared) for row in rows]
    return await _run_rows(driver, statement, rows)


async def _run_columns(driver: Any, statement: Statement, rows: Sequence[Row]) -> int:
    """Run an insert with one array for each column: five times faster than a parameter for each value."""
    own = len(statement.types) - len(statement.shared)
    arrays = ", ".join(f"{MARK}::{each}[]" for each in statement.types[:own])
    names = ", ".join(f"column{at}" for at in range(1, own + 1))
    same = "".join(f", {MARK}::{each}" for each in statement.types[own:])
    source = f"SELECT {names}{same} FROM unnest({arrays}) AS new_rows({names})"  # noqa: S608 - placeholders and types
    sql = numbered(statement.sql.replace(f"VALUES {statement.row}", source, 1))
    affected = 0
    for columns in _parts(rows):
        # what the rows share stands before their arrays in the text
        affected += _affected(await driver.execute(sql, *statement.shared, *map(list, columns)))
    return affected


def _parts(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Yield columns that are not too large for a message, nor for the event loop, on which they are encoded."""
    for at in range(0, len(rows), _ROWS):
        yield from _halved(list(zip(*rows[at : at + _ROWS], strict=True)))


def _halved(columns: list[Row]) -> Iterator[list[Row]]:
    count = len(columns[0])
    if count > 1 and sum(map(_size, columns)) > _BYTES:
        middle = count // 2
        yield from _halved([each[:middle] for each in columns])
        yield from _halved([each[middle:] for each in columns])
    else:
        yield columns


def _size(column: Row) -> int:
    """Return the size of texts and bytes; a column is of one type."""
    given = filter(None, column)
    first = next(given, None)
    return len(first) + sum(map(len, given)) if isinstance(first, (str, bytes)) else 0


async def _run_rows(driver: Any, statement: Statement, rows: Sequence[Row]) -> int:
    """Run an insert with a parameter for each value: arrays of arrays would have to be rectangular."""
    width = len(rows[0])
    row = f"({', '.join(f'{MARK}::{each}' for each in statement.types)})" if statement.types else statement.row
    at = affected = 0
    for size in _ROWS_IN_A_STEP:
        if size * width > _PARAMETERS or len(rows) - at < size:
            continue
        sql = numbered(statement.sql.replace(statement.row, ", ".join([row] * size), 1))
        while len(rows) - at >= size:
            params = chain.from_iterable(rows[at : at + size])
            affected += _affected(await driver.execute(sql, *params))
            at += size
    return affected


class PostgreSQLTransaction(PooledTransaction):
    """A transaction on a connection of its own."""

    def __init__(self, database: SQLDatabase, driver: Any) -> None:
        super().__init__(database, driver)
        self.settled = True
        """Whether the server is known to be out of the last statement: not so after one that was cancelled."""

    async def end(self, *, commit: bool) -> None:
        """Commit what is still open; a roll-back is left to the connection's return."""
        if commit and not self._finished and (self._begun or self._deferred):
            await self.commit()
        self._finished = True

    async def _hop(self, statements: Sequence[Statement], *, commit: bool) -> list[Outcome]:
        self._check()
        deferred, self._deferred = self._deferred, []
        done = self.settled = False
        try:
            outcomes = await self._run(deferred, statements, commit)
            done = self.settled = True
        except Exception as error:
            with suppress(Exception):  # at once, so that nobody waits for its locks; what fails here is seen on return
                await self._driver.execute("ROLLBACK")
                self.settled = True
            found = translate(error, self.database.url)
            if found is error:
                raise
            raise found from error
        finally:
            self._finished = commit or not done
        return outcomes

    async def _run(self, deferred: Sequence[Statement], statements: Sequence[Statement], commit: bool) -> list[Outcome]:
        """Run statements, those whose outcome nobody looks at together: each round trip is what a commit takes."""
        script = [] if self._begun else [_BEGIN]
        outcomes = []
        for at, statement in enumerate([*deferred, *statements]):
            wanted = at >= len(deferred)
            if _is_script(statement) and (statement.quiet or not wanted):
                script.append(statement.sql)
                outcome = Outcome(0, [])
            else:
                await self._flush(script)
                outcome = (await run_statement(self._driver, statement)).check(statement)
            if wanted:
                outcomes.append(outcome)
        if commit and (self._begun or len(script) > 1):
            script.append("COMMIT")
        if script != [_BEGIN]:
            await self._flush(script)
        return outcomes

    async def _flush(self, script: list[str]) -> None:
        if script:
            await self._driver.execute(";\n".join(script))
            self._begun = True
            script.clear()


def _is_script(statement: Statement) -> bool:
    plain = not statement.params and not statement.many and not statement.fetch and statement.expect is None
    return plain and MARK not in statement.sql
