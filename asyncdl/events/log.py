"""Subscriptions: cursors on the event log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

from asyncdl.errors import ClosedError, EventsTrimmedError, InvalidIdentifierError
from asyncdl.events.filters import EventFilter
from asyncdl.events.types import Event
from asyncdl.metadata.base import MetadataStore
from asyncdl.metadata.changes import DeleteCursor, MoveCursor
from asyncdl.metadata.records import EventRecord

SUBSCRIBER = "subscriber:"
"""What the cursors of named subscriptions begin with."""
TRIMMED = "events:trimmed"
"""The cursor of the largest ``seq`` that retention has deleted."""

_FIRST_PAGE, _LARGEST_PAGE = 100, 1000
_PAGE_BYTES = 4 * 1024 * 1024
"""What the events of a page may take in the memory, in the text of their fields: some have thousands of ids."""
_SAVE_EVERY = 100
"""Events between two saves of a durable cursor while more are waiting; it is always saved before waiting."""


class Subscription:
    """An asynchronous iterator over events.

    A named subscription is acknowledged: asking for the next event says that the one before has been dealt with. After
    a crash it resumes no later than there, so an event may come again (at least once), always in order.
    """

    def __init__(
        self,
        store: MetadataStore,
        wanted: EventFilter,
        name: str | None,
        position: int,
    ) -> None:
        self._store = store
        self._wanted = wanted
        self._types = wanted.types
        self._name = name
        self._position = position
        """Everything up to here has been dealt with."""
        self._saved = position
        self._head = position
        """Up to here there are events, as far as is known."""
        self._page: Sequence[EventRecord] = []
        self._next = 0
        self._limit = _FIRST_PAGE
        self._closed = False

    @property
    def position(self) -> int:
        """The ``seq`` up to which events have been dealt with."""
        return self._position

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        """Return the next event, waiting for it as long as it takes. Cancelling the wait loses nothing.

        Raises
        ------
        EventsTrimmedError
            Retention has deleted events that were still to be read: only a named subscription holds them.
        """
        if self._closed:
            raise StopAsyncIteration
        if self._next:
            self._position = max(self._position, self._page[self._next - 1].seq)
        if self._next >= len(self._page):
            await self.save()
            await self._fill()
        elif self._position - self._saved >= _SAVE_EVERY:
            await self.save()
        event = Event.from_record(self._page[self._next])
        self._next += 1
        self._position = max(self._position, event.seq - 1)  # what was passed over need not be read again
        return event

    async def _fill(self) -> None:
        """Read the next page; wait for a commit only when there is none."""
        seen, more = 0, False
        while True:
            if self._position >= self._head and not more:
                seen = await self._store.wait_for_commits(seen, "events")
            head, records = self._head, await self._read()
            if not records and self._position >= head:
                self._head = await self._store.known_head()  # once it is read again, there is none for us up to here
                more = False
                continue
            if not records or records[0].seq != self._position + 1:
                await check_kept(self._store, self._position)
            wanted = self._wanted.among(records)
            if wanted:
                self._page, self._next, self._limit = wanted, 0, _next_limit(records)
                return
            # nothing up to here was for us
            last = records[-1].seq if records else 0
            more = len(records) == self._limit
            self._position = last if more else max(head, last)

    async def _read(self) -> Sequence[EventRecord]:
        return await self._store.events(
            self._position, types=self._types, topics=self._wanted.topics, limit=self._limit
        )

    async def save(self) -> None:
        """Store a named subscription's position now."""
        if self._name is not None and self._position != self._saved:
            await self._store.commit(MoveCursor(self._name, self._position))
            self._saved = self._position

    async def aclose(self) -> None:
        """Store the position; the event delivered last counts as not dealt with, unless the next was asked for."""
        if not self._closed:
            self._closed = True
            await self.save()


async def check_kept(store: MetadataStore, since: int) -> None:
    """Raise `EventsTrimmedError` unless the log holds every event after a position."""
    trimmed = await store.cursor(TRIMMED) or 0
    if since < trimmed:
        raise EventsTrimmedError(
            f"events after {since} were asked for, and the log begins with {trimmed + 1}: older ones were deleted, as the "
            f"setting events_keep says; since={trimmed} reads all that there is",
            trimmed + 1,
        )


