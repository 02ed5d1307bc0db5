"""Listeners' output tables: the statements, made once for each table and shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, repeat, zip_longest
from typing import Any

from asyncdl.databackend.sql_dialect import SQLDialect
from asyncdl.databackend.sql_expressions import AS_OF, ERROR, POSITION, VALUE, output_columns
from asyncdl.databackend.sql_values import Values
from asyncdl.databackend.tables import Key, Outputs, OutputTable, TableSchema
from asyncdl.datatypes import parse
from asyncdl.drivers.sql import Row, Statement
from asyncdl.errors import DatatypeError, QueryError

_STAMPS = (VALUE, AS_OF, ERROR)


def chunks(items: Sequence[Any], size: int) -> Iterator[tuple[Sequence[Any], int]]:
    """Yield items in lists, each filled up with its last item to a power of two, and how many of them are real.

    So a statement that names them has one of few texts, and databases keep it prepared.
    """
    for at in range(0, len(items), size):
        part = list(items[at : at + size])
        width = 1 << (len(part) - 1).bit_length()
        yield part + [part[-1]] * (width - len(part)), len(part)


class OutputWriter:
    """Makes the statements that write and read one output table.

    Parameters
    ----------
    table
        The table; its datatype is known.
    """

    def __init__(self, values: Values[SQLDialect], table: OutputTable) -> None:
        self._values = values
        self._dialect = values.dialect
        self.table = table
        self._name = self._dialect.quote(table.name)
        self._columns = output_columns(table)
        self._key = tuple(table.key)
        self._own_key = (*self._key, POSITION) if table.flatten else self._key
        self._roots = tuple(list(table.key)[: len(table.root)])
        clash = {VALUE, AS_OF, ERROR, *([POSITION] if table.flatten else [])} & set(table.key)
        if clash:
            raise QueryError(
                f"the outputs of {table.identifier!r} cannot be keyed by a column {sorted(clash)[0]!r}: rename it"
            )
        self._put = self._put_sql()
        row = self._dialect.row(len(self._columns))
        self._insert = f"INSERT INTO {self._name} ({self._dialect.quoted(list(self._columns))}) VALUES {row}"  # noqa: S608 - quoted
        types = tuple(self._dialect.value_type(parse(each)) for each in self._columns.values())
        self._types = types if all(types) else ()

    # the table

    def create(self) -> list[Statement]:
        """Return the statements that make the table."""
        schema = TableSchema(self.table.name, self._columns, self._own_key)
        types = [self._dialect.column_type(parse(each)) for each in self._columns.values()]
        sql = self._dialect.create_table(schema, types, not_null=[AS_OF])
        if not self._dialect.partial_indexes:
            return [Statement(sql, table=self.table.name)]
        index = self._dialect.quote(f"{self.table.name}_failed")
        failed = f"CREATE INDEX IF NOT EXISTS {index} ON {self._name} ({self._dialect.quote(self._roots[0])}) "
        return [
            Statement(sql, table=self.table.name),
            Statement(f"{failed}WHERE {self._dialect.quote(ERROR)} IS NOT NULL"),
        ]

    def drop(self) -> list[Statement]:
        """Return the statement that drops the table."""
        return [Statement(f"DROP TABLE IF EXISTS {self._name}", table=self.table.name)]

    # writing

    def put(self, results: Outputs, as_of: int, replaced: Sequence[Key] | None) -> list[Statement]:
        """Return the statements that write results.

        A list's elements are written beside others in any case.

        Raises
        ------
        DatatypeError
            A value does not fit; the message says of which row.
        """
        statements = self._delete_replaced(results, as_of, replaced)
        if self.table.flatten:
            return statements + self._put_elements(results, as_of)
        if not len(results):
            return statements
        put = self._insert if results.new else self._put
        keys, row = self._encode_keys(results.keys), self._dialect.row(len(self._columns))
        if not results.errors and self._dialect.constants_are_cheap:
            # What is the same in all rows stands in the statement: half as many parameters, and half the time.
            stored = self._encode_values(results.values, results.key)
            marks = ", ".join([self._dialect.mark] * (len(keys) + 1))
            same = f"({marks}, {int(as_of)}, NULL)"
            rows, types = list(zip(*keys, stored, strict=True)), self._types[: len(keys) + 1]
            return [*statements, Statement(put.replace(row, same, 1), rows, many=True, row=same, types=types)]
        if not results.errors and self._dialect.shares_parameters:
            stored = self._encode_values(results.values, results.key)
            return [*statements, self._put_rows(put, list(zip(*keys, stored, strict=True)), shared=(as_of, None))]
        values: Sequence[Any] = results.values
        if results.errors:
            values = [None if at in results.errors else value for at, value in enumerate(values)]
        stored = self._encode_values(values, results.key)
        errors = map(results.errors.get, range(len(results)))
        stamped = list(zip(*keys, stored, repeat(as_of), errors, strict=False))
        return [*statements, self._put_rows(put, stamped)]

    def _put_sql(self) -> str:
        dialect, names = self._dialect, list(self._columns)
        stamp = dialect.quote(AS_OF)
        if not self.table.flatten or not dialect.returning:
            return dialect.upsert(self.table.name, names, self._own_key, _STAMPS, AS_OF)
        # A list belongs together: none of it is written beside elements that are newer.
        sets = ", ".join(f"{dialect.quote(name)} = excluded.{dialect.quote(name)}" for name in _STAMPS)
        column = {name: dialect.values_column("v", at) for at, name in enumerate(names)}
        same = " AND ".join(f"o.{dialect.quote(name)} = {column[name]}" for name in self._key)
        return (
            f"INSERT INTO {self._name} ({dialect.quoted(names)}) SELECT * FROM (VALUES {dialect.row(len(names))}) AS v "  # noqa: S608
            f"WHERE NOT EXISTS (SELECT 1 FROM {self._name} AS o WHERE {same} AND o.{stamp} > {column[AS_OF]}) "
            f"ON CONFLICT ({dialect.quoted(self._own_key)}) DO UPDATE SET {sets}"
        )

    def _put_elements(self, results: Outputs, as_of: int) -> list[Statement]:
        if not len(results):
            return []
        owners: list[int] = []
        positions: list[int] = []
        elements: list[Any] = []
        for at, value in enumerate(results.values):
            if at in results.errors or not len(value):
                owners.append(at)
                positions.append(-1)
                elements.append(None)
            else:
                owners.extend(repeat(at, len(value)))
                positions.extend(range(len(value)))
                elements.extend(value)
        source = self._encode_keys(results.keys)
        keys = [[column[at] for at in owners] for column in source]
        values = self._encode_values(elements, lambda at: results.key(owners[at]))
        errors = map(results.errors.get, owners)
        rows = list(zip(*keys, positions, values, repeat(as_of), errors, strict=False))
        statements = [*self._delete(self._key, source, as_of), self._put_rows(self._put, rows)]
        return statements if self._dialect.returning else [*statements, *self._delete_beside(source, as_of)]

    def _delete_beside(self, keys: Sequence[Sequence[Any]], as_of: int) -> Iterator[Statement]:
        """Yield the statements that delete what was written beside newer elements, since a list belongs together."""
        quote, stamp = self._dialect.quote, self._dialect.quote(AS_OF)
        same = self._dialect.equal(self._key, "n", "o")
        for rows, _ in chunks(list(zip(*keys, strict=True)), self._dialect.largest_list):
            listed_ = self._dialect.in_list(self._key, len(rows), "o")
            yield Statement(
                f"DELETE o FROM {self._name} AS o JOIN {quote(self.table.name)} AS n ON {same} AND n.{stamp} > o.{stamp} "
                f"WHERE {listed_} AND o.{stamp} = {self._dialect.mark}",
                [*chain.from_iterable(rows), as_of],
            )

    def delete(self, rows: Sequence[Row]) -> Iterator[Statement]:
        """Yield the statements that delete what `sweep` found, where it could not delete that itself."""
        for part, _ in chunks(rows, self._dialect.largest_list):
            condition = self._dialect.in_list(self._key, len(part))
            yield Statement(f"DELETE FROM {self._name} WHERE {condition}", list(chain.from_iterable(part)))  # noqa: S608

    def _put_rows(self, sql: str, rows: Sequence[Row], shared: tuple[Any, ...] = ()) -> Statement:
        row = self._dialect.row(len(self._columns))
        return Statement(sql, rows, many=True, row=row, types=self._types, shared=shared)

    def _delete_replaced(self, results: Outputs, as_of: int, replaced: Sequence[Key] | None) -> list[Statement]:
        if not replaced:
            return []
        left: Sequence[Key] = replaced
        if not self.table.flatten and self._roots == self._key and len(results):
            single = len(self._roots) == 1
            written = set(results.keys[0]) if single else set(zip(*results.keys, strict=True))
            left = [each for each in replaced if each not in written]
        if not left:
            return []
        return self._delete(self._roots, self.encode_ids(left), as_of)

    def _delete(self, names: Sequence[str], keys: Sequence[Sequence[Any]], as_of: int) -> list[Statement]:
        """Return the statements that delete what is not newer of these keys."""
        older = f"{self._dialect.quote(AS_OF)} <= {self._dialect.mark}"
        return [
            Statement(
                f"DELETE FROM {self._name} WHERE {self._dialect.in_list(names, len(rows))} AND {older}",  # noqa: S608 - quoted
                [*chain.from_iterable(rows), as_of],
            )
            for rows, _ in chunks(list(zip(*keys, strict=True)), self._dialect.largest_list)
        ]

    # values

    def _encode_keys(self, keys: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
        return [self._encode_key(name, column) for name, column in zip(self._key, keys, strict=True)]

    def _encode_key(self, name: str, column: Sequence[Any]) -> Sequence[Any]:
        return self._values.encode(self.table.key[name], column, lambda at: f"output {at}, key {name!r}")

    def encode_ids(self, ids: Sequence[Key]) -> list[Sequence[Any]]:
        """Return root ids as columns of what the driver is given."""
        if len(self._roots) == 1:
            return [self._encode_key(self._roots[0], ids)]
        return [
            self._encode_key(name, column) for name, column in zip(self._roots, zip(*ids, strict=True), strict=True)
        ]

    def _encode_values(self, values: Sequence[Any], key_of: Callable[[int], Row]) -> Sequence[Any]:
        assert self.table.datatype is not None  # noqa: S101 - there is a table
        return self._values.encode(
            self.table.datatype,
            values,
            lambda at: f"the output of {self.table.identifier!r} for row {key_of(at)!r}",
        )

    def encode_error(self, value: Any) -> Exception | None:
        """Return why a value cannot be stored, None if it can."""
        assert self.table.datatype is not None  # noqa: S101 - there is a table
        try:
            self._values.encode_one(self.table.datatype, value, f"an output of {self.table.identifier!r}")
        except DatatypeError as error:
            return error
        return None

    def decode_ids(self, rows: list[Row]) -> list[Key]:
        """Return the root ids of rows that begin with them."""
        width = len(self._roots)
        decode = self._values.rows([(name, self.table.key[name], False) for name in self._roots])
        if rows and len(rows[0]) > width:
            rows = [row[:width] for row in rows]
        decoded = decode(rows) if decode is not None else rows
        return [row[0] for row in decoded] if width == 1 else list(decoded)

    # reading

    def _matches(
        self, output: str, select: str, key: Sequence[str], collations: Sequence[str], *, by_output: bool
    ) -> str:
        """Return the condition that an output belongs to a select's row; the select may have renamed the key.

        Where their texts are in different collations the side changes that is not looked up by its index: ``by_output``, if
        outputs are looked up.
        """
        conditions = []
        for own, theirs, collation in zip_longest(self._key, key, collations[: len(key)], fillvalue=""):
            mine, other = f"{output}.{self._dialect.quote(own)}", f"{select}.{self._dialect.quote(theirs)}"
            if collation and by_output:
                other = self._dialect.collated(other, "")
            elif collation:
                mine = self._dialect.collated(mine, collation)
            conditions.append(f"{mine} = {other}")
        return " AND ".join(conditions)

    def missing(self, of: str, key: Sequence[str], collations: Sequence[str] = (), bounds: Sequence[str] = ()) -> str:
        """Return the condition that a row of the select, which has this alias and key, has neither output nor error.

        Its parameters are the keys that bound those of the rows in question, one for each of ``bounds`` (``">"``, ``"<="``).
        """
        same = self._matches("o", of, key, collations, by_output=True)
        for bound in bounds:
            same += f" AND {self._dialect.tuple_of(self._key, 'o')} {bound} {self._dialect.marks(len(self._key))}"
        return f"NOT EXISTS (SELECT 1 FROM {self._name} AS o WHERE {same})"  # noqa: S608 - quoted

    def sweep(
        self, select: str, key: Sequence[str], ids: Sequence[Key] | None, collations: Sequence[str] = ()
    ) -> Iterator[Statement]:
        """Yield the statements that delete outputs whose row a select does not have, returning root ids.

        A database that cannot return what it deletes returns the keys, which `delete` takes.
        """
        same = self._matches(self._name, "s", key, collations, by_output=False)
        start, end = f"DELETE FROM {self._name}", f" RETURNING {self._dialect.quoted(self._roots)}"  # noqa: S608 - quoted
        if not self._dialect.returning:
            start, end = f"SELECT DISTINCT {self._dialect.quoted(self._key)} FROM {self._name}", ""  # noqa: S608
        gone = f"NOT EXISTS (SELECT 1 FROM ({select}) AS s WHERE {same}){end}"  # noqa: S608 - compiled
        if ids is None:
            yield Statement(f"{start} WHERE {gone}", fetch=True)
            return
        for condition, params in self._listed(ids):
            yield Statement(f"{start} WHERE {condition} AND {gone}", params, fetch=True)

    def current(self, ids: Sequence[Key], as_of: int) -> Iterator[tuple[str, list[Any]]]:
        """Yield the queries for the root ids all of whose rows are of ``as_of`` or later."""
        roots = self._dialect.quoted(self._roots)
        having = f"GROUP BY {roots} HAVING min({self._dialect.quote(AS_OF)}) >= {self._dialect.mark}"
        for condition, params in self._listed(ids):
            yield f"SELECT {roots} FROM {self._name} WHERE {condition} {having}", [*params, as_of]  # noqa: S608

    def _listed(self, ids: Sequence[Key]) -> Iterator[tuple[str, list[Any]]]:
        yield from listed(self._values, {name: self.table.key[name] for name in self._roots}, ids)

    def failed(self) -> str:
        """Return the query for root ids and errors; its parameter is how many."""
        roots, error = self._dialect.quoted(self._roots), self._dialect.quote(ERROR)
        return (
            f"SELECT {roots}, min({error}) FROM {self._name} WHERE {error} IS NOT NULL "  # noqa: S608 - quoted
            f"GROUP BY {roots} ORDER BY {roots} LIMIT {self._dialect.mark}"
        )


def listed(
    values: Values[SQLDialect], key: Mapping[str, str], ids: Sequence[Key], of: str = ""
) -> Iterator[tuple[str, list[Any]]]:
    """Yield conditions with their parameters, which together are true of the rows with these keys."""
    if not ids:
        return
    columns = [list(ids)] if len(key) == 1 else [list(column) for column in zip(*ids, strict=True)]
    encoded = [
        values.encode(datatype, column, lambda at, name=name: f"id {at}, column {name!r}")  # type: ignore[misc]
        for (name, datatype), column in zip(key.items(), columns, strict=True)
    ]
    for rows, _ in chunks(list(zip(*encoded, strict=True)), values.dialect.largest_list):
        yield values.dialect.in_list(list(key), len(rows), of), [each for row in rows for each in row]
