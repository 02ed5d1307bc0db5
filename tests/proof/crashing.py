"""What the crash test kills: a process that writes rows and changes components until it dies, and keeps a journal of both.

The journal says, for each deed, when it begins and when it has been acknowledged. It is read by who killed us: what was
acknowledged must be there, and what had begun must be there as a whole or not at all.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import asyncdl
from asyncdl import Application, Datalayer, Listener, Model
from tests.proof.notes import notes_of

SETTINGS = {"job_lease": 10.0, "job_backoff": 0.05, "threads": 1, "progress": False}
KILLED = {**SETTINGS, "job_lease": 1.0}
"""Of the process that is killed: what it was at is taken over after so many seconds. A server must have done by then what it was
asked to last, however busy the machine; some of the servers do not hold that against the lease."""
WRITERS = 3
NAMES = ("l0", "l1", "l2")

Deed = dict[str, Any]


def words(text: str) -> list[str]:
    return text.split()


def upper(word: str) -> str:
    return word.upper()


def plus(variant: int) -> Callable[[str], int]:
    """Return a model's function, which no import path leads to: it is an artifact."""
    return lambda text: len(text) + variant


@dataclass
class State:
    """What must be in the stores, as far as the journals say."""

    rows: dict[int, str] = field(default_factory=dict)
    variants: dict[str, int] = field(default_factory=dict)

    def apply(self, deed: Deed) -> None:
        """Take a deed as done."""
        if "put" in deed:
            self.rows |= {int(key): text for key, text in deed["put"].items()}
        for key in deed.get("delete", ()):
            self.rows.pop(key, None)
        if "component" in deed:
            self.variants.pop(deed["component"], None)
            if deed["variant"] is not None:
                self.variants[deed["component"]] = deed["variant"]


def read_journal(path: Path) -> tuple[list[Deed], list[Deed]]:
    """Return the deeds that were acknowledged, in order, and those that had only begun."""
    begun: dict[int, Deed] = {}
    done: list[Deed] = []
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        if "begin" in entry:
            begun[entry["begin"]] = entry["deed"]
        else:
            done.append(begun.pop(entry["done"]))
    return done, list(begun.values())


async def install(uris: dict[str, str]) -> None:
    """Make the table, and two chained listeners that stay."""
    async with asyncdl.connect(**uris, **SETTINGS) as db:
        notes = notes_of(db)
        await db.execute(notes.insert({0: "the first"}))
        split = Listener("word", model=Model("split", words), key="text", select=notes.select(), flatten=True)
        loud = Listener(
            "loud", model=Model("upper", upper), key="word", select=notes.derived("word", "word_position", "word")
        )
        await db.add(Application("notes", [split, loud]), wait=True)


class Process:
    """The process's life, from a seed and the state that it finds."""

    def __init__(self, db: Datalayer, journal: Path, seed: int, rows: dict[int, str], variants: dict[str, int]) -> None:
        self._db = db
        self._journal = journal.open("a", buffering=1)
        self._random = random.Random(seed)
        self._rows = rows
        self._variants = variants
        self._numbers: Iterator[int] = iter(range(10**9))
        self._next = max(rows, default=0) + 1

    async def live(self) -> None:
        """Write and install for ever."""
        async with asyncio.TaskGroup() as group:
            for writer in range(WRITERS):
                group.create_task(self._write(writer))
            group.create_task(self._install())

    async def _deed(self, deed: Deed, doing: Any) -> None:
        number = next(self._numbers)
        self._journal.write(json.dumps({"begin": number, "deed": deed}) + "\n")
        await doing
        self._journal.write(json.dumps({"done": number}) + "\n")

    async def _write(self, writer: int) -> None:
        notes = notes_of(self._db)
        mine = {key for key in self._rows if key % WRITERS == writer}
        while True:
            kind = self._random.choice(["insert", "insert", "insert", "update", "upsert", "delete"])
            text = " ".join(self._random.choices(["one", "two", "three", "four"], k=self._random.randrange(4)))
            known = self._random.sample(sorted(mine), min(len(mine), 3))
            if kind == "insert":
                keys = [self._fresh(writer) for _ in range(self._random.choice([1, 1, 3, 50]))]
                rows = dict.fromkeys(keys, text)
                await self._deed({"put": rows}, self._db.execute(notes.insert(rows)))
                mine |= set(keys)
            elif kind == "upsert":
                keys = [*known, self._fresh(writer)]
                rows = dict.fromkeys(keys, text)
                await self._deed({"put": rows}, self._db.execute(notes.upsert(rows)))
                mine |= set(keys)
            elif known and kind == "update":
                await self._deed({"put": dict.fromkeys(known, text)}, self._db.execute(notes.update(known, text)))
            elif known:
                await self._deed({"delete": known}, self._db.execute(notes.delete(known)))
                mine -= set(known)

    def _fresh(self, writer: int) -> int:
        self._next += 1
        return self._next * WRITERS + writer

    async def _install(self) -> None:
        while True:
            name, variant = self._random.choice(NAMES), self._random.randrange(1000)
            if name in self._variants and self._random.random() < 0.5:
                del self._variants[name]
                deed = {"component": name, "variant": None}
                await self._deed(deed, self._db.remove("model", f"m-{name}", recursive=True))
            else:
                self._variants[name] = variant
                model = Model(f"m-{name}", plus(variant))
                listener = Listener(name, model=model, key="text", select=notes_of(self._db).select())
                await self._deed({"component": name, "variant": variant}, self._db.add(listener))
            await asyncio.sleep(self._random.random() / 10)


def run(
    uris: dict[str, str], journal: Path, seed: int, rows: dict[int, str], variants: dict[str, int], opened: Event
) -> None:
    """Live until killed."""

    async def live() -> None:
        async with asyncdl.connect(**uris, **KILLED) as db:
            opened.set()
            await Process(db, journal, seed, rows, variants).live()

    asyncio.run(live())
