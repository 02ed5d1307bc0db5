"""What is written to a table, and the forms that rows come in."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from asyncdl.databackend.requests import WriteKind, WriteRequest
from asyncdl.errors import InvalidRowError
from asyncdl.query.arguments import Recorded

if TYPE_CHECKING:
    from asyncdl.query.recorder import Query

_SHOWN = 3


class Write:
    """An insert, upsert, update or delete: ``await db.execute(write)``.

    Made by the methods of a table's `Query`. Immutable; its rows are copies of those it was given.
    """

    __slots__ = ("_changes", "_kind", "_rows", "_table", "_where")

    def __init__(
        self,
        kind: WriteKind,
        table: str,
        *,
        rows: Sequence[dict[str, Any]] = (),
        changes: Mapping[str, Any] | None = None,
        where: Query | None = None,
    ) -> None:
        self._kind = kind
        self._table = table
        self._rows = tuple(rows)
        self._changes = dict(changes or {})
        self._where = where

    @property
    def kind(self) -> WriteKind:
        """What is done."""
        return self._kind

    @property
    def table(self) -> str:
        """Where."""
        return self._table

    def tables(self) -> frozenset[str]:
        """Return the tables that it reads or writes."""
        return self._where_and_changes("tables") | {self._table}

    def listeners(self) -> frozenset[str]:
        """Return the identifiers of the listeners whose outputs its condition and changes read."""
        return self._where_and_changes("listeners")

    def _where_and_changes(self, what: str) -> frozenset[str]:
        queries = [each for each in (self._where, *self._changes.values()) if isinstance(each, Recorded)]
        return frozenset().union(*(getattr(each._node, what) for each in queries))

    def request(self) -> WriteRequest:
        """Return what a databackend is asked to do."""
        return WriteRequest(self._kind, self._table, rows=self._rows, changes=dict(self._changes), where=self._where)

    def __repr__(self) -> str:
        if self._kind in {"insert", "upsert"}:
            return f"{self._table}.{self._kind}({_shown_rows(self._rows)})"
        where = "True" if self._where is None else repr(self._where).removeprefix(f"{self._table}.filter(")[:-1]
        if self._kind == "delete":
            return f"{self._table}.delete(where={where})"
        changes = ", ".join(f"{name!r}: {reprlib.repr(value)}" for name, value in self._changes.items())
        return f"{self._table}.update({{{changes}}}, where={where})"


def _shown_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    if len(rows) > _SHOWN:
        return f"<{len(rows):,} rows>"
    shown = ("{" + ", ".join(f"{name!r}: {reprlib.repr(each)}" for name, each in row.items()) + "}" for row in rows)
    return f"[{', '.join(shown)}]"


def rows_of(rows: Any) -> list[dict[str, Any]]:
    """Return rows as dicts of their own: from a dict, an iterable of dicts, a pandas DataFrame, a pyarrow Table.

    What pandas means by missing (NaN, NaT and NA) becomes None, except NaN in columns of floats. A named index is a column.

    Raises
    ------
    InvalidRowError
        A row is no dict, or a column has a name that is not text.
    """
    pandas, pyarrow = sys.modules.get("pandas"), sys.modules.get("pyarrow")
    if isinstance(rows, Mapping):
        return [_row(rows, 0)]
    if pandas is not None and isinstance(rows, pandas.DataFrame):
        return _rows_of_pandas(rows, pandas)
    if pyarrow is not None and isinstance(rows, (pyarrow.Table, pyarrow.RecordBatch)):
        return _rows_of_arrow(rows)
    if isinstance(rows, AsyncIterable):
        raise InvalidRowError("rows come from an iterable; collect them first: [row async for row in ...]")
    if isinstance(rows, (str, bytes, Recorded)) or not isinstance(rows, Iterable):
        raise InvalidRowError(
            f"rows are a dict, an iterable of dicts, a pandas DataFrame or a pyarrow Table, not {_kind(rows)}"
        )
    return [_row(row, at) for at, row in enumerate(rows)]


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _row(row: Any, at: int) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise InvalidRowError(f"row {at} is a {_kind(row)}; a row is a dict of column to value")
    copy = dict(row)
    _check_columns(copy)
    return copy


def _check_columns(columns: Iterable[Any]) -> list[str]:
    names = list(columns)
    for name in names:
        if not isinstance(name, str) or not name:
            raise InvalidRowError(f"a column is named by text, not by {name!r:.100}")
    if len(set(names)) != len(names):
        raise InvalidRowError(f"several columns have the same name: {', '.join(names)}")
    return names


def _rows_of_pandas(frame: Any, pandas: Any) -> list[dict[str, Any]]:
    if any(name is not None for name in frame.index.names):
        frame = frame.reset_index() if not set(frame.index.names) & set(frame.columns) else frame
    names = _check_columns(frame.columns)
    columns = [_values_of_series(frame.iloc[:, at], pandas) for at in range(len(names))]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _values_of_series(series: Any, pandas: Any) -> list[Any]:
    if series.dtype.kind in "fiub" and not pandas.api.types.is_extension_array_dtype(series.dtype):
        values: list[Any] = series.tolist()
        return values
    missing = series.isna().tolist()
    return [None if gone else _scalar(value) for value, gone in zip(series, missing, strict=True)]


def _scalar(value: Any) -> Any:
    """Return pandas' and numpy's scalars as Python's."""
    module = type(value).__module__
    if module.startswith("pandas"):
        if getattr(value, "nanosecond", 0) or getattr(value, "nanoseconds", 0):
            raise InvalidRowError(
                f"{value!r} has nanoseconds, which databases do not keep; round it first: .round('us')"
            )
        if hasattr(value, "to_pydatetime"):
            return value.to_pydatetime()
        if hasattr(value, "to_pytimedelta"):
            return value.to_pytimedelta()
    if module == "numpy" and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return value.item()
    return value


def _rows_of_arrow(table: Any) -> list[dict[str, Any]]:
    _check_columns(table.schema.names)
    return [{name: _scalar(value) for name, value in row.items()} for row in table.to_pylist()]
