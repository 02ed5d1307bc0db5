"""Records, and changes of them, that the conformance suites of metadata stores put into one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal

from asyncdl.errors import AsyncDLError, ComponentInUseError, ConflictError, LeaseLostError
from asyncdl.metadata.base import MetadataStore, Topic
from asyncdl.metadata.changes import (
    AdvanceJob,
    AppendEvent,
    Change,
    ClaimJob,
    DeleteComponent,
    DeleteIntent,
    FinishJob,
    HoldJob,
    LinkArtifacts,
    MoveCursor,
    PutComponent,
    PutIntent,
    PutJob,
    SetComponentData,
    SetComponentState,
    SetComponentStatus,
    SetJobState,
)
from asyncdl.metadata.records import ComponentRecord, IntentRecord, JobRecord

RecordKind = Literal["components", "links", "artifacts", "events", "jobs", "cursors", "intents"]
KINDS: tuple[RecordKind, ...] = ("components", "links", "artifacts", "events", "jobs", "cursors", "intents")

HOSTILE = {
    "quotes": "it's \"quoted\" `twice` '' \\",
    "statement": "'); DROP TABLE _asyncdl_events; --",
    "parameters": ":name ?1 %s %(x)s $1 {x}",
    "patterns": "%_*[a-z]\\%",
    "emoji": "\N{FAMILY}\N{ZERO WIDTH JOINER}\N{PILE OF POO}",
    "direction": "\N{RIGHT-TO-LEFT OVERRIDE}abc\N{COMBINING ACUTE ACCENT}",
    "whitespace": " \t\r\n trailing ",
    "empty": "",
}


def component(uuid: str = "c" * 32, identifier: str = "model", version: int = 1, **others: Any) -> ComponentRecord:
    """Return a component's record, its type "model" unless given."""
    fields: dict[str, Any] = {"type_id": "model", "fingerprint": "f" * 64, "status": "pending", "data": "{}"}
    return ComponentRecord(uuid=uuid, identifier=identifier, version=version, **fields | {"created": 1.5} | others)


def job(id: str = "j", **others: Any) -> JobRecord:
    """Return the record of a pending job."""
    fields: dict[str, Any] = {"kind": "refresh", "target": "t", "payload": "{}", "first": 1, "last": 1, "created": 1.5}
    return JobRecord(id=id, **fields | others)


def event(topic: str = "docs", type: str = "RowsInserted", payload: str = "{}") -> AppendEvent:
    """Return the change that appends an event."""
    return AppendEvent(type, topic, payload, 2.5)


def intent(id: str = "i", created: float = 3.5) -> PutIntent:
    """Return the change that announces a write."""
    return PutIntent(IntentRecord(id, "{}", "process", created))


PREPARED: tuple[Change, ...] = (
    PutComponent(component("child", "child")),
    PutComponent(component("parent", "parent"), children=["child"], artifacts=["a" * 64]),
    PutJob(job("waiting")),
    PutJob(job("later", not_before=1000.0)),
    PutJob(job("mine")),
    ClaimJob("mine", "me", now=10.0, lease=20.0),
    PutJob(job("done", state="succeeded")),
    MoveCursor("cursor", 7),
    MoveCursor("closed", -3),
    intent("announced"),
    event("prepared"),
)
"""The state in which `REFUSED` is tried."""

