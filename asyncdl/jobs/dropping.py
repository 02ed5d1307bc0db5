"""Dropping output tables that nobody reads any more.

Where rows and records are one database, and tables are dropped in transactions, this is one commit with what makes them
useless. Elsewhere the tables go after that commit, and an intent before it tells others of them, should this process die in
between. A job of such a listener that is under way then, here or in another process, may make its table again by writing to
it: so the intent stays until no such job writes any more, and the tables are dropped once more.
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
from asyncdl.metadata.changes import DeleteIntent
from asyncdl.metadata.records import UNFINISHED, ComponentRecord

_DROPPING = "dropping outputs"
_LOOK = 0.5
"""Seconds from one look at whether jobs still write to the next."""


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

    async def drop(self, listeners: Sequence[ComponentRecord], commit: Callable[[Any], Awaitable[bool]]) -> None:
        """Commit, and drop the output tables of listeners.

        Parameters
        ----------
        listeners
            Their records, from before the commit that retires or removes them.
        commit
            Commits, in the transaction that it is given unless that is None; returns False if it did not, after all, and the
            tables are to stay.
        """
        tables = [ListenerState.loads(each.state).output for each in listeners]
        if not tables:
            await commit(None)
        elif self._stores.shared and self._stores.databackend.tables_with_rows:
            async with self._stores.databackend.transaction() as tx:
                for table in tables:
                    await self._stores.databackend.drop_outputs(table, tx)
                await commit(tx)
        else:
            writing = await self._writing([each.uuid for each in listeners])
            intent = await announce_dropping(self._intents, tables, **writing)
            with self._intents.settling(intent):
                committed = await commit(None)
                if committed:
                    await self._drop(tables)
                if not committed or not await self._is_written(writing):
                    await self._withdraw(intent)
                    return
            self._intents.leave(intent)

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
                written = await self._is_written(details)
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

    async def _drop(self, tables: Sequence[OutputTable]) -> None:
        async with self._stores.databackend.transaction() as tx:
            for table in tables:
                await self._stores.databackend.drop_outputs(table, tx)

    async def _withdraw(self, intent: DeleteIntent) -> None:
        with contextlib.suppress(ConflictError):  # another process was first
            await self._stores.metadata.commit(intent)
