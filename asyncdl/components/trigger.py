"""Triggers: functions called on each change of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from asyncdl.components.component import Component
from asyncdl.errors import InvalidComponentError
from asyncdl.names import check_table

CHANGES = ("insert", "update", "delete")


@dataclass(frozen=True, eq=False)
class Trigger(Component):
    """Has a function called on each change of a table that is made through asyncdl.

    Each change (one ``execute``; of many rows, in parts of 5,000) is a job: the function is called at least once for it, also
    if its process dies; an error is recorded with the job, which is tried again. Changes one after the other may be told at
    the same time, or, when one is tried again, in another order.

    Parameters
    ----------
    object
        A function, or coroutine function, of one argument: the `RowsInserted`, `RowsUpdated` or `RowsDeleted`.
    table
        The table.
    on
        Which changes: some of ``"insert"``, ``"update"`` (upserts, too) and ``"delete"``.
    timeout
        Seconds that a call may take.
    """

    type_id: ClassVar[str] = "trigger"

    object: Any = field(metadata={"blob": True})
    table: str = field(kw_only=True)
    on: Sequence[str] = field(default=CHANGES, kw_only=True)
    timeout: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "on", (self.on,) if isinstance(self.on, str) else tuple(self.on))
        super().__post_init__()

    def check(self) -> None:
        """Raise `InvalidComponentError` when there is nothing to call, or nothing to call it on."""
        check_table(self.table)
        if not callable(self.object):
            raise InvalidComponentError(f"{self}: {self.object!r} is not callable")
        if not self.on or not set(self.on) <= set(CHANGES):
            raise InvalidComponentError(f"{self}: on is {self.on!r}; it may have {', '.join(CHANGES)}")
        if self.timeout is not None and self.timeout <= 0:
            raise InvalidComponentError(f"{self}: timeout must be positive")
