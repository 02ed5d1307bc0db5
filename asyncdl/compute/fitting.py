"""Fitting a model where it runs: in a thread, a process, on an event loop, on a Dask worker."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import cloudpickle

from asyncdl.compute.base import OWN
from asyncdl.compute.links import Link
from asyncdl.errors import ModelError

FITTING = f"{OWN}fitting"
FIT, FIT_ON_LOOP = "asyncdl.compute.fitting:fit", "asyncdl.compute.fitting:fit_on_loop"

_OFTEN = 0.1
"""Seconds between two reports of progress that tell no metrics; those in between are dropped."""


@dataclass(frozen=True)
class Fitting:
    """What is to be fitted, on what.

    Parameters
    ----------
    object, fit
        Pickled; no ``fit``: the object's own.
    arguments
        Parameter (None: by position) and values.
    kwargs
        Further keyword arguments.
    method
        What the fitted object will be called by; empty: itself, or its ``predict``.
    link
        Where progress and checkpoints go.
    """

    object: bytes
    fit: bytes | None
    arguments: Sequence[tuple[str | None, Sequence[Any]]]
    kwargs: Mapping[str, Any]
    method: str
    link: Link


def fit(fitting: Fitting) -> bytes:
    """Return the fitted object, pickled."""
    with fitting.link.opened():
        training = Training(fitting.link)
        training._begun(fitting.link.ask(training._begin()))
        model, function = _loaded(fitting)
        args, kwargs = _arguments(function, model, fitting, training)
        return _pickled(function(*args, **kwargs), model, fitting)


async def fit_on_loop(fitting: Fitting) -> bytes:
    """Return what a coroutine function fitted, pickled."""
    with fitting.link.opened():
        training = AsyncTraining(fitting.link)
        training._begun(await fitting.link.ask_on_loop(training._begin()))
        model, function = await asyncio.to_thread(_loaded, fitting)
        args, kwargs = _arguments(function, model, fitting, training)
        made = await function(*args, **kwargs)
        return await asyncio.to_thread(_pickled, made, model, fitting)


class _Reports:
    """What both ways to report have in common.

    Dask may run a task again while a first run of it still goes on: so each run has a name, and the last that began is heard.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._run = uuid4().hex
        self._checkpoint = b""
        self._reported = 0.0

    @property
    def restored(self) -> Any:
        """The state that was kept last, where this goes on with what was interrupted; None: it is the beginning."""
        return pickle.loads(self._checkpoint) if self._checkpoint else None  # noqa: S301 - as the model is

    def _begin(self) -> dict[str, Any]:
        return {"kind": "begin", "run": self._run}

    def _begun(self, checkpoint: bytes) -> None:
        self._checkpoint = checkpoint

    def _report(self, done: float, total: float | None, metrics: Mapping[str, Any]) -> dict[str, Any] | None:
        now = time.monotonic()
        if not metrics and done != total and now - self._reported < _OFTEN:
            return None
        self._reported = now
        told = {"done": int(done), "total": None if total is None else int(total)}
        values = {name: float(value) for name, value in metrics.items()}
        return {"kind": "report", "run": self._run, **told, "metrics": values}


class Training(_Reports):
    """What a ``fit`` with a parameter ``training`` gets.

    Attributes
    ----------
    restored
        The state that the last `checkpoint` kept, when this attempt goes on with one that was interrupted; else None.
    """

    def report(self, done: float, total: float | None = None, **metrics: float) -> None:
        """Tell how far training has come (epochs, steps), and, if any are given, metrics: each a `MetricReported`.

        Raises
        ------
        JobCancelledError
            The training is to end: it was cancelled. Let it through.
        """
        head = self._report(done, total, metrics)
        if head is not None:
            self._link.ask(head)

    def checkpoint(self, state: Any) -> None:
        """Keep a state, in the place of the one before; it is safe once this returns.

        Raises
        ------
        JobCancelledError
            As `report` does.
        """
        self._link.ask({"kind": "checkpoint", "run": self._run}, cloudpickle.dumps(state, protocol=5))


class AsyncTraining(_Reports):
    """What a coroutine function ``fit`` with a parameter ``training`` gets: a `Training` whose methods are awaited."""

    async def report(self, done: float, total: float | None = None, **metrics: float) -> None:
        """Tell how far training has come, as `Training.report` does."""
        head = self._report(done, total, metrics)
        if head is not None:
            await self._link.ask_on_loop(head)

    async def checkpoint(self, state: Any) -> None:
        """Keep a state, as `Training.checkpoint` does."""
        body = await asyncio.to_thread(cloudpickle.dumps, state, protocol=5)
        await self._link.ask_on_loop({"kind": "checkpoint", "run": self._run}, body)


def _loaded(fitting: Fitting) -> tuple[Any, Any]:
    """Return a model of our own, to be changed, and the function that fits it."""
    model = pickle.loads(fitting.object)  # noqa: S301 - the owner has checked that it may be decoded
    return model, model.fit if fitting.fit is None else pickle.loads(fitting.fit)  # noqa: S301 - as above


def _arguments(function: Any, model: Any, fitting: Fitting, training: _Reports) -> tuple[list[Any], dict[str, Any]]:
    args = [] if fitting.fit is None else [model]
    args += [values for name, values in fitting.arguments if name is None]
    kwargs = {name: values for name, values in fitting.arguments if name is not None} | dict(fitting.kwargs)
    if fitting.fit is not None and "training" in _parameters(function):
        kwargs["training"] = training
    return args, kwargs


def _parameters(function: Any) -> Sequence[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # builtins without a signature
        return ()


def _pickled(made: Any, model: Any, fitting: Fitting) -> bytes:
    trained = model if made is None else made
    called = fitting.method or ("" if callable(trained) else "predict")
    if not callable(getattr(trained, called, None) if called else trained):
        raise ModelError(f"fit returned {trained!r}, which cannot be called, nor has it a method {called!r}")
    data: bytes = cloudpickle.dumps(trained, protocol=5)
    return data
