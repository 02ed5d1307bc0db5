"""Turns at places: never more than there are, none lost, and nobody held up by another's many."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncdl.compute.turns import Turns

pytestmark = pytest.mark.anyio


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_places_go_round_among_those_who_wait() -> None:
    turns, order = Turns(1), []

    async def one(whose: str) -> None:
        await turns.take(whose)
        order.append(whose)
        await asyncio.sleep(0)
        turns.give_back(whose)

    await turns.take("a")
    waiting = [asyncio.ensure_future(one(whose)) for whose in "aaaaabbc"]
    await settle()
    turns.give_back("a")
    await asyncio.gather(*waiting)
    assert "".join(order) == "abcabaaa"


async def test_who_holds_fewer_comes_first() -> None:
    turns = Turns(3)
    for _ in range(3):
        await turns.take("a")
    a, b = (asyncio.ensure_future(turns.take(whose)) for whose in "ab")
    await settle()
    turns.give_back("a")
    await settle()
    assert (a.done(), b.done()) == (False, True)
    turns.give_back("b")
    await a


async def test_who_comes_late_is_not_always_before_who_waits() -> None:
    turns = Turns(1)
    await turns.take("old")
    waits = asyncio.ensure_future(turns.take("old"))
    for n in range(3):
        new = asyncio.ensure_future(turns.take(f"new {n}"))
        await settle()
        turns.give_back("old" if not n else f"new {n - 1}")
        await settle()
        if waits.done():
            assert n <= 1
            new.cancel()
            break
    assert waits.done()


class Crowd:
    """Three who take places, and what they hold by their own account."""

    def __init__(self, places: int) -> None:
        self.turns, self.places = Turns(places), places
        self.tasks: list[tuple[str, asyncio.Task[None]]] = []

    def take(self, n: int) -> None:
        self.tasks.append((f"{n % 3}", asyncio.ensure_future(self.turns.take(f"{n % 3}"))))

    def give(self, n: int) -> None:
        for whose, task in self.tasks[n:][:1]:
            if task.done():
                self.tasks.remove((whose, task))
                if not task.cancelled():
                    self.turns.give_back(whose)

    def cancel(self, n: int) -> None:
        for _, task in self.tasks[n:][:1]:
            task.cancel()  # perhaps in the moment in which it comes

    def check(self) -> None:
        held = sum(task.done() and not task.cancelled() for _, task in self.tasks)
        assert held <= self.places
        assert held == self.places or all(task.done() for _, task in self.tasks)

    async def leave(self) -> None:
        while self.tasks:
            self.cancel(0)
            await settle()
            self.give(0)


@given(
    places=st.integers(1, 3),
    steps=st.lists(st.tuples(st.sampled_from(["take", "give", "cancel"]), st.integers(0, 9)), max_size=60),
)
def test_places_are_neither_lost_nor_made(places: int, steps: list[tuple[str, int]]) -> None:
    async def scenario() -> None:
        crowd = Crowd(places)
        for step, n in steps:
            getattr(crowd, step)(n)
            if n % 2:
                await settle()
                crowd.check()
        await crowd.leave()
        turns = crowd.turns
        assert (turns._lines, turns._round, dict(turns._held)) == ({}, {}, {})
        for _ in range(places):  # all are there
            await asyncio.wait_for(turns.take("x"), 10)

    asyncio.run(scenario())
