"""Models that train: on add, again, with what uses them waiting for it."""

from __future__ import annotations

import asyncio
import threading
import time

import psutil
import pytest
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import accuracy_score
from sklearn.svm import SVC

import asyncdl
from asyncdl import (
    Application,
    ComponentReady,
    Dataset,
    JobFailed,
    Listener,
    Metric,
    MetricReported,
    Model,
    ModelValidated,
    OutputsReplaced,
    Schedule,
    Table,
    Trainer,
    TrainingRequested,
    Validation,
)
from asyncdl.errors import (
    ComponentInUseError,
    ComponentNotReadyError,
    InvalidComponentError,
    JobCancelledError,
    JobFailedError,
    TableNotFoundError,
    UnknownColumnError,
    UntrustedArtifactError,
)
from tests import fits
from tests.conftest import rows_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def gate(request):
    """A training that waits to be let go."""
    name = request.node.name
    fits.hold[name], fits.reached[name] = threading.Event(), threading.Event()
    yield name
    fits.hold[name].set()


async def numbers(db, count=4):
    await db.execute(db["numbers"].insert([{"id": n, "x": float(n), "y": float(n * 10)} for n in range(count)]))
    return db["numbers"]


def mean(db, fit=None, name="mean", **options):
    return Model(name, fits.Mean(), trainer=Trainer(select=db["numbers"], key=("x", "y"), fit=fit, **options))


def means(db, model):
    return Listener("means", model=model, key="x", select=db["numbers"].select("id", "x"))


async def outputs(db):
    return await rows_of(db, db["numbers"].outputs("means").select("id", "means"))


async def stored(db):
    return {sha256 async for sha256 in db.artifact_store.list()}


async def training_job(db):
    [job] = await db.jobs.list(kind="train")
    return job


# on add


async def test_a_digits_classifier_trains_on_add_is_validated_and_follows_new_rows(db):
    X, y = load_digits(return_X_y=True)
    t = db["digits"]
    await db.add(Table("digits", {"id": "int64", "x": "vector(float64, 64)", "y": "int64"}))
    rows = [{"id": n, "x": x, "y": int(label)} for n, (x, label) in enumerate(zip(X, y, strict=True))]
    await db.execute(t.insert(rows[:800]))
    digits = Dataset("digits", select=t, valid_fraction=0.25, seed=1)
    accuracy = Validation("on_digits", datasets=[digits], metrics=[Metric("accuracy", accuracy_score)], key=("x", "y"))
    model = Model("classifier", SVC(), trainer=Trainer(select=digits, key=("x", "y")), validation=accuracy)
    added = await db.add(Listener("digit", model=model, key="x", select=t.select("id", "x")), wait=True)
    found = await db.validations("classifier")
    assert found[0]["on_digits"]["accuracy"] > 0.95
    [event] = await db.events.read(0, ModelValidated)
    assert (event.identifier, event.version, event.metrics) == ("classifier", 0, found[0]["on_digits"])
    assert await db.validate("classifier") == found[0]["on_digits"]

    await (await db.execute(t.insert(rows[800:1000]))).wait()
    predicted = await rows_of(db, t.outputs("digit").select("id", "y", "digit"))
    assert len(predicted) == 1000
    assert sum(target == output for _, target, output in predicted) > 950
    assert (await db.predict("classifier", X[0])) in range(10)
    assert added.component.identifier == "digit"


async def test_a_classifier_trained_by_epochs_reports_metrics_as_events(db):
    X, y = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    await db.execute(
        db["cases"].insert(
            [{"id": n, "x": list(x), "y": int(label)} for n, (x, label) in enumerate(zip(X, y, strict=True))]
        )
    )

    def fit(model, X, y, training):
        for epoch in range(1, 8):
            model.partial_fit(X, y, classes=[0, 1])
            training.report(epoch, 7, accuracy=model.score(X, y))

    trainer = Trainer(select=db["cases"], key=("x", "y"), fit=fit)
    added = await db.add(Model("cancer", SGDClassifier(random_state=0), trainer=trainer))
    seen = [progress async for progress in added.progress()]
    await added.wait()
    reported = await db.events.read(0, MetricReported)
    assert [(event.done, event.total) for event in reported] == [(epoch, 7) for epoch in range(1, 8)]
    assert reported[-1].metrics["accuracy"] > 0.95
    assert (seen[-1].done, seen[-1].total, seen[-1].stage) == (7, 7, "done")
    shown = await db.show("model", "cancer", -1)
    assert shown["status"] == "ready"
    assert shown["state"]["metrics"] == reported[-1].metrics


