"""The overhead of compute on Dask: 2,000 batches of 1 ms on two workers, beside Dask's own map and as_completed.

The first round of asyncdl knows nothing of the model: it learns how long its batches take.

    python -m benchmarks.on_dask

(Not named dask.py: a script's folder comes first on the path, and `import dask` would find it.)
"""

import asyncio
import sys
import time

import cloudpickle

from asyncdl.compute.dask import DaskComputeBackend
from asyncdl.testing.compute import Models
from tests.dask_processes import Processes

BATCHES = 2000
ROUNDS = 3


def one_ms(x: int) -> int:
    time.sleep(0.001)
    return x


async def bare(client, *, with_results: bool) -> tuple[float, float]:
    from distributed import as_completed

    begun, at_work = time.perf_counter(), time.process_time()
    futures = client.map(one_ms, range(BATCHES), pure=False)
    async for _ in as_completed(futures, with_results=with_results):
        pass
    return time.perf_counter() - begun, time.process_time() - at_work


async def ours(backend: DaskComputeBackend, models: Models) -> tuple[float, float]:
    begun, at_work = time.perf_counter(), time.process_time()
    for future in [backend.submit(models.task(one_ms, [n], uuid="one_ms")) for n in range(BATCHES)]:
        await future
    return time.perf_counter() - begun, time.process_time() - at_work


async def main() -> None:
    from distributed import Client

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    processes = Processes()
    processes.start_scheduler()
    for _ in range(2):
        processes.start_worker()
    backend, models = DaskComputeBackend(processes.url), Models()
    try:
        await backend.open(models)
        await backend.wait_for_workers(2)
        async with Client(processes.address, asynchronous=True) as client:
            for _ in range(ROUNDS):
                alone, alone_at_work = await bare(client, with_results=False)
                gathered, gathered_at_work = await bare(client, with_results=True)
                mine, mine_at_work = await ours(backend, models)
                print(
                    f"map + as_completed {alone:.2f} s, with results {gathered:.2f} s, asyncdl {mine:.2f} s: "
                    f"{mine / alone:.2f} and {mine / gathered:.2f} times; of the client's processor: "
                    f"{alone_at_work:.2f}, {gathered_at_work:.2f} and {mine_at_work:.2f} s"
                )
    finally:
        await backend.aclose()
        processes.stop()


if __name__ == "__main__":
    asyncio.run(main())
