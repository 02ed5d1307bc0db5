"""An asynchronous, event-driven datalayer between your application, its database and its models.

Names are loaded when they are first used: ``import asyncdl`` itself costs nothing.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncdl.components.application import Application as Application
    from asyncdl.components.component import Component as Component
    from asyncdl.components.dataset import Dataset as Dataset
    from asyncdl.components.datatype import Datatype as Datatype
    from asyncdl.components.listener import Listener as Listener
    from asyncdl.components.model import Model as Model
    from asyncdl.components.schedule import Schedule as Schedule
    from asyncdl.components.table import Table as Table
    from asyncdl.components.training import Trainer as Trainer
    from asyncdl.components.trigger import Trigger as Trigger
    from asyncdl.components.validation import Metric as Metric
    from asyncdl.components.validation import Validation as Validation
    from asyncdl.compute.fitting import AsyncTraining as AsyncTraining
    from asyncdl.compute.fitting import Training as Training
    from asyncdl.connect import connect as connect
    from asyncdl.context import Answer as Answer
    from asyncdl.datalayer import Datalayer as Datalayer
    from asyncdl.events.types import ComponentAdded as ComponentAdded
    from asyncdl.events.types import ComponentReady as ComponentReady
    from asyncdl.events.types import ComponentRemoved as ComponentRemoved
    from asyncdl.events.types import ComponentTuned as ComponentTuned
    from asyncdl.events.types import Event as Event
    from asyncdl.events.types import EventsTrimmed as EventsTrimmed
    from asyncdl.events.types import HandlerFailed as HandlerFailed
    from asyncdl.events.types import JobCancelled as JobCancelled
    from asyncdl.events.types import JobFailed as JobFailed
    from asyncdl.events.types import JobSucceeded as JobSucceeded
    from asyncdl.events.types import ListenerPaused as ListenerPaused
    from asyncdl.events.types import ListenerResumed as ListenerResumed
    from asyncdl.events.types import MetricReported as MetricReported
    from asyncdl.events.types import ModelValidated as ModelValidated
    from asyncdl.events.types import OutputsReplaced as OutputsReplaced
    from asyncdl.events.types import OutputsWritten as OutputsWritten
    from asyncdl.events.types import RecomputeRequested as RecomputeRequested
    from asyncdl.events.types import ReconcileRequested as ReconcileRequested
    from asyncdl.events.types import RetryRequested as RetryRequested
    from asyncdl.events.types import RowsDeleted as RowsDeleted
    from asyncdl.events.types import RowsInserted as RowsInserted
    from asyncdl.events.types import RowsUpdated as RowsUpdated
    from asyncdl.events.types import ScheduleFired as ScheduleFired
    from asyncdl.events.types import TrainingRequested as TrainingRequested
    from asyncdl.events.types import UnknownEvent as UnknownEvent
    from asyncdl.events.types import ValidationRequested as ValidationRequested
    from asyncdl.jobs.handle import Added as Added
    from asyncdl.jobs.handle import Handle as Handle
    from asyncdl.jobs.handle import Progress as Progress
    from asyncdl.jobs.handle import Written as Written
    from asyncdl.planning import AddPlan as AddPlan
    from asyncdl.query import Cursor as Cursor
    from asyncdl.query import Query as Query
    from asyncdl.query import fn as fn
    from asyncdl.settings import Settings as Settings

    CFG: Settings

__version__ = "0.1.0"

_HOMES = {
    "asyncdl.components.application": ["Application"],
    "asyncdl.components.component": ["Component"],
    "asyncdl.components.datatype": ["Datatype"],
    "asyncdl.components.listener": ["Listener"],
    "asyncdl.components.model": ["Model"],
    "asyncdl.components.schedule": ["Schedule"],
    "asyncdl.components.table": ["Table"],
    "asyncdl.components.trigger": ["Trigger"],
    "asyncdl.components.dataset": ["Dataset"],
    "asyncdl.components.training": ["Trainer"],
    "asyncdl.components.validation": ["Metric", "Validation"],
    "asyncdl.compute.fitting": ["AsyncTraining", "Training"],
    "asyncdl.connect": ["connect"],
    "asyncdl.context": ["Answer"],
    "asyncdl.datalayer": ["Datalayer"],
    "asyncdl.events.types": [
        "ComponentAdded",
        "ComponentReady",
        "ComponentRemoved",
        "ComponentTuned",
        "Event",
        "EventsTrimmed",
        "HandlerFailed",
        "JobCancelled",
        "JobFailed",
        "JobSucceeded",
        "ListenerPaused",
        "ListenerResumed",
        "OutputsReplaced",
        "OutputsWritten",
        "RecomputeRequested",
        "ReconcileRequested",
        "RetryRequested",
        "RowsDeleted",
        "RowsInserted",
        "RowsUpdated",
        "ScheduleFired",
        "MetricReported",
        "ModelValidated",
        "TrainingRequested",
        "ValidationRequested",
        "UnknownEvent",
    ],
    "asyncdl.jobs.handle": ["Added", "Handle", "Progress", "Written"],
    "asyncdl.planning": ["AddPlan"],
    "asyncdl.query": ["Cursor", "Query", "fn"],
    "asyncdl.settings": ["Settings"],
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME, "CFG"])  # noqa: PLE0605 - the names above, sorted


def __getattr__(name: str) -> Any:
    if name == "CFG":
        return importlib.import_module("asyncdl.settings").defaults()
    module = _HOME.get(name)
    if module is None:
        raise AttributeError(f"module 'asyncdl' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


class _Package(ModuleType):
    """The package: importing a submodule whose name is a public one (``connect``) leaves the public one in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
