"""Calls that a cancellation does not cut short."""

from __future__ import annotations

import asyncio

import pytest

from asyncdl.together import finished

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("cancellations", [1, 2, 3])
@pytest.mark.parametrize("fails", [False, True])
async def test_what_is_waited_for_to_its_end_ends_however_often_its_waiter_is_cancelled(
    cancellations: int, fails: bool
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    ended = False

    async def work() -> None:
        nonlocal ended
        begun.set()
        await go_on.wait()
        ended = True
        if fails:
            raise RuntimeError("after the cancellation nobody asks")

    waiter = asyncio.create_task(finished(work()))
    await begun.wait()
    for _ in range(cancellations):
        waiter.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiter.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert ended


async def test_its_result_and_its_error_come_out() -> None:
    async def gives() -> int:
        return 3

    async def fails() -> int:
        raise ValueError("its own")

    assert await finished(gives()) == 3
    with pytest.raises(ValueError, match="its own"):
        await finished(fails())
