"""Delays at random wherever a store, a thread or a model is waited for: so that tasks meet as they seldom do on a quiet machine.

Every one of these delays could happen: what fails or hangs with them is a defect. ``ASYNCDL_DELAYS`` gives the seconds that one
takes at most: ``ASYNCDL_DELAYS=0.03 pytest tests/test_training.py``, again and again, with ``-o timeout=40``.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import random
from abc import ABC
from typing import Any

from asyncdl.artifact_store.base import ArtifactStore
from asyncdl.compute.workers import Worker
from asyncdl.databackend.base import DataBackend
from asyncdl.metadata.base import MetadataStore

_HOLDING_THEM = (
    "artifact_store.filesystem",
    "artifact_store.gridfs",
    "databackend.mongo",
    "databackend.sql",
    "databackend.ibis",
    "metadata.mongo",
    "metadata.sql",
)
_OFTEN = 0.3
_LEFT_ALONE = {"open", "aclose"}


def install(longest: float) -> None:
    """Delay calls of all stores from now on, for ``longest`` seconds at most."""
    for module in _HOLDING_THEM:
        importlib.import_module(f"asyncdl.{module}")
    for role in (ArtifactStore, DataBackend, MetadataStore):
        names = {name for name, member in vars(role).items() if inspect.iscoroutinefunction(member)} - _LEFT_ALONE
        for store in _below(role):
            for name in names & vars(store).keys():
                setattr(store, name, _delayed(vars(store)[name], longest))
    asyncio.to_thread = _delayed(asyncio.to_thread, longest)
    Worker.run = _delayed(Worker.run, longest)  # type: ignore[method-assign]


def _below(role: type[ABC]) -> set[type[ABC]]:
    found = set(role.__subclasses__())
    return found | {each for store in found for each in _below(store)}


def _delayed(function: Any, longest: float) -> Any:
    @functools.wraps(function)
    async def delayed(*args: Any, **kwargs: Any) -> Any:
        await _delay(longest)
        try:
            return await function(*args, **kwargs)
        finally:
            await _delay(longest)

    return delayed


async def _delay(longest: float) -> None:
    if random.random() < _OFTEN:
        await asyncio.sleep(random.random() * longest)
