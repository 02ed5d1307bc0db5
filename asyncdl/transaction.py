"""Transactions of the user's: several writes, and the events that tell of them, together or not at all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from asyncdl.databackend.tables import Key
from asyncdl.errors import ClosedError, ConfigurationError, QueryError
from asyncdl.jobs.handle import Follow, Handle
from asyncdl.metadata.changes import Change
from asyncdl.metadata.records import EventRecord
from asyncdl.query import WRITES, AnyWrite
from asyncdl.writer import Writer


class Transaction:
    """What ``async with db.transaction() as tx`` gives: writes that are committed at the end of the block.

    Attributes
    ----------
    handle
        Once it is committed: the work that follows, to be waited for.
    """

    def __init__(self, writer: Writer, inner: Any, follow: Follow) -> None:
        self._writer = writer
        self._inner = inner
        self._follow = follow
        self._changes: list[Change] = []
        self._state = "open"
        self.handle: Handle | None = None

    async def execute(self, query: AnyWrite) -> list[Key]:
        """Write within the transaction; return the primary keys of the rows concerned.

        An error undoes the whole transaction, also if it is caught within the block. Some are raised as late as at its end: a
        key that exists already, a constraint of the database.

        Raises
        ------
        QueryError
            And its kin; also for a reading query: it would not see what the transaction has written.
        """
        if self._state != "open":
            raise ClosedError(f"this transaction is {self._state}")
        if not isinstance(query, WRITES):
            raise QueryError(f"a transaction takes writes, such as db['table'].insert(...), not {query!r}")
        try:
            written, changes = await self._writer.write_in(query.request(), self._inner)
        except BaseException:
            self._state = "undone: a write in it failed"
            raise
        self._changes += changes
        return list(written.ids)

    async def wait(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as a handle's
        """Wait, after the block, until all work that follows has been done."""
        if self.handle is None:
            raise ClosedError(f"this transaction is {self._state}; wait for its work after the block")
        await self.handle.wait(timeout)

    async def finish(self) -> None:
        """Commit."""
        if self._state != "open":
            raise QueryError(f"nothing of this transaction was committed; it is {self._state}")
        self._state = "committed"
        events: list[EventRecord] = await self._writer.commit_in(self._changes, self._inner) if self._changes else []
        first, last = (events[0].seq, events[-1].seq) if events else (0, 0)
        self.handle = Handle(first=first, last=last, follow=self._follow)


@asynccontextmanager
async def transaction(writer: Writer, follow: Follow) -> AsyncIterator[Transaction]:
    """Begin a transaction; at the end of the block it is committed, by an exception rolled back.

    Raises
    ------
    ConfigurationError
        Rows and events are in different databases.
    """
    stores = writer.stores
    if not stores.shared:
        raise ConfigurationError(
            f"rows are in {stores.databackend.url} and events in {stores.metadata.url}: a transaction over both needs them in "
            "one database that has transactions; without `metadata_store`, SQLite, PostgreSQL and MongoDB's replica sets keep "
            "them together"
        )
    async with stores.databackend.transaction() as inner:
        tx = Transaction(writer, inner, follow)
        yield tx
        await tx.finish()
