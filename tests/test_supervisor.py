"""The task that owns a datalayer's tasks: what fails starts again, and what is to end does, whatever comes out of it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from asyncdl import supervisor as module
from asyncdl.supervisor import Supervisor

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RESTART", 0.0)


class Service:
    """Raises when it begins, as often as there are errors, and then waits."""

    def __init__(self, *errors: BaseException, at_end: BaseException | None = None) -> None:
        self.errors, self.at_end = list(errors), at_end
        self.runs = 0
        self.waits = asyncio.Event()

    async def run(self) -> None:
        self.runs += 1
        if self.errors:
            raise self.errors.pop(0)
        self.waits.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if self.at_end is not None:
                raise self.at_end from None
            raise


async def test_what_fails_starts_again_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    failing, other = Service(RuntimeError("1"), RuntimeError("2")), Service()
    supervisor = Supervisor({"failing": failing.run, "other": other.run})
    with caplog.at_level(logging.ERROR):
        supervisor.start()
        await failing.waits.wait()
        await other.waits.wait()
    await supervisor.stop()
    assert (failing.runs, other.runs) == (3, 1)
    assert [record.args[0] for record in caplog.records if isinstance(record.args, tuple)] == ["failing", "failing"]


async def test_a_cancellation_that_is_not_meant_for_a_service_does_not_end_it() -> None:
    async def waits_for_a_future_that_another_cancels() -> None:
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.cancel)
        await future

    service = Service()
    runs = 0

    async def run() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            await waits_for_a_future_that_another_cancels()
        await service.run()

    supervisor = Supervisor({"service": run})
    supervisor.start()
    await service.waits.wait()
    await supervisor.stop()
    assert runs == 2


@pytest.mark.parametrize("error", [RuntimeError("while it ended"), ExceptionGroup("of its tasks", [ValueError("one")])])
async def test_a_service_that_fails_while_it_is_cancelled_ends(error: Exception) -> None:
    service, other = Service(at_end=error), Service()
    supervisor = Supervisor({"service": service.run, "other": other.run})
    supervisor.start()
    await service.waits.wait()
    await other.waits.wait()
    await supervisor.stop()
    assert (service.runs, other.runs) == (1, 1)