async def test_what_is_declared_stays_as_it_was_and_adding_it_again_changes_nothing(db):
    await numbers(db)
    model = mean(db)
    added = await db.add(model, wait=True)
    assert (await db.predict("mean", 1.0), model.object.fitted, added.component.object.fitted) == (15.0, 0, 0)
    loaded = await db.load("model", "mean")
    assert (loaded.object.fitted, loaded.trained.fitted, loaded.called_object.mean) == (0, 1, 15.0)
    for again in (mean(db), loaded):
        assert not (await db.add(again, wait=True)).created
    assert len(await db.jobs.list(kind="train")) == 1
    assert await db.show("model", "mean") == [0]


async def test_a_batch_of_columns_by_keyword(db):
    await numbers(db, 3)
    trainer = Trainer(select=db["numbers"], key={"pairs": ("x", "y"), "target": "y"}, fit=fits.wide)
    await db.add(Model("wide", fits.Mean(), trainer=trainer), wait=True)
    assert await db.predict("wide", 0.0) == 0 * 0 + 1 * 10 + 2 * 20 + 30


async def test_a_coroutine_function_trains_on_the_loop(db):
    await numbers(db)
    await db.add(mean(db, fits.epochs_on_loop), wait=True)
    assert await db.predict("mean", 1.0) == 15.0
    assert [event.done for event in await db.events.read(0, MetricReported)] == [1, 2, 3]


async def test_training_in_a_process(db, tmp_path):
    await numbers(db)
    log = tmp_path / "log"
    await db.add(mean(db, fits.epochs, on="process", kwargs={"log": str(log)}), wait=True)
    assert log.read_text().split() == list("012345")
    assert await db.predict("mean", 1.0) == 15.0
    assert [event.done for event in await db.events.read(0, MetricReported)] == [1, 2, 3, 4, 5, 6]


async def test_a_listeners_outputs_are_trained_on_once_they_are_there(db, gate):
    t = await numbers(db)
    await db.add(
        Listener("doubled", model=Model("double", fits.doubles_later, kwargs={"name": gate}), key="y", select=t)
    )
    await asyncio.to_thread(fits.reached[gate].wait)
    trainer = Trainer(select=t.outputs("doubled"), key=("x", "doubled"))
    added = await db.add(Model("on_outputs", fits.Mean(), trainer=trainer))
    seen = 0
    while not await db.jobs.list(kind="train"):
        seen = await db.metadata.wait_for_commits(seen)
    assert (await training_job(db)).not_before > time.time() + 1000  # held back
    fits.hold[gate].set()
    await added.wait()
    assert await db.predict("on_outputs", 0.0) == 30.0
    with pytest.raises(ComponentInUseError, match="on_outputs"):
        await db.remove("listener", "doubled")


# waiting for it


async def test_rows_written_meanwhile_wait_for_the_training(db, gate):
    t = await numbers(db)
    added = await db.add(means(db, mean(db, fits.held, kwargs={"name": gate})))
    written = await db.execute(t.insert({"id": 100, "x": 1.0, "y": 1000.0}))
    waits = [asyncio.create_task(each.wait()) for each in (added, written)]
    await asyncio.to_thread(fits.reached[gate].wait)
    with pytest.raises(ComponentNotReadyError, match="still being trained"):
        await db.predict("mean", 1.0)
    assert [each.status for each in await db.metadata.components(type_id="model")] == ["pending"]
    assert not any(each.done() for each in waits)
    fits.hold[gate].set()
    await asyncio.gather(*waits)
    assert [id for id, _ in await outputs(db)] == [0, 1, 2, 3, 100]
    ready = [event.identifier for event in await db.events.read(0, ComponentReady)]
    assert ready == ["mean", "means"]


