"""Pixeltable stores where its functions are, and imports them from there: they need a module of their own."""

import pixeltable as pxt
import workload


@pxt.udf
def length(text: str) -> int:
    """Do what the others do."""
    return workload.length(text)
