"""What differs between SQL databases, in one class per database."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asyncdl.databackend.tables import TableSchema
from asyncdl.datatypes import Parsed
from asyncdl.drivers.sql import Row, SQLDatabase, SQLTransaction, Statement

Fetch = Callable[[str, Sequence[Any]], Awaitable[list[Row]]]
"""Runs one reading statement: outside transactions, or in one of them."""

Call = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs what would hold up the event loop on a thread."""

ToStorage = Callable[[Any], Any]
"""Returns what the driver is given for a value that has passed its datatype's check and is not None."""

FromStorage = Callable[[Sequence[Any]], Sequence[Any]]
"""Returns the values of a column as the driver returned them, None among them."""


@dataclass(frozen=True, slots=True)
class StoredTable:
    """A table as the database has it.

    Parameters
    ----------
    schema
        Its columns and key.
    numbered
        Whether the database makes primary keys itself.
    types
        The columns' SQL types, where the database's driver needs them.
    defaults
        The columns that the database fills in where a row does not name them.
    """

    schema: TableSchema
    numbered: bool
    types: Mapping[str, str] = field(default_factory=dict)
    defaults: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ReflectedColumn:
    """A column as the database describes it."""

    name: str
    datatype: str
    key: int
    numbered: bool
    type: str = ""
    default: bool = False


class Storage(ABC):
    """How a database stores values.

    Note for implementers: what `to_storage` makes of two values must compare in the database as the values do, with what is
    made of expressions and literals of their datatype.
    """

    @abstractmethod
    def to_storage(self, datatype: Parsed) -> ToStorage | None:
        """Return what turns a checked value into what the driver takes; None: the driver takes it as it is."""

    @abstractmethod
    def from_storage(self, datatype: Parsed, *, computed: bool) -> FromStorage | None:
        """Return what turns a column into Python's values; None: the driver returns them.

        Parameters
        ----------
        computed
            Whether the database made the values from others, in a query.
        """

    @abstractmethod
    def dtype(self, datatype: Parsed) -> str:
        """Return how ibis is told of a column."""


