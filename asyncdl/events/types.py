"""What happened: one frozen class for each kind of event, each with its documentation as its docstring.

An event carries identifiers and no objects, so that it can be stored, and read by another process, another day. A class
of your own that derives from `Event` can be published and subscribed to as these are.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from asyncdl import codec
from asyncdl.databackend.tables import Key
from asyncdl.metadata.changes import AppendEvent
from asyncdl.metadata.records import EventRecord

_TYPES: dict[str, type[Event]] = {}


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events.

    Attributes
    ----------
    seq
        Its place in the log; 0 before it has been published.
    created
        Unix time, in seconds.
    """

    topic_field: ClassVar[str] = ""
    """The field whose value is the event's topic: by which subscriptions can be narrowed."""
    component_type: ClassVar[str] = ""
    """The type of the component that the topic names; empty where it names none, or the event itself says its type."""

    seq: int = field(default=0, compare=False)
    created: float = field(default=0.0, compare=False)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _TYPES[cls.__name__] = cls

    def change(self, first: int = 0, last: int = 0) -> AppendEvent:
        """Return the change that appends this event to the log."""
        fields = {
            each.name: getattr(self, each.name)
            for each in dataclasses.fields(self)
            if each.name not in {"seq", "created"}
        }
        topic = str(fields.get(self.topic_field, ""))
        payload = codec.dumps(fields).decode()
        return AppendEvent(type(self).__name__, topic, payload, self.created, first, last)

    @classmethod
    def from_record(cls, record: EventRecord) -> Event:
        """Return the event that a record of the log stands for: an `UnknownEvent` if this process has not its class."""
        found = _TYPES.get(record.type)
        if found is None:
            return UnknownEvent(
                seq=record.seq, created=record.created, type=record.type, topic=record.topic, payload=record.payload
            )
        return found._restore(record)

    @classmethod
    def _restore(cls, record: EventRecord) -> Self:
        return cls(seq=record.seq, created=record.created, **codec.loads(record.payload))


@dataclass(frozen=True, kw_only=True)
class UnknownEvent(Event):
    """An event of a class that this process has not imported; another one published it.

    Attributes
    ----------
    type
        The name of its class.
    payload
        JSON of its fields.
    """

    topic_field: ClassVar[str] = "topic"

    type: str
    topic: str
    payload: str


@dataclass(frozen=True, kw_only=True)
class ComponentEvent(Event):
    """Something happened to a component."""

    topic_field: ClassVar[str] = "identifier"

    type_id: str
    identifier: str
    version: int
    uuid: str


@dataclass(frozen=True, kw_only=True)
class ComponentAdded(ComponentEvent):
    """A component, or a new version of one, was installed. Its set-up work follows."""


@dataclass(frozen=True, kw_only=True)
class ComponentReady(ComponentEvent):
    """A component's set-up work has ended: every row that a listener selects has its output, a model is trained, ..."""


@dataclass(frozen=True, kw_only=True)
class ComponentTuned(ComponentEvent):
    """An installed component got another priority or other limits: nothing that changes what comes out."""


@dataclass(frozen=True, kw_only=True)
class ListenerPaused(ComponentEvent):
    """A listener was paused: no job of it begins any more, and those that run end after their batch."""


@dataclass(frozen=True, kw_only=True)
class ListenerResumed(ComponentEvent):
    """A listener was resumed: its jobs go on."""


@dataclass(frozen=True, kw_only=True)
class ComponentRemoved(ComponentEvent):
    """A version of a component was removed, with all that belonged to it."""


@dataclass(frozen=True, kw_only=True)
class RowsEvent(Event):
    """Rows of a table were written through asyncdl.

    Attributes
    ----------
    ids
        Primary keys: scalars, or tuples where the key is composite. One write may be told in several events.
    """

    topic_field: ClassVar[str] = "table"

    table: str
    ids: list[Key]


@dataclass(frozen=True, kw_only=True)
class RowsInserted(RowsEvent):
    """Rows are new."""


@dataclass(frozen=True, kw_only=True)
class RowsUpdated(RowsEvent):
    """Rows were changed, or upserted."""


@dataclass(frozen=True, kw_only=True)
class RowsDeleted(RowsEvent):
    """Rows are gone."""


@dataclass(frozen=True, kw_only=True)
class OutputsWritten(Event):
    """A listener's outputs for some rows are up to date: written, or deleted with their rows.

    Attributes
    ----------
    identifier, uuid
        The listener.
    ids
        The primary keys of the rows in the table that its chain starts from.
    errors
        On how many source rows the model failed.
    """

    topic_field: ClassVar[str] = "identifier"
    component_type: ClassVar[str] = "listener"

    identifier: str
    uuid: str
    ids: list[Key]
    errors: int = 0


