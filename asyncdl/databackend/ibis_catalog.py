"""Which tables a database has that only ibis knows: those that asyncdl made, with their datatypes, and those of other programs.

All of it runs on the thread of ibis' connection, which is given to each call.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from asyncdl.databackend.ibis_values import IbisStorage
from asyncdl.databackend.sql_catalog import check_schema
from asyncdl.databackend.sql_dialect import StoredTable
from asyncdl.databackend.sql_expressions import QueryCatalog, datatype_of, output_columns
from asyncdl.databackend.tables import MISSING_KEY, OutputTable, TableSchema
from asyncdl.datatypes import parse
from asyncdl.drivers.ibis import IbisDatabase
from asyncdl.errors import DatatypeError, QueryError, TableNotFoundError

TABLES = "_asyncdl_tables"
_HIDDEN = ("_asyncdl", "_outputs_", "ibis_")
_RECORD = {"name": "string", "columns": "string", "primary_key": "string"}
_FRESH = 5.0
"""Seconds for which what is known of a table is not looked up again."""


@dataclass(frozen=True, slots=True)
class IbisTable:
    """A table as the database has it.

    Parameters
    ----------
    schema
        Its columns and key.
    dtypes
        How ibis is told of its columns.
    own
        Whether asyncdl made it.
    seen
        When it was looked up.
    """

    schema: TableSchema
    dtypes: Mapping[str, str]
    own: bool
    seen: float = field(default_factory=time.monotonic)

    def expression(self) -> Any:
        """Return an ibis table, bound to no database."""
        import ibis  # noqa: PLC0415 - heavy: only where a query is built

        return ibis.table(dict(self.dtypes), name=self.schema.name)


class _BuildCatalog(QueryCatalog):
    """The tables that one query is built over; those of other programs in their own types."""

    def __init__(
        self, storage: IbisStorage, tables: Mapping[str, IbisTable], outputs: Mapping[str, OutputTable]
    ) -> None:
        super().__init__(storage, {name: StoredTable(each.schema, False) for name, each in tables.items()}, outputs)
        self._found = tables

    def table(self, name: str) -> Any:
        """Return an ibis table of this name, bound to no database."""
        return self._found[name].expression() if name in self._found else super().table(name)


class IbisCatalog:
    """Reads, keeps and writes tables' schemas."""

    def __init__(self, database: IbisDatabase, storage: IbisStorage) -> None:
        self._database = database
        self._storage = storage
        self._known: dict[str, IbisTable] = {}

    def names(self, raw: Any) -> list[str]:
        """Return the names of the user's tables, sorted."""
        return sorted(name for name in raw.list_tables() if not name.startswith(_HIDDEN))

    def forget(self) -> None:
        """Look tables up again when they are needed."""
        self._known.clear()

    def table(self, raw: Any, name: str) -> IbisTable | None:
        """Return a table, None if there is none."""
        found = self._known.get(name)
        if found is None or time.monotonic() - found.seen > _FRESH:
            self._known.pop(name, None)
            found = self._load(raw, name) if name in raw.list_tables() else None
            if found is not None:
                self._known[name] = found
        return found

    def existing(self, raw: Any, name: str) -> IbisTable:
        """Return a table; raises `TableNotFoundError`."""
        found = self.table(raw, name)
        if found is None:
            names = self.names(raw)
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there is: {', '.join(names[:20]) or 'nothing'}"
            raise TableNotFoundError(f"{self._database.url} has no table {name!r}; {hint}")
        return found

    def snapshot(
        self,
        raw: Any,
        tables: Collection[str],
        outputs: Mapping[str, OutputTable],
        planned: Mapping[str, TableSchema] | None = None,
    ) -> QueryCatalog:
        """Return what a query over these tables is built on; raises `TableNotFoundError`.

        Parameters
        ----------
        planned
            Tables that are still to be made.
        """
        found = {}
        for name in sorted(tables):
            there = self.table(raw, name) if planned and name in planned else self.existing(raw, name)
            found[name] = there or self.made((planned or {})[name])
        return _BuildCatalog(self._storage, found, outputs)

    def made(self, schema: TableSchema) -> IbisTable:
        """Return a table as asyncdl makes it."""
        return IbisTable(
            schema, {name: self._storage.dtype(parse(datatype)) for name, datatype in schema.columns.items()}, True
        )

    def outputs(self, table: OutputTable) -> IbisTable:
        """Return a listener's output table, whose datatype is known."""
        key = (*table.key, "position") if table.flatten else tuple(table.key)
        return self.made(TableSchema(table.name, output_columns(table), key))

    def _load(self, raw: Any, name: str) -> IbisTable:
        found = raw.table(name).schema()
        recorded = self._recorded(raw, name)
        if recorded is not None:
            return self.made(recorded)
        columns = {each: datatype_of(dtype) for each, dtype in found.items()}
        key = self._database.changes.key(raw, name)
        if key is None:
            key = self._guessed_key(raw, name)
        return IbisTable(TableSchema(name, columns, key), {each: str(dtype) for each, dtype in found.items()}, False)

    def _recorded(self, raw: Any, name: str) -> TableSchema | None:
        if TABLES not in raw.list_tables():
            return None
        records = self._records().expression()
        rows = raw.to_pyarrow(records.filter(records.name == name)).to_pylist()
        if not rows:
            return None
        columns = dict(msgspec.json.decode(rows[0]["columns"]))
        return TableSchema(name, columns, tuple(msgspec.json.decode(rows[0]["primary_key"])))

    def _records(self) -> IbisTable:
        return self.made(TableSchema(TABLES, _RECORD, ("name",)))

    @staticmethod
    def _guessed_key(raw: Any, name: str) -> tuple[str, ...]:
        """Return ``("id",)`` where a table of another program has such a column, all of whose values differ."""
        table = raw.table(name)
        if MISSING_KEY not in table.columns:
            return ()
        ids = table[MISSING_KEY]
        (found,) = raw.to_pyarrow(table.aggregate(rows=table.count(), ids=ids.nunique())).to_pylist()
        return (MISSING_KEY,) if found["rows"] == found["ids"] else ()

    # writing

    def create(self, raw: Any, schema: TableSchema) -> IbisTable:
        """Create a table, if there is none of that name; raises where it cannot be made."""
        check_schema(schema)
        found = self.table(raw, schema.name)
        if found is not None:
            return found
        for other in raw.list_tables():
            if other.lower() == schema.name.lower():
                raise QueryError(f"there is a table {other!r}, which differs from {schema.name!r} in case alone")
        made, records = self.made(schema), self._records()
        if TABLES not in raw.list_tables():
            self._create(raw, records)
        # The record first: where the process dies in between, it is that of a table which is not there, and is replaced.
        self._forget_record(raw, schema.name)
        columns = msgspec.json.encode(list(schema.columns.items())).decode()
        key = msgspec.json.encode(schema.primary_key).decode()
        record = {"name": [schema.name], "columns": [columns], "primary_key": [key]}
        self._database.changes.insert(raw, records.expression(), arrow(records, record))
        self._create(raw, made)
        self._known.pop(schema.name, None)
        return made

    def create_outputs(self, raw: Any, table: OutputTable) -> None:
        """Create a listener's output table, if there is none of that name."""
        if table.name not in raw.list_tables():
            self._create(raw, self.outputs(table), stamp="_as_of")

    def _create(self, raw: Any, table: IbisTable, stamp: str = "") -> None:
        import ibis  # noqa: PLC0415 - loaded when a database is opened

        key = table.schema.primary_key
        dtypes = {name: f"!{dtype}" if name in {*key, stamp} else dtype for name, dtype in table.dtypes.items()}
        self._database.changes.create(raw, table.schema.name, ibis.schema(dtypes), key, stamp)

    def drop(self, raw: Any, name: str) -> None:
        """Drop a table, if there is one."""
        raw.drop_table(name, force=True)
        self._known.pop(name, None)
        self._forget_record(raw, name)

    def _forget_record(self, raw: Any, name: str) -> None:
        if self._recorded(raw, name) is not None:
            self._database.changes.delete(raw, self._records().expression(), ("name",), [(name,)])


def arrow(table: IbisTable, columns: Mapping[str, Any]) -> Any:
    """Return columns of stored values as an Arrow table in the types of an ibis table."""
    import ibis  # noqa: PLC0415 - loaded when a database is opened
    import pyarrow as pa  # noqa: PLC0415

    dtypes = {name: "string" if table.dtypes[name].endswith("uuid") else table.dtypes[name] for name in columns}
    schema = ibis.schema(dtypes).to_pyarrow()
    try:
        return pa.table([pa.array(values, schema.field(name).type) for name, values in columns.items()], schema=schema)
    except (pa.ArrowException, OverflowError) as error:
        raise DatatypeError(f"the rows do not fit {table.schema.name!r}: {error}") from error
