"""Metrics and validations: how good a model is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from asyncdl.components.component import Component
from asyncdl.components.dataset import Dataset
from asyncdl.errors import InvalidComponentError


@dataclass(frozen=True, eq=False)
class Metric(Component):
    """A number that says how good a model is: ``Metric("accuracy", sklearn.metrics.accuracy_score)``.

    Parameters
    ----------
    object
        ``function(targets, outputs)``: a function, or coroutine function, of two lists of one length.
    kwargs
        Further keyword arguments.
    """

    type_id: ClassVar[str] = "metric"

    object: Any = field(metadata={"blob": True})
    kwargs: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    def check(self) -> None:
        """Raise `InvalidComponentError` when there is nothing to call."""
        if not callable(self.object):
            raise InvalidComponentError(f"{self}: {self.object!r} is not callable")


@dataclass(frozen=True, eq=False)
class Validation(Component):
    """Measures a model on datasets: when a model that declares it is ready, and by ``db.validate``.

    Parameters
    ----------
    datasets
        The `Dataset` components; of one that has folds the fold ``"valid"`` is taken.
    metrics
        The `Metric` components.
    key
        The model's input, as a listener's key, and the column that its output is compared with: ``("x", "y")``,
        ``(("width", "height"), "y")``, ``({"left": "x", "right": "y"}, "sum")``.
    """

    type_id: ClassVar[str] = "validation"

    datasets: Sequence[Dataset] = field(kw_only=True)
    metrics: Sequence[Metric] = field(kw_only=True)
    key: tuple[Any, str] = field(kw_only=True)

    def __post_init__(self) -> None:
        for name, kind in (("datasets", Dataset), ("metrics", Metric)):
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, kind) else tuple(given))
        super().__post_init__()

    def check(self) -> None:
        """Raise `InvalidComponentError` when there is nothing to measure, or on nothing."""
        for name, kind in (("datasets", Dataset), ("metrics", Metric)):
            given = getattr(self, name)
            if not given or not all(isinstance(each, kind) for each in given):
                raise InvalidComponentError(f"{self}: {name} must be {kind.__name__} components, not {given!r}")
            if len({each.identifier for each in given}) < len(given):
                raise InvalidComponentError(f"{self}: of its {name} two have one name")
        if not isinstance(self.key, tuple) or len(self.key) != 2 or not isinstance(self.key[1], str):
            raise InvalidComponentError(
                f"{self}: key is {self.key!r}; it must be the model's input and the column of the target: ('x', 'y')"
            )
