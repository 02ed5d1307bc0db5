"""Trainers: how a model learns from rows."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from asyncdl.components.component import Part
from asyncdl.components.dataset import Dataset, check_select
from asyncdl.compute.base import Placement
from asyncdl.databackend.requests import ReadQuery
from asyncdl.errors import InvalidComponentError

Columns = str | tuple[str, ...]
"""One column, whose values are passed as a list; or several, passed as a list of tuples."""
TrainingKey = Columns | tuple[Columns, ...] | Mapping[str, Columns]


@dataclass(frozen=True, eq=False)
class Trainer(Part):
    """How a model is trained: ``Model("classifier", SVC(), trainer=Trainer(select=..., key=("x", "y")))``.

    The model is trained when it is added, and again, as a new version, by ``db.train``.

    Parameters
    ----------
    select
        The rows: a query, or a `Dataset`, of which the fold ``"train"`` is taken.
    key
        What is passed to ``fit``, in this order: ``("x", "y")`` passes the lists of the values of ``x`` and of ``y``;
        ``(("width", "height"), "y")`` passes tuples for the first; ``{"X": "x", "y": "label"}`` passes by keyword; ``"x"``
        passes one.
    fit
        ``fit(model, X, y)``: a function, or coroutine function, that gets the model's object and returns the trained one, or
        changes it and returns None. One with a parameter ``training`` gets a `Training` (a coroutine function an
        `AsyncTraining`), to report its progress and keep checkpoints. Default: the object's own ``fit(X, y)``.
    on
        ``"thread"`` or ``"process"``, for plain functions.
    kwargs
        Further keyword arguments of ``fit``.
    timeout
        Seconds that one attempt may take.
    resources
        What a Dask worker must have free: ``{"GPU": 1}``.
    """

    part_id: ClassVar[str] = "trainer"

    select: ReadQuery | Dataset = field(kw_only=True)
    key: TrainingKey = field(kw_only=True)
    fit: Any = field(default=None, kw_only=True, metadata={"blob": True})
    on: Literal["thread", "process"] = field(default="thread", kw_only=True)
    kwargs: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    timeout: float | None = field(default=None, kw_only=True)
    resources: Mapping[str, float] = field(default_factory=dict, kw_only=True)

    def check(self, model: Any) -> None:
        """Raise `InvalidComponentError` when it cannot train a model that is declared so."""
        if not isinstance(self.select, Dataset):
            check_select(f"{model}'s trainer", self.select)
        if not all(isinstance(name, str) and name for name in self.columns):
            raise InvalidComponentError(
                f"{model}'s trainer: key is {self.key!r}; it must name columns, as in ('x', 'y') or {{'X': 'x', 'y': 'label'}}"
            )
        if self.fit is not None and not callable(self.fit):
            raise InvalidComponentError(f"{model}'s trainer: fit is {self.fit!r}, which is not callable")
        if self.fit is None and not callable(getattr(model.object, "fit", None)):
            raise InvalidComponentError(f"{model}'s object has no fit, and its trainer none either: {model.object!r}")
        if self.on not in {"thread", "process"}:
            raise InvalidComponentError(f"{model}'s trainer: on is {self.on!r}; it can be 'thread' or 'process'")
        if self.timeout is not None and self.timeout <= 0:
            raise InvalidComponentError(f"{model}'s trainer: timeout must be positive")

    @property
    def groups(self) -> tuple[tuple[str | None, Columns], ...]:
        """What is passed to ``fit``: the parameter's name (None: by position) and the columns."""
        if isinstance(self.key, Mapping):
            return tuple(self.key.items())
        each: tuple[Columns, ...] = (self.key,) if isinstance(self.key, str) else tuple(self.key)
        return tuple((None, columns) for columns in each)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads, each once."""
        return columns_in(columns for _, columns in self.groups)

    @property
    def placement(self) -> Placement:
        """Where it runs."""
        return "loop" if is_coroutine_function(self.fit) else self.on

    def listeners(self) -> frozenset[str]:
        """Return the identifiers of the listeners whose outputs it reads."""
        return frozenset() if isinstance(self.select, Dataset) else self.select.listeners()


def columns_in(groups: Any) -> tuple[str, ...]:
    """Return the columns of several groups, each once, in order."""
    return tuple(dict.fromkeys(name for each in groups for name in (each if isinstance(each, tuple) else (each,))))


def is_coroutine_function(function: Any) -> bool:
    """Return whether calling this gives a coroutine."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004
