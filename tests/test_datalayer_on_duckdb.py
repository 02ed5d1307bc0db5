"""The datalayer, end to end, on DuckDB, its metadata in SQLite beside it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import asyncdl
from asyncdl import Listener, Model
from asyncdl.errors import ConfigurationError, StoreUnavailableError
from tests import models
from tests.conftest import rows_of

pytestmark = pytest.mark.anyio


def stores(where: Path, **options: Any) -> dict[str, Any]:
    return {
        "databackend": f"duckdb:///{where / 'app.duckdb'}",
        "metadata_store": f"sqlite:///{where / 'metadata.db'}",
        "artifact_store": f"filesystem://{where / 'artifacts'}",
        **options,
    }


@pytest.mark.parametrize("place", ["file", "memory"])
async def test_what_comes_and_goes_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    async with asyncdl.connect("duckdb://" if place == "memory" else "duckdb://app.duckdb") as db:
        t = db["numbers"]
        await db.execute(t.insert([{"id": n, "x": n * 10} for n in range(3)]))
        added = await db.add(Listener("doubled", model=Model("double", models.double), key="x", select=t))
        await added.wait()
        await (await db.execute(t.insert({"id": 3, "x": 5}))).wait()
        await (await db.execute(t.update({"x": t.x + 1}, where=t.id == 0))).wait()
        await (await db.execute(t.upsert([{"id": 1, "x": 7}, {"id": 4, "x": 8}]))).wait()
        await (await db.execute(t.delete(where=t.id == 2))).wait()
        assert await rows_of(db, t.outputs("doubled")) == [(0, 1, 2), (1, 7, 14), (3, 5, 10), (4, 8, 16)]
        assert await rows_of(db, t.missing_outputs("doubled")) == []
    assert os.path.exists(".asyncdl/metadata.db") == (place == "file")  # noqa: ASYNC240 - after the loop's work


PROGRAM = """
    import asyncio, sys, asyncdl
    from asyncdl import Listener, Model
    from tests import models
    from tests.test_datalayer_on_duckdb import stores
    from pathlib import Path

    async def main(where):
        async with asyncdl.connect(**stores(Path(where)), job_lease=1.0) as db:
            t = db["numbers"]
            await db.add(Listener("doubled", model=Model("double", models.double), key="x", select=t))
            for n in range(10_000):
                await db.execute(t.insert([{"x": n} for _ in range(20)]))
                await db.execute(t.update({"x": t.x + 1}, where=t.x == n))
                print(n, flush=True)

    asyncio.run(main(*sys.argv[1:]))
"""


def start(where: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(where)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent)


async def test_a_killed_process_loses_no_output(tmp_path: Path) -> None:
    async with asyncdl.connect(**stores(tmp_path)) as db:
        await db.execute(db["numbers"].insert([{"id": 1, "x": -5}]))
    acknowledged = 0
    for life in range(3):
        process = start(tmp_path)
        assert process.stdout is not None
        for _ in range(6 + life):
            acknowledged += bool(await asyncio.to_thread(process.stdout.readline))
        if life == 1:
            with pytest.raises(StoreUnavailableError, match=r"app\.duckdb"):  # one process at a time
                await asyncdl.connect(**stores(tmp_path))
        process.kill()
        await asyncio.to_thread(process.communicate)
    async with asyncdl.connect(**stores(tmp_path), job_lease=1.0) as db:
        await db.wait_idle(timeout=60)
        t = db["numbers"]
        rows = await rows_of(db, t.outputs("doubled").select("x", "doubled"))
        assert len(rows) == len(await rows_of(db, t))
        assert len(rows) >= acknowledged * 20
        assert all(doubled == 2 * x for x, doubled in rows)
        assert await rows_of(db, t.missing_outputs("doubled")) == []


async def test_killed_between_rows_and_event(tmp_path: Path) -> None:
    """The update's rows are there, its event is not: the intent tells of it."""
    async with asyncdl.connect(**stores(tmp_path)) as db:
        t = db["numbers"]
        await db.execute(t.insert([{"id": 1, "x": 1}]))
        added = await db.add(Listener("doubled", model=Model("double", models.double), key="x", select=t))
        await added.wait()
    program = """
        import asyncio, os, sys
        from pathlib import Path
        import asyncdl
        from asyncdl.metadata.sql import SQLMetadataStore
        from tests.test_datalayer_on_duckdb import stores

        async def main(where):
            async with asyncdl.connect(**stores(Path(where))) as db:
                await db.wait_idle(timeout=30)
                t = db["numbers"]
                kept = db.databackend.transaction

                class Dies:
                    def __init__(self): self.inner = kept()
                    async def __aenter__(self): return await self.inner.__aenter__()
                    async def __aexit__(self, *error):
                        await self.inner.__aexit__(*error)
                        os._exit(9)

                db.databackend.transaction = Dies
                await db.execute(t.update({"x": 50}, where=t.id == 1))

        asyncio.run(main(sys.argv[1]))
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    done = await asyncio.to_thread(subprocess.run, command, cwd=Path(__file__).parent.parent, check=False)
    assert done.returncode == 9
    async with asyncdl.connect(**stores(tmp_path), job_lease=1.0) as db:
        await db.wait_idle(timeout=60)
        assert await rows_of(db, db["numbers"].outputs("doubled")) == [(1, 50, 100)]


@pytest.mark.parametrize("uri", ["duckdb://app.db#x", "duckdb://app.db?no_such_option=1"])
async def test_uris_that_cannot_be_used(tmp_path: Path, uri: str) -> None:
    uri = uri.replace("app.db", f"/{tmp_path}/app.db")
    with pytest.raises(ConfigurationError):
        await asyncdl.connect(**stores(tmp_path, databackend=uri))
