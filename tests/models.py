"""Models of the tests: importable, so that they are stored by reference."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from pathlib import Path

calls: Counter[object] = Counter()
"""What `counted` was called with, in this process."""


def double(x: int) -> int:
    return 2 * x


def counted(x: object) -> object:
    calls[x] += 1
    return x


async def counted_unhurriedly(x: object) -> object:
    calls[x] += 1
    await asyncio.sleep(0.02)
    return x


def words(text: str) -> list[str]:
    return text.split()


def upper(text: str) -> str:
    return text.upper()


def add(x: int, y: int) -> int:
    return x + y


def fails_on_negative(x: int) -> int:
    if x < 0:
        raise ValueError(f"{x} is negative")
    return x + 1


def one_too_few(xs: list[int]) -> list[int]:
    return xs[:-1]


def squares(xs: list[int]) -> list[int]:
    return [x * x for x in xs]


async def unhurried(x: int) -> int:
    await asyncio.sleep(0.02)
    return x


async def slowly(x: int) -> int:
    await asyncio.sleep(0)
    return x + 100


broken = True
"""Whether `breaks_on_negative` does."""


def breaks_on_negative(xs: list[int]) -> list[int]:
    return xs[:-1] if broken and min(xs) < 0 else xs


gate = threading.Event()
"""What `gated` waits for."""
began = threading.Event()
"""Set once it does."""


def gated(x: int) -> int:
    began.set()
    gate.wait(60)
    return x


async def gated_coroutine(x: int) -> int:
    began.set()
    await asyncio.to_thread(gate.wait, 60)
    return x


def gated_and_counted(x: int) -> int:
    calls[x] += 1
    return gated(x)


inside: list[int] = []
"""How many calls of `inside_now` were under way, each time when one began."""
_inside: set[object] = set()


async def inside_now(x: int) -> int:
    call = object()
    _inside.add(call)
    inside.append(len(_inside))
    try:
        await asyncio.sleep(0.002)
    finally:
        _inside.discard(call)
    return x


attempts: Counter[object] = Counter()


async def fails_twice(x: int) -> int:
    attempts[x] += 1
    if attempts[x] < 3:
        raise ValueError(f"attempt {attempts[x]} on {x}")
    return attempts[x]


def how_many_together(gates: list[str]) -> list[int]:
    while not Path(gates[0]).exists():
        time.sleep(0.01)
    return [len(gates)] * len(gates)


async def how_many_together_coroutine(gates: list[str]) -> list[int]:
    return await asyncio.to_thread(how_many_together, gates)


def batch_fails_on_negative(xs: list[int]) -> list[int]:
    attempts["batch"] += 1
    return [fails_on_negative(x) for x in xs]


negative_is_bad = True
"""Whether `picky` fails on negative numbers."""


def picky(x: int) -> int:
    calls[x] += 1
    if negative_is_bad and x < 0:
        raise ValueError(f"{x} is negative")
    return x


recorded: list[object] = []
"""What `record` was called with, in this process."""
was_recorded = threading.Event()
"""Set once it was."""


def record(event: object) -> None:
    recorded.append(event)
    was_recorded.set()


async def record_later(event: object) -> None:
    await asyncio.sleep(0)
    record(event)


def upper_bytes(text: str) -> bytes:
    return text.upper().encode()


def lower_text(data: bytes) -> str:
    return data.decode().lower()


tagged: Counter[tuple[str, object]] = Counter()
"""What the functions below were called with, in this process."""


def times_two(x: int) -> int:
    tagged["times_two", x] += 1
    return 2 * x


def plus_one(x: int) -> int:
    tagged["plus_one", x] += 1
    return x + 1


def minus_one(x: int) -> int:
    tagged["minus_one", x] += 1
    return x - 1


def sum_of(x: int, y: int) -> int:
    tagged["sum_of", (x, y)] += 1
    return x + y


def digits(x: int) -> list[int]:
    tagged["digits", x] += 1
    return [int(each) for each in str(abs(x))]


def gated_plus_one(x: int) -> int:
    began.set()
    gate.wait(60)
    return plus_one(x)


def gated_below_100(x: int) -> int:
    return plus_one(x) if x >= 100 else gated_plus_one(x)
