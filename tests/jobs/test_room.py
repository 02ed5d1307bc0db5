"""Which jobs may run beside each other: decisions without any store."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncdl.jobs.room import Size, full, may_run, size_of
from asyncdl.metadata.records import JobRecord


def filled(wanted: list[Size], concurrency: int) -> list[Size]:
    """Return those that run when they ask for it one after the other."""
    running: list[Size] = []
    for each in wanted:
        if may_run(each, running, concurrency):
            running.append(each)
    return running


def targets(running: list[Size]) -> dict[str, int]:
    return {each.target: running.count(each) for each in running}


@pytest.mark.parametrize(
    ("concurrency", "expected"),
    [
        (1, {"a": 1}),
        (2, {"a": 1, "b": 1}),
        (3, {"a": 2, "b": 1}),
        (8, {"a": 4, "b": 2, "c": 1, "d": 1}),
        (16, {"a": 8, "b": 4, "c": 2, "d": 1, "e": 1}),
    ],
)
def test_each_target_leaves_as_much_as_it_takes(concurrency: int, expected: dict[str, int]) -> None:
    running = filled([Size(each) for each in "abcdef" for _ in range(20)], concurrency)
    assert targets(running) == expected


def test_of_long_jobs_there_are_eight_and_short_ones_run_beside_them() -> None:
    running = filled([Size(each, long=True) for each in "abcdefghij" for _ in range(20)], 100)
    assert targets(running) == {"a": 4, "b": 2, "c": 1, "d": 1}
    assert may_run(Size("a"), running, 100)
    assert full(running, 100) == []
    assert len(filled([Size("a", long=True)] * 9, 4)) == 2


def test_half_of_the_long_jobs_are_trainings() -> None:
    models = [Size(f"model {n}", long=True, training=True) for n in range(20)]
    assert len(filled(models, 16)) == 4
    assert len(filled(models, 2)) == 1
    assert len(filled(models, 1)) == 1


def test_of_a_backfill_in_shards_one_runs() -> None:
    shards = [Size("a", long=True, part="one")] * 3 + [Size("b", long=True, part="two")] * 3
    assert targets(filled(shards, 16)) == {"a": 1, "b": 1}


@given(st.lists(st.builds(Size, st.sampled_from("abcd"), st.booleans()), max_size=60), st.integers(1, 40))
def test_there_is_room_for_a_target_of_which_none_runs_and_no_more_than_allowed(
    wanted: list[Size], concurrency: int
) -> None:
    running = filled(wanted, concurrency)
    assert len(running) <= concurrency
    assert sum(each.long for each in running) <= 8
    for each in "abcde":
        assert not (each in full(running, concurrency) and may_run(Size(each), running, concurrency))
    if len({each.target for each in running}) == 1 < concurrency:
        assert may_run(Size("another", long=True), running, concurrency)


@pytest.mark.parametrize(
    ("kind", "payload", "expected"),
    [
        ("refresh", {"ids": [1] * 16}, Size("t")),
        ("refresh", {"ids": [1] * 17}, Size("t", long=True)),
        ("backfill", {"ids": []}, Size("t", long=True)),
        ("train", {"ids": []}, Size("t", long=True, training=True)),
        ("call", {"ids": []}, Size("t", long=True)),
    ],
)
def test_sizes(kind: str, payload: dict[str, object], expected: Size) -> None:
    assert size_of(JobRecord("j", kind, "t", json.dumps(payload), 1, 1, 1.0)) == expected