async def test_a_training_that_fails_fails_what_waits_for_it_and_names_it(db):
    t = await numbers(db)
    added = await db.add(means(db, mean(db, fits.fails)))
    later = Listener("later", model=Model("same", abs), key="means", select=t.outputs("means").select("id", "means"))
    chained = await db.add(later)
    with pytest.raises(JobFailedError, match="there is nothing to be learned"):
        await added.wait()
    [failed] = await db.events.read(0, JobFailed)
    backfills = await db.jobs.list(state="upstream_failed", kind="backfill")
    assert [failed.job in (job.error or "") for job in backfills] == [True]
    await db.wait_idle()
    assert [failed.job in (job.error or "") for job in await db.jobs.list(state="upstream_failed", kind="refresh")] == [
        True
    ]
    assert chained.component.identifier == "later"
    with pytest.raises(ComponentNotReadyError, match="failed"):
        await db.predict("mean", 1.0)
    with pytest.raises(JobFailedError, match="model 'mean' version 0"):
        await (await db.execute(t.insert({"id": 50, "x": 0.0, "y": 0.0}))).wait()


async def test_a_training_that_failed_and_is_retried_goes_on_from_its_checkpoint_and_all_is_made_up_for(db):
    t = await numbers(db)
    fits.broken = True
    added = await db.add(means(db, mean(db, fits.fails_while_broken)))
    with pytest.raises(JobFailedError, match="broken"):
        await added.wait()
    with pytest.raises(JobFailedError, match="mean"):
        await (await db.execute(t.insert({"id": 9, "x": 0.0, "y": 60.0}))).wait()
    fits.broken = False
    await db.jobs.retry((await training_job(db)).id)
    await db.wait_idle()
    assert await outputs(db) == [(id, 24.0) for id in (0, 1, 2, 3, 9)]
    assert await db.jobs.list(state=["failed", "upstream_failed", "pending"]) == []


async def test_a_training_that_is_cancelled_stops_and_nothing_waits_for_it(db, gate):
    await numbers(db)
    added = await db.add(means(db, mean(db, fits.held, kwargs={"name": gate})))
    await asyncio.to_thread(fits.reached[gate].wait)
    await db.jobs.cancel((await training_job(db)).id)
    with pytest.raises((JobCancelledError, JobFailedError), match=r"cancelled|depends on"):
        await added.wait()
    await db.wait_idle()
    assert [each.status for each in await db.metadata.components(type_id="model")] == ["failed"]
    [listening] = await db.jobs.list(kind="backfill")
    assert listening.state == "upstream_failed"
    fits.hold[gate].set()
    again = await db.train("mean")  # and another version is trained
    await again.wait()
    assert await db.predict("mean", 1.0) == 15.0
    assert len(await outputs(db)) == 4


async def test_a_fit_that_returns_what_cannot_be_called_has_failed(db):
    await numbers(db)
    with pytest.raises(JobFailedError, match="returned 3"):
        await db.add(mean(db, fits.returns_nonsense), wait=True)


async def test_a_fit_that_kills_its_process_has_failed(db):
    await numbers(db)
    with pytest.raises(JobFailedError, match="exited with status 3"):
        await db.add(mean(db, fits.kills_its_process, on="process"), wait=True)


async def test_an_empty_table_trains_nothing(db):
    await db.add(Table("numbers", {"id": "int64", "x": "float64", "y": "float64"}))
    with pytest.raises(JobFailedError, match="no rows"):
        await db.add(mean(db), wait=True)


# again


