"""Loading ibis, where that is expected, and in a way that the event loop does not feel later."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cache
from typing import Any


@cache
def load_ibis() -> None:
    """Import ibis and its compiler, once in a process: a third of a second, so call it in a thread.

    What the import made, some 300,000 objects, lives as long as the process. The garbage collector would walk them all in each
    of its full collections, which rows in great number bring about: 65 ms, in which the event loop stands still, once or
    twice for 100,000 rows. So they are put aside (`gc.freeze`), after a collection, such that no garbage is among them.
    """
    import ibis  # noqa: F401, PLC0415 - heavy: loaded when a backend is opened

    gc.collect()
    gc.freeze()


def compile_something(compile_: Callable[[Any], Any]) -> None:
    """Compile a small query, so that the user's first one need not wait for what is loaded then."""
    import ibis  # noqa: PLC0415 - as above

    rows = ibis.table({"id": "int64", "text": "string"}, name="rows")
    compile_(rows.filter(rows.id > 1).select("id").order_by("id"))
    load_ibis()
