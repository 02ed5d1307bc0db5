"""What each process of the crowd does."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import asyncdl
from asyncdl import Datalayer, Listener, Model, RowsInserted
from tests.proof.crashing import plus
from tests.proof.notes import notes_of

TASKS = 20
ROWS = 5
"""Inserts of each task, of a row each."""
SETTINGS = {"job_backoff": 0.05, "threads": 2, "progress": False}


class Counted:
    """A model that tells a file of every call."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, text: str) -> int:
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{text}\n".encode())
        os.close(file)
        return len(text)


def listener(db: Datalayer, path: Path) -> Listener:
    return Listener("counted", model=Model("counter", Counted(str(path))), key="text", select=notes_of(db).select())


def ids_of(process: int, task: int) -> list[int]:
    first = 1 + (process * TASKS + task) * ROWS
    return list(range(first, first + ROWS))


async def subscribe(db: Datalayer, name: str, rows: int) -> list[int]:
    """Return the events that a cursor of its own sees until it has seen all rows inserted."""
    seen, ids = [], 0
    async with db.events.subscribe(RowsInserted, name=name, since=0) as events:
        async for event in events:
            assert isinstance(event, RowsInserted)
            seen.append(event.seq)
            ids += len(event.ids)
            if ids >= rows:
                return seen
    raise AssertionError("a subscription does not end")


async def one(db: Datalayer, process: int, task: int, folder: Path, rows: int) -> dict[str, Any]:
    same = await db.add(listener(db, folder / "calls"))
    contested = await db.add(Model("contested", plus(process * TASKS + task)))
    for key in ids_of(process, task):
        await db.execute(notes_of(db).insert({key: f"row {key}"}))
    return {"same": same.created, "version": contested.component.version}


async def live(uris: dict[str, str], process: int, folder: Path, barrier: Any, rows: int) -> None:
    async with asyncdl.connect(**uris, **SETTINGS) as db:
        await db.wait_idle()  # it compares rows with outputs when it is opened
        await asyncio.to_thread(barrier.wait, 120)
        async with asyncio.TaskGroup() as group:
            seen = [group.create_task(subscribe(db, f"{process}-{task}", rows)) for task in range(TASKS)]
            done = [group.create_task(one(db, process, task, folder, rows)) for task in range(TASKS)]
        await db.wait_idle()
        found = {"seen": [each.result() for each in seen], "done": [each.result() for each in done]}
        (folder / f"{process}.json").write_text(json.dumps(found))


def run(uris: dict[str, str], process: int, folder: Path, barrier: Any, rows: int) -> None:
    asyncio.run(live(uris, process, folder, barrier, rows))
