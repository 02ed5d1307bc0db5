"""Listeners: models applied to every row of a query, now and later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from asyncdl.components.component import Component
from asyncdl.components.model import Key, Model, columns_of
from asyncdl.databackend.requests import ReadQuery
from asyncdl.errors import InvalidComponentError
from asyncdl.query import QUERIES, MongoQuery

HIGHEST_PRIORITY = 1_000_000


@dataclass(frozen=True, eq=False)
class Listener(Component):
    """Keeps a model's output for each row that a query selects.

    Rows that are there get their outputs after the listener was added; rows that are inserted, updated or deleted later
    are followed. ``docs.outputs("identifier")`` reads the rows with their outputs.

    Parameters
    ----------
    model
        The model.
    key
        The columns that are its input: ``"text"``; ``("x", "y")``, passed as ``model(x, y)``; or
        ``{"left": "x", "right": "y"}``, passed as ``model(left=x, right=y)``. A batch model gets a list of ``x``, of
        tuples ``(x, y)`` or of dicts.
    select
        The rows. It must keep the primary key of its table, and the columns of ``key``; it may go through the outputs of
        other listeners (``docs.outputs("chunks")``).
    flatten
        Whether the model returns a list for each row, whose elements become outputs of their own.
    active
        Whether rows are followed; False: the listener is only declared.
    priority
        Its jobs are begun before those of listeners of a smaller one, whatever their age. Another priority is no new version,
        and counts for the next job that is begun.
    """

    type_id: ClassVar[str] = "listener"

    model: Model = field(kw_only=True)
    key: Key = field(kw_only=True)
    select: ReadQuery = field(kw_only=True)
    flatten: bool = field(default=False, kw_only=True)
    active: bool = field(default=True, kw_only=True)
    priority: int = field(default=0, kw_only=True, metadata={"tuning": True})

    def check(self) -> None:
        """Raise `InvalidComponentError` when model, key and select do not fit together."""
        if not isinstance(self.model, Model):
            raise InvalidComponentError(f"{self}: model is {self.model!r}; it must be a Model")
        if not isinstance(self.select, QUERIES) or (
            isinstance(self.select, MongoQuery) and self.select.gives != "rows"
        ):
            raise InvalidComponentError(f"{self}: select is {self.select!r}; it must be a query, such as db['table']")
        _check_key(self, self.key)
        if type(self.priority) is not int or abs(self.priority) > HIGHEST_PRIORITY:
            raise InvalidComponentError(
                f"{self}: priority is {self.priority!r}; it must be an integer, from {-HIGHEST_PRIORITY} to {HIGHEST_PRIORITY}"
            )
        self.model.check_key(self.key)
        if self.identifier in self.select.listeners():
            raise InvalidComponentError(f"{self} selects its own outputs: a cycle")

    def listeners(self) -> frozenset[str]:
        """Return the identifiers of the listeners whose outputs it reads."""
        return self.select.listeners()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are the model's input."""
        return columns_of(self.key)


def _check_key(listener: Listener, key: Any) -> None:
    fits = isinstance(key, (str, tuple, Mapping))
    columns = columns_of(key) if fits else ()
    if not fits or not columns or not all(isinstance(column, str) and column for column in columns):
        raise InvalidComponentError(
            f"{listener}: key is {key!r}; it must be a column, a tuple of columns, or a dict of parameter to column"
        )
