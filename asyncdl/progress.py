"""The progress bar that ``wait()`` shows in a terminal or notebook."""

from __future__ import annotations

import asyncio
import sys

from asyncdl.jobs.handle import Handle

AFTER = 0.5
"""Seconds before a bar appears: what is done sooner needs none."""


def wanted(setting: bool | None) -> bool:
    """Return whether to show bars: as the setting says; without one, in terminals and notebooks."""
    if setting is not None:
        return setting
    return sys.stderr.isatty() or "ipykernel" in sys.modules


async def show(handle: Handle) -> None:
    """Show a handle's progress on standard error until it ends or this is cancelled."""
    await asyncio.sleep(AFTER)
    from rich.console import Console  # noqa: PLC0415 - 60 ms, and only where there is something to show
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # No refreshing thread: the bar is drawn when there is something new, on the loop, at most ten times a second.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as bar:
        task = bar.add_task("waiting", total=None)
        async for done, total, stage in handle.progress():
            bar.update(task, completed=done, total=total, description=stage, refresh=True)
            await asyncio.sleep(0.1)
