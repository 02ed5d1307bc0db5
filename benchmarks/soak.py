"""A soak: 500 single-row inserts a second with a listener installed; memory, latency and what else is held, half by half.

    python benchmarks/soak.py [--seconds 600] [--rate 500] [--database sqlite://FILE | postgresql://...] ...

Without a database: SQLite in a temporary folder, and PostgreSQL as the tests start it.
"""

import argparse
import asyncio
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests import postgresql
from tests.proof.soaking import soak


async def main() -> None:
    """Soak, and print what was measured for each database."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rate", type=int, default=500)
    parser.add_argument("--database", action="append", default=[])
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        databases = given.database
        if not databases:
            server = stack.enter_context(postgresql.serve())
            databases = [f"sqlite:///{folder}/app.db", server.url(Path(folder))]
        for at, uri in enumerate(databases):
            uris = {"databackend": uri, "artifact_store": f"filesystem://{folder}/{at}"}
            found = await soak(uris, given.seconds, given.rate)
            print(uri.partition(":")[0], f"{given.seconds:g} s at {given.rate}/s")
            for name, value in found.summary().items():
                print(f"  {name}: {value}", flush=True)


asyncio.run(main())