class SQLDialect(Storage):
    """One database's SQL."""

    mark = "?"
    """The placeholder of a parameter."""

    overriding = ""
    """What stands between an insert's columns and values, such that keys which the database would make can be given."""

    constants_are_cheap = False
    """Whether a value that all rows of an insert share is better written into its text than given with each row."""

    shares_parameters = False
    """Whether the driver takes a value that all rows of an insert share once, beside the rows."""

    merges = False
    """Whether the planner may merge two tables by their keys, and would then read one of them from its start for each page."""

    tables_with_rows = True
    """Whether tables are made and dropped in transactions."""

    partial_indexes = True
    """Whether an index can leave out rows."""

    returning = True
    """Whether updates and deletes can return what they concern; else the keys are read, and locked, before."""

    largest_list = 512
    """How many keys one statement names at most."""

    def opened(self, database: SQLDatabase) -> None:
        """Take note of what server it is."""

    @abstractmethod
    def quote(self, name: str) -> str:
        """Return a name as SQL quotes it."""

    @abstractmethod
    def column_type(self, datatype: Parsed) -> str:
        """Return the SQL type in which a datatype is stored."""

    def value_type(self, datatype: Parsed) -> str:
        """Return the SQL type of a parameter, "" where the driver does not need it."""
        return ""

    @abstractmethod
    def compile(self, expression: Any) -> str:
        """Return an ibis expression's SQL; takes milliseconds."""

    async def provide(self, database: SQLDatabase, sql: str, call: Call) -> None:
        """Make known to the database what functions a compiled query calls; most databases have them all."""

    @abstractmethod
    async def tables(self, fetch: Fetch) -> list[str]:
        """Return the names of all tables and views."""

    @abstractmethod
    async def reflect(self, fetch: Fetch, table: str) -> list[ReflectedColumn]:
        """Return a table's columns, none if there is no such table."""

    @abstractmethod
    async def schema_version(self, fetch: Fetch) -> Any:
        """Return what changes whenever anybody has created, altered or dropped a table."""

    @abstractmethod
    def create_table(
        self, table: TableSchema, types: Sequence[str], *, not_null: Sequence[str] = (), numbered: bool = False
    ) -> str:
        """Return the statement that creates a table, if there is none, whose columns have these SQL types.

        Parameters
        ----------
        numbered
            Whether the database is to make keys that are a single integer.
        """

    @abstractmethod
    async def number(self, tx: SQLTransaction, table: str, column: str, count: int, *, above: int) -> list[int]:
        """Return that many new keys of a numbered table, in order, larger than ``above``; no other transaction gets them."""

    @abstractmethod
    def is_query_error(self, error: BaseException) -> bool:
        """Return whether the driver's error is about the statement itself: it names what there is not."""

    def hold(self, table: str, where: str) -> list[Statement]:
        """Return the statements that keep others from changing the rows of which a condition is true ("": all).

        Behind them in the transaction, the rows are as they will stay. None, where a transaction is alone anyway.
        """
        return []

    def collations(self, table: str, columns: Sequence[str]) -> Sequence[str]:
        """Return in which collation each column is that the database would not compare with asyncdl's texts, "" for others."""
        return [""] * len(columns)

    def collated(self, value: str, collation: str) -> str:
        """Return an expression as it compares in a collation, "" for that of asyncdl's own tables."""
        return value

    # what most have in common

    def quoted(self, names: Sequence[str], of: str = "") -> str:
        """Return names quoted, with commas between them; ``of`` is the alias of their table."""
        return ", ".join(f"{of}.{self.quote(name)}" if of else self.quote(name) for name in names)

    def tuple_of(self, names: Sequence[str], of: str = "") -> str:
        """Return a key's columns: one by itself, several as a row value."""
        return self.quoted(names, of) if len(names) == 1 else f"({self.quoted(names, of)})"

    def marks(self, count: int) -> str:
        """Return placeholders for a row: one by itself, several as a row value."""
        return self.mark if count == 1 else f"({', '.join([self.mark] * count)})"

    def values_column(self, of: str, at: int) -> str:
        """Return how a column of a ``VALUES`` list is named, by its place from 0."""
        return f"{of}.column{at + 1}"

    def row(self, count: int) -> str:
        """Return placeholders for a row behind ``VALUES``."""
        return f"({', '.join([self.mark] * count)})"

    def equal(self, names: Sequence[str], left: str, right: str) -> str:
        """Return the condition that two tables' columns of these names are equal."""
        return " AND ".join(f"{left}.{self.quote(name)} = {right}.{self.quote(name)}" for name in names)

    def in_list(self, names: Sequence[str], count: int, of: str = "") -> str:
        """Return the condition that a key is one of ``count`` parameters."""
        if len(names) == 1:
            return f"{self.quoted(names, of)} IN ({', '.join([self.mark] * count)})"
        return f"{self.tuple_of(names, of)} IN (VALUES {', '.join([self.marks(len(names))] * count)})"

    def upsert(
        self, table: str, columns: Sequence[str], key: Sequence[str], changed: Sequence[str], newer: str = ""
    ) -> str:
        """Return an insert that sets the ``changed`` columns of the row that is there.

        Parameters
        ----------
        newer
            The column of which the row that is there must not have more: else it stays as it is.
        """
        start = (
            f"INSERT INTO {self.quote(table)} ({self.quoted(columns)}){self.overriding} "  # noqa: S608 - quoted
            f"VALUES {self.row(len(columns))} ON CONFLICT ({self.quoted(key)}) DO "
        )
        if not changed:
            return f"{start}NOTHING"
        sets = ", ".join(f"{self.quote(name)} = excluded.{self.quote(name)}" for name in changed)
        stamp = self.quote(newer)
        where = f" WHERE excluded.{stamp} >= {self.quote(table)}.{stamp}" if newer else ""
        return f"{start}UPDATE SET {sets}{where}"
