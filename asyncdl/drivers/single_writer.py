"""Databases in this process with one connection for writing, on a thread of its own: transactions take turns on it."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

from asyncdl.drivers.sql import Outcome, SQLDatabase, SQLTransaction, Statement

T = TypeVar("T")


class SingleWriterTransaction(SQLTransaction):
    """A transaction on the one writing connection; an error in it rolls it back at once."""

    database: SingleWriterDatabase

    def __init__(self, database: SingleWriterDatabase) -> None:
        super().__init__(database)
        self.settled = True
        """Whether the connection's thread is known to be out of this transaction: not so after a cancelled hop."""

    @abstractmethod
    def _run_all(
        self, raw: Any, deferred: Sequence[Statement], statements: Sequence[Statement], commit: bool
    ) -> list[Outcome]:
        """Run statements on the connection's own thread, beginning and ending the transaction as needed.

        What fails is rolled back.
        """

    @abstractmethod
    def _roll_back(self, raw: Any) -> None:
        """Roll back what has begun, on the connection's own thread."""

    async def _hop(self, statements: Sequence[Statement], *, commit: bool) -> list[Outcome]:
        self._check()
        deferred, self._deferred = self._deferred, []
        self._finished, self.settled = commit, False
        try:
            outcomes = await self.database.call_writer(lambda raw: self._run_all(raw, deferred, statements, commit))
        except Exception:
            self._finished = self.settled = True  # `_run_all` has rolled back
            raise
        except asyncio.CancelledError:
            self._finished = True
            raise
        self.settled = commit
        return outcomes

    @property
    def pending(self) -> bool:
        """Whether deferred statements wait for a commit."""
        return bool(self._deferred) and not self._finished

    async def end(self, *, commit: bool) -> None:
        """Commit or roll back what is still open."""
        if commit and not self._finished:
            await self.commit()
        elif not self.settled:
            await self.database.call_writer(self._roll_back)
        self._finished = self.settled = True


class SingleWriterDatabase(SQLDatabase):
    """A database with one connection for writing."""

    def _make_room(self) -> None:
        self._turn = asyncio.Lock()

    @abstractmethod
    async def call_writer(self, function: Callable[[Any], T]) -> T:
        """Run a function on the writing connection's thread; only a transaction, which has the turn, may."""

    @abstractmethod
    def _begin(self) -> SingleWriterTransaction:
        """Return a transaction, of whoever has the turn."""

    def _quiet(self) -> AbstractAsyncContextManager[object]:
        return self._turn

    async def _take_turn(self) -> None:
        await self._turn.acquire()

    def _pass_turn(self) -> None:
        self._turn.release()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[SingleWriterTransaction]:
        """Wait for the turn to write, and begin; committed at the end of the block, rolled back by an exception."""
        self._opened()
        await self._take_turn()
        tx = self._begin()
        try:
            yield tx
        except BaseException:
            await self._end(tx, commit=False)
            raise
        else:
            await self._end(tx, commit=True)

    async def _end(self, tx: SingleWriterTransaction, *, commit: bool) -> None:
        """End a transaction and pass the turn on; a cancelled caller does not cancel it half-way."""
        if tx.settled and not (commit and tx.pending):
            self._pass_turn()
            return

        async def end() -> None:
            try:
                await tx.end(commit=commit)
            finally:
                self._pass_turn()

        await self._finish(end())
