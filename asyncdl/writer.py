"""Writing rows, such that no write is missed by what follows from it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from asyncdl.databackend.base import Key, OutputTable, WriteRequest, Written
from asyncdl.errors import ConflictError
from asyncdl.events.types import Event, RecomputeRequested, ReconcileRequested, RowsDeleted, RowsInserted, RowsUpdated
from asyncdl.grouping import GroupedInserts
from asyncdl.intents import Intents
from asyncdl.jobs.work import Stores
from asyncdl.metadata.base import Change, DeleteIntent, EventRecord
from asyncdl.query import Query

_IDS_IN_AN_EVENT = 5000
_WRITING = "writing rows"
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
        self._inserts = GroupedInserts(self._write)

    async def write(self, request: WriteRequest) -> tuple[list[Key], list[EventRecord]]:
        """Write; return the ids of the rows concerned, and the events: those of small inserts may tell of others' as well."""
        # one that makes the table is by itself: the columns' types come from its rows alone
        if (
            self._stores.databackend.language == "ibis"
            and self._inserts.takes(request)
            and await self._stores.databackend.schema(request.table) is not None
        ):
            return await self._inserts.write(request)
        return await self._write(request)

    async def aclose(self) -> None:
        """Wait for writes under way whose callers have gone."""
        await self._inserts.aclose()

    async def _write(self, request: WriteRequest) -> tuple[list[Key], list[EventRecord]]:
        outputs = await self._outputs(request)
        if self._stores.shared:
            async with self._stores.databackend.transaction() as tx:
                written = await self._stores.databackend.write(request, outputs, tx)
                return written.ids, await self.commit_in(_changes(request, written), tx)
        intent = await self._intents.announce(_WRITING, write=request.kind, table=request.table)
        try:
            try:
                async with self._stores.databackend.transaction() as tx:
                    written = await self._stores.databackend.write(request, outputs, tx)
            except Exception:
                await self._withdraw(intent)  # rolled back: there is nothing to tell
                raise
            changes = _changes(request, written)
            try:
                return written.ids, await self._stores.metadata.commit(*changes, intent)
            except ConflictError:  # another process took us for dead; it has told of the write already
                return written.ids, await self._stores.metadata.commit(*changes)
        finally:
            self._intents.settled(intent)

    async def _outputs(self, request: WriteRequest) -> dict[str, OutputTable]:
        outputs: dict[str, OutputTable] = {}
        for query in (request.where, *request.changes.values()):
            if isinstance(query, Query):
                outputs |= await self._stores.registry.outputs_of(query)
        return outputs

    async def write_in(self, request: WriteRequest, tx: Any) -> tuple[list[Key], Sequence[Change]]:
        """Write in a transaction that is under way; return the ids, and the events still to be committed with it."""
        written = await self._stores.databackend.write(request, await self._outputs(request), tx)
        return written.ids, _changes(request, written)

    async def commit_in(self, changes: Sequence[Change], tx: Any) -> list[EventRecord]:
        """Commit a transaction together with the events about it."""
        return await self._stores.metadata.commit(*changes, joining=tx)

    async def recover(self) -> None:
        """Have looked at what processes that died in the middle of a write may have written."""
        for record, details, alive in await self._intents.read(_WRITING):
            if not alive:
                missing = details["write"] in {"insert", "delete"}  # of which rows and outputs themselves can tell
                event: Event = ReconcileRequested() if missing else RecomputeRequested(table=details["table"])
                with contextlib.suppress(ConflictError):  # another process was first
                    await self._stores.metadata.commit(DeleteIntent(record.id), event.change())

    async def _withdraw(self, intent: DeleteIntent) -> None:
        with contextlib.suppress(ConflictError):
            await self._stores.metadata.commit(intent)


def _changes(request: WriteRequest, written: Written) -> Sequence[Change]:
    kind: Any = _EVENTS[request.kind]
    return [
        kind(table=request.table, ids=written.ids[at : at + _IDS_IN_AN_EVENT]).change()
        for at in range(0, len(written.ids), _IDS_IN_AN_EVENT)
    ]
