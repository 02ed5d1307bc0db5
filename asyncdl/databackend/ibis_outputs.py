"""Listeners' output tables in databases that only ibis knows, on the thread of ibis' connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asyncdl.databackend.ibis_catalog import IbisCatalog, IbisTable
from asyncdl.databackend.ibis_values import IbisValues
from asyncdl.databackend.ibis_writes import LISTED, IbisWriter, fetched
from asyncdl.databackend.sql_expressions import AS_OF, ERROR, POSITION, VALUE
from asyncdl.databackend.tables import Key, Outputs, OutputTable, Row
from asyncdl.drivers.ibis import IbisDatabase
from asyncdl.drivers.ibis_changes import listed
from asyncdl.errors import DatatypeError, QueryError, TableNotFoundError


class IbisOutputs:
    """Writes and reads one output table.

    Parameters
    ----------
    table
        The table; its datatype is known.
    """

    def __init__(
        self, database: IbisDatabase, catalog: IbisCatalog, values: IbisValues, writer: IbisWriter, table: OutputTable
    ) -> None:
        if table.datatype is None:
            raise TableNotFoundError(
                f"the outputs of {table.identifier!r} have no table before the first of them is known"
            )
        clash = {VALUE, AS_OF, ERROR, *([POSITION] if table.flatten else [])} & set(table.key)
        if clash:
            raise QueryError(
                f"the outputs of {table.identifier!r} cannot be keyed by a column {sorted(clash)[0]!r}: rename it"
            )
        self._changes = database.changes
        self._values = values
        self._writer = writer
        self._table = table
        self.stored: IbisTable = catalog.outputs(table)
        self._key = tuple(table.key)
        self._own_key = self.stored.schema.primary_key
        self._roots = self._key[: len(table.root)]

    def expression(self) -> Any:
        """Return the ibis table."""
        return self.stored.expression()

    # writing

    def encode(self, results: Outputs, as_of: int) -> list[Row]:
        """Return the rows of results: key columns, position with ``flatten``, value, ``_as_of``, ``_error``."""
        owners: list[int] = []
        positions: list[int] = []
        elements: list[Any] = []
        for at, value in enumerate(results.values):
            failed = at in results.errors
            if self._table.flatten and not failed and len(value):
                owners += [at] * len(value)
                positions += range(len(value))
                elements += value
            else:
                owners.append(at)
                positions.append(-1)
                elements.append(None if failed or self._table.flatten else value)
        keys = [
            self._encode_key(name, [column[at] for at in owners])
            for name, column in zip(self._key, results.keys, strict=False)
        ]
        assert self._table.datatype is not None  # noqa: S101 - looked at above
        values = self._values.encode(
            self._table.datatype,
            elements,
            lambda at: f"the output of {self._table.identifier!r} for row {results.key(owners[at])!r}",
        )
        errors = [results.errors.get(at) for at in owners]
        own = [positions] if self._table.flatten else []
        return list(zip(*keys, *own, values, [as_of] * len(owners), errors, strict=True)) if owners else []

    def _encode_key(self, name: str, column: Sequence[Any]) -> Sequence[Any]:
        return self._values.encode(self._table.key[name], column, lambda at: f"output {at}, key {name!r}")

    def encode_ids(self, ids: Sequence[Key]) -> list[Row]:
        """Return root ids as rows of what is stored."""
        if not ids:
            return []
        columns = [list(ids)] if len(self._roots) == 1 else [list(column) for column in zip(*ids, strict=True)]
        encoded = [self._encode_key(name, column) for name, column in zip(self._roots, columns, strict=True)]
        return list(zip(*encoded, strict=True))

    def encode_error(self, value: Any) -> Exception | None:
        """Return why a value cannot be stored, None if it can."""
        assert self._table.datatype is not None  # noqa: S101 - looked at above
        try:
            self._values.encode_one(self._table.datatype, value, f"an output of {self._table.identifier!r}")
        except DatatypeError as error:
            return error
        return None

    def put(self, raw: Any, rows: Sequence[Row], as_of: int, replaced: Sequence[Key] | None) -> None:
        """Write encoded rows; what is there with a larger ``_as_of`` stays, a list of elements as a whole."""
        width, roots = len(self._key), len(self._roots)
        gone = set(self.encode_ids(replaced or ()))
        looked = list(gone | {row[:roots] for row in rows})
        there = self._writer.rows(raw, self.stored, looked, (*self._own_key, AS_OF), self._roots)
        newer = {row[:width] for row in there if row[-1] > as_of}
        written = {row[: len(self._own_key)]: row for row in rows if row[:width] not in newer}
        lists = {row[:width] for row in rows} if self._table.flatten else set()
        old = [
            row[:-1]
            for row in there
            if row[-1] <= as_of and row[:-1] not in written and (row[:roots] in gone or row[:width] in lists)
        ]
        if old:
            self._changes.delete(raw, self.expression(), self._own_key, old)
        known = {row[:-1] for row in there}
        self._writer.put(raw, self.stored, [row for one, row in written.items() if one in known], (VALUE, AS_OF, ERROR))
        self._writer.put(raw, self.stored, [row for one, row in written.items() if one not in known])

    def sweep(self, raw: Any, select: Any, key: Sequence[str], ids: Sequence[Key] | None) -> list[Key]:
        """Delete outputs whose row a select does not have; return their root ids."""
        own = self.expression()
        lost: list[Row] = []
        for some in self._restricted(ids):
            same = [some[mine] == select[theirs] for mine, theirs in zip(self._key, key, strict=True)]
            lost += fetched(raw, some.anti_join(select, same).select(*self._own_key))
        if lost:
            self._changes.delete(raw, own, self._own_key, lost)
        return list(dict.fromkeys(self._decoded([row[: len(self._roots)] for row in lost])))

    # reading

    def _restricted(self, ids: Sequence[Key] | None) -> list[Any]:
        """Return ibis tables that together are the outputs of these root rows; None: of all."""
        table = self.expression()
        if ids is None:
            return [table]
        rows = self.encode_ids(ids)
        return [table.filter(listed(table, self._roots, rows[at : at + LISTED])) for at in range(0, len(rows), LISTED)]

    def missing(self, select: Any, key: Sequence[str]) -> Any:
        """Return the rows of a select that have neither output nor error."""
        own = self.expression()
        return select.anti_join(own, [select[theirs] == own[mine] for mine, theirs in zip(self._key, key, strict=True)])

    def current(self, raw: Any, ids: Sequence[Key], as_of: int) -> set[Key]:
        """Return the root ids all of whose rows are of ``as_of`` or later."""
        found: list[Row] = []
        for some in self._restricted(ids):
            oldest = some.group_by(list(self._roots)).aggregate(oldest=some[AS_OF].min())
            found += fetched(raw, oldest.filter(oldest.oldest >= as_of).select(*self._roots))
        return set(self._decoded(found))

    def failed(self, raw: Any, limit: int) -> list[tuple[Key, str]]:
        """Return root ids and errors."""
        own = self.expression()
        wrong = own.filter(own[ERROR].notnull())
        found = wrong.group_by(list(self._roots)).aggregate(error=wrong[ERROR].min())
        rows = fetched(raw, found.order_by(list(self._roots)).limit(limit))
        return list(zip(self._decoded([row[:-1] for row in rows]), [row[-1] for row in rows], strict=True))

    def _decoded(self, rows: list[Row]) -> list[Key]:
        decode = self._values.rows([(name, self._table.key[name], False) for name in self._roots])
        decoded = decode(rows) if decode is not None else rows
        return [row[0] for row in decoded] if len(self._roots) == 1 else list(decoded)
