"""scikit-learn's estimators (the extra ``sklearn``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np


@dataclass(eq=False)
class Estimator:
    """An estimator or pipeline: ``Model("classifier", Estimator(SVC(), method="predict_proba"))``.

    An estimator can be a model's object as it is; then ``predict`` gets the list of inputs. This one puts them into the form
    that scikit-learn wants, for training as for predictions: numbers, tuples and arrays become rows of a matrix (an image is
    flattened), dicts a dataframe, whose columns a `ColumnTransformer` can name; texts stay a list.

    Parameters
    ----------
    estimator
        The estimator; trained, or to be trained by the model's trainer.
    method
        What gives the outputs: ``"predict"``, ``"predict_proba"`` (a row of probabilities each, in the order of ``classes_``),
        ``"decision_function"``, ``"transform"``.
    """

    estimator: Any
    method: Literal["predict", "predict_proba", "decision_function", "transform"] = field(
        default="predict", kw_only=True
    )

    def predict(self, inputs: Sequence[Any]) -> list[Any]:
        """Return an output for each input: a number or string, or an array."""
        found = getattr(self.estimator, self.method)(matrix(inputs))
        if hasattr(found, "toarray"):  # sparse
            found = found.toarray()
        return list(found) if np.ndim(found) > 1 else list(np.asarray(found).tolist())

    def fit(self, X: Sequence[Any], y: Sequence[Any] | None = None, **kwargs: Any) -> None:  # noqa: N803 - as scikit-learn has it
        """Fit the estimator; ``kwargs`` are its own."""
        self.estimator.fit(matrix(X), *([] if y is None else [np.asarray(y)]), **kwargs)


def matrix(inputs: Sequence[Any]) -> Any:
    """Return inputs as scikit-learn takes them.

    Raises
    ------
    ValueError
        They are of different lengths.
    """
    first = inputs[0] if len(inputs) else None
    if isinstance(first, str):
        return list(inputs)
    if isinstance(first, Mapping):
        import pandas as pd  # noqa: PLC0415 - heavy: only for dicts

        return pd.DataFrame.from_records(list(inputs))
    return np.stack([np.ravel(_values(each)) for each in inputs]) if len(inputs) else np.empty((0, 0))


def _values(each: Any) -> Any:
    """Return a row's values as one array; of a tuple of columns, some of which may be arrays, one after the other."""
    return np.concatenate([np.ravel(part) for part in each]) if isinstance(each, tuple) else each
