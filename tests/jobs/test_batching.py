"""The size of batches; the seconds are made up."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncdl.jobs.batching import LARGEST, SMALLEST, BatchSize, ReadAhead, weight_of

FAST, RIGHT, SLOW = 0.001, 0.1, 10.0


def after(size: BatchSize, seconds: float, batches: int) -> int:
    for _ in range(batches):
        size.took(size.size, seconds)
    return size.size


def test_fast_batches_grow_to_the_largest_and_slow_ones_shrink_to_the_smallest() -> None:
    size = BatchSize()
    first = size.size
    assert after(size, FAST, 1) == 4 * first  # far from a tenth of a second
    assert after(size, 0.04, 1) == 8 * first
    assert after(size, FAST, 20) == LARGEST
    assert after(size, SLOW, 1) == LARGEST // 2
    assert after(size, SLOW, 20) == SMALLEST


def test_it_settles_where_a_batch_takes_as_long_as_it_should() -> None:
    size = BatchSize()
    before = size.size
    assert after(size, RIGHT, 5) == before
    for _ in range(20):
        size.took(size.size, size.size * 0.0001)  # a tenth of a second for 1000 rows
    settled = size.size
    assert settled in {512, 1024}
    size.took(settled, settled * 0.0001)
    assert size.size == settled


def test_reading_and_writing_may_take_longer_than_the_model() -> None:
    size = BatchSize()
    before = size.size
    size.took(before, FAST, 0.4)  # a busy database: more rows at once make less of it
    assert size.size == 2 * before
    size.took(size.size, FAST, 1.2)
    assert size.size == 2 * before
    size.took(size.size, FAST, 2.5)
    assert size.size == before
    size.took(size.size, SLOW, 0.4)
    assert size.size == before // 2


def test_a_batch_that_was_not_full_says_nothing_by_being_fast_but_all_by_being_slow() -> None:
    size = BatchSize()
    before = size.size
    size.took(before - 1, FAST)
    assert size.size == before
    size.took(before - 1, SLOW)
    assert size.size == before // 2


def test_never_fewer_than_asked_for() -> None:
    assert after(BatchSize(at_least=500), SLOW, 20) == 500
    assert BatchSize(at_least=1000).size == 1000
    assert after(BatchSize(at_least=10 * LARGEST), SLOW, 20) == LARGEST
    assert after(BatchSize(at_least=0), SLOW, 20) == SMALLEST


@given(st.integers(-5, 10_000), st.lists(st.tuples(st.integers(0, 5000), st.floats(0, 100))))
def test_it_stays_within_its_bounds(at_least: int, batches: list[tuple[int, float]]) -> None:
    size = BatchSize(at_least)
    for rows, seconds in batches:
        size.took(rows, seconds)
        assert max(SMALLEST, min(at_least, LARGEST)) <= size.size <= LARGEST


def test_few_rows_are_taken_where_each_is_heavy() -> None:
    size = BatchSize()
    size.weighed(weight_of([bytes(1024 * 1024)] * 100))
    assert size.size == 31  # of a megabyte each, in 32 MB
    assert after(size, FAST, 5) == 31
    size.weighed(weight_of(["light"] * 100))
    assert after(size, FAST, 20) == LARGEST
    size.weighed(weight_of([]))
    assert size.size == LARGEST


@pytest.mark.anyio
async def test_one_reads_ahead_of_a_slow_model_and_not_of_a_quick_one() -> None:
    ahead = ReadAhead(lambda: 3, at_once=False)
    await ahead.may_read()
    ahead.computed(FAST)
    waiting = asyncio.create_task(ahead.may_read())
    await asyncio.sleep(0)
    assert not waiting.done()
    ahead.writing()
    await waiting
    for _ in range(5):
        ahead.computed(SLOW)
    await ahead.may_read()
    await ahead.may_read()
    waiting = asyncio.create_task(ahead.may_read())
    await asyncio.sleep(0)
    assert not waiting.done()  # three are under way, however slow the model
    waiting.cancel()
