"""Rows that are to be written, column by column: checked whole before anything is written."""

from __future__ import annotations

import difflib
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from asyncdl.databackend.sql_catalog import check_schema
from asyncdl.databackend.sql_dialect import SQLDialect, Storage, StoredTable
from asyncdl.databackend.sql_values import Values
from asyncdl.databackend.tables import MISSING_KEY, Key, TableSchema
from asyncdl.datatypes import infer
from asyncdl.datatypes.names import parse
from asyncdl.drivers.sql import Statement
from asyncdl.errors import DatatypeError, DuplicateKeyError, InvalidRowError, UnknownColumnError

_GENERATED = frozenset({"string", "uuid"})


class Missing:
    """Stands for a field that a row does not have."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING = Missing()


class IdMaker:
    """Makes ids that are unique, and in the order of their making: the hexadecimal digits of UUIDs of version 7 (RFC 9562).

    Those of one call differ by one, in the counter that the random bits start.
    """

    def __init__(self) -> None:
        self._last = 0

    def make(self, count: int) -> list[str]:
        """Return new ids, in order."""
        # 48 bits of time, version, 12 random bits, variant, 62 bits that begin below 2**61, so that counting never carries
        head = (time.time_ns() // 1_000_000 << 80) | (7 << 76) | (secrets.randbits(12) << 64) | (2 << 62)
        start = head | secrets.randbits(61)
        if start <= self._last:
            start = self._last + 1
        self._last = start + count - 1
        return [f"{number:032x}" for number in range(start, start + count)]


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return rows as columns, in the order in which rows first name them; what a row does not have is `MISSING`.

    Raises
    ------
    InvalidRowError
        A row is no mapping of names.
    """
    try:
        first = rows[0].keys()
        if all(row.keys() == first for row in rows):
            _check_names(first, 0)
            return {name: list(map(itemgetter(name), rows)) for name in first}
        names: dict[str, None] = {}
        for index, row in enumerate(rows):
            if not row.keys() <= names.keys():
                _check_names(row.keys(), index)
                names.update(dict.fromkeys(row))
        return {name: [row.get(name, MISSING) for row in rows] for name in names}
    except AttributeError:
        index, row = next((at, row) for at, row in enumerate(rows) if not isinstance(row, Mapping))
        raise InvalidRowError(f"row {index} is {row!r:.80}; a row maps columns to values") from None


def _check_names(names: Iterable[Any], index: int) -> None:
    for name in names:
        if not isinstance(name, str):
            raise InvalidRowError(f"row {index} has a column {name!r}; columns have names")


def without_missing(values: Sequence[Any]) -> Sequence[Any]:
    """Return a column with None where a row has no value."""
    return [None if each is MISSING else each for each in values] if Missing in set(map(type, values)) else values


def describe(column: str) -> Callable[[int], str]:
    """Return what says where a value of a column is."""
    return lambda index: f"row {index}, column {column!r}"


def infer_schema(table: str, columns: Mapping[str, Sequence[Any]]) -> TableSchema:
    """Return the schema of a table that is made of these rows.

    Raises
    ------
    DatatypeError
        A column's values are of several kinds.
    InvalidIdentifierError
        A column has a name that it cannot have.
    """
    datatypes = {} if MISSING_KEY in columns else {MISSING_KEY: "string"}
    for name, values in columns.items():
        try:
            datatypes[name] = infer(without_missing(values)) or ("string" if name == MISSING_KEY else "json")
        except DatatypeError as error:
            raise DatatypeError(f"table {table!r}, column {name!r}: {str(error).replace('value', 'row', 2)}") from error
    schema = TableSchema(table, datatypes, (MISSING_KEY,))
    check_schema(schema)
    return schema


def check_columns(schema: TableSchema, names: Iterable[str]) -> None:
    """Raise `UnknownColumnError` for a column that a table does not have."""
    for name in names:
        if name not in schema.columns:
            near = difflib.get_close_matches(name, schema.columns, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(schema.columns)}"
            raise UnknownColumnError(f"table {schema.name!r} has no column {name!r}; {hint}")