async def test_training_again_makes_a_version_that_listeners_move_to_when_it_is_complete(db, gate):
    t = await numbers(db)
    fits.hold[gate].set()
    await db.add(means(db, mean(db, fits.held, kwargs={"name": gate})), wait=True)
    await (await db.execute(t.insert({"id": 4, "x": 0.0, "y": 65.0}))).wait()
    assert await outputs(db) == [(id, 15.0) for id in range(5)]
    fits.hold[gate].clear()
    fits.reached[gate].clear()
    again = await db.train("mean")
    await asyncio.to_thread(fits.reached[gate].wait)
    await (await db.execute(t.insert({"id": 5, "x": 0.0, "y": 0.0}))).wait()  # the version that is there follows
    await (await db.execute(t.update({"x": 3.0}, where=t.id == 0))).wait()
    assert await outputs(db) == [(id, 15.0) for id in range(6)]
    assert await db.predict("mean", 1.0) == 15.0
    assert (again.component.version, await db.show("model", "mean")) == (1, [0, 1])
    fits.hold[gate].set()
    await again.wait()
    assert await outputs(db) == [(id, 25.0) for id in range(6)]
    assert await db.predict("mean", 1.0) == 25.0
    assert len(await db.events.read(0, OutputsReplaced)) == 1
    statuses = {each.version: each.status for each in await db.metadata.components(type_id="listener")}
    assert statuses == {0: "retired", 1: "ready"}
    await db.wait_idle()
    await (await db.execute(t.insert({"id": 6, "x": 0.0, "y": 0.0}))).wait()
    assert (await outputs(db))[-1] == (6, 25.0)


async def test_training_again_that_fails_leaves_what_is_there(db):
    t = await numbers(db)
    fits.broken = False

    def fit(model, X, y):
        if len(X) > 4:
            raise ValueError("too many")
        model.fit(X, y)

    await db.add(means(db, mean(db, fit)), wait=True)
    await (await db.execute(t.insert({"id": 4, "x": 0.0, "y": 0.0}))).wait()
    with pytest.raises(JobFailedError, match="too many"):
        await db.train("mean", wait=True)
    await (await db.execute(t.insert({"id": 5, "x": 0.0, "y": 0.0}))).wait()
    assert await outputs(db) == [(id, 15.0) for id in range(6)]
    assert await db.predict("mean", 1.0) == 15.0


async def test_a_schedule_has_a_model_trained_again(db):
    await numbers(db)
    await db.add(means(db, mean(db)), wait=True)
    await db.add(Schedule("often", publish=TrainingRequested(identifier="mean"), every=0.3))
    async with db.events.subscribe(OutputsReplaced, since=0) as events:
        await anext(aiter(events))
    await db.remove("schedule", "often")
    await db.wait_idle()
    retrained = await db.jobs.list(kind="retrain")
    assert {job.state for job in retrained} == {"succeeded"}
    assert len(await db.show("model", "mean")) == len(retrained) + 1


async def test_a_request_for_a_training_is_waited_for_to_its_end_and_is_one_version(db):
    await numbers(db)
    await db.add(mean(db), wait=True)
    await db.events.publish(TrainingRequested(identifier="mean"))
    await db.events.publish(TrainingRequested(identifier="nobody"))
    await db.wait_idle()
    assert await db.show("model", "mean") == [0, 1]
    assert [each.status for each in await db.metadata.components(type_id="model")] == ["ready"] * 2


async def test_training_again_twice_at_once_ends_with_the_newest(db):
    t = await numbers(db)
    await db.add(means(db, mean(db)), wait=True)
    await db.execute(t.insert({"id": 4, "x": 0.0, "y": 65.0}))
    both = await asyncio.gather(db.train("mean"), db.train("mean"))
    assert sorted(each.component.version for each in both) == [1, 2]
    await db.wait_idle()
    assert await outputs(db) == [(id, 25.0) for id in range(5)]
    statuses = [each.status for each in await db.metadata.components(type_id="listener")]
    assert statuses == ["retired", "retired", "ready"]
    assert await db.jobs.list(state=["failed", "upstream_failed"]) == []


async def test_versions_that_were_overtaken_before_anybody_looked_are_trained_and_waited_for(tmp_path):
    uris = {"databackend": f"sqlite:///{tmp_path / 'a.db'}", "artifact_store": f"filesystem://{tmp_path / 'artifacts'}"}
    async with asyncdl.connect(**uris, worker=False) as db:
        await numbers(db)
        asked = [await db.add(means(db, mean(db))), await db.train("mean"), await db.train("mean")]
        async with asyncdl.connect(**uris):
            for each in asked:
                await each.wait(60)
            await db.wait_idle(60)
        assert [each.status for each in await db.metadata.components(type_id="model")] == ["ready"] * 3
        statuses = [each.status for each in await db.metadata.components(type_id="listener")]
        assert statuses == ["retired", "retired", "ready"]
        assert await outputs(db) == [(id, 15.0) for id in range(4)]
        assert {each.state for each in await db.jobs.list()} == {"succeeded"}


