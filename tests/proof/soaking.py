"""A soak: single-row inserts at a steady rate, with a listener installed, and what grows meanwhile."""

from __future__ import annotations

import asyncio
import gc
import statistics
import threading
import time
from array import array
from dataclasses import dataclass, field
from typing import Any

import psutil

import asyncdl
from asyncdl import Datalayer, Listener, Model

TABLE = "soaked"
TICK = 0.02
"""Seconds between two handfuls of inserts."""


@dataclass(frozen=True)
class Held:
    """What the process holds at a moment."""

    megabytes: float
    files: int
    threads: int
    tasks: int

    @classmethod
    def now(cls) -> Held:
        gc.collect()
        process = psutil.Process()
        return cls(
            round(process.memory_info().rss / 1e6, 1),
            process.num_fds(),
            threading.active_count(),
            len(asyncio.all_tasks()),
        )


@dataclass
class Soaked:
    """What a soak has shown: what was held after the first tenth, half-way, and at the end, each time at rest."""

    inserted: int = 0
    held: list[Held] = field(default_factory=list)
    latencies: array[float] = field(default_factory=lambda: array("d"))
    """Seconds, in the order of asking."""

    def summary(self) -> dict[str, Any]:
        half = len(self.latencies) // 2
        shown: dict[str, Any] = {"inserted": self.inserted}
        for name, part in (("first_half", self.latencies[:half]), ("second_half", self.latencies[half:])):
            ordered = sorted(part)
            shown[f"{name}_ms_median"] = round(statistics.median(ordered) * 1000, 2)
            shown[f"{name}_ms_99"] = round(ordered[int(len(ordered) * 0.99)] * 1000, 2)
        return shown | dict(zip(("tenth", "half", "end"), self.held, strict=True))


async def soak(uris: dict[str, str], seconds: float, rate: int) -> Soaked:
    """Insert so many rows a second for so long, and wait for their outputs.

    The rate is of asking: where the database is slower, at most two seconds' worth of inserts are under way, and it takes longer.
    """
    async with asyncdl.connect(**uris, progress=False) as db:
        t = db[TABLE]
        await db.execute(t.insert({"text": "the first"}))
        await db.add(Listener("length", model=Model("length", len), key="text", select=t), wait=True)
        found = Soaked()
        for part in (0.1, 0.4, 0.5):
            await _insert(db, found, int(seconds * part * rate), rate)
            await db.wait_idle(60)
            found.held.append(Held.now())
        left = await (await db.execute(t.missing_outputs("length").limit(1))).to_list()
        assert not left, left
        assert await (await db.execute(t.count())).scalar() == found.inserted + 1
        return found


async def _insert(db: Datalayer, found: Soaked, count: int, rate: int) -> None:
    room = asyncio.Semaphore(2 * rate)
    latencies = array("d", bytes(8 * count))

    async def one(number: int) -> None:
        begun = time.perf_counter()
        try:
            await db.execute(db[TABLE].insert({"text": f"some text {number}"}))
        finally:
            room.release()
        latencies[number] = time.perf_counter() - begun

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            await room.acquire()
            group.create_task(one(number))
            ahead = begun + number / rate - time.perf_counter()
            if ahead > TICK:
                await asyncio.sleep(ahead)
    found.inserted += count
    found.latencies += latencies
