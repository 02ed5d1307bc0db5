"""Calling a model's function on a batch.

Pure: knows no loop, thread or process, so that a child process and a Dask worker can import it cheaply.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from itertools import islice
from typing import Any

from asyncdl.compute.base import ModelCall, RowError, kinds_of
from asyncdl.errors import ModelError, ModelOutputError

Function = Callable[..., Any]

_OWN = ("asyncdl.compute.", "asyncdl.streaming")
_NO_BATCH = (str, bytes, bytearray, Mapping, Set)


class Stop:
    """A flag between threads: whoever calls a model row by row looks at it before each row."""

    __slots__ = ("requested",)

    def __init__(self) -> None:
        self.requested = False


def target(model: Any, call: ModelCall) -> Function:
    """Return what is called: the model's object, or its method.

    Raises
    ------
    ModelError
        There is no such method, or it cannot be called.
    """
    function: Any = getattr(model, call.method, None) if call.method else model
    if not callable(function):
        what = f"{type(model).__name__}.{call.method}" if call.method else f"a {type(model).__name__}"
        raise ModelError(f"model {call.uuid}: {what} is not callable")
    checked: Function = function
    return checked


def per_input(function: Function, call: ModelCall) -> Function:
    """Return the function of one input, or of one batch of inputs, that the call describes."""
    if call.batch or call.signature == "single":
        return partial(function, **call.kwargs) if call.kwargs else function
    if call.signature == "args":
        return lambda row: function(*row, **call.kwargs)
    return lambda row: function(**row, **call.kwargs)


def run(function: Function, call: ModelCall, inputs: Sequence[Any], stop: Stop) -> list[Any]:
    """Return a plain function's outputs for a batch, a `RowError` for each row that it failed on.

    Whatever the function raises is a row's error: `SystemExit`, `KeyboardInterrupt` and `StopIteration` too. A batch
    function that fails on several rows is called again with each of them alone, so that one bad row is one bad row.
    When a stop is requested the outputs end early.

    Raises
    ------
    ModelOutputError
        A batch function returned something else than one output for each input.
    """
    each = per_input(function, call)
    if not inputs:
        return []
    patient = _retrying(each, call, stop) if call.retries else each
    if not call.batch:
        return _rows(patient, inputs, stop)
    outputs = _batch(each, inputs)
    if not isinstance(outputs, RowError):
        return outputs
    if not call.one_by_one:
        return [outputs] * len(inputs)
    return [outputs] if len(inputs) == 1 and not call.retries else _one_by_one(patient, inputs, stop)


def _retrying(function: Function, call: ModelCall, stop: Stop) -> Function:
    """Return a function that is tried again on the same input, after a pause that doubles."""

    def attempt(row: Any) -> Any:
        for number in range(call.retries):
            try:
                return function(row)
            except Exception as error:  # what it raises last is the row's error
                if stop.requested or not call.retries_after(error):
                    raise
            time.sleep(call.pause(number))
        return function(row)

    return attempt


def _rows(function: Function, inputs: Sequence[Any], stop: Stop) -> list[Any]:
    outputs: list[Any] = []
    append, rows = outputs.append, iter(inputs)
    while True:
        # The loop inside goes at the speed of a list comprehension; only a row that raises pays for the way out and in
        # again, behind it. `map` would take a StopIteration of the function for the end of the rows.
        try:
            for row in rows:
                if stop.requested:
                    return outputs
                append(function(row))
            return outputs
        except BaseException as error:  # also SystemExit and KeyboardInterrupt of the model's own
            append(row_error(error))


def _batch(function: Function, inputs: Sequence[Any]) -> list[Any] | RowError:
    try:
        return outputs_of(function(list(inputs)), len(inputs))
    except ModelOutputError:
        raise
    except BaseException as error:  # as above
        return row_error(error)


def _one_by_one(function: Function, inputs: Sequence[Any], stop: Stop) -> list[Any]:
    outputs: list[Any] = []
    for row in inputs:
        if stop.requested:
            break
        output = _batch(function, [row])
        outputs += [output] if isinstance(output, RowError) else output
    return outputs


def outputs_of(result: Any, expected: int) -> list[Any]:
    """Return what a batch function returned as a list: of a sequence, an array's rows, a generator.

    Raises
    ------
    ModelOutputError
        It is no collection of outputs (a string, a mapping, a set, a dataframe, a scalar), or one of another length.
    """
    # Iterating over a dataframe yields its columns.
    if isinstance(result, _NO_BATCH) or hasattr(result, "columns"):
        raise _no_batch(result, expected)
    try:
        iterator = iter(result)
    except TypeError:
        raise _no_batch(result, expected) from None
    outputs = list(islice(iterator, expected + 1))  # a generator may be endless
    if len(outputs) != expected:
        count = len(result) if hasattr(result, "__len__") else len(outputs)
        returned = (
            f"{count} outputs" if count <= expected or hasattr(result, "__len__") else f"more than {expected} outputs"
        )
        raise ModelOutputError(f"the model returned {returned} for {expected} inputs")
    return outputs


def _no_batch(result: Any, expected: int) -> ModelOutputError:
    kind = type(result).__name__
    return ModelOutputError(
        f"the model returned a {kind} for a batch of {expected} inputs; it must return as many outputs"
    )


def row_error(error: BaseException) -> RowError:
    """Describe an exception; its traceback begins where our frames end."""
    frames = error.__traceback__
    while frames is not None and str(frames.tb_frame.f_globals.get("__name__")).startswith(_OWN):
        frames = frames.tb_next
    try:
        message = str(error)
    except BaseException:  # a model's exception may do anything
        message = "(its message cannot be shown)"
    lines = traceback.TracebackException(type(error), error, frames, compact=True).format()
    return RowError(type(error).__name__, message, "".join(lines), kinds_of(error))