async def test_a_version_that_a_newer_one_overtook_while_it_was_trained_leaves_no_work_behind(db, gate):
    await numbers(db)
    fits.hold[gate].set()
    await db.add(means(db, mean(db, fits.held_once, kwargs={"name": gate})), wait=True)
    fits.hold[gate].clear()
    fits.reached[gate].clear()
    slow = await db.train("mean")
    await asyncio.to_thread(fits.reached[gate].wait)
    fits.passes.add(gate)
    await db.train("mean", wait=True)
    assert [each.status for each in await db.metadata.components(type_id="listener")] == ["retired", "retired", "ready"]
    fits.hold[gate].set()
    await slow.wait(30)  # that its version was overtaken is no failure
    await db.wait_idle(30)
    assert [each.status for each in await db.metadata.components(type_id="listener")] == ["retired", "retired", "ready"]
    assert await db.jobs.list(state=["pending", "failed", "upstream_failed", "cancelled"]) == []
    assert len(await outputs(db)) == 4


async def test_training_again_reaches_all_that_uses_it(db):
    t = await numbers(db)
    first = means(db, mean(db))
    plus = Listener(
        "plus", model=Model("plus", lambda x: x + 1), key="means", select=t.outputs("means").select("id", "means")
    )
    await db.add(Application("app", [first, plus]), wait=True)
    assert await rows_of(db, t.outputs("plus").select("id", "plus")) == [(id, 16.0) for id in range(4)]
    await db.execute(t.insert({"id": 4, "x": 0.0, "y": 65.0}))
    again = await db.train("mean")
    await again.wait()
    assert await rows_of(db, t.outputs("plus").select("id", "plus")) == [(id, 26.0) for id in range(5)]
    assert {kind: await db.show(kind, name) for kind, name in [("application", "app"), ("listener", "plus")]} == {
        "application": [0, 1],
        "listener": [0],
    }


async def test_another_declaration_is_trained_and_takes_over(db):
    t = await numbers(db)
    await db.add(means(db, mean(db)), wait=True)
    other = mean(db, fits.wide_mean, kwargs={"plus": 100})
    await db.replace(other, wait=True)
    assert await outputs(db) == [(id, 115.0) for id in range(4)]
    await (await db.execute(t.insert({"id": 4, "x": 0.0, "y": 0.0}))).wait()
    assert (await outputs(db))[-1] == (4, 115.0)


async def test_a_training_in_a_process_is_cancelled_at_once_and_its_process_is_gone(db, tmp_path):
    await numbers(db)
    pid = tmp_path / "pid"
    added = await db.add(mean(db, fits.never_ends, on="process", kwargs={"pid": str(pid)}))
    async for _ in added.progress():
        if await db.events.read(0, MetricReported):
            break
    [job] = await db.jobs.list(kind="train")
    await db.jobs.cancel(job.id)
    with pytest.raises(JobCancelledError):
        await added.wait()
    await db.aclose()
    assert not psutil.pid_exists(int(pid.read_text()))


@pytest.mark.parametrize("on", ["thread", "process"])
async def test_a_training_that_takes_too_long_has_failed(tmp_path, on):
    uris = {"artifact_store": f"filesystem://{tmp_path / 'artifacts'}"}
    async with asyncdl.connect(f"sqlite:///{tmp_path / 'app.db'}", **uris, job_max_attempts=1) as db:
        await numbers(db)
        with pytest.raises(JobFailedError, match=r"training of model 'mean' version 0 failed.* within 0\.5 s"):
            await db.add(mean(db, fits.naps, on=on, timeout=0.5), wait=True)


async def test_trainings_leave_room_for_others(tmp_path, gate):
    uris = {"artifact_store": f"filesystem://{tmp_path / 'artifacts'}"}
    async with asyncdl.connect(f"sqlite:///{tmp_path / 'app.db'}", **uris, job_concurrency=2) as db:
        t = await numbers(db)
        for name in "abc":
            await db.add(mean(db, fits.held, name, kwargs={"name": gate}))
        await asyncio.to_thread(fits.reached[gate].wait)
        await db.add(Listener("doubled", model=Model("double", lambda x: 2 * x), key="x", select=t), wait=True)
        assert [job.state for job in await db.jobs.list(kind="train")].count("running") == 1
        fits.hold[gate].set()
        await db.wait_idle()
        assert {job.state for job in await db.jobs.list(kind="train")} == {"succeeded"}


