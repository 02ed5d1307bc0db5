"""How many of a model's calls this process may have under way, where a limit holds for all processes together.

Each process that calls the model keeps a cursor in the metadata store: how many calls it may have under way (``held``), how
many it could use (``wants``), and a number that grows with each write, by which others see that it lives. Who changes what it
holds moves another cursor in the same commit, from where it stood when the others' were read: so what all hold never adds up
to more than the limit. Everybody divides the limit by the same rule; who holds more than its part lets go of it as its calls
end, and who holds less takes what is free.

No clocks are compared. A process is taken for dead when its cursor has not moved for a lease, by the clock of the process that
looks at it; and one that could not move its own for as long begins no more calls.
"""

from __future__ import annotations

import asyncio
import logging
import random
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from asyncdl.components.cursors import share_of, shares_of
from asyncdl.errors import ConflictError, StoreError
from asyncdl.metadata.base import MetadataStore
from asyncdl.metadata.changes import Change, DeleteCursor, MoveCursor
from asyncdl.together import raise_if_cancelled

logger = logging.getLogger("asyncdl.jobs")

_BITS = 20
_MASK = (1 << _BITS) - 1
_LOOK = 0.25
"""Seconds between looks at what others want."""
_LOOK_SOON = 0.05
"""The same while we want more than we hold."""
_IDLE = 1.0
"""Seconds for which a share is kept that is not used."""


class Share(NamedTuple):
    """What a process's cursor says."""

    held: int
    wants: int
    beat: int

    def encoded(self) -> int:
        """Return it as one positive integer."""
        return ((self.beat << _BITS) + self.held << _BITS) + self.wants

    @classmethod
    def decoded(cls, value: int) -> Share:
        """Return it from one."""
        return cls((value >> _BITS) & _MASK, value & _MASK, value >> 2 * _BITS)


