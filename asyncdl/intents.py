"""Intents: what is announced before it is done, where it cannot be one commit with its record.

An intent whose process has died says that its deed may have been done, half done, or not at all.
"""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4
from weakref import WeakValueDictionary

from asyncdl import codec
from asyncdl.metadata.base import MetadataStore
from asyncdl.metadata.changes import DeleteIntent, PutIntent
from asyncdl.metadata.records import IntentRecord

_UNDER_WAY: WeakValueDictionary[str, Intents] = WeakValueDictionary()
"""The intents whose deeds are under way in this process, by id, with who is at them: of several datalayers in one process none
takes what another is at for left by the dead, and all may take what one left that is no more."""
_ABROAD = 3600.0
"""Seconds for which a process on another machine, which we cannot see, is taken to be alive."""


class Intents:
    """Announces deeds, and finds those of processes that have died."""

    def __init__(self, metadata: MetadataStore) -> None:
        self._metadata = metadata
        self.left = asyncio.Event()
        """Set when a deed of this process failed, or was left: there is something to recover."""

    def draft(self, kind: str, **details: Any) -> tuple[PutIntent, DeleteIntent]:
        """Return the changes that announce a deed, in a commit of the caller's, and that say it has been done.

        Whatever becomes of them, it is to be done in a block of `settling`.
        """
        record = IntentRecord(
            id=uuid4().hex,
            payload=codec.dumps({"kind": kind, **details}).decode(),
            owner=_this_process(),
            created=self._metadata.clock.now(),
        )
        _UNDER_WAY[record.id] = self
        return PutIntent(record), DeleteIntent(record.id)

    async def announce(self, kind: str, **details: Any) -> DeleteIntent:
        """Announce a deed; return the change that says it has been done."""
        put, done = self.draft(kind, **details)
        try:
            await self._metadata.commit(put)
        except BaseException:
            self.leave(done)
            raise
        return done

    def leave(self, intent: DeleteIntent) -> None:
        """Leave a deed that is not complete yet to recovery."""
        _UNDER_WAY.pop(intent.id, None)
        self.left.set()

    @contextmanager
    def settling(self, intent: DeleteIntent) -> Iterator[None]:
        """Do the deed in this block: if its intent is still there after it, it was left, and is to be recovered."""
        try:
            yield
        except BaseException:
            self.leave(intent)
            raise
        _UNDER_WAY.pop(intent.id, None)

    async def read(self, kind: str) -> list[tuple[IntentRecord, dict[str, Any], bool]]:
        """Return the intents of a kind, with their details, and whether who announced it is still at it."""
        found = []
        for record in await self._metadata.intents():
            details = codec.loads(record.payload)
            if details["kind"] == kind:
                found.append((record, details, self._alive(record)))
        return found

    def is_ours(self, record: IntentRecord) -> bool:
        """Return whether it was announced in this process."""
        return record.owner == _this_process()

    def _alive(self, record: IntentRecord) -> bool:
        host, pid, started = record.owner.split("\n")
        if self.is_ours(record):
            return record.id in _UNDER_WAY
        if host != platform.node():
            return self._metadata.clock.now() - record.created < _ABROAD
        return _started(int(pid)) == started


def _this_process() -> str:
    return f"{platform.node()}\n{os.getpid()}\n{_started(os.getpid())}"


def _started(pid: int) -> str | None:
    """Return when a process of this machine started, None when there is none: a pid alone may be another's by now."""
    import psutil  # noqa: PLC0415 - 20 ms, and rarely needed

    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.NoSuchProcess:
        return None
