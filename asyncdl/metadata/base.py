"""The metadata store: records, and one way to write them.

The store knows components, events, jobs, cursors and intents only as records; what they mean is decided above it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from asyncdl.errors import ConflictError
from asyncdl.metadata.changes import AppendEvent, Change, ClaimJob
from asyncdl.metadata.clock import StoreClock
from asyncdl.metadata.records import UNFINISHED, ComponentRecord, EventRecord, IntentRecord, JobRecord, JobState

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

    async def known_head(self) -> int:
        """Return a ``seq`` such that all events up to it are visible: those of which `wait_for_commits` has told, at least.

        It may be less than `last_event`, and costs no query where the store is told of numbers.
        """
        return await self.last_event()

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
    async def claimable(self, now: float, *, limit: int, besides: Collection[str] = ()) -> Sequence[JobRecord]:
        """Return jobs that `ClaimJob` would take now, in the order they should be: by priority, then age.

        ``besides``: none of these targets.
        """

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
