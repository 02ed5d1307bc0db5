"""From ibis expressions to SQL, on any of ibis' compilers; heavy to import."""

from __future__ import annotations

from typing import Any

import sqlglot as sg
import sqlglot.expressions as sge


def compile_with(compiler: Any, expression: Any) -> str:
    """Return an ibis expression's SQL, by one of ibis' compilers."""
    select = compiler.to_sqlglot(expression.unbind())
    if isinstance(select, sge.Select) and any(isinstance(each, sge.Star) for each in select.expressions):
        # Columns that other programs have added since are not the query's.
        source = select.args["from_" if "from_" in select.args else "from"].this.alias_or_name  # sqlglot 28 renamed it
        names = expression.as_table().columns
        select = select.select(*(sg.column(name, table=source, quoted=True) for name in names), append=False)
    return str(select.sql(dialect=compiler.dialect))
