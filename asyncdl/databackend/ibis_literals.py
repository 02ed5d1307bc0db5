"""Literals in queries, in the form in which asyncdl stores values in databases that only ibis knows."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any


def with_plain_literals(expression: Any) -> Any:
    """Return an ibis expression in which instants are in UTC, which every database knows, and UUIDs are texts."""
    import ibis.expr.datatypes as dt  # noqa: PLC0415 - heavy: only where a query is built
    import ibis.expr.operations as ops  # noqa: PLC0415

    def replaced(node: Any, changed: Any) -> Any:
        if isinstance(node, ops.Literal):
            if node.dtype.is_timestamp() and isinstance(node.value, datetime) and node.value.tzinfo is not None:
                return ops.Literal(node.value.astimezone(UTC), dtype=dt.Timestamp(timezone="UTC", scale=6))
            if node.dtype.is_uuid() and node.value is not None:
                return ops.Literal(str(node.value), dtype=dt.string)
        return node.__recreate__(changed) if changed else node

    return expression.op().replace(replaced).to_expr()
