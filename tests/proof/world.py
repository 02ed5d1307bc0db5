"""What the stateful test does to a datalayer, and the simple model in memory that it is held against.

`Deed` is what is done; `How` is what happens meanwhile. A deed that returned has been done. One that raised, or whose process was
killed, has been done as a whole or not at all: which, the stores are asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import asyncdl
from asyncdl import Datalayer, Event, Handle, Listener, Model
from asyncdl.compute.local import LocalComputeBackend
from asyncdl.errors import AsyncDLError, JobError
from asyncdl.metadata.records import UNFINISHED
from asyncdl.testing.faults import Fault, Faults, faulty
from tests.proof.crashing import plus, words
from tests.proof.notes import Notes, notes_of, nothing_is_left_over

SETTINGS = {"job_lease": 2.0, "job_backoff": 0.01, "threads": 1, "progress": False}
PATIENCE = 60.0
WORDS = "words"
"""The listener whose model returns a list for each row; the others' add a number to the text's length."""


def twice(x: int) -> int:
    return 2 * x


@dataclass(frozen=True)
class State:
    """What must be there: the rows, for each listener what its model adds, and the listeners on others' outputs."""

    rows: dict[int, str] = field(default_factory=dict)
    models: dict[str, int] = field(default_factory=dict)
    derived: frozenset[str] = frozenset()

    def outputs(self) -> dict[str, list[tuple[Any, ...]]]:
        """Return all outputs, by listener: the key and the value, with the place of a word in between."""
        found: dict[str, list[tuple[Any, ...]]] = {}
        for name, more in self.models.items():
            if name == WORDS:
                found[name] = [
                    (key, at, word) for key, text in self.rows.items() for at, word in enumerate(text.split())
                ]
            else:
                found[name] = [(key, len(text) + more) for key, text in self.rows.items()]
        for name in self.derived:
            found[f"twice-{name}"] = [(key, 2 * value) for key, value in found[name]]
        return {name: sorted(rows) for name, rows in found.items()}


@dataclass(frozen=True)
class Deed:
    """One thing that a user does, and what must be there afterwards."""

    call: Callable[[Datalayer], Any]
    after: State


Way = Literal["waited", "returned", "cancelled", "killed", "faulty"]


@dataclass(frozen=True)
class How:
    """What happens during a deed: it is waited for with all that follows, or not; at the call number ``at`` to a store the user
    gives it up, or the process dies, or the store has a fault."""

    way: Way
    at: int = 1
    fault: Fault = "refused"


# deeds: each is made from the state before it; None where it makes no sense


def insert(before: State, keys: Sequence[int], text: str) -> Deed | None:
    new = dict.fromkeys((key for key in keys if key not in before.rows), text)
    if not new:
        return None
    return Deed(lambda db: db.execute(notes_of(db).insert(new)), replace(before, rows={**before.rows, **new}))


def upsert(before: State, keys: Sequence[int], text: str) -> Deed:
    new = dict.fromkeys(keys, text)
    return Deed(lambda db: db.execute(notes_of(db).upsert(new)), replace(before, rows={**before.rows, **new}))


def update(before: State, keys: Sequence[int], text: str) -> Deed:
    new = {key: text for key in keys if key in before.rows}
    return Deed(lambda db: db.execute(notes_of(db).update(keys, text)), replace(before, rows={**before.rows, **new}))


def delete(before: State, keys: Sequence[int], text: str) -> Deed:
    rows = {key: each for key, each in before.rows.items() if key not in keys}
    return Deed(lambda db: db.execute(notes_of(db).delete(keys)), replace(before, rows=rows))


def add(before: State, name: str, more: int) -> Deed:
    more = 0 if name == WORDS else more

    def call(db: Datalayer) -> Any:
        select = notes_of(db).select()
        if name == WORDS:
            return db.add(Listener(name, model=Model("m-words", words), key="text", select=select, flatten=True))
        return db.add(Listener(name, model=Model(f"m-{name}", plus(more)), key="text", select=select))

    return Deed(call, replace(before, models={**before.models, name: more}))


def derive(before: State, name: str, more: int) -> Deed | None:
    if name not in before.models or name == WORDS:
        return None

    def call(db: Datalayer) -> Any:
        select = notes_of(db).derived(name, name)
        return db.add(Listener(f"twice-{name}", model=Model("m-twice", twice), key=name, select=select))

    return Deed(call, replace(before, derived=before.derived | {name}))


def exchange(before: State, name: str, more: int) -> Deed | None:
    if name not in before.models or name == WORDS:
        return None
    return Deed(
        lambda db: db.replace(Model(f"m-{name}", plus(more))), replace(before, models={**before.models, name: more})
    )


def remove(before: State, name: str, more: int) -> Deed | None:
    if name not in before.models:
        return None
    models = {each: value for each, value in before.models.items() if each != name}
    after = replace(before, models=models, derived=before.derived - {name})
    return Deed(lambda db: db.remove("model", f"m-{name}", recursive=True), after)


def pause(before: State, name: str, more: int) -> Deed | None:
    """Pause a listener: until all is looked at, when it is resumed if it was not before."""
    return Deed(lambda db: db.pause("listener", name), before) if name in before.models else None


def resume(before: State, name: str, more: int) -> Deed | None:
    return Deed(lambda db: db.resume("listener", name), before) if name in before.models else None


WRITES = (insert, upsert, update, delete)
CHANGES = (add, derive, exchange, remove, pause, resume)


