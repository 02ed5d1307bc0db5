"""The registry: declared components and installed ones, between the Datalayer and the stores."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import msgspec

from asyncdl.artifact_store.base import ArtifactStore
from asyncdl.components.component import Component
from asyncdl.components.cursors import gate_of
from asyncdl.components.datatype import Datatype
from asyncdl.components.declaration import Declaration, blobs_of, declare, readable, restore, unpickle
from asyncdl.components.model import Model, Signature, exception_name
from asyncdl.components.states import ModelState, readable_state
from asyncdl.compute.base import ModelCall
from asyncdl.databackend.tables import OutputTable
from asyncdl.datatypes import Datatypes
from asyncdl.errors import ComponentNotFoundError, ComponentNotReadyError, InvalidComponentError, QueryError
from asyncdl.metadata.base import MetadataStore
from asyncdl.metadata.records import ComponentRecord
from asyncdl.query import AnyQuery, output_roots

Identity = tuple[str, str]
"""A component's type and identifier."""


@dataclass(frozen=True)
class ListenerState:
    """What is known of an installed listener without decoding it; JSON in its record's ``state``."""

    output: OutputTable
    root: str
    tables: Collection[str]
    listeners: Collection[str]
    active: bool = True

    def dumps(self) -> str:
        """Return it as JSON."""
        plain = asdict(self)
        plain["tables"], plain["listeners"] = sorted(self.tables), sorted(self.listeners)
        plain["output"]["key"] = list(self.output.key.items())  # a list, for its order counts
        return msgspec.json.encode(plain, order="sorted").decode()

    @classmethod
    def loads(cls, text: str) -> ListenerState:
        """Return it from JSON."""
        plain = msgspec.json.decode(text)
        output = plain.pop("output")
        output["root"], output["key"] = tuple(output["root"]), dict(output["key"])
        return cls(output=OutputTable(**output), **plain)


@dataclass
class Prepared:
    """A declared component, ready to be compared with what is installed."""

    component: Component
    declaration: Declaration
    children: list[Identity] = field(default_factory=list)

    @property
    def identity(self) -> Identity:
        """Its type and identifier."""
        return self.component.type_id, self.component.identifier


