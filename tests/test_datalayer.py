"""The datalayer, end to end, on the embedded default."""

from __future__ import annotations

import asyncio
import sqlite3

import anyio
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.svm import SVC

import asyncdl
from asyncdl import (
    Application,
    ComponentAdded,
    ComponentReady,
    ComponentRemoved,
    Datatype,
    JobFailed,
    Listener,
    Model,
    OutputsWritten,
    RowsInserted,
    Table,
    fn,
)
from asyncdl.errors import (
    ClosedError,
    ComponentInUseError,
    ComponentNotFoundError,
    ConfigurationError,
    JobFailedError,
    ModelError,
    UntrustedArtifactError,
)
from tests import models
from tests.conftest import rows_of

pytestmark = pytest.mark.anyio


async def numbers(db, count=3):
    await db.execute(db["numbers"].insert([{"id": n, "x": n * 10} for n in range(count)]))
    await db.wait_idle()  # else the insert may yet be planned for a listener that is added next, beside its backfill
    return db["numbers"]


def doubled(db, **options):
    return Listener("doubled", model=Model("double", models.double), key="x", select=db["numbers"], **options)


async def running(db):
    """Wait until a job runs, and return it."""
    seen = 0
    while not (jobs := await db.jobs.list(state="running")):
        seen = await db.metadata.wait_for_commits(seen)
    return jobs[0]


# the data's way


async def test_what_is_there_comes_and_goes_is_followed(db):
    t = await numbers(db)
    added = await db.add(doubled(db))
    await added.wait()
    assert await rows_of(db, t.outputs("doubled")) == [(0, 0, 0), (1, 10, 20), (2, 20, 40)]

    await (await db.execute(t.insert({"id": 3, "x": 5}))).wait()
    await (await db.execute(t.update({"x": t.x + 1}, where=t.id == 0))).wait()
    await (await db.execute(t.upsert([{"id": 1, "x": 7}, {"id": 4, "x": 8}]))).wait()
    await (await db.execute(t.delete(where=t.id == 2))).wait()
    assert await rows_of(db, t.outputs("doubled")) == [(0, 1, 2), (1, 7, 14), (3, 5, 10), (4, 8, 16)]
    assert await rows_of(db, t.missing_outputs("doubled")) == []


async def test_an_update_out_of_the_select_takes_the_output_away_and_back_in_brings_it(db):
    t = await numbers(db)
    await db.add(
        Listener("large", model=Model("double", models.double), key="x", select=t.filter(t.x >= 10)), wait=True
    )
    assert await rows_of(db, t.outputs("large").select("id")) == [(1,), (2,)]
    await (await db.execute(t.update({"x": 3}, where=t.id == 1))).wait()
    assert await rows_of(db, t.outputs("large").select("id")) == [(2,)]
    await (await db.execute(t.update({"x": 30}, where=True))).wait()
    assert await rows_of(db, t.outputs("large").select("id", "large")) == [(0, 60), (1, 60), (2, 60)]


async def test_chained_and_flattened_listeners(db):
    texts = db["texts"]
    await db.execute(texts.insert([{"id": "a", "text": "one two three"}, {"id": "b", "text": ""}]))
    split = Listener("word", model=Model("words", models.words), key="text", select=texts, flatten=True)
    shout = Listener(
        "loud",
        model=Model("upper", models.upper),
        key="word",
        select=texts.outputs("word").select("id", "word_position", "word"),
    )
    await db.add(split, wait=True)
    await db.add(shout, wait=True)
    query = texts.outputs("word", "loud").select("id", "word_position", "loud")
    assert await rows_of(db, query) == [("a", 0, "ONE"), ("a", 1, "TWO"), ("a", 2, "THREE")]

    await (await db.execute(texts.update({"text": "just one"}, where=texts.id == "a"))).wait()
    await (await db.execute(texts.update({"text": "four"}, where=texts.id == "b"))).wait()
    assert await rows_of(db, query) == [("a", 0, "JUST"), ("a", 1, "ONE"), ("b", 0, "FOUR")]

    await (await db.execute(texts.delete(where=texts.id == "a"))).wait()
    assert await rows_of(db, query) == [("b", 0, "FOUR")]