REFUSED: dict[str, tuple[Change, type[AsyncDLError]]] = {
    "component: identity taken": (PutComponent(component("new", "child")), ConflictError),
    "component: uuid taken": (PutComponent(component("child", "new")), ConflictError),
    "component: child missing": (PutComponent(component("new", "new"), children=["child", "nobody"]), ConflictError),
    "status: not installed": (SetComponentStatus("nobody", "ready"), ConflictError),
    "status: not as expected": (SetComponentStatus("child", "ready", expected="ready"), ConflictError),
    "state: not installed": (SetComponentState("nobody", "{}"), ConflictError),
    "data: not installed": (SetComponentData("nobody", "{}"), ConflictError),
    "artifacts: not installed": (LinkArtifacts("nobody", ["a" * 64]), ConflictError),
    "state: not as expected": (SetComponentState("child", '{"a": 1}', expected='{"b": 1}'), ConflictError),
    "delete component: not installed": (DeleteComponent("nobody"), ComponentInUseError),
    "delete component: in use": (DeleteComponent("child"), ComponentInUseError),
    "job: id taken": (PutJob(job("waiting")), ConflictError),
    "claim: no such job": (ClaimJob("nothing", "me", 15.0, 30.0), ConflictError),
    "claim: not due": (ClaimJob("later", "me", 999.0, 1010.0), ConflictError),
    "claim: held": (ClaimJob("mine", "you", 19.0, 30.0), ConflictError),
    "claim: held by oneself": (ClaimJob("mine", "me", 19.0, 30.0), ConflictError),
    "claim: attempted meanwhile": (ClaimJob("mine", "you", 25.0, 30.0, attempts=7), ConflictError),
    "claim: finished": (ClaimJob("done", "me", 5000.0, 5010.0), ConflictError),
    "claim: gate closed": (ClaimJob("waiting", "me", 15.0, 30.0, gate="closed"), ConflictError),
    "take over: gate closed": (ClaimJob("mine", "you", 25.0, 30.0, gate="closed"), ConflictError),
    "advance: not running": (AdvanceJob("waiting", "me", 1, 2), LeaseLostError),
    "advance: another's": (AdvanceJob("mine", "you", 1, 2), LeaseLostError),
    "advance: no such job": (AdvanceJob("nothing", "me", 1, 2), LeaseLostError),
    "hold: not running": (HoldJob("waiting", "me"), LeaseLostError),
    "hold: another's": (HoldJob("mine", "you"), LeaseLostError),
    "hold: no such job": (HoldJob("nothing", "me"), LeaseLostError),
    "finish: not running": (FinishJob("waiting", "me", "succeeded", 15.0), LeaseLostError),
    "finish: another's": (FinishJob("mine", "you", "succeeded", 15.0), LeaseLostError),
    "set job: not among": (SetJobState("done", "pending", ("failed", "cancelled"), 15.0), ConflictError),
    "set job: no such job": (SetJobState("nothing", "pending", ("failed",), 15.0), ConflictError),
    "cursor: moved meanwhile": (MoveCursor("cursor", 9, expected=8), ConflictError),
    "cursor: not new": (MoveCursor("cursor", 9, expected=0), ConflictError),
    "cursor: none there": (MoveCursor("other", 9, expected=7), ConflictError),
    "intent: id taken": (intent("announced"), ConflictError),
    "delete intent: settled": (DeleteIntent("settled"), ConflictError),
}
"""Changes whose condition does not hold in the state that `PREPARED` makes, and the error that says so."""

WAKING: list[tuple[Topic, Change]] = [
    ("anything", SetComponentStatus("child", "ready")),
    ("components", SetComponentStatus("child", "ready")),
    ("components", PutComponent(component("another"))),
    ("events", event()),
    ("work", PutJob(job("new"))),
    ("work", SetJobState("done", "pending", ("succeeded",), 15.0)),
    ("work", FinishJob("mine", "me", "pending", 15.0)),
    ("completion", FinishJob("mine", "me", "succeeded", 15.0)),
    ("completion", SetJobState("waiting", "cancelled", ("pending",), 15.0)),
    ("stops", SetJobState("mine", "cancelled", ("running",), 15.0)),
    ("stops", MoveCursor("closed", -4, expected=-3)),
    ("completion", FinishJob("mine", "me", "paused", 15.0, refund=True)),
    ("completion", MoveCursor("cursor", 8, expected=7)),
]
"""Changes, and a topic whose waiters each must wake."""

READS: dict[str, Callable[[MetadataStore], Awaitable[Any]]] = {
    "components": lambda store: store.components(),
    "parents": lambda store: store.parents("c"),
    "children": lambda store: store.children("c"),
    "artifacts": lambda store: store.artifacts(),
    "events": lambda store: store.events(0),
    "last_event": lambda store: store.last_event(),
    "cursor": lambda store: store.cursor("c"),
    "cursors": lambda store: store.cursors(),
    "pending_causes": lambda store: store.pending_causes("nobody"),
    "jobs": lambda store: store.jobs(),
    "claimable": lambda store: store.claimable(1.0, limit=1),
    "next_due": lambda store: store.next_due(1.0),
    "intents": lambda store: store.intents(),
    "commit": lambda store: store.commit(event()),
    "wait_for_commits": lambda store: store.wait_for_commits(0),
}
