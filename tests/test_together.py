"""Calls that a cancellation does not cut short, and cancellations that must not be lost."""

from __future__ import annotations

import asyncio
import gc

import pytest

from asyncdl.together import finished, give_up, raise_if_cancelled

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


async def test_a_cancellation_is_not_lost_when_something_fails_in_its_place() -> None:
    begun = asyncio.Event()

    async def child() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("while it cleaned up")

    async def goes_on_after_failures() -> None:
        for _ in range(2):
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(child())
            except* OSError:
                raise_if_cancelled()

    task = asyncio.create_task(goes_on_after_failures())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_nobody_who_was_not_cancelled_is_told_so() -> None:
    raise_if_cancelled()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await asyncio.Event().wait()
    raise_if_cancelled()


@pytest.mark.parametrize("fails", [False, True])
async def test_a_call_that_was_given_up_ends_and_nobody_is_told_how(fails: bool) -> None:
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

    async def call() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            if fails:
                raise OSError("nobody asks")

    task = asyncio.ensure_future(call())
    await asyncio.sleep(0)
    give_up(task)
    await asyncio.wait({task})
    await asyncio.sleep(0)
    del task
    gc.collect()
    assert told == []