# refused


async def test_declarations_that_make_no_sense(db):
    await numbers(db)
    t = db["numbers"]
    for wrong, why in [
        (lambda: Model("m", len, trainer=Trainer(select=t, key="x")), "no fit"),
        (lambda: Model("m", fits.Mean(), trainer="train it"), "must be a Trainer"),
        (lambda: Model("m", fits.Mean(), trainer=Trainer(select="numbers", key="x")), "must be a query"),
        (lambda: Model("m", fits.Mean(), trainer=Trainer(select=t, key=("x", 3))), "must name columns"),
        (lambda: Model("m", fits.Mean(), trainer=Trainer(select=t, key="x", fit=3)), "not callable"),
        (lambda: Model("m", fits.Mean(), trainer=Trainer(select=t, key="x", on="moon")), "on is 'moon'"),
        (lambda: Model("m", fits.Mean(), trainer=Trainer(select=t, key="x", timeout=0)), "positive"),
        (lambda: Model("m", fits.Mean(), validation=3), "must be a Validation"),
    ]:
        with pytest.raises(InvalidComponentError, match=why):
            wrong()
    with pytest.raises(UnknownColumnError, match="nothing"):
        await db.add(Model("m", fits.Mean(), trainer=Trainer(select=t, key=("x", "nothing"))))
    with pytest.raises(TableNotFoundError, match="first rows"):
        await db.add(Model("m", fits.Mean(), trainer=Trainer(select=db["nowhere"], key=("x", "y"))))
    await db.add(Model("untrained", abs))
    with pytest.raises(InvalidComponentError, match="no trainer"):
        await db.train("untrained")
    assert await db.show("model") == ["untrained"]


async def test_no_training_where_pickles_are_not_trusted(tmp_path):
    where = {"artifact_store": f"filesystem://{tmp_path / 'artifacts'}"}
    async with asyncdl.connect(f"sqlite:///{tmp_path / 'app.db'}", pickle=False, **where) as db:
        await numbers(db)
        trainer = Trainer(select=db["numbers"], key=("x", "y"), fit=fits.fails)
        with pytest.raises(UntrustedArtifactError, match="trained"):
            await db.add(Model("m", fits.Mean, trainer=trainer))


# gone, and elsewhere


async def test_what_a_model_learned_and_its_checkpoints_go_with_it(db, tmp_path):
    await numbers(db)
    kept = await stored(db)
    await db.add(mean(db, fits.epochs, kwargs={"log": str(tmp_path / "log")}), wait=True)
    shown = await db.show("model", "mean", -1)
    assert await stored(db) - kept == set(shown["artifacts"])  # none of the six checkpoints
    assert shown["state"]["trained"] in shown["artifacts"]
    await db.remove("model", "mean")
    assert await stored(db) == kept


async def test_a_model_removed_while_it_is_trained_leaves_nothing(db, gate):
    await numbers(db)
    await db.add(mean(db, fits.held, kwargs={"name": gate}))
    await asyncio.to_thread(fits.reached[gate].wait)
    await db.remove("model", "mean")
    fits.hold[gate].set()
    await db.wait_idle()
    assert (await stored(db), await db.show()) == (set(), [])


async def test_a_trained_model_is_exported_with_what_it_learned(db, tmp_path):
    await numbers(db)
    await db.add(means(db, mean(db)), wait=True)
    await db.export("model", "mean", tmp_path / "exported")
    uris = {"artifact_store": f"filesystem://{tmp_path / 'others'}"}
    async with asyncdl.connect(f"sqlite:///{tmp_path / 'other.db'}", **uris) as other:
        added = await other.import_from(tmp_path / "exported", wait=True)
        assert await other.predict("mean", 1.0) == 15.0
        assert (added.created, added.component.object.fitted) == (True, 0)
        assert await other.jobs.list(kind="train") == []
        await other.remove("model", "mean")
        assert await stored(other) == set()
