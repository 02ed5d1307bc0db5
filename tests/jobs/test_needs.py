"""What components need: pure, over records."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from asyncdl.components.declaration import declare
from asyncdl.components.registry import encode_data
from asyncdl.jobs.needs import Needs, needs_of
from asyncdl.jobs.planner import BACKFILL, MATERIALIZE, RECOMPUTE, REFRESH, TRAIN, VALIDATE, Plan
from asyncdl.metadata.records import ComponentRecord
from asyncdl.query import Query, table_in
from tests import fits


def record(component: Any, status: str = "ready", version: int = 0, **children: str) -> ComponentRecord:
    """Return an installed component; its children by ``type_identifier=uuid``."""
    held = {(each.type_id, each.identifier): "print" for each in component.children()}
    fields = declare(component, held).fields
    uuids = {(type_id, name): children[f"{type_id}_{name}"] for type_id, name in held}
    uuid = f"{component.type_id}:{component.identifier}:{version}"
    data = encode_data(fields, uuids)
    return ComponentRecord(uuid, component.type_id, component.identifier, version, "print", status, data, 0.0)


@pytest.fixture
def components():
    from asyncdl import Dataset, Listener, Metric, Model, Trainer, Validation

    t: Query = table_in("ibis", "t")
    data = Dataset("data", select=t)
    trainer = Trainer(select=data, key=("x", "y"))
    by = Validation("by", datasets=data, metrics=Metric("m", fits.mean_error), key=("x", "y"))
    model = Model("model", fits.Mean(), trainer=trainer, validation=by)
    return data, by, model, Listener("listener", model=model, key="x", select=t)


def installed(components, statuses: dict[str, str]) -> Needs:
    data, by, model, listener = components
    uuids = {"dataset_data": "dataset:data:0", "metric_m": "metric:m:0", "validation_by": "validation:by:0"}
    return needs_of(
        [
            record(data, statuses.get("data", "ready")),
            record(by, **uuids),
            record(model, statuses.get("model", "ready"), **uuids),
            record(listener, statuses.get("listener", "ready"), model_model="model:model:0"),
        ]
    )


def plan(kind: str, target: str, **arguments: Any) -> Plan:
    return Plan(kind, target, 1, 1, 1, arguments=arguments)


TRAINING, LISTENING = "model:model:0", "listener:listener:0"


def test_what_is_ready_holds_nothing_back(components):
    needs = installed(components, {})
    for each in (
        plan(BACKFILL, LISTENING),
        plan(REFRESH, LISTENING),
        plan(TRAIN, TRAINING),
        plan(VALIDATE, "validation:by:0"),
    ):
        assert needs.hold(each) is each


def test_what_is_pending_holds_back_what_needs_it_and_nothing_else(components):
    needs = installed(components, {"data": "pending", "model": "pending", "listener": "pending"})
    assert needs.hold(plan(MATERIALIZE, "dataset:data:0")) == plan(MATERIALIZE, "dataset:data:0")
    for held, by in [
        (plan(TRAIN, TRAINING), ["dataset:data:0"]),
        (plan(BACKFILL, LISTENING, setup=True), [TRAINING]),
        (plan(REFRESH, LISTENING), [TRAINING]),
        (plan(RECOMPUTE, LISTENING), [TRAINING]),
        (plan(VALIDATE, "validation:by:0"), ["dataset:data:0"]),
    ]:
        found = needs.hold(held)
        assert found is not None
        assert (found.arguments["waits"], found.failed) == (by, "")
    assert needs.hold(plan(BACKFILL, LISTENING, sweep=True)) is None


def test_failures_go_down_to_what_needs_it_indirectly(components):
    needs = installed(components, {"data": "failed", "model": "pending", "listener": "pending"})
    assert needs.unready[TRAINING] == "failed"
    assert needs.dependents("dataset:data:0") == ["validation:by:0", TRAINING, LISTENING]
    found = needs.hold(plan(BACKFILL, LISTENING, setup=True))
    assert found is not None
    assert "model 'model' version 0" in found.failed


def test_a_version_that_replaces_another_holds_back_its_first_backfill_alone(components):
    *_, model, listener = components
    uuids = {"dataset_data": "d", "validation_by": "v"}
    needs = needs_of(
        [
            record(model, "ready", **uuids),
            record(model, "pending", 1, **uuids),
            record(listener, "ready", model_model="model:model:0"),
            record(listener, "pending", 1, model_model="model:model:1"),
        ]
    )
    new = "listener:listener:1"
    assert needs.hold(plan(REFRESH, LISTENING)) == plan(REFRESH, LISTENING)
    assert needs.hold(plan(REFRESH, new)) is None
    found = needs.hold(plan(BACKFILL, new, setup=True))
    assert found is not None
    assert found.arguments["waits"] == ["model:model:1"]


def test_outputs_that_are_trained_on_are_waited_for_until_some_version_has_them(components):
    from asyncdl import Listener, Model, Trainer

    t = table_in("ibis", "t")
    listener = Listener("up", model=Model("same", abs), key="x", select=t)
    learner = Model("learner", fits.Mean(), trainer=Trainer(select=t.outputs("up"), key=("x", "up")))
    upstream = record(listener, "pending", model_same="m")
    assert needs_of([upstream, record(learner, "pending")]).of["model:learner:0"] == {"listener:up:0"}
    ready = [record(listener, "ready", model_same="m"), record(listener, "pending", 1, model_same="m")]
    needs = needs_of([*ready, record(learner, "pending")])
    assert needs.of["model:learner:0"] == {"listener:up:0"}  # by which it is let go, should it have been held back
    assert needs.hold(plan(TRAIN, "model:learner:0")) == plan(TRAIN, "model:learner:0")


def test_records_of_before_there_were_trainers():
    data = msgspec.json.encode({"fields": {"object": {"$": "reference", "v": "builtins:len"}}, "children": {}}).decode()
    assert needs_of([ComponentRecord("m", "model", "m", 0, "p", "ready", data, 0.0)]).of == {}
