"""Following what other programs write to the databackend, where it can tell; reconciling now and then where it cannot."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from contextlib import aclosing

from asyncdl import codec
from asyncdl.databackend.base import Following
from asyncdl.databackend.requests import RowChanges
from asyncdl.errors import ConflictError, StoreError
from asyncdl.events.types import RecomputeRequested, ReconcileRequested, RowsDeleted, RowsInserted, RowsUpdated
from asyncdl.jobs.work import Stores
from asyncdl.metadata.changes import Change, DeleteIntent, MoveCursor, PutIntent
from asyncdl.metadata.records import IntentRecord
from asyncdl.together import PATIENCE, raise_if_cancelled

logger = logging.getLogger("asyncdl")

CURSOR = "changes"
_KIND = "following changes"
_IDS_IN_AN_EVENT = 5000
_EVENTS = {"insert": RowsInserted, "update": RowsUpdated, "delete": RowsDeleted}


class Follower:
    """Translates a databackend's changes into events, each once, however many processes there are.

    The position in the changes is a record, and events about them are one commit with its exchange: of two processes one
    gets through. The other waits until the first says nothing for a while.

    Parameters
    ----------
    reconcile_every
        Seconds between two reconcilings; None: where the backend should tell of changes and cannot, every five minutes.
    beat
        Seconds between two signs of life.
    """

    def __init__(self, stores: Stores, *, reconcile_every: float | None, beat: float = 5.0) -> None:
        self._stores = stores
        self._every = reconcile_every
        self._beat = beat

    async def run(self) -> None:
        """Follow until cancelled."""
        backend = self._stores.databackend
        async with asyncio.TaskGroup() as group:
            every = self._every
            if isinstance(backend, Following):
                why_not = backend.why_no_changes()
                if why_not is None:
                    group.create_task(self._follow_always(backend), name="asyncdl: following changes")
                else:
                    every = every or 300.0
                    logger.warning(
                        "%s: rows that other programs write are noticed only by reconciling, every %.0f s",
                        why_not,
                        every,
                    )
            if every is not None:
                group.create_task(self._reconcile(every), name="asyncdl: reconciling")
            await asyncio.Event().wait()

    async def _reconcile(self, every: float) -> None:
        while True:
            await asyncio.sleep(every)
            try:
                if await self._stores.metadata.components(type_id="listener"):
                    await self._stores.metadata.commit(ReconcileRequested().change())
            except StoreError as error:
                raise_if_cancelled()
                logger.warning("rows cannot be compared with outputs for the moment: %s", error)

    async def _follow_always(self, backend: Following) -> None:
        while True:
            try:
                number, token = await self._free()
                await self._follow(backend, number, token)
            except StoreError as error:
                raise_if_cancelled()
                logger.warning("changes cannot be followed for the moment: %s", error)
                await asyncio.sleep(min(1.0, self._beat))

    async def _stored(self) -> tuple[int, str | None, bool]:
        """Return the number of the position, the position, and whether nobody follows from it."""
        number = await self._stores.metadata.cursor(CURSOR) or 0
        for record in await self._stores.metadata.intents():
            if record.id == _name(number):
                details = codec.loads(record.payload)
                return number, details["token"], details["left"]
        return number, None, not number

    async def _free(self) -> tuple[int, str | None]:
        """Wait until no other process follows, and return the position."""
        seen, since = -1, time.monotonic()
        while True:
            number, token, left = await self._stored()
            if number != seen:
                seen, since = number, time.monotonic()
            if left or time.monotonic() - since > 2.5 * self._beat:
                return number, token
            await asyncio.sleep(self._beat / 5)

    async def _follow(self, backend: Following, number: int, token: str | None) -> None:
        told = 0.0
        try:
            async with aclosing(backend.changes(token)) as batches:  # type: ignore[type-var]
                async for batch in batches:
                    events = await self._events(batch)
                    if events or time.monotonic() - told > self._beat:
                        number, token = await self._move(number, batch.token, events), batch.token
                        told = time.monotonic()
        except ConflictError:
            logger.debug("another process follows the changes")
        except asyncio.CancelledError:
            if told:
                with contextlib.suppress(StoreError, TimeoutError):
                    async with asyncio.timeout(PATIENCE):
                        await self._move(number, token, [], left=True)
            raise

    async def _move(self, number: int, token: str | None, events: Sequence[Change], *, left: bool = False) -> int:
        payload = codec.dumps({"kind": _KIND, "token": token, "left": left}).decode()
        record = IntentRecord(_name(number + 1), payload, "", self._stores.metadata.clock.now())
        old = [DeleteIntent(_name(number))] if number else []
        await self._stores.metadata.commit(MoveCursor(CURSOR, number + 1, number), *old, PutIntent(record), *events)
        return number + 1

    async def _events(self, batch: RowChanges) -> list[Change]:
        if not batch.rows and not batch.tables and not batch.lost:
            return []
        listeners = [state for _, state in await self._stores.registry.listeners() if state.active]
        watched = {name for state in listeners for name in state.tables}
        if batch.lost:
            logger.warning("changes of other programs were missed: everything is compared, and computed again")
            tables = [RecomputeRequested(table=name).change() for name in sorted(watched)]
            return [*tables, ReconcileRequested().change()] if watched else []
        found: list[Change] = []
        for table, kind, ids in batch.rows:
            if table in watched:
                found += [
                    _EVENTS[kind](table=table, ids=list(ids[at : at + _IDS_IN_AN_EVENT])).change()
                    for at in range(0, len(ids), _IDS_IN_AN_EVENT)
                ]
        outputs = {state.output.name for state in listeners}
        if (watched | outputs) & set(batch.tables):
            found.append(ReconcileRequested().change())
        return found


def _name(number: int) -> str:
    return f"changes-{number}"
