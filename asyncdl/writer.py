"""Writing rows, such that no write is missed by what follows from it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from asyncdl.databackend.requests import WriteRequest, Written
from asyncdl.databackend.tables import Key, OutputTable
from asyncdl.errors import ConflictError, ConstraintError, DatatypeError, QueryError
from asyncdl.events.types import Event, RecomputeRequested, ReconcileRequested, RowsDeleted, RowsInserted, RowsUpdated
from asyncdl.grouping import GroupedInserts
from asyncdl.intents import Intents
from asyncdl.jobs.work import Stores
from asyncdl.metadata.changes import Change, DeleteIntent
from asyncdl.metadata.records import EventRecord
from asyncdl.query import Query

_IDS_IN_AN_EVENT = 5000
_WRITING = "writing rows"
_REFUSED = (QueryError, DatatypeError, ConstraintError, ConflictError)
_EVENTS: dict[str, type[RowsInserted | RowsUpdated | RowsDeleted]] = {
    "insert": RowsInserted,
    "upsert": RowsUpdated,
    "update": RowsUpdated,
    "delete": RowsDeleted,
}


class Writer:
    """Carries out writes, each with the events that tell of it.

    Where rows and events are in one database they are one commit. Elsewhere an intent goes before the rows and the events
    after them; an intent that was left tells `recover` where to look.
    """

    def __init__(self, stores: Stores, intents: Intents) -> None:
        self.stores = self._stores = stores
        self._intents = intents
        self._inserts = GroupedInserts(self._write, stores.metadata.wake)

    async def write(self, request: Any) -> tuple[Written, list[EventRecord]]:
        """Write; return what was done, and the events: those of small inserts may tell of others' as well."""
        # one that makes the table is by itself: the columns' types come from its rows alone
        if (
            isinstance(request, WriteRequest)
            and self._inserts.takes(request)
            and await self._stores.databackend.schema(request.table) is not None
        ):
            return await self._inserts.write(request)
        return await self._write(request)

    async def aclose(self) -> None:
        """Wait for writes under way whose callers have gone."""
        await self._inserts.aclose()

    async def _write(self, request: Any) -> tuple[Written, list[EventRecord]]:
        outputs = await self._outputs(request)
        if self._stores.shared:
            return await self._stores.databackend.retrying(lambda: self._together(request, outputs))
        return await self._announced(request, outputs)

    async def _together(self, request: Any, outputs: Mapping[str, OutputTable]) -> tuple[Written, list[EventRecord]]:
        async with self._stores.databackend.transaction() as tx:
            written = await self._stores.databackend.write(request, outputs, tx)
            return written, await self._stores.metadata.commit(*_changes(request, written), joining=tx)

    async def _announced(self, request: Any, outputs: Mapping[str, OutputTable]) -> tuple[Written, list[EventRecord]]:
        databackend, metadata = self._stores.databackend, self._stores.metadata
        request, ids = await databackend.prepare(request)
        details = {"write": request.kind, "table": request.table, "ids": ids}
        intent = await self._intents.announce(_WRITING, **details)

        async def attempt() -> Written:
            async with databackend.transaction() as tx:
                return await databackend.write(request, outputs, tx)

        with self._intents.settling(intent):
            try:
                written = await databackend.retrying(attempt)
            except Exception as error:
                await self._failed(intent, details, error)
                raise
            changes = _changes(request, written)
            try:
                return written, await metadata.commit(*changes, intent)
            except ConflictError:  # another process took us for dead; it has told of the write already
                return written, await metadata.commit(*changes)

    async def _failed(self, intent: DeleteIntent, details: Mapping[str, Any], error: Exception) -> None:
        """Settle the intent of a write that failed: refused, there is nothing to tell of; else, of what it may have done.

        A connection that broke may have lost no more than the answer to the commit.
        """
        told = [] if self._stores.databackend.atomic and isinstance(error, _REFUSED) else _told(details)
        with contextlib.suppress(ConflictError):
            await self._stores.metadata.commit(intent, *told)

    async def _outputs(self, request: Any) -> dict[str, OutputTable]:
        outputs: dict[str, OutputTable] = {}
        if isinstance(request, WriteRequest):
            for query in (request.where, *request.changes.values()):
                if isinstance(query, Query):
                    outputs |= await self._stores.registry.outputs_of(query)
        return outputs

    async def write_in(self, request: Any, tx: Any) -> tuple[Written, Sequence[Change]]:
        """Write in a transaction that is under way; return what was done, and the events still to be committed with it."""
        written = await self._stores.databackend.write(request, await self._outputs(request), tx)
        return written, _changes(request, written)

    async def commit_in(self, changes: Sequence[Change], tx: Any) -> list[EventRecord]:
        """Commit a transaction together with the events about it."""
        return await self._stores.metadata.commit(*changes, joining=tx)

    async def settled(self) -> bool:
        """Return whether there is no write of which it is still to be found out what became of it."""
        return self._inserts.settled and all(alive for _, _, alive in await self._intents.read(_WRITING))

    async def recover(self) -> None:
        """Have looked at what processes that died in the middle of a write may have written."""
        for record, details, alive in await self._intents.read(_WRITING):
            if not alive:
                with contextlib.suppress(ConflictError):  # another process was first
                    await self._stores.metadata.commit(DeleteIntent(record.id), *_told(details))


def _told(details: Mapping[str, Any]) -> Sequence[Change]:
    """Return the events that have everything looked at that an announced write may have done."""
    ids = details.get("ids")
    if ids is not None:
        return _events(RowsUpdated, details["table"], ids)
    missing = details["write"] in {"insert", "delete"}  # of which rows and outputs themselves can tell
    event: Event = ReconcileRequested() if missing else RecomputeRequested(table=details["table"])
    return [event.change()]


def _changes(request: Any, written: Written) -> Sequence[Change]:
    done = [(request.kind, written.ids)] if written.done is None else written.done
    return [change for kind, ids in done for change in _events(_EVENTS[kind], request.table, ids)]


def _events(kind: Any, table: str, ids: Sequence[Key]) -> list[Change]:
    return [
        kind(table=table, ids=list(ids[at : at + _IDS_IN_AN_EVENT])).change()
        for at in range(0, len(ids), _IDS_IN_AN_EVENT)
    ]
