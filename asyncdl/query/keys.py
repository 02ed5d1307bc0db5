"""Which columns of an ibis relation identify its rows.

A relation keeps the key of the table it comes from as long as the key's columns are among its own, unchanged: followed
through ibis' operations, column by column, so that a renamed key is found and a computed column of the same name is not
mistaken for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Identity:
    """What identifies a relation's rows.

    Parameters
    ----------
    table
        The table whose rows they are.
    columns
        The key's own names (the table's primary key, then ``<listener>_position`` for each flattened listener that the
        rows were joined with) and what they are called here.
    """

    table: str
    columns: Mapping[str, str]

    @property
    def key(self) -> tuple[str, ...]:
        """The columns as they are called here."""
        return tuple(self.columns.values())


class Keys:
    """Follows keys through ibis' operations; remembers what it has found."""

    def __init__(self) -> None:
        import ibis.expr.operations as ops  # noqa: PLC0415 - heavy: only where a query is built

        self._ops = ops
        self._same_columns = (ops.Filter, ops.Sort, ops.Limit, ops.FillNull, ops.DropNull, ops.Sample, ops.Distinct)
        self._found: dict[Any, Identity | None] = {}
        self._positions: dict[Any, dict[str, str]] = {}

    def know(self, relation: Any, identity: Identity | None) -> None:
        """Say what identifies a relation's rows."""
        self._found[relation] = identity

    def know_positions(self, relation: Any, positions: Mapping[str, str]) -> None:
        """Say that each row of what this is joined to occurs once for each position here: key name to column."""
        self._positions[relation] = dict(positions)

    def of(self, relation: Any) -> Identity | None:
        """Return what identifies a relation's rows, None where nothing does."""
        stack = [relation]
        while stack:
            each = stack[-1]
            missing = [parent for parent in self._parents(each) if parent not in self._found]
            if each in self._found:
                stack.pop()
            elif missing:
                stack.extend(missing)
            else:
                self._found[stack.pop()] = self._derive(each)
        return self._found[relation]

    def _parents(self, relation: Any) -> list[Any]:
        ops = self._ops
        if isinstance(relation, ops.JoinChain):
            return [relation.first]
        if isinstance(relation, (ops.Intersection, ops.Difference)):
            return [relation.left, relation.right]
        if isinstance(relation, (*self._same_columns, ops.Reference, ops.Project, ops.DropColumns)):
            return [relation.parent]
        return []

    def _derive(self, relation: Any) -> Identity | None:
        ops = self._ops
        parents = [self._found[parent] for parent in self._parents(relation)]
        identity = parents[0] if parents else None
        if identity is None:
            return None
        if isinstance(relation, ops.JoinChain):
            return self._through_join(relation, identity)
        if isinstance(relation, ops.Project):
            return self._through_values(relation, relation.parent, identity)
        if isinstance(relation, ops.DropColumns):
            return None if set(identity.key) & set(relation.columns_to_drop) else identity
        if len(parents) == 2 and (parents[1] is None or parents[1].columns != identity.columns):
            return None
        return identity

    def _through_join(self, chain: Any, identity: Identity) -> Identity | None:
        if any(link.how in {"right", "outer"} for link in chain.rest):
            return None
        found = self._through_values(chain, chain.first, identity)
        for link in chain.rest:
            positions = self._positions.get(link.table.parent)
            if found is not None and positions is not None and link.how == "inner":
                own = self._through_values(chain, link.table, Identity("", positions))
                found = replace(found, columns={**found.columns, **own.columns}) if own else None
        return found

    def _through_values(self, relation: Any, parent: Any, identity: Identity) -> Identity | None:
        """Return the identity where each key column of ``parent`` is a column here; its own name is preferred."""
        ops = self._ops
        if any(value.find(ops.Unnest, filter=ops.Value) for value in relation.values.values()):
            return None
        names: dict[str, list[str]] = {}
        for name, value in relation.values.items():
            if isinstance(value, ops.Field) and value.rel == parent:
                names.setdefault(value.name, []).append(name)
        if not all(column in names for column in identity.columns.values()):
            return None
        columns = {
            key: column if column in names[column] else names[column][0] for key, column in identity.columns.items()
        }
        return replace(identity, columns=columns)