class RowEncoder:
    """Gives rows their keys, and encodes them.

    Parameters
    ----------
    ids
        Makes primary keys.
    """

    def __init__(self, values: Values[Storage], ids: IdMaker) -> None:
        self._values = values
        self._ids = ids

    def lacking(self, schema: TableSchema, columns: Mapping[str, Sequence[Any]]) -> int:
        """Return how many rows have no primary key, of one column."""
        if len(schema.primary_key) != 1:
            return 0
        found = columns.get(schema.primary_key[0])
        if found is None:
            return len(next(iter(columns.values()))) if columns else 0
        return sum(1 for each in found if each is MISSING)

    def keyed(
        self, schema: TableSchema, columns: dict[str, Sequence[Any]], count: int, numbers: Sequence[int] | None
    ) -> dict[str, Sequence[Any]]:
        """Return the columns with a primary key for each row.

        Raises
        ------
        InvalidRowError
            A key is None, or is missing and cannot be made.
        """
        for name in schema.primary_key:
            values = columns.get(name, [MISSING] * count)
            absent = [at for at, each in enumerate(values) if each is MISSING]
            if absent:
                made = iter(self._make(schema, name, len(absent), numbers, absent[0]))
                filled = [next(made) if each is MISSING else each for each in values]
                columns = {name: filled, **{other: each for other, each in columns.items() if other != name}}
            elif None in values:
                raise InvalidRowError(
                    f"row {list(values).index(None)}: the primary key {name!r} of {schema.name!r} is None"
                )
            if absent and None in columns[name]:
                row = list(columns[name]).index(None)
                raise InvalidRowError(f"row {row}: the primary key {name!r} of {schema.name!r} is None")
        return columns

    def _make(
        self, schema: TableSchema, name: str, count: int, numbers: Sequence[int] | None, first: int
    ) -> Sequence[Any]:
        if numbers is not None:
            return numbers
        datatype = schema.columns[name]
        if datatype not in _GENERATED or len(schema.primary_key) != 1:
            raise InvalidRowError(
                f"row {first} has no {name!r}, the primary key of {schema.name!r}; asyncdl makes strings and uuids,"
                f" and {name!r} is {datatype}"
            )
        made: Sequence[Any] = self._ids.make(count)
        if parse(datatype).kind == "uuid":
            from uuid import UUID  # noqa: PLC0415

            made = [UUID(each) for each in made]
        return made

    def encode(
        self, schema: TableSchema, columns: Mapping[str, Sequence[Any]], *, unique: bool
    ) -> tuple[list[Key], dict[str, Sequence[Any]]]:
        """Return the rows' primary keys, and their columns as the driver takes them.

        Raises
        ------
        DatatypeError
            A value does not fit its column.
        DuplicateKeyError
            With ``unique``: two rows have the same key.
        """
        check_columns(schema, columns)
        checked = {
            name: self._values.check(schema.columns[name], without_missing(values), describe(name))
            for name, values in columns.items()
        }
        stored = {
            name: self._values.store(schema.columns[name], each, describe(name)) for name, each in checked.items()
        }
        key = schema.primary_key
        ids: list[Key] = []
        if len(key) == 1:
            ids = list(checked[key[0]])
        elif key:
            ids = list(zip(*(checked[name] for name in key), strict=True))
        if unique and key:
            _check_unique(schema, ids)
        return ids, stored


class RowStatements(RowEncoder):
    """Turns rows into statements, too."""

    def __init__(self, values: Values[SQLDialect], ids: IdMaker) -> None:
        super().__init__(values, ids)
        self._dialect = values.dialect

    def insert(
        self, table: StoredTable, stored: Mapping[str, Sequence[Any]], named: Mapping[str, Sequence[Any]]
    ) -> list[Statement]:
        """Return the statements that insert encoded rows: one, unless some leave a column to the database's default."""
        left = [name for name in stored if name in table.defaults and Missing in set(map(type, named[name]))]
        if not left:
            return [self._insert(table, list(stored), list(zip(*stored.values(), strict=True)))]
        groups: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
        for at in range(len(named[left[0]])):
            names = tuple(name for name in stored if name not in left or named[name][at] is not MISSING)
            groups.setdefault(names, []).append(tuple(stored[name][at] for name in names))
        return [self._insert(table, list(names), rows) for names, rows in groups.items()]

    def _insert(self, table: StoredTable, names: list[str], rows: list[tuple[Any, ...]]) -> Statement:
        dialect = self._dialect
        row = dialect.row(len(names))
        sql = (
            f"INSERT INTO {dialect.quote(table.schema.name)} ({dialect.quoted(names)}){dialect.overriding} "  # noqa: S608 - quoted
            f"VALUES {row}"
        )
        return Statement(sql, rows, many=True, row=row, types=self._types(table, names))

    def _types(self, table: StoredTable, names: Sequence[str]) -> tuple[str, ...]:
        columns = table.schema.columns
        types = [table.types.get(name) or self._dialect.value_type(parse(columns[name])) for name in names]
        return tuple(types) if all(types) else ()

    def upsert(
        self, table: StoredTable, stored: Mapping[str, Sequence[Any]], named: Mapping[str, Sequence[Any]]
    ) -> list[Statement]:
        """Return the statements that upsert encoded rows: one for each set of columns that rows name, in order."""
        key = table.schema.primary_key
        if not any(Missing in set(map(type, values)) for values in named.values()):
            return [self._upsert(table, list(stored), list(zip(*stored.values(), strict=True)))]
        statements: list[tuple[list[str], list[tuple[Any, ...]]]] = []
        for at in range(len(next(iter(stored.values())))):
            names = [name for name in stored if name in key or named[name][at] is not MISSING]
            if not statements or statements[-1][0] != names:
                statements.append((names, []))
            statements[-1][1].append(tuple(stored[name][at] for name in names))
        return [self._upsert(table, names, rows) for names, rows in statements]

    def _upsert(self, table: StoredTable, names: list[str], rows: list[tuple[Any, ...]]) -> Statement:
        key = table.schema.primary_key
        places = [names.index(name) for name in key]
        last = {tuple(row[at] for at in places): row for row in rows}
        if len(last) < len(rows):  # no database writes a row twice in one step; and the last counts
            rows = list(last.values())
        sql = self._dialect.upsert(table.schema.name, names, key, [name for name in names if name not in key])
        return Statement(sql, rows, many=True, row=self._dialect.row(len(names)), types=self._types(table, names))


def _check_unique(schema: TableSchema, ids: Sequence[Key]) -> None:
    if len(set(ids)) == len(ids):
        return
    seen: dict[Key, int] = {}
    for index, key in enumerate(ids):
        first = seen.setdefault(key, index)
        if first != index:
            name = ", ".join(schema.primary_key)
            raise DuplicateKeyError(
                f"rows {first} and {index} have the same primary key {name} = {key!r}; nothing was written"
            )
