"""The one way to write metadata: changes, which a commit makes together, each with the condition on which it holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from asyncdl.metadata.records import ComponentRecord, IntentRecord, JobRecord, JobState


@dataclass(frozen=True, slots=True)
class PutComponent:
    """Install a component.

    Condition: its type, identifier and version are free, and so is its uuid; its children are installed.
    """

    record: ComponentRecord
    children: Collection[str] = ()
    artifacts: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class SetComponentStatus:
    """Change a component's status. Condition: it is installed and, unless None, its status is still ``expected``."""

    uuid: str
    status: str
    expected: str | None = None


@dataclass(frozen=True, slots=True)
class SetComponentState:
    """Replace a component's state. Condition: it is installed and, unless None, its state is still ``expected``."""

    uuid: str
    state: str
    expected: str | None = None


@dataclass(frozen=True, slots=True)
class SetComponentData:
    """Replace what a component declares, by something that changes no output. Condition: it is installed."""

    uuid: str
    data: str


@dataclass(frozen=True, slots=True)
class LinkArtifacts:
    """Have a component refer to further artifacts, and to others no longer. Condition: it is installed.

    What is in both stays referred to; linking what is linked, and unlinking what is not, changes nothing.
    """

    uuid: str
    linked: Collection[str] = ()
    unlinked: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class DeleteComponent:
    """Remove a component with its links downwards. Condition: it is installed, and no other refers to it."""

    uuid: str


@dataclass(frozen=True, slots=True)
class AppendEvent:
    """Append an event. ``first`` and ``last`` are 0 for an event that no other caused."""

    type: str
    topic: str
    payload: str
    created: float
    first: int = 0
    last: int = 0


@dataclass(frozen=True, slots=True)
class PutJob:
    """Add a job. Condition: its id is free."""

    record: JobRecord


@dataclass(frozen=True, slots=True)
class ClaimJob:
    """Begin an attempt. Condition: the job is pending and due, or running with a lease that has run out.

    So it must still be after ``attempts`` attempts, unless that is None: it is as it was when it was read. And the cursor
    ``gate``, should there be one of this name, must not stand below 0.

    In a commit it takes its turn among all commits; `MetadataStore.claim` need not.
    """

    id: str
    owner: str
    now: float
    lease: float
    attempts: int | None = None
    gate: str | None = None


@dataclass(frozen=True, slots=True)
class PrioritizeJobs:
    """Set the priority of jobs, by id; those that are no more are passed over."""

    priorities: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class RenewLeases:
    """Extend the leases of jobs that this owner still holds; others are passed over."""

    ids: Collection[str]
    owner: str
    lease: float


@dataclass(frozen=True, slots=True)
class AdvanceJob:
    """Record progress. Condition: the owner still holds the lease."""

    id: str
    owner: str
    done: int
    total: int | None
    stage: str = ""
    payload: str | None = None


@dataclass(frozen=True, slots=True)
class HoldJob:
    """Change nothing. Condition: the owner still holds the lease."""

    id: str
    owner: str


@dataclass(frozen=True, slots=True)
class FinishJob:
    """End an attempt: in a final state, or back to ``pending``. Condition: the owner still holds the lease."""

    id: str
    owner: str
    state: JobState
    now: float
    error: str | None = None
    not_before: float = 0.0
    refund: bool = False
    """Whether the attempt does not count (a shutdown, a store's outage)."""


@dataclass(frozen=True, slots=True)
class SetJobState:
    """Move a job by hand. Condition: its state is one of ``among``.

    A new ``pending`` starts from no attempts, and waits from ``now`` on.
    """

    id: str
    state: JobState
    among: tuple[JobState, ...]
    now: float
    error: str | None = None


@dataclass(frozen=True, slots=True)
class MoveCursor:
    """Set a named cursor. Condition: unless None, it still stands at ``expected`` (0: it may also be new).

    One below 0 is a closed gate, for `ClaimJob`.
    """

    name: str
    seq: int
    expected: int | None = None


@dataclass(frozen=True, slots=True)
class DeleteCursor:
    """Forget a named cursor."""

    name: str


@dataclass(frozen=True, slots=True)
class PutIntent:
    """Announce a write."""

    record: IntentRecord


@dataclass(frozen=True, slots=True)
class DeleteIntent:
    """Withdraw an announcement. Condition: it is there."""

    id: str


@dataclass(frozen=True, slots=True)
class DeleteEvents:
    """Delete the events up to and including a position; the newest stays, so that `last_event` never goes back."""

    up_to: int


Change = (
    PutComponent
    | SetComponentStatus
    | SetComponentState
    | SetComponentData
    | LinkArtifacts
    | DeleteComponent
    | AppendEvent
    | PutJob
    | ClaimJob
    | PrioritizeJobs
    | RenewLeases
    | AdvanceJob
    | HoldJob
    | FinishJob
    | SetJobState
    | MoveCursor
    | DeleteCursor
    | PutIntent
    | DeleteIntent
    | DeleteEvents
)