class World:
    """A datalayer on stores that fail when asked to, one beside it that only looks, and what must be there."""

    def __init__(self, uris: dict[str, str]) -> None:
        self._uris = uris
        self.state = State()
        self._cancelled: list[str] = []
        self._seen: list[int] = []
        self._watching: asyncio.Task[None] | None = None
        self._watched = asyncio.Event()
        self._beside = AsyncExitStack()
        self._life = AsyncExitStack()

    async def begin(self) -> None:
        """Make the table, and open both datalayers."""
        self._looking = await self._beside.enter_async_context(asyncdl.connect(**self._uris, **SETTINGS, worker=False))
        opened = asyncio.Event()
        self._watching = asyncio.create_task(self._watch(opened))
        await opened.wait()
        await self._looking.execute(notes_of(self._looking).insert({0: "the first"}))
        self.state = State({0: "the first"})
        await self._open()

    async def _watch(self, opened: asyncio.Event) -> None:
        async with self._looking.events.subscribe(since=0) as events:
            opened.set()
            async for event in events:
                self._seen.append(event.seq)
                self._watched.set()

    async def _open(self) -> None:
        self.faults = Faults()
        real = await self._life.enter_async_context(asyncdl.connect(**self._uris, **SETTINGS, worker=False))
        self.db = await self._life.enter_async_context(
            asyncdl.connect(
                faulty(real.databackend, self.faults),
                metadata_store=faulty(real.metadata, self.faults),
                artifact_store=faulty(real.artifact_store, self.faults),
                compute=faulty(LocalComputeBackend(1, 1), self.faults),
                **SETTINGS,
            )
        )

    async def end(self) -> None:
        """Close all."""
        self.faults.heal()
        await self._life.aclose()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})
        await self._beside.aclose()

    async def restart(self) -> None:
        """Close, and open again; with a fault that lasts, as a process does that is killed: nothing reaches a store any more."""
        await self._life.aclose()
        await self._open()

    # doing

    async def do(self, deed: Deed, how: How) -> None:
        """Do a deed, and take note of it."""
        before, call = self.state, asyncio.ensure_future(deed.call(self.db))
        if how.way in {"waited", "returned"}:
            async with asyncio.timeout(PATIENCE):
                handle = await call
                if how.way == "waited" and handle is not None:
                    await self._wait(handle)
            self.state = deed.after
            return
        fault: Fault = {"cancelled": "reached", "killed": "outage"}.get(how.way, how.fault)  # type: ignore[assignment]
        self.faults.arm(how.at, fault)
        returned = await self._suffer(call, how)
        if returned:
            self.state = deed.after
        if how.way != "killed":
            self.faults.heal()
        if how.way == "killed" or not returned:
            await self.restart()
        if not returned:
            found = await self._found()
            assert found in (before, deed.after), f"done in part: {found}, neither {before} nor {deed.after}"
            self.state = found

    async def _wait(self, handle: Handle) -> None:
        """Wait for all that a deed asked for; what a paused listener is to do can be waited for once it is resumed only."""
        listeners = [await self._looking.show("listener", name, -1) for name in await self._looking.show("listener")]
        if any(each["paused"] for each in listeners):
            await self.db.wait_idle()
        else:
            await handle.wait()

    async def _suffer(self, call: asyncio.Future[Any], how: How) -> bool:
        reached = asyncio.ensure_future(self.faults.reached.wait())
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.wait({call, reached}, return_when=asyncio.FIRST_COMPLETED)
                if how.way in {"cancelled", "killed"} or how.fault in {"hung", "stuck", "reached"}:
                    call.cancel()
                await call
        except (AsyncDLError, asyncio.CancelledError):
            return False
        finally:
            reached.cancel()
        return True

    async def cancel_a_job(self, which: int) -> None:
        """Cancel a job that has not ended, if there is one."""
        jobs = await self.db.jobs.list(state=UNFINISHED)
        if jobs:
            job = jobs[which % len(jobs)].id
            try:
                await self.db.jobs.cancel(job)
            except JobError:
                return  # it has ended meanwhile
            self._cancelled.append(job)

    async def _retry(self) -> None:
        for job in self._cancelled:
            if (await self.db.jobs.get(job)).state == "cancelled":
                await self.db.jobs.retry(job)
        self._cancelled = []

    # looking

    async def _found(self) -> State:
        db, models, derived = self._looking, {}, set()
        for name in await db.show("listener"):
            if name.startswith("twice-"):
                derived.add(name.removeprefix("twice-"))
            else:
                listener = await db.load("listener", name)
                models[name] = 0 if name == WORDS else listener.model.object("")
        return State(await notes_of(db).rows(), models, frozenset(derived))

    async def check(self) -> None:
        """Hold the stores against what must be there, once all has been done."""
        await self._retry()
        for name in self.state.models:
            await self.db.resume("listener", name)
        await self.db.wait_idle(PATIENCE)
        assert await self._found() == self.state
        notes = notes_of(self.db)
        for name, rows in self.state.outputs().items():
            columns = ("words_position", "words") if name == WORDS else (name,)
            through = [name.removeprefix("twice-")] if name.startswith("twice-") else []
            assert await _outputs(notes, [*through, name], columns) == rows, name
        await nothing_is_left_over(self.db)
        await self._check_events()

    async def _check_events(self) -> None:
        """Every event was seen by who watched all the time, once, in order; and the log has no gap."""
        log: list[int] = []
        while page := await self._looking.events.read(log[-1] if log else 0):
            log += [event.seq for event in page if isinstance(event, Event)]
        async with asyncio.timeout(PATIENCE):
            while len(self._seen) < len(log):
                self._watched.clear()
                await self._watched.wait()
        assert self._seen[: len(log)] == log
        assert log == sorted(set(log))


async def _outputs(notes: Notes, listeners: Sequence[str], columns: Sequence[str]) -> list[tuple[Any, ...]]:
    return await notes.outputs(*listeners, columns=columns)
