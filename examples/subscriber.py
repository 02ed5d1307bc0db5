"""A durable subscriber, in a process of its own: prints each batch of outputs as a line of JSON.

    python examples/subscriber.py sqlite://app.db

Stop it, write rows, start it again: it goes on where it stopped. Asking for the next event acknowledges the one before.
"""

import asyncio
import contextlib
import json
import sys

import asyncdl
from asyncdl import OutputsWritten


async def main(uri: str) -> None:
    async with asyncdl.connect(uri) as db, db.events.subscribe(OutputsWritten, name="printer") as events:
        async for event in events:
            print(json.dumps({"seq": event.seq, "listener": event.identifier, "ids": event.ids}), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1]))
