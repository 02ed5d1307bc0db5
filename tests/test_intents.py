"""Intents: who is still at what was announced."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asyncdl.drivers.sqlite import SQLiteDatabase
from asyncdl.intents import Intents
from asyncdl.metadata.sql import SQLMetadataStore

pytestmark = pytest.mark.anyio


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLMetadataStore]:
    store = SQLMetadataStore(SQLiteDatabase(tmp_path / "metadata.db"))
    await store.open()
    yield store
    await store.aclose()


async def alive(intents: Intents) -> list[bool]:
    return [each for _, _, each in await intents.read("deed")]


async def test_what_one_of_this_process_is_at_no_other_takes_for_left(store: SQLMetadataStore) -> None:
    one, other = Intents(store), Intents(store)
    intent = await one.announce("deed")
    assert await alive(one) == await alive(other) == [True]
    one.leave(intent)
    assert await alive(one) == await alive(other) == [False]
    await store.commit(intent)

    intent = await one.announce("deed")
    with one.settling(intent):
        assert await alive(other) == [True]
    assert await alive(other) == [False]  # it is still there after the block


async def test_what_was_under_way_is_left_when_who_was_at_it_is_no_more(store: SQLMetadataStore) -> None:
    gone, other = Intents(store), Intents(store)
    await gone.announce("deed")
    assert await alive(other) == [True]
    del gone
    gc.collect()
    assert await alive(other) == [False]