def _next_limit(page: Sequence[EventRecord]) -> int:
    """Return how many events to ask for after a page: more after a full one, as many as may be in the memory."""
    size = 1 + sum([len(record.payload) for record in page]) // len(page)
    return min(max(10 * len(page), _FIRST_PAGE), _LARGEST_PAGE, max(_PAGE_BYTES // size, 1))


class EventLog:
    """``db.events``: publish and subscribe."""

    def __init__(self, store: MetadataStore) -> None:
        self._store = store
        self._open = True

    @asynccontextmanager
    async def subscribe(
        self,
        *types: type[Event],
        table: str | None = None,
        component: tuple[str, str] | None = None,
        name: str | None = None,
        since: int | None = None,
        topics: Collection[str] = (),
    ) -> AsyncIterator[Subscription]:
        """Subscribe to events of these types (and those derived from them; none: all).

        Parameters
        ----------
        table
            Only events about this table.
        component
            Only events about the component of this type and identifier, ``("listener", "length")``, its jobs' included.
        name
            Makes the subscription durable: it resumes where the last one of this name stopped. Of two at once of one
            name each sees every event.
        since
            Start after this ``seq``: 0 replays the whole log. None: where the named one stopped; otherwise with the
            next event that happens.
        topics
            Only events with these topics: the tables or identifiers that they are about, or what your own events say.

        Raises
        ------
        ConfigurationError
            No event could ever pass.
        EventsTrimmedError
            The log holds no longer what happened after ``since``.
        """
        wanted = EventFilter.of(types, table=table, component=component, topics=topics)
        if not self._open:
            raise ClosedError("the datalayer is closed")
        cursor = None
        if name is not None:
            if not name or len(name) > 100 or not name.isprintable():
                raise InvalidIdentifierError(
                    f"a subscription's name has 1 to 100 printable characters, not {name[:60]!r}"
                )
            cursor = f"{SUBSCRIBER}{name}"
        stored = None if cursor is None else await self._store.cursor(cursor)
        start = stored if since is None else since
        if start is None:
            start = await self._store.last_event()
        await check_kept(self._store, start)
        if cursor is not None and stored != start:
            await self._store.commit(MoveCursor(cursor, start))
        subscription = Subscription(self._store, wanted, cursor, start)
        try:
            yield subscription
        finally:
            await subscription.aclose()

    async def publish(self, event: Event) -> Event:
        """Append an event of your own to the log, and return it as it stands there."""
        [record] = await self._store.commit(event.change())
        return Event.from_record(record)

    async def read(self, since: int | None = None, *types: type[Event], limit: int = 1000) -> list[Event]:
        """Return stored events after a position (None: from the first that is kept), without waiting for more.

        Raises
        ------
        EventsTrimmedError
            The log holds no longer what happened after ``since``.
        """
        wanted = EventFilter.of(types)
        records = await self._store.events(since or 0, types=wanted.types, limit=limit)
        if since is not None:
            await check_kept(self._store, since)
        return [Event.from_record(record) for record in records]

    async def cursors(self) -> dict[str, int]:
        """Return the names of the durable subscriptions, each with the ``seq`` up to which it has dealt with events.

        Each holds the log: events that it has not dealt with are not deleted. `forget` lets one go.
        """
        return {
            name.removeprefix(SUBSCRIBER): seq
            for name, seq in sorted((await self._store.cursors()).items())
            if name.startswith(SUBSCRIBER)
        }

    async def forget(self, name: str) -> None:
        """Forget a durable subscription: the next of this name starts anew, and what it alone held may be deleted."""
        await self._store.commit(DeleteCursor(f"{SUBSCRIBER}{name}"))

    async def changed(self, seen: int) -> int:
        """Wait until something may have been published since the token ``seen`` (0 at first); return the new one."""
        return await self._store.wait_for_commits(seen, "events")

    async def last(self) -> int:
        """Return the ``seq`` of the newest event."""
        return await self._store.last_event()

    async def known_head(self) -> int:
        """Return the ``seq`` of the newest event of which this process knows, without asking where it need not."""
        return await self._store.known_head()

    def close(self) -> None:
        """Refuse new subscriptions."""
        self._open = False

    def __repr__(self) -> str:
        return f"<EventLog of {self._store.url}>"


def describe(handler: Any) -> str:
    """Return how a handler is called in messages."""
    return f"{getattr(handler, '__module__', '?')}.{getattr(handler, '__qualname__', repr(handler))}"
