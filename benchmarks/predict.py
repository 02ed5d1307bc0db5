"""Concurrent calls of `db.predict` on a batch model, beside one call at a time.

    python benchmarks/predict.py [--calls 1000] [--repeat 5] [--milliseconds 0]

Both are timed in each round, in one process, on SQLite; the ratio is the median of those of the rounds.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

import asyncdl
from asyncdl import Model

COST = 0.0
"""Seconds that one call of the model takes, however many inputs it gets."""


def squares(xs):
    """Return squares: a model whose cost is that of a call."""
    if COST:
        time.sleep(COST)
    return [x * x for x in xs]


async def measure(folder: str, calls: int, repeat: int) -> dict[str, float]:
    """Return seconds for the calls, one after the other and all at once."""
    async with asyncdl.connect(f"sqlite:///{folder}/app.db", artifact_store=f"filesystem://{folder}/artifacts") as db:
        await db.add(Model("squares", squares, batch=True))
        await db.predict("squares", 1)
        alone, together, ratios = [], [], []
        for _ in range(repeat):
            begun = time.perf_counter()
            one_by_one = [await db.predict("squares", n) for n in range(calls)]
            alone.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            at_once = await asyncio.gather(*(db.predict("squares", n) for n in range(calls)))
            together.append(time.perf_counter() - begun)
            ratios.append(alone[-1] / together[-1])
            assert one_by_one == at_once == [n * n for n in range(calls)]
        return {
            "one_at_a_time_s": round(statistics.median(alone), 4),
            "concurrent_s": round(statistics.median(together), 4),
            "ratio": round(statistics.median(ratios), 1),
        }


async def main() -> None:
    """Measure, and print a line of JSON."""
    global COST  # noqa: PLW0603 - the model is a function without arguments of its own
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--milliseconds", type=float, default=0.0)
    given = parser.parse_args()
    COST = given.milliseconds / 1000
    with tempfile.TemporaryDirectory() as folder:
        found = await measure(str(Path(folder)), given.calls, given.repeat)
    print(json.dumps({"calls": given.calls, "milliseconds_a_call": given.milliseconds, **found}), flush=True)


asyncio.run(main())
