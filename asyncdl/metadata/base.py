"""The metadata store: records, and one way to write them.

The store knows components, events, jobs, cursors and intents only as records; what they mean is decided above it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from asyncdl.errors import ConflictError
from asyncdl.metadata.clock import StoreClock

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


# Changes: what `MetadataStore.commit` takes. Each is a value; one that carries a condition says so.


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


Topic = Literal["anything", "components", "events", "work", "completion", "stops"]
"""What a waiter for commits cares for: any of them; components that came, went, or changed; events; jobs that can be claimed; the
end of something unfinished; jobs that were moved by hand, or whose gate was closed, and, if they run, are to stop."""


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs to list; what is None or empty does not restrict."""

    states: Collection[JobState] = ()
    target: str | None = None
    kind: str | None = None
    covers: int | None = None
    """Jobs whose range of causes holds this event, or one between ``first`` and this."""
    first: int | None = None
    due: float | None = None
    """Jobs that are not held back any longer at this time."""
    ids: Collection[str] = field(default_factory=tuple)
    owner: str | None = None
    limit: int = 1000


class MetadataStore(ABC):
    """Records of components, events, jobs, cursors and intents.

    Note for implementers: events must become visible in the order of their ``seq``. A transaction that got a number and
    commits late would otherwise be stepped over by a reader that has already seen a larger one.
    """

    url: str
    """Where it is, without a password: fit for messages."""

    identity: str
    """32 hexadecimal digits that tell this store from every other, made with its schema; known once it is open.

    Artifacts are kept under it, so that one datalayer's clearing away never meets another's.
    """

    clock: StoreClock
    """What time it is for the store: all times in records are of this clock, and none of a process's own."""

    @abstractmethod
    async def open(self) -> None:
        """Connect; create or migrate the schema; set the clock."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close what `open` opened; closing twice is allowed."""

    @abstractmethod
    def joins(self, databackend: Any) -> bool:
        """Return whether `commit` can take the transactions of this databackend."""

    def elsewhere(self) -> Callable[[Any], MetadataStore] | None:
        """Return what makes this store, not open yet, on such a databackend in another process; None: nothing does.

        It is to be pickled. The store that it makes only commits: it does not notice what others commit.
        """
        return None

    def stamped(self, changes: Sequence[Change]) -> list[Change]:
        """Return changes with the time in those events that have none yet."""
        now = self.clock.now()
        return [
            replace(each, created=now) if isinstance(each, AppendEvent) and not each.created else each
            for each in changes
        ]

    @abstractmethod
    async def commit(self, *changes: Change, joining: Any = None) -> list[EventRecord]:
        """Apply changes, all or none, and return the events among them as they stand in the log.

        Parameters
        ----------
        joining
            A transaction of a databackend that this store `joins`: the changes become part of it, and **it is
            committed**.

        Raises
        ------
        ConflictError
            A condition did not hold; the message says which.
        ComponentInUseError
            The condition of a `DeleteComponent`.
        LeaseLostError
            That of an `AdvanceJob`, `HoldJob` or `FinishJob`.
        """

    @abstractmethod
    async def wait_for_commits(self, seen: int, topic: Topic = "anything") -> int:
        """Wait until something has been committed since the token ``seen`` (0 at first), and return the new token.

        A wake-up may be spurious, and several commits may share one; none is missed. Commits of other processes wake
        too. A token belongs to its topic. Closing the store ends the wait with `ClosedError`.
        """

    @abstractmethod
    def wake(self) -> None:
        """Wake every `wait_for_commits` of this process."""

    # components

    @abstractmethod
    async def components(
        self,
        *,
        type_id: str | None = None,
        identifier: str | None = None,
        version: int | None = None,
        uuids: Collection[str] | None = None,
    ) -> list[ComponentRecord]:
        """Return the records that match all that is given, by type, identifier and version."""

    @abstractmethod
    async def parents(self, uuid: str) -> list[ComponentRecord]:
        """Return the components that refer to this one directly."""

    @abstractmethod
    async def children(self, uuid: str) -> list[ComponentRecord]:
        """Return the components that this one refers to directly."""

    @abstractmethod
    async def artifacts(self, uuid: str | None = None) -> set[str]:
        """Return the hashes that a component refers to; None: that any component does."""

    # events

    @abstractmethod
    async def events(
        self,
        after: int,
        *,
        types: Collection[str] = (),
        topics: Collection[str] = (),
        limit: int = 1000,
        up_to: int | None = None,
    ) -> list[EventRecord]:
        """Return the events with a larger ``seq`` than ``after``, in order."""

    @abstractmethod
    async def last_event(self) -> int:
        """Return the largest ``seq`` that is visible, 0 if there has been none."""

    @abstractmethod
    async def cursor(self, name: str) -> int | None:
        """Return where a named cursor stands."""

    @abstractmethod
    async def cursors(self) -> dict[str, int]:
        """Return where each named cursor stands."""

    @abstractmethod
    async def pending_causes(
        self, cursor: str, types: Collection[str] = (), states: Collection[JobState] = UNFINISHED
    ) -> list[tuple[int, int]]:
        """Return the distinct (first, last) of what is to be done: unfinished jobs, and events that a cursor has not passed.

        Parameters
        ----------
        types
            The types of event that count; none: all.
        states
            The states of jobs that count.
        """

    # jobs and intents

    @abstractmethod
    async def jobs(self, where: JobFilter = JobFilter()) -> list[JobRecord]:
        """Return jobs, oldest first."""

    @abstractmethod
    async def claimable(self, now: float, *, limit: int) -> Sequence[JobRecord]:
        """Return jobs that `ClaimJob` would take now, in the order they should be: by priority, then age."""

    async def claim(self, *claims: ClaimJob) -> set[str]:
        """Begin those of some attempts whose conditions hold, and return their jobs' ids: they do not depend on each other.

        All are of one owner, with one time and one lease. A job that another worker is about to claim may count as claimed by it.

        Note for implementers: this may pass by the turn of the commits, since it appends no event; but one who closes a gate
        must not miss a claim that is under way, and a claim must not miss a gate that is being closed.
        """
        if len(claims) > 1:
            with suppress(ConflictError):
                await self.commit(*claims)
                return {claim.id for claim in claims}
        begun = set()
        for claim in claims:
            with suppress(ConflictError):
                await self.commit(claim)
                begun.add(claim.id)
        return begun

    @abstractmethod
    async def next_due(self, now: float) -> float | None:
        """Return when the next job becomes claimable by the passing of time alone, None if none will.

        Jobs that are claimable ``now`` already do not count: ask `claimable` with the same ``now``, or one may be
        overlooked.
        """

    @abstractmethod
    async def intents(self) -> list[IntentRecord]:
        """Return the announced writes, oldest first."""
