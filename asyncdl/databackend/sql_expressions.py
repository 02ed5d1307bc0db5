"""What a query's ibis expression says: its columns, their datatypes, where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asyncdl.databackend.sql_dialect import Storage, StoredTable
from asyncdl.databackend.tables import OutputTable
from asyncdl.datatypes import normalize, parse
from asyncdl.errors import ComponentNotFoundError, DatatypeError, QueryError, TableNotFoundError

if TYPE_CHECKING:
    from ibis.expr import operations as ops

AS_OF = "_as_of"
ERROR = "_error"
VALUE = "value"
POSITION = "position"


@dataclass(frozen=True, slots=True)
class ResultColumn:
    """A column of a result.

    Parameters
    ----------
    name
        Its name.
    datatype
        Its datatype.
    computed
        Whether the database makes its values from others; otherwise they are as they were stored.
    """

    name: str
    datatype: str
    computed: bool


def output_columns(table: OutputTable) -> dict[str, str]:
    """Return the columns of an output table, whose datatype is known."""
    assert table.datatype is not None  # noqa: S101 - callers look before
    own = {POSITION: "int64"} if table.flatten else {}
    return {**table.key, **own, VALUE: table.datatype, AS_OF: "int64", ERROR: "string"}


class QueryCatalog:
    """The tables that one query is built over (`asyncdl.databackend.requests.Catalog`).

    Parameters
    ----------
    tables
        What the query names.
    outputs
        Its listeners' output tables, by identifier.
    """

    def __init__(self, dialect: Storage, tables: Mapping[str, StoredTable], outputs: Mapping[str, OutputTable]) -> None:
        self._dialect = dialect
        self._tables = tables
        self._outputs = outputs
        self.datatypes: dict[str, Mapping[str, str]] = {name: each.schema.columns for name, each in tables.items()}
        """The columns of each table that an expression was made for."""

    def table(self, name: str) -> Any:
        """Return an ibis table of this name, bound to no database."""
        if name not in self._tables:
            raise TableNotFoundError(f"there is no table {name!r}")
        return self._expression(name, self._tables[name].schema.columns)

    def primary_key(self, name: str) -> tuple[str, ...]:
        """Return a table's primary key columns."""
        if name not in self._tables:
            raise TableNotFoundError(f"there is no table {name!r}")
        return self._tables[name].schema.primary_key

    def outputs(self, identifier: str) -> OutputTable:
        """Return a listener's output table."""
        found = self._outputs.get(identifier)
        if found is None:
            raise ComponentNotFoundError(f"no listener {identifier!r} is installed")
        return found

    def outputs_table(self, identifier: str) -> Any | None:
        """Return the ibis table of a listener's outputs, None while there is none."""
        found = self.outputs(identifier)
        if found.datatype is None:
            return None
        columns = output_columns(found)
        self.datatypes[found.name] = columns
        return self._expression(found.name, columns)

    def _expression(self, name: str, columns: Mapping[str, str]) -> Any:
        import ibis  # noqa: PLC0415 - heavy: only where a query is built

        return ibis.table({each: self._dialect.dtype(parse(datatype)) for each, datatype in columns.items()}, name=name)


def result_columns(expression: Any, catalog: QueryCatalog) -> list[ResultColumn]:
    """Return the columns that an expression yields: of a column or scalar, one."""
    table = expression.as_table().op()
    return [_Lineage(catalog).column(table, name) for name in table.schema.names]


class _Lineage:
    """Follows columns of an expression to the tables in which they are stored."""

    def __init__(self, catalog: QueryCatalog) -> None:
        import ibis.expr.operations as ops  # noqa: PLC0415 - heavy: only where a query is built

        self._ops = ops
        self._datatypes = catalog.datatypes

    def column(self, relation: ops.Relation, name: str) -> ResultColumn:
        stored = self._of_relation(relation, name)
        if stored is not None:
            return ResultColumn(name, stored, False)
        return ResultColumn(name, datatype_of(relation.schema[name]), True)

    def _of_relation(self, relation: Any, name: str) -> str | None:
        """Return the datatype of a column that is stored somewhere as it is, None for one that is computed."""
        ops = self._ops
        while not isinstance(relation, ops.UnboundTable):
            if isinstance(relation, (ops.Project, ops.JoinChain)):
                return self._of_value(relation.values[name])
            if isinstance(relation, ops.Aggregate):
                return self._of_value({**relation.groups, **relation.metrics}[name])
            if isinstance(relation, ops.Set):
                sides = {self._of_relation(side, name) for side in (relation.left, relation.right)}
                return sides.pop() if len(sides) == 1 else None
            parent = getattr(relation, "parent", None)
            if parent is None or name not in parent.schema:
                return None
            relation = parent
        return self._datatypes.get(relation.name, {}).get(name)

    def _of_value(self, value: Any) -> str | None:
        ops = self._ops
        if isinstance(value, ops.Field):
            return self._of_relation(value.rel, value.name)
        if isinstance(value, (ops.Alias, ops.Arbitrary, ops.First, ops.Last, ops.Lag, ops.Lead, ops.NthValue)):
            return self._of_value(value.arg)
        if isinstance(value, ops.WindowFunction):
            return self._of_value(value.func)
        if isinstance(value, (ops.ArgMin, ops.ArgMax, ops.Min, ops.Max)) and not value.arg.dtype.is_decimal():
            return self._of_value(value.arg)
        if isinstance(value, ops.ScalarSubquery):
            return self._of_relation(value.rel, value.rel.schema.names[0])
        return None


def datatype_of(dtype: Any) -> str:
    """Return the datatype of a column by its type in ibis."""
    try:
        return normalize(str(dtype))
    except DatatypeError:
        return "json" if dtype.is_nested() else "string"


def without_order(expression: Any) -> Any:
    """Return a table expression without the order at its end, which means nothing to a listener."""
    import ibis.expr.operations as ops  # noqa: PLC0415 - heavy: only where a query is built

    op = expression.op()
    while isinstance(op, ops.Sort):
        op = op.parent
    return op.to_expr() if isinstance(op, ops.Relation) else expression


def keyed_value(expression: Any, key: tuple[str, ...], name: str) -> Any:
    """Return the table of a key and one column expression over the same table; the column is called ``name``.

    A scalar, which stands by itself, is returned as it is.
    """
    import ibis.expr.operations as ops  # noqa: PLC0415 - heavy: only where a query is built

    op = expression.op()
    if isinstance(op, ops.Project) and len(op.values) == 1:
        value, parent = next(iter(op.values.values())), op.parent
    elif isinstance(op, ops.Relation):
        raise QueryError("a column can be set to an expression of one column, and this is a table")
    else:
        relations = op.relations
        if op.shape.is_scalar() or len(relations) != 1:
            return expression
        value, parent = op, next(iter(relations))
    table = parent.to_expr()
    return table.select(**{each: table[each] for each in key}, **{name: value.to_expr()})
