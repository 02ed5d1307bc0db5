"""What the metadata store holds: records of components, events, jobs and intents.

What they mean is decided above it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

JobState = Literal["pending", "running", "paused", "succeeded", "failed", "cancelled", "upstream_failed"]


UNFINISHED: tuple[JobState, ...] = ("pending", "running", "paused")
"""The states of jobs that are still to end."""


GOING_ON: tuple[JobState, ...] = ("pending", "running")
"""The states of those of them that nobody has to resume."""


@dataclass(frozen=True, slots=True)
class ComponentRecord:
    """An installed component.

    Parameters
    ----------
    uuid
        Its name everywhere but in front of users.
    type_id, identifier, version
        Its identity: unique together.
    fingerprint
        Hash of what it declares.
    status
        ``"pending"`` until its set-up work has ended, then ``"ready"`` or ``"failed"``; ``"retired"`` once a newer
        version has taken over.
    data
        JSON of what it declares; children stand in it by uuid, blobs by hash.
    created
        Unix time, in seconds.
    state
        JSON of what is found out while it is in use (a listener's output table, ...).
    """

    uuid: str
    type_id: str
    identifier: str
    version: int
    fingerprint: str
    status: str
    data: str
    created: float
    state: str = "{}"

    @property
    def identity(self) -> dict[str, Any]:
        """What events about the component name: its type, identifier, version and uuid."""
        return {"type_id": self.type_id, "identifier": self.identifier, "version": self.version, "uuid": self.uuid}


@dataclass(frozen=True, slots=True)
class EventRecord:
    """An event as it stands in the log.

    Parameters
    ----------
    seq
        Its place in the total order, from 1. A reader that has seen ``seq`` has seen every smaller one that will ever
        be.
    type
        The event's class name.
    topic
        The table or component that it concerns, for filtering.
    payload
        JSON of its fields.
    created
        Unix time, in seconds.
    first, last
        The range of earlier events that caused it; its own ``seq`` twice, if none did.
    """

    seq: int
    type: str
    topic: str
    payload: str
    created: float
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A unit of work.

    Parameters
    ----------
    id
        Unique, time-ordered.
    kind
        What is done: the planner's word.
    target
        The uuid of the component that it works for.
    payload
        JSON of its arguments.
    state, attempts, max_attempts
        Where it stands.
    priority
        Larger is sooner.
    not_before
        Unix time before which it is not claimed.
    owner, lease
        Who runs it, and the Unix time at which it may be taken over.
    first, last
        The range of events that caused it.
    done, total, stage
        Its progress, as of the last commit; ``total`` may be unknown.
    error
        The traceback of its last failure.
    created, started, finished
        Unix times.
    """

    id: str
    kind: str
    target: str
    payload: str
    first: int
    last: int
    created: float
    state: JobState = "pending"
    attempts: int = 0
    max_attempts: int = 3
    priority: int = 0
    not_before: float = 0.0
    owner: str | None = None
    lease: float = 0.0
    done: int = 0
    total: int | None = None
    stage: str = ""
    error: str | None = None
    started: float | None = None
    finished: float | None = None


@dataclass(frozen=True, slots=True)
class IntentRecord:
    """A write that was announced before it was made, on a databackend that shares no transaction with this store."""

    id: str
    payload: str
    owner: str
    created: float