class Registry:
    """Finds, encodes and decodes components.

    Parameters
    ----------
    allow_pickle
        Whether pickled objects may be decoded.
    """

    def __init__(
        self, metadata: MetadataStore, artifact_store: ArtifactStore, datatypes: Datatypes, *, allow_pickle: bool
    ) -> None:
        self.metadata = metadata
        self.artifact_store = artifact_store
        self.datatypes = datatypes
        self.allow_pickle = allow_pickle
        self._loaded: dict[str, tuple[str, Component]] = {}
        """Components by uuid, with the data that each was decoded from: its tuning may be another by now."""

    # declared components

    async def prepare(self, component: Component) -> list[Prepared]:
        """Encode a component and all that it holds, those that are held first.

        Raises
        ------
        InvalidComponentError
            Two different ones have one name, or something cannot be stored.
        """
        ordered: list[Component] = []
        _collect(component, ordered, ())
        prepared: dict[Identity, Prepared] = {}
        for each in ordered:
            children = list(dict.fromkeys((child.type_id, child.identifier) for child in each.children()))
            prints = {identity: prepared[identity].declaration.fingerprint for identity in children}
            declaration = await asyncio.to_thread(declare, each, prints)
            found = prepared.get((each.type_id, each.identifier))
            if found is not None and found.declaration.fingerprint != declaration.fingerprint:
                raise InvalidComponentError(f"{component} holds two different components that are both {each}")
            prepared[each.type_id, each.identifier] = Prepared(each, declaration, children)
        return _upstream_first(list(prepared.values()))

    def register(self, component: Component) -> None:
        """Make a datatype known to the databackend."""
        if isinstance(component, Datatype):
            self.datatypes.register(component.identifier, component.encoder, component.decoder)

    # installed components

    async def newest(self, type_id: str, identifier: str) -> ComponentRecord | None:
        """Return the record of the newest version, None if there is none."""
        found = await self.metadata.components(type_id=type_id, identifier=identifier)
        return found[-1] if found else None

    async def find(self, type_id: str, identifier: str, version: int | None = None) -> ComponentRecord:
        """Return a record; ``version`` None or -1: the newest.

        Raises
        ------
        ComponentNotFoundError
            There is none; the message names what there is.
        """
        found = await self.metadata.components(type_id=type_id, identifier=identifier)
        if not found:
            raise ComponentNotFoundError(await self._not_found(type_id, identifier))
        if version is None or version == -1:
            return found[-1]
        for record in found:
            if record.version == version:
                return record
        versions = ", ".join(str(record.version) for record in found)
        raise ComponentNotFoundError(f"{type_id} {identifier!r} has no version {version}; it has {versions}")

    async def _not_found(self, type_id: str, identifier: str) -> str:
        records = await self.metadata.components()
        types = sorted({record.type_id for record in records})
        if type_id not in types:
            known = ", ".join(types) if types else "nothing"
            return f"no {type_id} {identifier!r} is installed, nor any other {type_id} (there is: {known})"
        names = sorted({record.identifier for record in records if record.type_id == type_id})
        near = difflib.get_close_matches(identifier, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f" (there is: {', '.join(names[:20])})"
        return f"no {type_id} {identifier!r} is installed{hint}"

    async def load(self, record: ComponentRecord) -> Component:
        """Return an installed component, with all that it holds."""
        found = self._loaded.get(record.uuid)
        if found is not None and found[0] == record.data:
            return found[1]
        data = msgspec.json.decode(record.data)
        children: dict[Identity, Component] = {}
        if data["children"]:
            records = {
                each.uuid: each for each in await self.metadata.components(uuids=list(data["children"].values()))
            }
            for name, uuid in data["children"].items():
                type_id, _, identifier = name.partition("/")
                children[type_id, identifier] = await self.load(records[uuid])
        blobs = {sha256: await self.artifact_store.get(sha256) for sha256 in blobs_of(data["fields"])}
        component = await asyncio.to_thread(
            restore,
            record.type_id,
            record.identifier,
            data["fields"],
            blobs,
            children,
            allow_pickle=self.allow_pickle,
            version=record.version,
            uuid=record.uuid,
        )
        self.register(component)
        trained = ModelState.of(record).trained if isinstance(component, Model) else None
        if isinstance(component, Model) and trained is not None:
            pickled = await self.artifact_store.get(trained)
            made = await asyncio.to_thread(unpickle, pickled, allow_pickle=self.allow_pickle)
            component = replace(component, trained=made)
        if not _untrained(component):
            self._loaded[record.uuid] = record.data, component
        return component

    def held_by(self, uuid: str) -> list[str]:
        """Return the uuids of what a component holds, as far as that was loaded: nothing is read, and it never changes."""
        loaded = self._loaded.get(uuid)
        return [] if loaded is None else [str(each.uuid) for each in loaded[1].children()]

    async def named(self, uuid: str) -> dict[str, Any]:
        """Return the type and identifier of an installed component, as events name them; empty: it was removed."""
        loaded = self._loaded.get(uuid)
        if loaded is not None:
            _, component = loaded
            return {"type_id": component.type_id, "identifier": component.identifier}
        found = await self.metadata.components(uuids=[uuid])
        return {"type_id": found[0].type_id, "identifier": found[0].identifier} if found else {}

    async def record(self, record: ComponentRecord) -> dict[str, Any]:
        """Return all that is known of an installed component, as plain values: without decoding any artifact."""
        data = msgspec.json.decode(record.data)
        parents = await self.metadata.parents(record.uuid)
        listener = record.type_id == "listener"
        paused = {"paused": (await self.metadata.cursor(gate_of(record.identifier)) or 0) < 0} if listener else {}
        return {
            "type_id": record.type_id,
            "identifier": record.identifier,
            "version": record.version,
            "uuid": record.uuid,
            "status": record.status,
            **paused,
            "created": record.created,
            "fingerprint": record.fingerprint,
            "fields": {name: readable(tree) for name, tree in data["fields"].items()},
            "children": data["children"],
            "parents": {f"{each.type_id}/{each.identifier}": each.uuid for each in parents},
            "artifacts": sorted(await self.metadata.artifacts(record.uuid)),
            "state": readable_state(record),
        }

    def forget(self, uuid: str) -> None:
        """Drop a component that was loaded."""
        self._loaded.pop(uuid, None)

    # listeners

    async def listeners(self) -> list[tuple[ComponentRecord, ListenerState]]:
        """Return the listeners that follow the data: all but those that a newer version has taken over from."""
        return [
            (record, ListenerState.loads(record.state))
            for record in await self.metadata.components(type_id="listener")
            if record.status != "retired"
        ]

    async def declared(self, type_id: str) -> list[tuple[ComponentRecord, dict[str, Any]]]:
        """Return all versions of the components of a type, in order, with their fields as `readable` tells them."""
        return [
            (record, {name: readable(tree) for name, tree in msgspec.json.decode(record.data)["fields"].items()})
            for record in await self.metadata.components(type_id=type_id)
        ]

    async def outputs_of(
        self, query: AnyQuery, known: Mapping[str, ListenerState] | None = None
    ) -> dict[str, OutputTable]:
        """Return the output tables that a query reads.

        Parameters
        ----------
        known
            Listeners that are still to be installed.

        Raises
        ------
        ComponentNotFoundError
            There is no such listener.
        QueryError
            A listener's rows are those of another table than the query's, whose keys mean something else.
        """
        found: dict[str, OutputTable] = {}
        for identifier, root in sorted(output_roots(query), key=str):
            state = (known or {}).get(identifier) or await self._readable(identifier)
            if root is not None and state.root != root:
                raise QueryError(
                    f"the listener {identifier!r} follows the rows of {state.root!r}, so its outputs cannot be joined to those "
                    f"of {root!r}; start from db[{state.root!r}]"
                )
            found[identifier] = state.output
        return found

    async def outputs(self, identifiers: Iterable[str]) -> dict[str, OutputTable]:
        """Return where listeners' outputs are to be read: those of the newest version that is complete, if one is.

        Raises
        ------
        ComponentNotFoundError
            There is no such listener.
        """
        return {identifier: (await self._readable(identifier)).output for identifier in identifiers}

    async def _readable(self, identifier: str) -> ListenerState:
        records = await self.metadata.components(type_id="listener", identifier=identifier)
        if not records:
            raise ComponentNotFoundError(await self._not_found("listener", identifier))
        ready = [record for record in records if record.status == "ready"]
        return ListenerState.loads((ready or records)[-1].state)

    # models

    async def usable(self, identifier: str) -> ComponentRecord:
        """Return the newest version of a model that can be called: while one is trained, that before it.

        Raises
        ------
        ComponentNotFoundError
            There is none.
        ComponentNotReadyError
            None has been trained yet.
        """
        newest = await self.find("model", identifier)
        if newest.status == "ready":
            return newest
        records = await self.metadata.components(type_id="model", identifier=identifier)
        ready = [record for record in records if record.status == "ready"]
        if not ready:
            raise ComponentNotReadyError(not_ready(newest), failed=newest.status == "failed")
        return ready[-1]

    def call(self, model: Model, record: ComponentRecord, signature: Signature) -> ModelCall:
        """Return how a worker calls an installed model for inputs that are passed so."""
        trained = ModelState.of(record).trained
        source = {"$": "artifact", "v": trained} if trained else msgspec.json.decode(record.data)["fields"]["object"]
        return ModelCall(
            uuid=record.uuid,
            artifact=source["v"] if source["$"] == "artifact" else None,
            reference=source["v"] if source["$"] == "reference" else None,
            method=model.called,
            batch=model.batched,
            signature=signature,
            kwargs=dict(model.kwargs),
            placement=model.placement,
            max_concurrency=model.max_concurrency or 100,
            name=model.identifier,
            at_most=model.max_concurrency,
            rate_limit=model.rate_limit,
            timeout=model.timeout,
            retries=model.retries,
            backoff=model.backoff,
            retry_on=tuple(map(exception_name, model.retry_on)),
            give_up_on=tuple(map(exception_name, model.give_up_on)),
            resources=dict(model.resources),
        )


def _collect(component: Component, ordered: list[Component], path: tuple[int, ...]) -> None:
    if id(component) in path:
        raise InvalidComponentError(f"{component} holds itself: a cycle")
    for child in component.children():
        _collect(child, ordered, (*path, id(component)))
    if not any(each is component for each in ordered):
        ordered.append(component)


def _upstream_first(prepared: list[Prepared]) -> list[Prepared]:
    """Order components such that listeners come after those whose outputs they read, and all after what they hold.

    Raises
    ------
    InvalidComponentError
        Listeners read each other's outputs in a circle.
    """
    by_identity = {each.identity: each for each in prepared}
    ordered: dict[Identity, Prepared] = {}
    under_way: list[Identity] = []

    def visit(each: Prepared) -> None:
        if each.identity in ordered:
            return
        if each.identity in under_way:
            circle = " → ".join(
                identifier for _, identifier in [*under_way[under_way.index(each.identity) :], each.identity]
            )
            raise InvalidComponentError(f"these listeners read each other's outputs in a cycle: {circle}")
        under_way.append(each.identity)
        upstream = [("listener", identifier) for identifier in sorted(each.component.listeners())]
        # tables and datatypes before what may use them by name
        named = [other.identity for other in prepared if other.identity[0] in {"table", "datatype"}]
        first = [] if each.identity[0] in {"table", "datatype"} else named
        for identity in [*first, *each.children, *upstream]:
            if identity in by_identity:
                visit(by_identity[identity])
        under_way.pop()
        ordered[each.identity] = each

    for each in prepared:
        visit(each)
    return list(ordered.values())


def _untrained(component: Component) -> bool:
    """Return whether a component is, or holds, a model that training is still to change."""
    own = isinstance(component, Model) and component.trainer is not None and component.trained is None
    return own or any(map(_untrained, component.children()))


def not_ready(model: ComponentRecord) -> str:
    """Say why a model cannot be called."""
    if model.status == "failed":
        return f"the training of model {model.identifier!r} failed; db.train({model.identifier!r}) trains it again"
    return f"model {model.identifier!r} is still being trained; wait for the handle that `add` returned"


def with_datatype(state: ListenerState, datatype: str) -> ListenerState:
    """Return a listener's state with its outputs' datatype known."""
    return replace(state, output=replace(state.output, datatype=datatype))


def priority_of(record: ComponentRecord) -> int:
    """Return the priority that an installed listener's declaration has, without decoding the rest."""
    declared = msgspec.json.decode(record.data)["fields"].get("priority")
    return int(readable(declared)) if declared else 0


def encode_data(fields: Mapping[str, Any], children: Mapping[Identity, str]) -> str:
    """Return a component record's ``data``."""
    named = {f"{type_id}/{identifier}": uuid for (type_id, identifier), uuid in children.items()}
    return msgspec.json.encode({"fields": fields, "children": named}, order="sorted").decode()
