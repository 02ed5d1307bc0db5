"""What another process answers for a batch: a pickled ``(kind, value)``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cloudpickle

from asyncdl.compute.calling import row_error

OUTPUTS, FAILED, NO_OUTPUTS = "outputs", "failed", "no outputs"
"""A list of outputs; a `ModelError`'s message; a `ModelOutputError`'s."""


def outputs_reply(outputs: Sequence[Any]) -> bytes:
    """Pickle outputs; one that cannot be pickled is its row's error."""
    try:
        return _dumps((OUTPUTS, outputs))
    except BaseException:  # pickling runs anybody's code
        return _dumps((OUTPUTS, [_sendable(each) for each in outputs]))


def _sendable(output: Any) -> Any:
    try:
        _dumps(output)
    except BaseException as error:  # as above
        return row_error(error)
    return output


def _dumps(value: Any) -> bytes:
    dumped: bytes = cloudpickle.dumps(value)
    return dumped
