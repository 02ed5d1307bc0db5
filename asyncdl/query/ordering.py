"""Ordering rows by columns that a selection has left out, as SQL allows it and ibis by itself does not.

``docs.select("id").order_by(docs.year)`` becomes the selection of the ordered rows, which ibis compiles to the one
``SELECT`` that anybody would write.
"""

from __future__ import annotations

from typing import Any


def ordered_below(rows: Any, keys: list[Any]) -> Any | None:
    """Return a selection's rows in the order of columns below it, None where the rows are no selection."""
    import ibis.expr.operations as ops  # noqa: PLC0415 - heavy: only where a query is built

    selection = rows.op()
    if not isinstance(selection, ops.Project):
        return None
    below = selection.parent.to_expr().order_by(keys).op()
    values = {name: value.replace({selection.parent: below}) for name, value in selection.values.items()}
    return ops.Project(below, values).to_expr()
