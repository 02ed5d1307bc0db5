"""The code of DESIGN.md, section 1, word for word, but for what needs a server or is still to be built.

Still to be built: `VectorIndex`, `like` with a vector index.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from sklearn.metrics import accuracy_score
from sklearn.svm import SVC

import asyncdl
from asyncdl import (
    Application,
    ComponentAdded,
    Dataset,
    JobFailed,
    Listener,
    Metric,
    Model,
    RowsInserted,
    Trainer,
    Validation,
)
from asyncdl.errors import ComponentNotFoundError
from tests import models

pytestmark = pytest.mark.anyio

DESIGN = Path(__file__).parent.parent.parent / "shared" / "DESIGN.md"
FIRST = """\
import asyncio, asyncdl
from asyncdl import Listener, Model

async def main():
    async with asyncdl.connect("sqlite://app.db") as db:        # also: db = await asyncdl.connect(...); await db.aclose()
        docs = db["docs"]
        await db.execute(docs.insert([{"id": 1, "text": "hello"}, {"id": 2, "text": "good morning"}]))

        added = await db.add(Listener("length", model=Model("len", len), key="text", select=docs.select("id", "text")))
        await added.wait()                                      # every existing row now has its output

        written = await db.execute(docs.insert([{"id": 3, "text": "a new row"}]))
        await written.wait()                                    # the row's outputs are there

        async for row in await db.execute(docs.outputs("length")):
            print(row["id"], row["length"])

asyncio.run(main())
"""


def test_the_first_block(tmp_path):
    if DESIGN.exists():  # beside the repository, where it is developed
        assert FIRST in DESIGN.read_text()
    command = [sys.executable, "-W", "error", "-c", FIRST]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    assert sorted(found.stdout.splitlines()) == ["1 5", "2 12", "3 9"]


async def test_embedded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with asyncdl.connect() as db:  # embedded: .asyncdl/ in the working directory
        assert await db.show() == []
    assert (tmp_path / ".asyncdl").is_dir()


async def test_on_any_ibis_database(db):
    t = db["docs"]
    await db.execute(t.insert([{"id": n, "text": f"{1996 + n}", "year": 1996 + n} for n in range(10)]))
    found = await db.execute(t.filter(t.year > 2000).select("id", "text").order_by(t.year.desc()).limit(5))
    assert [row["id"] for row in await found.to_list()] == [9, 8, 7, 6, 5]
    changed = await db.execute(t.update({"year": 2000}, where=t.year == 1999))
    assert changed.ids == [3]
    gone = await db.execute(t.delete(where=t.id == 3))
    assert gone.ids == [3]
    await db.add(Listener("length", model=Model("len", len), key="text", select=t), wait=True)
    await db.add(Listener("embedding", model=Model("upper", models.upper), key="text", select=t), wait=True)
    rows = await (await db.execute(t.outputs("length", "embedding"))).to_list()
    assert {(row["length"], row["embedding"] == row["text"]) for row in rows} == {(4, True)}
    assert len(await (await db.execute(t.ids())).to_list()) == 9
    assert await (await db.execute(t.missing_outputs("length"))).to_list() == []


async def test_components(db):
    async def summarise(text):
        return text[:10]

    await db.add(Model("summary", summarise, max_concurrency=500, timeout=30, retries=3))
    points = db["points"]
    await db.execute(points.insert([{"id": n, "x": [float(n), 2.0 * n], "y": n % 2} for n in range(2)]))
    points_kept = Dataset("points", select=points)
    accuracy = Validation("v", datasets=points_kept, metrics=Metric("accuracy", accuracy_score), key=("x", "y"))
    trainer = Trainer(select=points, key=("x", "y"))
    await db.add(Model("classifier", SVC(), trainer=trainer, validation=accuracy), wait=True)  # trains on add
    assert await db.validate("classifier") == {"accuracy": 1.0}  # also stored
    a, b, c = (Model(name, models.double) for name in "abc")
    await db.add(Application("app", [a, b, c]))
    assert {"type_id": "application", "identifier": "app"} in await db.show()
    assert await db.show("model") == ["a", "b", "c", "classifier", "summary"]
    assert await db.show("model", "summary") == [0]
    assert (await db.show("model", "summary", -1))["fields"]["max_concurrency"] == 500
    model = await db.load("model", "summary")
    assert (model.identifier, model.version, model.max_concurrency) == ("summary", 0, 500)
    await db.execute(db["docs"].insert({"id": 1, "text": "one"}))
    await db.add(Listener("length", model=Model("len", len), key="text", select=db["docs"]), wait=True)
    await db.remove("listener", "length")
    with pytest.raises(ComponentNotFoundError):
        await db.execute(db["docs"].outputs("length"))
    replaced = await db.replace(model)
    assert not replaced.created  # it is what is installed already
    assert await db.predict("classifier", [1.0, 2.0]) == 1
    assert [output async for output in db.predict_many("a", [1, 2])] == [2, 4]


async def test_events_and_jobs(db):
    announced = []
    both = asyncio.Event()

    @db.on(ComponentAdded)
    async def announce(event):
        announced.append(event.identifier)
        if len(announced) == 2:
            both.set()

    received = []
    async with db.events.subscribe(JobFailed, RowsInserted, name="billing") as events:
        await db.execute(db["docs"].insert({"id": 1, "text": "one"}))
        async for event in events:
            received.append(event)
            break
    assert [event.ids for event in received] == [[1]]
    added = await db.add(Listener("length", model=Model("len", len), key="text", select=db["docs"]))
    progress = [(done, total, stage) async for done, total, stage in added.progress()]
    assert progress[-1] == (1, 1, "done")
    await db.wait_idle(timeout=60)
    assert await db.jobs.list(state="failed") == []
    with pytest.raises(asyncdl.errors.JobNotFoundError):
        await db.jobs.retry("nothing")
    with pytest.raises(asyncdl.errors.JobError):
        await db.jobs.cancel((await db.jobs.list())[0].id)
    await both.wait()
    assert announced == ["len", "length"]
