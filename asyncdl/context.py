"""Context: rows that a model gets beside its input, to answer from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from asyncdl.errors import QueryError
from asyncdl.query import Cursor, DocumentCursor

_MOST = 1000


class Answer(NamedTuple):
    """What `Datalayer.predict` returns where it was given a ``context_select``.

    Parameters
    ----------
    output
        The model's.
    sources
        The rows that it was given.
    """

    output: Any
    sources: list[dict[str, Any]]


async def context_rows(cursor: Any, query: Any) -> list[dict[str, Any]]:
    """Return a query's rows.

    Raises
    ------
    QueryError
        They are none, or more than a model is given.
    """
    if not isinstance(cursor, (Cursor, DocumentCursor)):
        raise QueryError(f"context_select is {query!r}; it must be a query for rows")
    rows: list[dict[str, Any]] = []
    async with cursor:
        async for row in cursor:
            if len(rows) == _MOST:
                raise QueryError(f"the context has more than {_MOST} rows; select fewer, as with .limit(10): {query!r}")
            rows.append(row)
    return rows


def context_values(rows: Sequence[dict[str, Any]], key: str | None) -> list[Any]:
    """Return what the model gets of them: the rows themselves, or one column's values.

    Raises
    ------
    QueryError
        A row has no such column.
    """
    if key is None:
        return list(rows)
    try:
        return [row[key] for row in rows]
    except KeyError:
        raise QueryError(f"context_key is {key!r}, and the rows of context_select have {sorted(rows[0])}") from None
