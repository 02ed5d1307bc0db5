"""The words of queries: what may be called, what may not and what to do instead."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

_RUN = "run the query with `await db.execute(query)`; the cursor has to_list, to_pandas, to_arrow and scalar"
_EXPORT = (
    "run the query with `await db.execute(query)` and write what `await cursor.to_pandas()` or `to_arrow()` returns"
)
_CODE = "raw SQL and arbitrary code cannot be stored; write it with the methods of tables and columns"
_INSIDE = "what is inside an expression is known only to the backend; ask `await db.execute(...)` or the table's schema"

DENIED: dict[str, str] = {
    **dict.fromkeys(
        [
            "execute",
            "to_pandas",
            "to_pandas_batches",
            "to_polars",
            "to_pyarrow",
            "to_pyarrow_batches",
            "to_torch",
            "to_list",
        ],
        _RUN,
    ),
    **dict.fromkeys(["preview", "compile", "visualize", "to_sql", "decompile", "verify"], _RUN),
    **dict.fromkeys(
        ["to_csv", "to_delta", "to_json", "to_parquet", "to_parquet_dir", "to_xlsx", "to_geo", "to_file", "to_dict"],
        _EXPORT,
    ),
    **dict.fromkeys(["sql", "alias", "pipe", "udf", "raw_sql", "parse_sql"], _CODE),
    **dict.fromkeys(["op", "get_name", "get_backend", "schema", "bind", "type", "unbind", "resolve"], _INSIDE),
    **dict.fromkeys(["cache", "release"], "asyncdl keeps no cached tables; execute the query where it is needed"),
    **dict.fromkeys(["connect", "memtable", "param"], "a query reads the tables of its own database: db['table']"),
    "case": "use cases((value, result), ..., else_=...) or fn.cases((condition, result), ...)",
    "fillna": "use fill_null",
    "dropna": "use drop_null",
    "projection": "use select",
    "to_array": "use as_scalar",
    "to_unit": "use as_unit",
}
"""Names of methods that a query does not record, each with what to do instead."""

FUNCTIONS: frozenset[str] = frozenset(
    [
        "and_",
        "array",
        "asc",
        "coalesce",
        "cases",
        "cume_dist",
        "cumulative_window",
        "date",
        "dense_rank",
        "desc",
        "difference",
        "cross_join",
        "following",
        "greatest",
        "ifelse",
        "intersect",
        "interval",
        "join",
        "least",
        "literal",
        "map",
        "now",
        "ntile",
        "null",
        "or_",
        "percent_rank",
        "pi",
        "e",
        "preceding",
        "random",
        "range",
        "range_window",
        "rank",
        "row_number",
        "rows_window",
        "struct",
        "time",
        "timestamp",
        "today",
        "trailing_range_window",
        "trailing_window",
        "union",
        "uuid",
        "window",
    ]
)
"""ibis' own functions that `fn` records."""

SELECTORS: frozenset[str] = frozenset(
    [
        "numeric",
        "of_type",
        "startswith",
        "endswith",
        "contains",
        "matches",
        "any_of",
        "all_of",
        "cols",
        "across",
        "if_any",
        "if_all",
        "first",
        "last",
        "all",
        "none",
    ]
)
"""ibis' selectors that `fn.s` records."""

TABLE_FUNCTIONS: frozenset[str] = frozenset(["union", "intersect", "difference", "join", "cross_join"])
"""Those of `FUNCTIONS` that return a table."""

BINARY: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "add": ("+", operator.add),
    "sub": ("-", operator.sub),
    "mul": ("*", operator.mul),
    "truediv": ("/", operator.truediv),
    "floordiv": ("//", operator.floordiv),
    "mod": ("%", operator.mod),
    "pow": ("**", operator.pow),
    "and_": ("&", operator.and_),
    "or_": ("|", operator.or_),
    "xor": ("^", operator.xor),
    "lshift": ("<<", operator.lshift),
    "rshift": (">>", operator.rshift),
    "eq": ("==", operator.eq),
    "ne": ("!=", operator.ne),
    "lt": ("<", operator.lt),
    "le": ("<=", operator.le),
    "gt": (">", operator.gt),
    "ge": (">=", operator.ge),
}
"""Operators of two operands: how each is written, and what does it."""

UNARY: dict[str, tuple[str, Callable[[Any], Any]]] = {"neg": ("-", operator.neg), "invert": ("~", operator.invert)}
"""Operators of one operand."""

VALUE_OF_TABLE: frozenset[str] = frozenset(["count", "nunique", "as_scalar", "rowid"])
"""Methods of a table that return a value."""

TABLE_OF_VALUE: frozenset[str] = frozenset(["as_table", "value_counts", "topk"])
"""Methods of a value that return a table."""

STILL_GROUPED: frozenset[str] = frozenset(["having", "order_by", "over"])
"""Methods of a grouped table that return one."""

OWN_TABLE: frozenset[str] = frozenset(
    [
        "filter",
        "select",
        "mutate",
        "aggregate",
        "agg",
        "order_by",
        "group_by",
        "having",
        "distinct",
        "drop_null",
        "count",
        "nunique",
        "value_counts",
        "topk",
        "head",
        "limit",
    ]
)
"""Methods of a table in whose arguments ``_``, and the parameter of a lambda, can only be the table itself."""

NAMES_COLUMNS: frozenset[str] = frozenset(
    [
        "select",
        "mutate",
        "order_by",
        "drop",
        "group_by",
        "relocate",
        "rename",
        "drop_null",
        "fill_null",
        "cast",
        "try_cast",
        "unnest",
        "distinct",
        "aggregate",
        "agg",
        "value_counts",
        "topk",
        "pivot_longer",
        "pivot_wider",
    ]
)
"""Methods of a table whose arguments may be names of its columns: where to look for a misspelt one after an error."""

CALLS_WITH_TEXT: frozenset[str] = frozenset(["rename", "relocate", "pivot_longer"])
"""Methods that call a function with names: such a function cannot be recorded."""
