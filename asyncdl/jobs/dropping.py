"""Dropping output tables that nobody reads any more.

Where rows and records are one database, and tables are dropped in transactions, this is one commit with what makes them
useless. Elsewhere the tables go after that commit, and an intent before it tells others of them, should this process die in
between.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any

from asyncdl.components.registry import ListenerState
from asyncdl.databackend.base import OutputTable
from asyncdl.errors import ConflictError
from asyncdl.intents import Intents
from asyncdl.jobs.work import Stores
from asyncdl.metadata.base import DeleteIntent

_DROPPING = "dropping outputs"


async def announce_dropping(intents: Intents, tables: Sequence[OutputTable]) -> DeleteIntent:
    """Announce that output tables are to go, unless a listener has them; return the change that says that it is settled."""
    return await intents.announce(_DROPPING, tables=[asdict(table) for table in tables])


class Dropping:
    """Drops output tables together with a commit."""

    def __init__(self, stores: Stores, intents: Intents) -> None:
        self._stores = stores
        self._intents = intents

    async def drop(self, tables: Sequence[OutputTable], commit: Callable[[Any], Awaitable[bool]]) -> None:
        """Commit, and drop these tables.

        Parameters
        ----------
        commit
            Commits, in the transaction that it is given unless that is None; returns False if it did not, after all, and the
            tables are to stay.
        """
        if not tables:
            await commit(None)
        elif self._stores.shared and self._stores.databackend.tables_with_rows:
            async with self._stores.databackend.transaction() as tx:
                for table in tables:
                    await self._stores.databackend.drop_outputs(table, tx)
                await commit(tx)
        else:
            intent = await announce_dropping(self._intents, tables)
            with self._intents.settling(intent):
                if await commit(None):
                    await self._drop(tables)
                await self._withdraw(intent)

    async def recover(self) -> None:
        """Drop what processes that died left, unless a listener still has it."""
        for record, details, alive in await self._intents.read(_DROPPING):
            if not alive:
                used = {
                    ListenerState.loads(each.state).output.name
                    for each in await self._stores.metadata.components(type_id="listener")
                    if each.status != "retired"
                }
                tables = [OutputTable(**{**each, "root": tuple(each["root"])}) for each in details["tables"]]
                await self._drop([table for table in tables if table.name not in used])
                await self._withdraw(DeleteIntent(record.id))

    async def _drop(self, tables: Sequence[OutputTable]) -> None:
        async with self._stores.databackend.transaction() as tx:
            for table in tables:
                await self._stores.databackend.drop_outputs(table, tx)

    async def _withdraw(self, intent: DeleteIntent) -> None:
        with contextlib.suppress(ConflictError):  # another process was first
            await self._stores.metadata.commit(intent)
