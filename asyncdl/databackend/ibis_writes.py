"""The user's writes, in databases that only ibis knows: rows are read, and written as they are to be.

These databases tell neither which rows a statement changed nor whether a key was there, and most have no transactions.
So each write looks first, within the turn to write, and then changes rows by their keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from asyncdl.databackend.ibis_catalog import IbisCatalog, IbisTable, arrow
from asyncdl.databackend.ibis_literals import with_plain_literals
from asyncdl.databackend.ibis_values import IbisValues
from asyncdl.databackend.requests import Built, ReadQuery, WriteRequest, Written
from asyncdl.databackend.sql_expressions import keyed_value, result_columns
from asyncdl.databackend.sql_rows import MISSING, IdMaker, Missing, RowEncoder, check_columns, columns_of, infer_schema
from asyncdl.databackend.sql_writes import fits
from asyncdl.databackend.tables import Key, OutputTable, Row, TableSchema
from asyncdl.drivers.ibis import IbisDatabase
from asyncdl.drivers.ibis_changes import listed
from asyncdl.errors import DatatypeError, DuplicateKeyError, QueryError, TableNotFoundError

LISTED = 1000
"""How many keys one query names at most."""


class IbisWriter:
    """Inserts, upserts, updates and deletes, on the thread of ibis' connection.

    Parameters
    ----------
    own, native
        How values are stored in tables that asyncdl made, and in others.
    """

    def __init__(self, database: IbisDatabase, catalog: IbisCatalog, own: IbisValues, native: IbisValues) -> None:
        self._database = database
        self._changes = database.changes
        self._catalog = catalog
        self._own, self._native = own, native
        ids = IdMaker()
        self._encoders = {True: RowEncoder(own, ids), False: RowEncoder(native, ids)}

    def write(self, raw: Any, request: WriteRequest, outputs: Mapping[str, OutputTable]) -> Written:
        """Do what a request asks for."""
        if request.kind in {"insert", "upsert"}:
            return self._put(raw, request)
        schema = self._keyed(raw, request).schema
        if request.kind == "update":
            return self._update(raw, schema, request, outputs)
        return self._delete(raw, schema, request, outputs)

    def _values(self, table: IbisTable) -> IbisValues:
        return self._own if table.own else self._native

    # rows

    def _put(self, raw: Any, request: WriteRequest) -> Written:
        found = self._catalog.table(raw, request.table)
        if not request.rows:
            if found is None:
                raise TableNotFoundError(f"there is no table {request.table!r}, and no rows that it could be made of")
            return Written([])
        columns: dict[str, Sequence[Any]] = {**columns_of(request.rows)}
        table = found or self._catalog.made(infer_schema(request.table, columns))
        schema = table.schema
        if request.kind == "upsert" and not schema.primary_key:
            raise QueryError(f"table {schema.name!r} has no primary key, which upsert needs")
        check_columns(schema, columns)
        encoder = self._encoders[table.own]
        numbers = self._numbers(raw, table, columns, encoder.lacking(schema, columns), exists=found is not None)
        named = encoder.keyed(schema, columns, len(request.rows), numbers)
        ids, stored = encoder.encode(schema, named, unique=request.kind == "insert")
        if found is None:
            table = self._catalog.create(raw, schema)
        if request.kind == "insert":
            self._insert(raw, table, stored, check=found is not None and bool(schema.primary_key))
        else:
            self._upsert(raw, table, stored, named)
            ids = list(dict.fromkeys(ids))
        return Written(ids, None if found is not None else schema)

    def refusal(self, raw: Any, name: str, row: Mapping[str, Any]) -> DatatypeError | None:
        """Return why a table cannot hold a row, None if it can."""
        table = self._catalog.existing(raw, name)
        encoder = self._encoders[table.own]
        try:
            encoder.encode(table.schema, encoder.keyed(table.schema, {**columns_of([row])}, 1, None), unique=False)
        except DatatypeError as error:
            return error
        return None

    def _numbers(
        self, raw: Any, table: IbisTable, columns: Mapping[str, Sequence[Any]], count: int, *, exists: bool
    ) -> list[int] | None:
        """Return numbers for rows without a key, where keys are integers."""
        key = table.schema.primary_key
        if not count or table.schema.columns[key[0]] != "int64":
            return None
        above = max((each for each in columns.get(key[0], ()) if isinstance(each, int)), default=0)
        if exists:
            largest = raw.to_pyarrow(table.expression()[key[0]].max()).as_py()
            above = max(above, largest or 0)
        return list(range(above + 1, above + 1 + count))

    def _insert(self, raw: Any, table: IbisTable, stored: Mapping[str, Sequence[Any]], *, check: bool) -> None:
        key = table.schema.primary_key
        if check:
            keys = list(zip(*(stored[name] for name in key), strict=True))
            there = self.rows(raw, table, keys, key)
            if there:
                known = ", ".join(f"{name} = {value!r}" for name, value in zip(key, there[0], strict=True))
                raise DuplicateKeyError(f"{self._database.url}: table {table.schema.name!r} has a row with {known}")
        # What a row does not name is NULL, or the default that another program has declared.
        columns = {name: stored[name] for name in table.schema.columns if name in stored}
        self._changes.insert(raw, table.expression(), arrow(table, columns))

    def _upsert(
        self, raw: Any, table: IbisTable, stored: Mapping[str, Sequence[Any]], named: Mapping[str, Sequence[Any]]
    ) -> None:
        key, names = table.schema.primary_key, list(table.schema.columns)
        keys = list(zip(*(stored[name] for name in key), strict=True))
        places = [names.index(name) for name in key]
        there = {tuple(row[at] for at in places): list(row) for row in self.rows(raw, table, keys, names)}
        old = set(there)
        partly = {name for name, values in named.items() if Missing in set(map(type, values))}
        for at, one in enumerate(keys):
            row = there.setdefault(one, [None] * len(names))
            for place, name in enumerate(names):
                if name in stored and (name not in partly or named[name][at] is not MISSING):
                    row[place] = stored[name][at]
        changed = [name for name in stored if name not in key]
        given = dict.fromkeys(keys)
        self.put(raw, table, [tuple(there[one]) for one in given if one not in old])
        if changed:
            self.put(raw, table, [tuple(there[one]) for one in given if one in old], changed)

    def put(self, raw: Any, table: IbisTable, rows: Sequence[Row], changed: Sequence[str] | None = None) -> None:
        """Insert whole rows; with ``changed``, they are there, and get new values in these columns."""
        if not rows:
            return
        data = arrow(table, dict(zip(table.schema.columns, zip(*rows, strict=True), strict=True)))
        if changed is None:
            self._changes.insert(raw, table.expression(), data)
        else:
            self._changes.replace(raw, table.expression(), table.schema.primary_key, data, changed)

    def rows(
        self,
        raw: Any,
        table: IbisTable,
        keys: Sequence[Row],
        names: Sequence[str],
        by: Sequence[str] = (),
    ) -> list[Row]:
        """Return some columns of the rows with these keys (or these values of the columns ``by``), as they are stored."""
        expression, found = table.expression(), []
        by = by or table.schema.primary_key
        for at in range(0, len(keys), LISTED):
            some = expression.filter(listed(expression, by, keys[at : at + LISTED])).select(*names)
            found += fetched(raw, some)
        return found

    # queries

    def _keyed(self, raw: Any, request: WriteRequest) -> IbisTable:
        table = self._catalog.existing(raw, request.table)
        if not table.schema.primary_key:
            raise QueryError(
                f"table {request.table!r} has no primary key: rows that an {request.kind} concerns cannot be told from others"
            )
        return table

    def _concerned(
        self, raw: Any, table: IbisTable, where: ReadQuery | None, outputs: Mapping[str, OutputTable]
    ) -> Any:
        """Return the ibis table of the rows that a condition is true of."""
        expression, key = table.expression(), table.schema.primary_key
        if where is None:
            return expression
        built = where.build(self._catalog.snapshot(raw, where.tables(), outputs))
        built = Built(with_plain_literals(built.expression), built.key)
        if len(built.key) < len(key):
            raise QueryError(
                f"the rows of an update or delete are found by their key ({', '.join(key)}), which the query does not keep"
            )
        found = built.expression.select(
            **{f"w{at}": built.expression[name] for at, name in enumerate(built.key[: len(key)])}
        )
        return expression.semi_join(found, [expression[name] == found[f"w{at}"] for at, name in enumerate(key)])

    def _update(
        self, raw: Any, schema: TableSchema, request: WriteRequest, outputs: Mapping[str, OutputTable]
    ) -> Written:
        check_columns(schema, request.changes)
        if not request.changes:
            raise QueryError(f"an update of {schema.name!r} names no column that is to change")
        for name in request.changes:
            if name in schema.primary_key:
                raise QueryError(
                    f"{name!r} is the primary key of {schema.name!r}, which an update cannot change; delete and insert"
                )
        table = self._catalog.existing(raw, schema.name)
        names, key = list(schema.columns), schema.primary_key
        new = {name: self._change(raw, table, name, change, outputs) for name, change in request.changes.items()}
        places = [names.index(name) for name in key]
        rows, keys = [], []
        for row in fetched(raw, self._concerned(raw, table, request.where, outputs)):
            one = tuple(row[at] for at in places)
            changed = [value if name not in new else new[name](one) for name, value in zip(names, row, strict=True)]
            keys.append(one)
            rows.append(tuple(changed))
        self.put(raw, table, rows, list(request.changes))
        return self._written(table, keys)

    def _change(self, raw: Any, table: IbisTable, name: str, change: Any, outputs: Mapping[str, OutputTable]) -> Any:
        """Return what returns a column's new value, as it is stored, for a row's key."""
        datatype, key = table.schema.columns[name], table.schema.primary_key
        if not callable(getattr(type(change), "build", None)):
            stored = self._values(table).encode_one(datatype, change, f"column {name!r}")
            return lambda _: stored
        catalog = self._catalog.snapshot(raw, change.tables(), outputs)
        expression = with_plain_literals(keyed_value(change.build(catalog).expression, key, "value"))
        value = result_columns(expression, catalog)[-1]
        if not fits(value.datatype, datatype):
            raise DatatypeError(
                f"column {name!r} is {datatype}, and cannot be set to an expression that is {value.datatype}"
            )
        rows = fetched(raw, expression.as_table())
        if len(rows[0]) == 1 if rows else False:
            scalar = rows[0][0]
            return lambda _: scalar
        by_key = {row[:-1]: row[-1] for row in rows}
        return by_key.get

    def _delete(
        self, raw: Any, schema: TableSchema, request: WriteRequest, outputs: Mapping[str, OutputTable]
    ) -> Written:
        table, key = self._catalog.existing(raw, schema.name), schema.primary_key
        keys = fetched(raw, self._concerned(raw, table, request.where, outputs).select(*key))
        if keys:
            self._changes.delete(raw, table.expression(), key, keys)
        return self._written(table, keys)

    def _written(self, table: IbisTable, keys: list[Row]) -> Written:
        return Written(decoded_keys(self._values(table), table.schema, keys))


def decoded_keys(values: IbisValues, schema: TableSchema, keys: list[Row]) -> list[Key]:
    """Return keys as asyncdl has them."""
    key = schema.primary_key
    decode = values.rows([(name, schema.columns[name], False) for name in key])
    decoded = decode(keys) if decode is not None else keys
    return [row[0] for row in decoded] if len(key) == 1 else list(decoded)


def fetched(raw: Any, expression: Any) -> list[Row]:
    """Return all rows of an ibis table."""
    table = raw.to_pyarrow(named(expression))
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def named(expression: Any) -> Any:
    """Return an ibis table such that its SQL names each column: ``SELECT *`` would give others in their place.

    UUIDs become texts, since what ibis makes of ClickHouse's does not go into Arrow.
    """
    columns = [expression[name] for name in expression.columns]
    texts = [each.cast("string") if each.type().is_uuid() else each for each in columns]
    return expression.select(**{f"c{at}": each for at, each in enumerate(texts)})
