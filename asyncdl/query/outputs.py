"""Rows joined with the outputs of listeners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asyncdl.databackend.requests import Catalog
from asyncdl.databackend.tables import OutputTable
from asyncdl.errors import QueryError
from asyncdl.query.keys import Identity, Keys
from asyncdl.query.nodes import Node
from asyncdl.query.shown import brief

_HIDDEN = "_asyncdl_key_"


class Joiner:
    """Joins rows of an ibis table with output tables, on the key that identifies both."""

    def __init__(self, catalog: Catalog, keys: Keys, ibis: Any) -> None:
        self._catalog = catalog
        self._keys = keys
        self._ibis = ibis

    def identity(self, rows: Any, node: Node) -> Identity:
        """Return what identifies rows; raises `QueryError` where nothing does."""
        identity = self._keys.of(rows.op())
        if identity is None:
            root = node.root
            key = self._catalog.primary_key(root) if root is not None else ()
            if not key:
                raise QueryError(
                    f"{brief(node)}: the table {root!r} has no primary key, so its rows cannot be identified"
                )
            raise QueryError(
                f"{brief(node)}: nothing identifies these rows any more; keep the key of {root!r} ({', '.join(key)}) as it is "
                f"in what comes before"
            )
        return identity

    def join(self, rows: Any, identifiers: Sequence[str], node: Node) -> Any:
        """Return the rows with each listener's outputs, those that have one of each."""
        for identifier in identifiers:
            rows = self._join(rows, self._catalog.outputs(identifier), node)
        return rows

    def missing(self, rows: Any, identifier: str, node: Node) -> Any:
        """Return the rows that a listener has no output for."""
        output = self._catalog.outputs(identifier)
        columns = self._columns(rows, output, node)
        stored = self._catalog.outputs_table(identifier)
        if stored is None:
            return rows
        done = stored.filter(stored["_error"].isnull())
        done = done.select(**{f"{_HIDDEN}{at}": done[name] for at, name in enumerate(columns)})
        return rows.anti_join(done, self._matches(rows, done, columns))

    def _join(self, rows: Any, output: OutputTable, node: Node) -> Any:
        columns = self._columns(rows, output, node)
        added = [output.identifier, *([output.position] if output.flatten else [])]
        present = list(rows.op().schema)
        for name in added:
            if name in present:
                raise QueryError(
                    f"{brief(node)}: the rows have a column {name!r} already; rename it first: .rename(other={name!r})"
                )
        stored = self._catalog.outputs_table(output.identifier)
        if stored is None:
            return self._none(rows, output, node)
        done = stored.filter(stored["_error"].isnull())
        if output.flatten:
            done = done.filter(done["position"] >= 0)
        taken = {f"{_HIDDEN}{at}": done[name] for at, name in enumerate(columns)}
        taken[output.identifier] = done["value"]
        if output.flatten:
            taken[output.position] = done["position"]
        done = done.select(**taken)
        if output.flatten:
            self._keys.know_positions(done.op(), {output.position: output.position})
        joined = rows.join(done, self._matches(rows, done, columns))
        return joined.select(*present, *added)

    def _matches(self, rows: Any, done: Any, columns: dict[str, str]) -> list[Any]:
        return [rows[here] == done[f"{_HIDDEN}{at}"] for at, here in enumerate(columns.values())]

    def _none(self, rows: Any, output: OutputTable, node: Node) -> Any:
        """Return no rows, with the columns that outputs would have."""
        identity = self.identity(rows, node)
        added = {output.identifier: self._ibis.null("string")}
        if output.flatten:
            added[output.position] = self._ibis.null("int64")
            identity = Identity(identity.table, {**identity.columns, output.position: output.position})
        widened = rows.mutate(**added)
        self._keys.know(widened.op(), identity)
        return widened.filter(self._ibis.literal(False))

    def _columns(self, rows: Any, output: OutputTable, node: Node) -> dict[str, str]:
        """Return the columns of an output table's key, each with the rows' column that it is matched with."""
        identity = self.identity(rows, node)
        if self._catalog.primary_key(identity.table) != output.root:
            raise QueryError(
                f"{brief(node)}: the rows come from {identity.table!r}, whose key is "
                f"({', '.join(self._catalog.primary_key(identity.table))}), and the outputs of {output.identifier!r} belong to "
                f"rows with the key ({', '.join(output.root)})"
            )
        columns: dict[str, str] = {}
        for at, stored in enumerate(output.key):
            name = output.root[at] if at < len(output.root) else stored
            if name not in identity.columns:
                upstream = name.removesuffix("_position")
                raise QueryError(
                    f"{brief(node)}: the outputs of {output.identifier!r} belong to the elements of {upstream!r}; join with "
                    f"those first: .outputs({upstream!r}, {output.identifier!r})"
                )
            columns[stored] = identity.columns[name]
        return columns