async def test_a_chain_in_one_application_in_any_order(db):
    t = db["numbers"]
    first = doubled(db)
    second = Listener(
        "again",
        model=Model("redouble", models.double),
        key="doubled",
        select=t.outputs("doubled").select("id", "doubled"),
    )
    table = Table("numbers", {"id": "int64", "x": "int64"})
    added = await db.add(Application("chain", [second, table, first]))
    await added.wait()
    written = await db.execute(t.insert([{"id": n, "x": n} for n in range(2000)]))
    await written.wait()
    found = await rows_of(db, t.outputs("doubled", "again").select("id", "again"))
    assert found == [(n, 4 * n) for n in range(2000)]


async def test_keys_of_every_form(db):
    t = db["pairs"]
    await db.execute(t.insert([{"id": 1, "x": 1, "y": 2}, {"id": 2, "x": 3, "y": 4}]))
    for name, key in {"args": ("x", "y"), "kwargs": {"y": "x", "x": "y"}}.items():
        await db.add(Listener(name, model=Model("add", models.add), key=key, select=t), wait=True)
    await db.add(Listener("batch", model=Model("squares", models.squares, batch=True), key="y", select=t), wait=True)
    await db.add(Listener("loop", model=Model("slowly", models.slowly), key="x", select=t), wait=True)
    await db.add(Listener("process", model=Model("far", models.double, on="process"), key="x", select=t), wait=True)
    found = await rows_of(db, t.outputs("args", "kwargs", "batch", "loop", "process").drop("x", "y"))
    assert found == [(1, 3, 3, 4, 101, 2), (2, 7, 7, 16, 103, 6)]


async def test_an_estimator_is_a_model(db):
    digits = load_digits()
    classifier = SVC(gamma=0.001).fit(digits.data[:1000], digits.target[:1000])
    t = db["digits"]
    await db.add(Table("digits", {"id": "int64", "pixels": "vector(float64, 64)"}))
    rows = [{"id": n, "pixels": digits.data[n]} for n in range(1000, 1200)]
    await db.execute(t.insert(rows))
    await db.add(Listener("digit", model=Model("classifier", classifier), key="pixels", select=t), wait=True)
    found = await rows_of(db, t.outputs("digit").select("id", "digit"))
    assert [digit for _, digit in found] == classifier.predict(digits.data[1000:1200]).tolist()
    assert await db.predict("classifier", digits.data[1500]) == classifier.predict(digits.data[1500:1501])[0]


async def test_a_thousand_writers_and_their_outputs(db):
    t = db["numbers"]
    await db.add(Application("app", [Table("numbers", {"id": "int64", "x": "int64"}), doubled(db)]))

    async def write(n):
        written = await db.execute(t.insert({"id": n, "x": n}))
        await written.wait()
        return await (await db.execute(t.outputs("doubled").filter(fn.literal(n) == t.id))).first()

    async with anyio.create_task_group() as group:
        results = {}

        async def one(n):
            results[n] = await write(n)

        for n in range(300):
            group.start_soon(one, n)
    assert results == {n: {"id": n, "x": n, "doubled": 2 * n} for n in range(300)}


async def test_rows_of_another_program_are_found_by_reconciling(db, tmp_path):
    t = await numbers(db)
    await db.add(doubled(db), wait=True)
    with sqlite3.connect(tmp_path / "app.db") as other:
        other.execute("INSERT INTO numbers VALUES (7, 70)")
        other.execute("DELETE FROM numbers WHERE id = 0")
    other.close()
    handle = await db.reconcile("doubled")
    await handle.wait()
    assert await rows_of(db, t.outputs("doubled").select("id", "doubled")) == [(1, 20), (2, 40), (7, 140)]


