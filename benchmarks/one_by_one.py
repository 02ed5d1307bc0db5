"""Rows that come one at a time, and a model that is best at batches; beside the queue one would write by hand.

    python benchmarks/one_by_one.py [--rate 100] [--seconds 10] [--repeat 3] [--milliseconds 30] [--per-row 2]

The model takes 30 ms for a call and 2 ms for each row in it, on the one thread that there is for models: of 100 rows a second it
could not take each alone. For each row the lag is the time from the return of its insert until its output is committed. By hand:
a connection of aiosqlite, one transaction for each row, a queue, and a task that takes all that is in the queue (256 at most)
to the model and its outputs to the database, in one transaction. Rows that have been inserted and not been taken when that
process dies have no outputs, ever; that is what it does less. Both in one process on SQLite, by turns; figures are medians of
those of the rounds.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

import aiosqlite

import asyncdl
from asyncdl import Listener, Model, Table

CALL, ROW = 0.03, 0.002
"""Seconds that the model takes for a call, and for each row in it."""
MOST = 256
calls: list[int] = []


def lengths(texts):
    """Return the lengths of texts."""
    calls.append(len(texts))
    time.sleep(CALL + ROW * len(texts))
    return [len(text) for text in texts]


async def paced(rate, seconds, insert):
    """Insert rows at a rate, and return for how long each waited for its output."""

    async def one(n):
        written = await insert(n, f"text {n}")
        begun = time.perf_counter()
        await written
        return time.perf_counter() - begun

    begun, tasks = time.perf_counter(), []
    for n in range(int(rate * seconds)):
        tasks.append(asyncio.create_task(one(n)))
        await asyncio.sleep(max(0.0, begun + (n + 1) / rate - time.perf_counter()))
    return await asyncio.gather(*tasks)


async def by_hand(folder, rate, seconds):
    """Return the lags of the queue."""
    async with aiosqlite.connect(folder / "hand.db", isolation_level=None) as connection:
        await connection.execute("PRAGMA journal_mode=WAL")
        await connection.execute("PRAGMA synchronous=NORMAL")
        await connection.execute("CREATE TABLE docs (id INTEGER PRIMARY KEY, text TEXT)")
        await connection.execute("CREATE TABLE outputs (id INTEGER PRIMARY KEY, output INTEGER)")
        queue: asyncio.Queue[tuple[int, str, asyncio.Future[None]]] = asyncio.Queue()

        async def insert(n, text):
            done = asyncio.get_running_loop().create_future()
            await connection.execute("INSERT INTO docs VALUES (?, ?)", (n, text))
            queue.put_nowait((n, text, done))
            return done

        async def work():
            while True:
                batch = [await queue.get()]
                while len(batch) < MOST and not queue.empty():
                    batch.append(queue.get_nowait())
                outputs = await asyncio.to_thread(lengths, [text for _, text, _ in batch])
                values = [(n, output) for (n, _, _), output in zip(batch, outputs, strict=True)]
                await connection.execute("BEGIN")
                await connection.executemany("INSERT INTO outputs VALUES (?, ?)", values)
                await connection.execute("COMMIT")
                for _, _, done in batch:
                    done.set_result(None)

        working = asyncio.create_task(work())
        lags = await paced(rate, seconds, insert)
        working.cancel()
        async with connection.execute("SELECT output FROM outputs ORDER BY id") as cursor:
            check([output for (output,) in await cursor.fetchall()])
    return lags


async def by_asyncdl(folder, rate, seconds):
    """Return the lags of a listener."""
    uris = {"databackend": f"sqlite:///{folder / 'app.db'}", "artifact_store": f"filesystem://{folder / 'artifacts'}"}
    async with asyncdl.connect(**uris, threads=1) as db:
        await db.add(Table("docs", {"id": "int64", "text": "string"}))
        docs = db["docs"]
        await db.add(
            Listener("lengths", model=Model("lengths", lengths, batch=True), key="text", select=docs), wait=True
        )

        async def insert(n, text):
            return (await db.execute(docs.insert({"id": n, "text": text}))).wait()

        lags = await paced(rate, seconds, insert)
        found = await (await db.execute(docs.outputs("lengths").select("id", "lengths"))).to_list()
        check([row["lengths"] for row in sorted(found, key=lambda row: row["id"])])
    return lags


def check(found):
    """Hold outputs against what they must be."""
    assert found == [len(f"text {n}") for n in range(len(found))]


async def main() -> None:
    """Measure, and print a line of JSON for each."""
    global CALL, ROW
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--milliseconds", type=float, default=CALL * 1000)
    parser.add_argument("--per-row", type=float, default=ROW * 1000)
    given = parser.parse_args()
    CALL, ROW = given.milliseconds / 1000, given.per_row / 1000
    figures: dict[str, list[dict[str, float]]] = {"by hand": [], "asyncdl": []}
    for _ in range(given.repeat):
        for name, run in (("by hand", by_hand), ("asyncdl", by_asyncdl)):
            calls.clear()
            with tempfile.TemporaryDirectory() as folder:
                lags = await run(Path(folder), given.rate, given.seconds)
            found = {"lag_s_median": statistics.median(lags), "lag_s_most": max(lags), "calls": len(calls)}
            figures[name].append({"rows": len(lags), **found})
    for name, rounds in figures.items():
        medians = {each: round(statistics.median(one[each] for one in rounds), 3) for each in rounds[0]}
        print(json.dumps({"who": name, **medians}), flush=True)


if __name__ == "__main__":
    import one_by_one  # of a module that can be imported, the model is a reference, and not a copy that counts for itself

    asyncio.run(one_by_one.main())