@dataclass(frozen=True, kw_only=True)
class JobEvent(Event):
    """Something happened to a job.

    Attributes
    ----------
    target
        The uuid of the component that it works for.
    type_id, identifier
        That component's name; empty where it was removed meanwhile.
    """

    topic_field: ClassVar[str] = "identifier"

    job: str
    kind: str
    target: str
    type_id: str = ""
    identifier: str = ""


@dataclass(frozen=True, kw_only=True)
class JobSucceeded(JobEvent):
    """A job has done its work."""

    done: int


@dataclass(frozen=True, kw_only=True)
class JobFailed(JobEvent):
    """A job's last attempt failed, and it will not be tried again by itself.

    Attributes
    ----------
    error
        The traceback.
    """

    error: str
    attempts: int


@dataclass(frozen=True, kw_only=True)
class JobCancelled(JobEvent):
    """A job was cancelled."""


@dataclass(frozen=True, kw_only=True)
class HandlerFailed(Event):
    """A handler registered with ``db.on`` raised; the event that it was given was not given again.

    Attributes
    ----------
    event
        The ``seq`` of the event.
    """

    topic_field: ClassVar[str] = "handler"

    handler: str
    event: int
    error: str


@dataclass(frozen=True, kw_only=True)
class ScheduleFired(Event):
    """A time of a `Schedule` has come.

    Attributes
    ----------
    identifier, uuid
        The schedule.
    at
        The time, in Unix seconds; of several that passed while no worker ran, the last.
    """

    topic_field: ClassVar[str] = "identifier"
    component_type: ClassVar[str] = "schedule"

    identifier: str
    uuid: str
    at: float


@dataclass(frozen=True, kw_only=True)
class ReconcileRequested(Event):
    """Outputs are to be compared with the rows, and what is missing or left over put right.

    Attributes
    ----------
    identifier
        The listener; empty: all.
    """

    topic_field: ClassVar[str] = "identifier"
    component_type: ClassVar[str] = "listener"

    identifier: str = ""


@dataclass(frozen=True, kw_only=True)
class RecomputeRequested(Event):
    """Rows of a table may have changed, and which is not known: all that derives from it is to be computed again."""

    topic_field: ClassVar[str] = "table"

    table: str


@dataclass(frozen=True, kw_only=True)
class RetryRequested(Event):
    """A listener's model is to be tried again on rows that it failed on.

    Attributes
    ----------
    ids
        The primary keys of the rows in the table that the listener's chain starts from.
    """

    topic_field: ClassVar[str] = "identifier"
    component_type: ClassVar[str] = "listener"

    identifier: str
    ids: list[Key]


@dataclass(frozen=True, kw_only=True)
class EventsTrimmed(Event):
    """The oldest events are being deleted from the log, as the setting ``events_keep`` says.

    Attributes
    ----------
    up_to
        The largest ``seq`` that goes.
    """

    up_to: int


@dataclass(frozen=True, kw_only=True)
class OutputsReplaced(Event):
    """A new version of a listener is complete, and its outputs are read in the place of the older version's.

    Attributes
    ----------
    identifier, uuid
        The new version.
    """

    topic_field: ClassVar[str] = "identifier"
    component_type: ClassVar[str] = "listener"

    identifier: str
    uuid: str


@dataclass(frozen=True, kw_only=True)
class TrainingRequested(Event):
    """A new version of a model is to be installed and trained; ``db.train`` does the same at once.

    Attributes
    ----------
    identifier
        The model.
    """

    topic_field: ClassVar[str] = "identifier"

    identifier: str


@dataclass(frozen=True, kw_only=True)
class ValidationRequested(Event):
    """A model is to be measured.

    Attributes
    ----------
    identifier, uuid
        The model.
    validation
        The uuid of the `Validation`.
    """

    topic_field: ClassVar[str] = "identifier"

    identifier: str
    uuid: str
    validation: str


@dataclass(frozen=True, kw_only=True)
class MetricReported(Event):
    """The training of a model reported metrics; an epoch that was interrupted, and is made again, may be reported again.

    Attributes
    ----------
    identifier, uuid, version
        The model.
    job
        The training.
    done, total
        How far it had come, as it counts itself: epochs, steps.
    metrics
        Name to value.
    """

    topic_field: ClassVar[str] = "identifier"

    identifier: str
    uuid: str
    version: int
    job: str
    done: int
    total: int | None
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class ModelValidated(Event):
    """A model was measured.

    Attributes
    ----------
    identifier, uuid, version
        The model.
    validation
        The identifier of the `Validation`.
    metrics
        Name to value; where there are several datasets, ``"dataset/metric"`` to value.
    """

    topic_field: ClassVar[str] = "identifier"

    identifier: str
    uuid: str
    version: int
    validation: str
    metrics: dict[str, float]