def divide(limit: int, shares: Mapping[str, Share], turn: int) -> dict[str, int]:
    """Return how much of a limit each process is to hold: what it wants, or an equal part of what others leave.

    If there is not one call for each, those have it who hold none: they take turns. Among them it is a lot that decides, drawn
    anew each ``turn``, so that everybody's comes.
    """
    line = sorted((owner for owner in shares if shares[owner].wants), key=lambda owner: (shares[owner].wants, owner))
    found = dict.fromkeys(shares, 0)
    if limit < len(line):
        line.sort(key=lambda owner: (shares[owner].held > 0, zlib.crc32(f"{turn}{owner}".encode())))
        return found | dict.fromkeys(line[:limit], 1)
    for at, owner in enumerate(line):
        found[owner] = min(shares[owner].wants, limit // (len(line) - at))
        limit -= found[owner]
    return found


class Shares:
    """One model's calls in this process.

    Parameters
    ----------
    name
        The model's identifier.
    owner
        This process's name.
    lease
        Seconds after which a process that gave no sign of life is taken for dead.
    allow
        Is told how many calls may be under way, whenever that changes.
    under_way
        Tells how many are.
    """

    def __init__(
        self,
        metadata: MetadataStore,
        name: str,
        owner: str,
        lease: float,
        allow: Callable[[int], object],
        under_way: Callable[[], int],
    ) -> None:
        self._metadata = metadata
        self._name = name
        self._owner = owner
        self._lease = lease
        self._allow = allow
        self._calls = under_way
        self.limit = 1
        self._wanted = 0
        self._inside = 0
        self._line: deque[tuple[int, asyncio.Future[int]]] = deque()
        self._mine: Share | None = None
        self.allowed = 0
        """Calls that may be under way at once now."""
        self._valid = 0.0
        self._renew = 0.0
        self._peak, self._peaked = 0, 0.0
        self._seen: dict[str, tuple[int, float]] = {}
        self._changed = asyncio.Event()

    # using

    def limit_to(self, limit: int) -> None:
        """Take in the limit, as it is declared now: a smaller one counts at once."""
        if limit < self.limit:
            self._use(min(self.allowed, limit))
        if limit != self.limit:
            self.limit = limit
            self._changed.set()

    def want_until(self, done: asyncio.Future[Any], calls: int) -> None:
        """Say that so many calls could be under way, until something is done."""
        self._want(calls)
        done.add_done_callback(lambda _: self._want(-calls))

    @asynccontextmanager
    async def places(self, calls: int) -> AsyncIterator[int]:
        """Wait, in line, until one more call may be under way, or as many more as may be up to ``calls``; have so many."""
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._line.append((calls, turn))
        self._want(calls)
        self._admit()
        self._allow(self.for_backend)
        try:
            yield await turn
        finally:
            if turn.done() and not turn.cancelled():
                self._inside -= turn.result()
            turn.cancel()
            self._want(-calls)
            self._admit()
            self._allow(self.for_backend)

    def _want(self, calls: int) -> None:
        self._wanted += calls
        if self._wants() > (self._mine.wants if self._mine is not None else 0):
            self._changed.set()

    def _wants(self) -> int:
        """Return what we could use, roughly: it is written down, and not for each call."""
        return min(self.limit, 1 << max(self._wanted - 1, 0).bit_length()) if self._wanted else 0

    def _admit(self) -> None:
        valid = asyncio.get_running_loop().time() < self._valid
        while self._line and valid:
            calls, turn = self._line[0]
            if turn.done():
                self._line.popleft()
            elif self._used < self.allowed:
                granted = min(calls, self.allowed - self._used)
                self._inside += granted
                self._line.popleft()
                turn.set_result(granted)
            else:
                return

    @property
    def for_backend(self) -> int:
        """How many calls that the backend counts itself may be under way: what others, and those who wait, do not take."""
        return max(self.allowed - self._inside - len(self._line), 0)

    @property
    def _used(self) -> int:
        return self._inside + self._calls()

    # sharing

    async def run(self) -> None:
        """Keep a share as long as one is of use."""
        while True:
            self._changed.clear()
            try:
                if await self._look():
                    return
                satisfied = self._mine is not None and self._mine.held >= self._wants()
            except ConflictError:  # another one was first: what they hold now has to be read again
                await asyncio.sleep(random.random() * 0.01)  # noqa: S311 - so that they do not meet again
                continue
            except StoreError:
                raise_if_cancelled()
                logger.warning("the share of model %r cannot be kept up; trying again", self._name, exc_info=True)
                self._use(self.allowed)
                satisfied = False
            try:
                async with asyncio.timeout(_LOOK if satisfied else _LOOK_SOON):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _look(self) -> bool:
        """Read what others hold, and hold what is our part; return whether that is nothing, and nothing is wanted."""
        now = asyncio.get_running_loop().time()
        cursors = await self._metadata.cursors()
        turn, own = cursors.get(shares_of(self._name), 0), share_of(self._name, self._owner)
        # Others only ever delete it. It may be another than we know of: a commit got through, and we were not told.
        self._mine = Share.decoded(cursors[own]) if own in cursors else None
        if self._mine is None:
            self._use(0)
        prefix = share_of(self._name, "")
        values = {name: seq for name, seq in cursors.items() if name.startswith(prefix) and name != own}
        dead = self._dead(values, now)
        others = {name: Share.decoded(seq) for name, seq in values.items() if name not in dead}
        wants = self._lately(now)
        part = divide(self.limit, {**others, own: Share(self._held, wants, 0)}, turn)[own]
        free = max(self.limit - sum(each.held for each in others.values()), 0)
        self._use(min(part, self.allowed))  # first, so that what is under way does not grow beyond what is let go of
        held = min(max(part, self._used), max(free, self._held))
        await self._write(cursors, Share(held, wants, 0), dead, now)
        self._use(min(part, self._held))
        return self._mine is None and not self._wanted

    @property
    def _held(self) -> int:
        return self._mine.held if self._mine is not None else 0

    def _dead(self, values: Mapping[str, int], now: float) -> dict[str, int]:
        """Return the cursors that have not moved for a lease."""
        self._seen = {
            name: self._seen[name] if self._seen.get(name, (0, 0.0))[0] == value else (value, now)
            for name, value in values.items()
        }
        return {name: value for name, (value, since) in self._seen.items() if now - since >= self._lease}

    def _lately(self, now: float) -> int:
        """Return the most that was wanted within the last second: a share is not given away between two calls."""
        wants = self._wants()
        if wants >= self._peak or now - self._peaked > _IDLE:
            self._peak, self._peaked = wants, now
        return min(self._peak, self.limit)

    async def _write(self, cursors: Mapping[str, int], share: Share, dead: Mapping[str, int], now: float) -> None:
        mine, version = self._mine, shares_of(self._name)
        same = mine is not None and (mine.held, mine.wants) == (share.held, share.wants)
        if (same and now < self._renew and not dead) or (mine is None and not (share.held or share.wants)):
            return
        own = share_of(self._name, self._owner)
        new = share._replace(beat=(mine.beat if mine is not None else 0) + 1)
        stands = cursors.get(version, 0)
        changes: list[Change] = []
        if not same or dead:
            changes.append(MoveCursor(version, stands + 1, expected=stands))
        changes.append(MoveCursor(own, new.encoded(), expected=cursors.get(own, 0)))
        for name, value in dead.items():
            changes += [MoveCursor(name, value, expected=value), DeleteCursor(name)]
        gone = not share.held and not share.wants
        if gone:
            changes.append(DeleteCursor(own))
        await self._metadata.commit(*changes)
        self._mine = None if gone else new
        self._valid, self._renew = now + self._lease, now + self._lease / 3

    def _use(self, calls: int) -> None:
        """Have so many calls under way from now on: none, should we be taken for dead."""
        if asyncio.get_running_loop().time() >= self._valid:
            calls = 0
        self.allowed = calls
        self._allow(self.for_backend)
        self._admit()

    async def give_back(self) -> None:
        """Let go of the share: no call is under way any more."""
        if self._mine is None:
            return
        own, version = share_of(self._name, self._owner), shares_of(self._name)
        for _ in range(20):
            cursors = await self._metadata.cursors()
            if own not in cursors:
                break
            stands = cursors.get(version, 0)
            try:
                await self._metadata.commit(MoveCursor(version, stands + 1, expected=stands), DeleteCursor(own))
            except ConflictError:
                continue
            break
        self._mine = None