async def test_closed_and_reopened_it_goes_on(tmp_path):
    uris = {"databackend": f"sqlite:///{tmp_path / 'a.db'}", "artifact_store": f"filesystem://{tmp_path / 'artifacts'}"}
    async with asyncdl.connect(**uris) as db:
        await numbers(db, 500)
        offset = 7
        listener = Listener("moved", model=Model("move", lambda x: x + offset), key="x", select=db["numbers"])
        await db.add(listener)  # and close at once
    async with asyncdl.connect(**uris) as db:
        await db.wait_idle()
        t = db["numbers"]
        assert await rows_of(db, t.outputs("moved").select("id", "moved")) == [(n, n * 10 + 7) for n in range(500)]
        await (await db.execute(t.insert({"id": 1000, "x": 1}))).wait()
        assert (1000, 8) in await rows_of(db, t.outputs("moved").select("id", "moved"))


async def test_metadata_in_another_database(tmp_path):
    uris = {
        "databackend": f"sqlite:///{tmp_path / 'data.db'}",
        "metadata_store": f"sqlite:///{tmp_path / 'meta.db'}",
        "artifact_store": f"filesystem://{tmp_path / 'artifacts'}",
    }
    async with asyncdl.connect(**uris) as db:
        t = await numbers(db)
        await db.add(doubled(db), wait=True)
        await (await db.execute(t.update({"x": 1}, where=t.id == 0))).wait()
        await (await db.execute(t.delete(where=t.id == 1))).wait()
        assert await rows_of(db, t.outputs("doubled")) == [(0, 1, 2), (2, 20, 40)]
        await db.remove("listener", "doubled")
    with sqlite3.connect(tmp_path / "data.db") as data:
        tables = {name for (name,) in data.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    data.close()
    assert not [name for name in tables if "outputs" in name or "components" in name or "events" in name]


# components


async def test_versions_and_no_op(db):
    await numbers(db)
    first = await db.add(doubled(db))
    again = await db.add(doubled(db))
    assert first.created
    assert not again.created
    assert again.component.uuid == first.component.uuid
    await again.wait()
    assert await db.show("listener", "doubled") == [0]
    changed = await db.add(Model("double", models.squares, batch=True))
    assert changed.component.version == 1
    assert await db.show("model", "double") == [0, 1]
    assert (await db.show("model", "double", -1))["fields"]["object"] == "tests.models:squares"
    assert (await db.load("model", "double", 0)).object is models.double
    assert await db.show() == [
        {"type_id": "listener", "identifier": "doubled"},
        {"type_id": "model", "identifier": "double"},
    ]
    assert await db.show("model") == ["double"]


async def test_twenty_tasks_add_one_version(db):
    t = await numbers(db)
    handles = await asyncio.gather(*(db.add(doubled(db)) for _ in range(20)))
    assert sum(handle.created for handle in handles) == 1
    assert len({handle.component.uuid for handle in handles}) == 1
    await handles[-1].wait()
    assert len(await rows_of(db, t.outputs("doubled"))) == 3
    assert len(await db.events.read(0, ComponentAdded)) == 2  # the listener and its model


async def test_a_new_version_takes_over_once_it_is_complete(db):
    t = await numbers(db)
    await db.add(doubled(db), wait=True)
    chained = Listener(
        "again", model=Model("re", models.double), key="doubled", select=t.outputs("doubled").select("id", "doubled")
    )
    await db.add(chained, wait=True)
    replaced = await db.replace(Model("double", models.fails_on_negative))
    await replaced.wait()
    assert await rows_of(db, t.outputs("doubled", "again").drop("x")) == [(0, 1, 2), (1, 11, 22), (2, 21, 42)]
    assert await db.show("listener", "doubled") == [0, 1]
    assert (await db.show("listener", "doubled", 0))["status"] == "retired"


async def test_remove_takes_everything_along_and_refuses_what_is_in_use(db, tmp_path):
    t = await numbers(db)
    secret = 42
    listener = Listener("closure", model=Model("with_blob", lambda x: x + secret), key="x", select=t)
    await db.add(listener, wait=True)
    blobs = [each for each in (tmp_path / "artifacts").rglob("*") if each.is_file()]
    assert blobs
    with pytest.raises(ComponentInUseError, match="listener 'closure' version 0"):
        await db.remove("model", "with_blob")
    await db.remove("model", "with_blob", recursive=True)
    assert await db.show() == []
    assert [each for each in (tmp_path / "artifacts").rglob("*") if each.is_file()] == []
    with pytest.raises(ComponentNotFoundError):
        await db.execute(t.outputs("closure"))
    assert [event.identifier for event in await db.events.read(0, ComponentRemoved)] == ["closure", "with_blob"]
    with sqlite3.connect(tmp_path / "app.db") as raw:
        names = [name for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    raw.close()
    assert not [name for name in names if name.startswith("_outputs")]


async def test_two_datalayers_with_one_artifact_folder_do_not_meet(tmp_path):
    artifacts = f"filesystem://{tmp_path / 'artifacts'}"
    async with (
        asyncdl.connect(f"sqlite:///{tmp_path / 'a.db'}", artifact_store=artifacts) as a,
        asyncdl.connect(f"sqlite:///{tmp_path / 'b.db'}", artifact_store=artifacts) as b,
    ):
        n = 3
        model = Model("same", lambda x: x + n)
        await a.add(model)
        await b.add(model)
        await a.remove("model", "same")
        assert await b.predict("same", 1) == 4
        assert await a.show() == []


async def test_export_and_import(db, tmp_path):
    t = await numbers(db)
    offset = 5
    chain = Application(
        "app", [doubled(db), Listener("moved", model=Model("m", lambda x: x + offset), key="x", select=t)]
    )
    await db.add(chain, wait=True)
    await db.export("application", "app", tmp_path / "exported")
    assert (tmp_path / "exported" / "component.json").exists()
    assert len(list((tmp_path / "exported" / "blobs").iterdir())) == 1  # the lambda; `double` stands there by its path
    await db.drop(force=True)
    assert await db.show() == []
    added = await db.import_from(tmp_path / "exported")
    await added.wait()
    assert await rows_of(db, t.outputs("doubled", "moved").drop("x")) == [(0, 0, 5), (1, 20, 15), (2, 40, 25)]


async def test_pickles_can_be_forbidden(tmp_path):
    uris = {"databackend": f"sqlite:///{tmp_path / 'a.db'}", "artifact_store": f"filesystem://{tmp_path / 'artifacts'}"}
    async with asyncdl.connect(**uris) as db:
        await db.add(Model("pickled", lambda x: x))
        await db.export("model", "pickled", tmp_path / "exported")
    async with asyncdl.connect(**uris, pickle=False) as db:
        assert await db.show("model") == ["pickled"]
        with pytest.raises(UntrustedArtifactError):
            await db.load("model", "pickled")
        with pytest.raises(UntrustedArtifactError):
            await db.predict("pickled", 1)
        with pytest.raises(UntrustedArtifactError):
            await db.add(Model("another", lambda x: -x))
        with pytest.raises(UntrustedArtifactError):
            await db.import_from(tmp_path / "exported")
        await db.add(Model("plain", models.double))
        assert await db.predict("plain", 4) == 8


async def test_own_datatypes_survive_a_restart(tmp_path):
    uris = {"databackend": f"sqlite:///{tmp_path / 'a.db'}", "artifact_store": f"filesystem://{tmp_path / 'artifacts'}"}
    backwards = Datatype(
        "backwards", encoder=lambda text: text[::-1].encode(), decoder=lambda data: data.decode()[::-1]
    )
    async with asyncdl.connect(**uris) as db:
        await db.add(Table("t", {"id": "int64", "text": backwards}))
        await db.execute(db["t"].insert({"id": 1, "text": "straight"}))
        model = Model("loud", models.upper, datatype=backwards)
        await db.add(Listener("loud", model=model, key="text", select=db["t"]), wait=True)
    async with asyncdl.connect(**uris) as db:
        assert await rows_of(db, db["t"].outputs("loud")) == [(1, "straight", "STRAIGHT")]
    with sqlite3.connect(tmp_path / "a.db") as raw:
        assert raw.execute("SELECT text FROM t").fetchall() == [(b"thgiarts",)]
    raw.close()


# failures


async def test_one_bad_row_is_one_bad_row(db):
    t = db["numbers"]
    await db.execute(t.insert([{"id": n, "x": -5 if n == 2 else n} for n in range(5)]))
    listener = Listener("next", model=Model("next", models.fails_on_negative), key="x", select=t)
    await db.add(listener, wait=True)
    assert await rows_of(db, t.outputs("next").select("id", "next")) == [(0, 1), (1, 2), (3, 4), (4, 5)]
    [(key, error)] = await db.errors("next")
    assert (key, error.type, error.message) == (2, "ValueError", "-5 is negative")
    assert await rows_of(db, t.missing_outputs("next").ids()) == [(2,)]

    await (await db.execute(t.update({"x": 1}, where=t.id == 2))).wait()
    assert await db.errors("next") == []
    assert (2, 2) in await rows_of(db, t.outputs("next").select("id", "next"))


async def test_retry_failed_runs_only_what_failed(db, monkeypatch):
    t = await numbers(db, 20)
    models.calls.clear()
    monkeypatch.setattr(models, "counted", _fails_the_first_time_on_50)
    _fails_the_first_time_on_50.__module__, _fails_the_first_time_on_50.__qualname__ = "tests.models", "counted"
    await db.add(Listener("same", model=Model("same", models.counted), key="x", select=t), wait=True)
    assert [key for key, _ in await db.errors("same")] == [5]
    await (await db.retry_failed("same")).wait()
    assert await db.errors("same") == []
    assert models.calls == {**dict.fromkeys(range(0, 200, 10), 1), 50: 2}


def _fails_the_first_time_on_50(x):
    models.calls[x] += 1
    if x == 50 and models.calls[x] == 1:
        raise ValueError("not yet")
    return x


async def test_a_job_that_fails_is_failed_with_its_traceback_and_can_be_retried(tmp_path):
    uris = {"databackend": f"sqlite:///{tmp_path / 'a.db'}", "artifact_store": f"filesystem://{tmp_path / 'artifacts'}"}
    async with asyncdl.connect(**uris, job_max_attempts=2, job_backoff=0.01) as db:
        t = await numbers(db)
        async with db.events.subscribe(JobFailed) as events:
            listener = Listener("few", model=Model("few", models.one_too_few, batch=True), key="x", select=t)
            added = await db.add(listener)
            with pytest.raises(JobFailedError, match="2 outputs for 3 inputs"):
                await added.wait()
            event = await anext(aiter(events))
        [job] = await db.jobs.list(state="failed")
        assert (event.job, event.attempts, job.attempts) == (job.id, 2, 2)
        assert (await db.show("listener", "few", -1))["status"] == "failed"
        await db.execute(t.delete(where=True))
        await db.jobs.retry(job.id)
        await db.wait_idle()
        assert (await db.jobs.get(job.id)).state == "succeeded"


async def test_predict(db):
    await db.add(Model("add", models.add))
    await db.add(Model("next", models.fails_on_negative))
    await db.add(Model("slowly", models.slowly))
    assert await db.predict("add", 1, 2) == 3
    assert await db.predict("add", x=1, y=2) == 3
    with pytest.raises(ModelError, match="-1 is negative"):
        await db.predict("next", -1)

    async def stream():
        for n in range(1000):
            yield n

    assert [y async for y in db.predict_many("slowly", stream(), size=64)] == [n + 100 for n in range(1000)]
    with pytest.raises(ComponentNotFoundError, match="did you mean 'slowly'"):
        await db.predict("slowy", 1)


# events and life


async def test_handlers_and_events(db):
    seen = []
    ready = asyncio.Event()

    @db.on(ComponentReady)
    async def note(event):
        seen.append(event.identifier)
        if event.identifier == "doubled":
            ready.set()

    async with db.events.subscribe(RowsInserted, OutputsWritten, name="test", since=0) as events:
        t = await numbers(db)
        await db.add(doubled(db), wait=True)
        found = [await anext(aiter(events)) for _ in range(2)]
    assert [type(event).__name__ for event in found] == ["RowsInserted", "OutputsWritten"]
    assert [event.ids for event in found] == [[0, 1, 2], [0, 1, 2]]
    await ready.wait()
    assert seen == ["double", "doubled"]
    assert t is not None


async def test_progress_comes_to_its_end(db):
    t = await numbers(db, 5000)
    added = await db.add(doubled(db))
    steps = [step async for step in added.progress()]
    assert steps[-1] == (5000, 5000, "done")
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert len(await rows_of(db, t.outputs("doubled"))) == 5000


async def test_use_after_close_and_before_open(db, tmp_path):
    other = await asyncdl.connect(f"sqlite:///{tmp_path / 'other.db'}", artifact_store=f"filesystem://{tmp_path / 'x'}")
    written = await other.execute(other["t"].insert({"id": 1}))
    await other.aclose()
    await other.aclose()
    for use in (
        lambda: other.execute(other["t"]),
        lambda: other.add(Model("m", models.double)),
        other.show,
        lambda: other.predict("m", 1),
        other.wait_idle,
        lambda: other.remove("model", "m"),
        written.wait,
    ):
        with pytest.raises(ClosedError):
            await use()
    with pytest.raises(ClosedError):
        async with other.events.subscribe():
            pass


async def test_waiting_ends_when_the_datalayer_closes(tmp_path):
    uris = {"databackend": f"sqlite:///{tmp_path / 'a.db'}", "artifact_store": f"filesystem://{tmp_path / 'artifacts'}"}
    db = await asyncdl.connect(**uris)
    t = await numbers(db)
    added = await db.add(Listener("hangs", model=Model("hangs", _Hangs()), key="x", select=t))
    waiting = asyncio.create_task(added.wait())
    await running(db)
    await db.aclose()
    with pytest.raises(ClosedError):
        await waiting
    async with asyncdl.connect(**uris) as db:
        [job] = await db.jobs.list(kind="backfill", state=("pending", "running"))
        assert job.attempts <= 1  # closing has cost none
        await db.remove("listener", "hangs")


class _Hangs:
    async def __call__(self, x):
        await asyncio.Event().wait()


async def test_a_job_can_be_cancelled_while_it_runs(db):
    t = await numbers(db)
    await db.add(Listener("hangs", model=Model("hangs", _Hangs()), key="x", select=t))
    job = await running(db)
    await db.jobs.cancel(job.id)
    await db.wait_idle()
    assert (await db.jobs.get(job.id)).state == "cancelled"
    assert await rows_of(db, t.missing_outputs("hangs").ids()) == [(0,), (1,), (2,)]


async def test_drop(db):
    await numbers(db)
    await db.add(doubled(db), wait=True)
    with pytest.raises(ConfigurationError):
        await db.drop()
    await db.drop(force=True, data=True)
    assert await db.show() == []
    assert await db.tables() == []


async def test_arrays_as_outputs(db):
    t = await numbers(db)
    await db.add(Listener("vector", model=Model("vector", lambda x: np.full(3, x, "f4")), key="x", select=t), wait=True)
    rows = await (await db.execute(t.outputs("vector").order_by("id"))).to_list()
    assert [row["vector"].tolist() for row in rows] == [[0.0] * 3, [10.0] * 3, [20.0] * 3]
    assert {row["vector"].dtype for row in rows} == {np.dtype("f4")}
