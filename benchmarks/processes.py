"""Other processes of a benchmark: its own file, run with other arguments, until its standard input ends."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_PATIENCE = 60.0


@asynccontextmanager
async def process(file: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a file in a process of its own; wait until it says ``ready``, and in the end until it has closed."""
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(sys.executable, file, *arguments, stdin=pipe, stdout=pipe)
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        async with asyncio.timeout(_PATIENCE):
            ready = await child.stdout.readline()
        assert ready == b"ready\n", ready
        yield child
    finally:
        child.stdin.close()
        await child.wait()
    assert child.returncode == 0, child.returncode


def ready() -> None:
    """Say so to who started this process."""
    print("ready", flush=True)


async def told_to_end() -> None:
    """Wait until who started this process has it end."""
    await asyncio.to_thread(sys.stdin.buffer.read)
