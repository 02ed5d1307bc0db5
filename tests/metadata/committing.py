"""A process that commits, and says so.

python -m tests.metadata.committing URI NAME COMMITS TASKS
"""

from __future__ import annotations

import asyncio
import subprocess
import sys

from asyncdl.testing.metadata_records import event, intent
from tests.places import metadata_store


def committer(uri: str, name: str, commits: int, tasks: int = 1) -> subprocess.Popen[str]:
    """Start one: each commit is two equal events about an intent, whose name is printed when it is acknowledged."""
    command = [sys.executable, "-m", __name__, uri, name, str(commits), str(tasks)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


async def main(uri: str, name: str, commits: int, tasks: int) -> None:
    store = metadata_store(uri)
    await store.open()

    async def commit(at: int) -> None:
        key = f"{name}-{at}"
        await store.commit(event(key, payload="x" * 2000), intent(key), event(key, payload="y" * 2000))
        print(key, flush=True)  # noqa: T201 - what it is for

    for at in range(0, commits, tasks):
        await asyncio.gather(*(commit(n) for n in range(at, at + tasks)))
    await store.aclose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
