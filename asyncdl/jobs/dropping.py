"""Dropping output tables that nobody reads any more.

Where rows and records are one database, and tables are dropped in transactions, this is one commit with what makes them
useless. Elsewhere the tables go after that commit, and an intent in it tells others of them, should this process die then. A job
of such a listener that is under way, here or in another process, may make its table again by writing to it: so the intent stays
until no such job writes any more, and the tables are dropped once more. So it does for a while when a process has died, whose
last words a server that is busy may still have before it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from asyncdl.components.registry import ListenerState
from asyncdl.databackend.tables import OutputTable
from asyncdl.errors import ConflictError
from asyncdl.intents import Intents
from asyncdl.jobs.work import Stores
from asyncdl.metadata.base import JobFilter
from asyncdl.metadata.changes import Change, DeleteIntent
from asyncdl.metadata.records import UNFINISHED, ComponentRecord, IntentRecord

_DROPPING = "dropping outputs"
_LOOK = 0.5
"""Seconds from one look at whether jobs still write to the next."""
_LAST_WORDS = 2.0
"""Seconds for which a server may take to do what it was asked by a process that has died."""


async def announce_dropping(intents: Intents, tables: Sequence[OutputTable], **writing: Any) -> DeleteIntent:
    """Announce that output tables are to go, unless a listener has them; return the change that says that it is settled.

    Parameters
    ----------
    writing
        Who may still write to them, as `Dropping` has it; by default nobody.
    """
    return await intents.announce(_DROPPING, tables=[asdict(table) for table in tables], **writing)


class Dropping:
    """Drops output tables together with a commit.

    Parameters
    ----------
    lease
        Seconds after which a job that was cancelled writes no more.
    """

    def __init__(self, stores: Stores, intents: Intents, lease: float) -> None:
        self._stores = stores
        self._intents = intents
        self._lease = lease

    async def drop(
        self, listeners: Sequence[ComponentRecord], commit: Callable[[Any, Sequence[Change]], Awaitable[bool]]
    ) -> None:
        """Commit, and drop the output tables of listeners.

        Parameters
        ----------
        listeners
            Their records, from before the commit that retires or removes them.
        commit
            Commits, with the changes that it is given, and in the transaction unless that is None; returns False if it did not,
            after all, and the tables are to stay.
        """
        tables = [ListenerState.loads(each.state).output for each in listeners]
        if not tables:
            await commit(None, ())
        elif self._atomic:
            async with self._stores.databackend.transaction() as tx:
                for table in tables:
                    await self._stores.databackend.drop_outputs(table, tx)
                await commit(tx, ())
        else:
            writing = await self._writing([each.uuid for each in listeners])
            put, done = self._intents.draft(_DROPPING, tables=[asdict(table) for table in tables], **writing)
            with self._intents.settling(done):
                if not await commit(None, [put]):
                    return
                await self._drop(tables)
                if not await self._is_written(writing):
                    await self._withdraw(done)
                    return
            self._intents.leave(done)

    @property
    def _atomic(self) -> bool:
        """Whether tables are dropped, and made, in one commit with the records."""
        return self._stores.shared and self._stores.databackend.tables_with_rows

    async def recover(self) -> float | None:
        """Drop what processes that died left, unless a listener still has it, and once more what jobs still wrote to.

        Returns
        -------
        float or None
            Seconds after which to look again, as jobs may still write; None if there is nothing of the kind.
        """
        again = None
        for record, details, alive in await self._intents.read(_DROPPING):
            if not alive:
                written = self._is_speaking(record) or await self._is_written(details)
                used = {
                    ListenerState.loads(each.state).output.name
                    for each in await self._stores.metadata.components(type_id="listener")
                    if each.status != "retired"
                }
                tables = [OutputTable(**{**each, "root": tuple(each["root"])}) for each in details["tables"]]
                await self._drop([table for table in tables if table.name not in used])
                if written:
                    again = _LOOK
                else:
                    await self._withdraw(DeleteIntent(record.id))
        return again

    async def _writing(self, listeners: Sequence[str]) -> dict[str, Any]:
        """Return who may write to the outputs of listeners: them, their unfinished jobs, and how long if those are cancelled."""
        find = self._stores.metadata.jobs
        jobs = [job.id for uuid in listeners for job in await find(JobFilter(target=uuid, states=UNFINISHED))]
        until = self._stores.metadata.clock.now() + self._lease
        return {"listeners": list(listeners), "jobs": jobs, "until": until}

    async def _is_written(self, writing: Mapping[str, Any]) -> bool:
        """Return whether jobs may still write: those that run, or were cancelled while they did."""
        find = self._stores.metadata.jobs
        for uuid in writing.get("listeners", ()):
            if await find(JobFilter(target=uuid, states=["running"], limit=1)):
                return True
        cancelled = JobFilter(ids=writing.get("jobs", ()), states=["cancelled"], limit=1)
        return bool(cancelled.ids and self._stores.metadata.clock.now() < writing["until"] and await find(cancelled))

    def _is_speaking(self, record: IntentRecord) -> bool:
        """Return whether the database may still do what a process that has died asked for."""
        died = not self._atomic and not self._intents.is_ours(record)
        return died and self._stores.metadata.clock.now() < record.created + _LAST_WORDS

    async def _drop(self, tables: Sequence[OutputTable]) -> None:
        async with self._stores.databackend.transaction() as tx:
            for table in tables:
                await self._stores.databackend.drop_outputs(table, tx)

    async def _withdraw(self, intent: DeleteIntent) -> None:
        with contextlib.suppress(ConflictError):  # another process was first
            await self._stores.metadata.commit(intent)
