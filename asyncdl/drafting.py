"""Drafting: what installing components would write, put together from what is installed; nothing is written here."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from asyncdl.components.component import Component
from asyncdl.components.dataset import Dataset
from asyncdl.components.datatype import Datatype
from asyncdl.components.declaration import pickled
from asyncdl.components.listener import Listener
from asyncdl.components.model import Model
from asyncdl.components.registry import Identity, ListenerState, Prepared, Registry, encode_data
from asyncdl.components.states import ModelState
from asyncdl.components.table import Table
from asyncdl.databackend.base import DataBackend
from asyncdl.databackend.tables import OutputTable, TableSchema
from asyncdl.datatypes import normalize
from asyncdl.errors import InvalidComponentError, QueryError, TableNotFoundError, UnknownColumnError
from asyncdl.events.types import ComponentAdded, ComponentReady, ComponentTuned
from asyncdl.metadata.changes import Change, PutComponent, SetComponentData
from asyncdl.metadata.records import ComponentRecord
from asyncdl.query import QUERIES


@dataclass(frozen=True)
class Order:
    """What an installation is told besides its components.

    Parameters
    ----------
    anew
        Components of which a new version is installed, though they equal the newest.
    first, last
        The range of events that caused it.
    besides
        What is committed with it.
    """

    anew: Collection[Identity] = ()
    first: int = 0
    last: int = 0
    besides: Sequence[Change] = ()


AS_DECLARED = Order()
"""What is installed already, and equal, is left alone."""


@dataclass
class Draft:
    """An installation being put together.

    Attributes
    ----------
    records
        Of what was asked for, and of what becomes a new version with it.
    changes
        What installs those that are new.
    tables, datatypes, listeners
        What else is to be made, and what is known of the new listeners.
    blobs
        What trained models have learned, by hash.
    """

    records: dict[Identity, ComponentRecord] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    tables: dict[str, TableSchema] = field(default_factory=dict)
    datatypes: list[Datatype] = field(default_factory=list)
    listeners: dict[str, ListenerState] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    order: Order = field(default_factory=Order)

    def put(self, record: ComponentRecord, links: Sequence[str], artifacts: Sequence[str]) -> None:
        """Add a new version of a component."""
        self.records[record.type_id, record.identifier] = record
        self.changes.append(PutComponent(record, list(dict.fromkeys(links)), artifacts))
        cause = self.order.first, self.order.last
        self.changes.append(ComponentAdded(**record.identity).change(*cause))
        if record.status == "ready":
            self.changes.append(ComponentReady(**record.identity).change(*cause))

    @property
    def new(self) -> dict[str, ComponentRecord]:
        """The records of what is new, by uuid."""
        return {change.record.uuid: change.record for change in self.changes if isinstance(change, PutComponent)}

    @property
    def tuned(self) -> set[str]:
        """The uuids of what is changed in its place."""
        return {change.uuid for change in self.changes if isinstance(change, SetComponentData)}


class Drafter:
    """Compares declared components with installed ones, and with the data."""

    def __init__(self, databackend: DataBackend, registry: Registry) -> None:
        self._databackend = databackend
        self._registry = registry
        self._metadata = registry.metadata

    async def users(self, record: ComponentRecord) -> list[ComponentRecord]:
        """Return the newest versions of what uses a component, directly or not, those used first."""
        found: dict[str, ComponentRecord] = {}

        async def visit(each: ComponentRecord) -> None:
            for parent in await self._metadata.parents(each.uuid):
                newest = await self._registry.newest(parent.type_id, parent.identifier)
                if newest is not None and newest.uuid == parent.uuid:
                    found.pop(parent.uuid, None)
                    found[parent.uuid] = parent
                    await visit(parent)

        await visit(record)
        return list(found.values())

    async def _readers(self, identifier: str) -> list[ComponentRecord]:
        """Return the newest versions of what reads a listener's outputs, directly or not, those read first.

        By what they select: their links are to the version that there was when they were added.
        """
        newest = {record.identifier: (record, state) for record, state in await self._registry.listeners()}
        found: dict[str, ComponentRecord] = {}

        def visit(read: str) -> None:
            for record, state in newest.values():
                if read in state.listeners:
                    found.pop(record.identifier, None)
                    found[record.identifier] = record
                    visit(record.identifier)

        visit(identifier)
        return list(found.values())

    async def draft(self, prepared: Sequence[Prepared], order: Order = AS_DECLARED) -> Draft:
        """Put together what installing these would write; nothing is written.

        Raises
        ------
        InvalidComponentError, TableNotFoundError, UnknownColumnError, QueryError
            They cannot be installed.
        """
        draft = Draft(order=order)
        given, anew = {each.identity for each in prepared}, set(order.anew)
        for each in prepared:
            newest = await self._registry.newest(*each.identity)
            if not anew.isdisjoint(each.children):  # it uses what is installed anew, and so is itself
                anew.add(each.identity)
            changed = newest is None or newest.fingerprint != each.declaration.fingerprint
            if newest is None or changed or each.identity in anew:
                await self._draft_one(each, newest, draft)
            elif not await self._draft_anew(newest, each.component, draft):
                draft.records[each.identity] = _tuned(newest, each, draft)
            if newest is not None and _is_reshaped(newest, draft):
                await self._draft_readers(newest, given, draft)
        return draft

    async def _draft_one(self, each: Prepared, newest: ComponentRecord | None, draft: Draft) -> None:
        component = each.component
        children = {identity: draft.records[identity].uuid for identity in each.children}
        version, uuid, state, status = (0 if newest is None else newest.version + 1), uuid4().hex, "{}", "ready"
        links = list(children.values())
        if isinstance(component, Table):
            await self._draft_table(component, draft)
        elif isinstance(component, Datatype):
            draft.datatypes.append(component)
        elif isinstance(component, Listener):
            found = await self._draft_listener(component, uuid, draft)
            state, status = found.dumps(), "pending" if component.active else "ready"
        elif isinstance(component, (Model, Dataset)):
            state, status = await self._draft_learning(component, draft)
        links += await self._upstream(component, draft)
        trained = [] if not isinstance(component, Model) else filter(None, [ModelState.loads(state).trained])
        record = ComponentRecord(
            uuid=uuid,
            type_id=component.type_id,
            identifier=component.identifier,
            version=version,
            fingerprint=each.declaration.fingerprint,
            status=status,
            data=encode_data(each.declaration.fields, children),
            created=self._metadata.clock.now(),
            state=state,
        )
        draft.put(record, links, list(dict.fromkeys([*each.declaration.blobs, *trained])))

    async def _draft_readers(self, record: ComponentRecord, given: Collection[Identity], draft: Draft) -> None:
        """Draft new versions of what reads a listener's outputs, and would no longer fit them, and of what reads theirs."""
        for each in await self._readers(record.identifier):
            if (each.type_id, each.identifier) in given:
                continue
            component = await self._registry.load(each)
            assert isinstance(component, Listener)  # noqa: S101 - records of this type become listeners
            try:
                await self._draft_anew(each, component, draft)
            except (QueryError, InvalidComponentError) as error:
                raise InvalidComponentError(
                    f"the listener {each.identifier!r} reads the outputs of {record.identifier!r}, and could not read those of "
                    f"its new version; add both as one Application: {error}"
                ) from error

    async def _draft_anew(self, newest: ComponentRecord, component: Component, draft: Draft) -> bool:
        """Draft a new version of an installed listener if the rows that it reads have another key by now; return whether."""
        if not isinstance(component, Listener) or not component.listeners() or not component.active:
            return False
        uuid = uuid4().hex
        state = await self._draft_listener(component, uuid, draft)
        if _shape(state) == _shape(ListenerState.loads(newest.state)):
            del draft.listeners[component.identifier]
            return False
        held = [each.uuid for each in await self._metadata.children(newest.uuid) if each.type_id != "listener"]
        links = [*held, *await self._upstream(component, draft)]
        record = dataclasses.replace(
            newest,
            uuid=uuid,
            version=newest.version + 1,
            status="pending",
            created=self._metadata.clock.now(),
            state=state.dumps(),
        )
        draft.put(record, links, list(await self._metadata.artifacts(newest.uuid)))
        return True

    async def _upstream(self, component: Component, draft: Draft) -> list[str]:
        """Return the uuids of the listeners whose outputs a listener reads."""
        known = [draft.records.get(("listener", upstream)) for upstream in sorted(component.listeners())]
        names = sorted(component.listeners())
        return [
            (record or await self._registry.find("listener", upstream)).uuid
            for record, upstream in zip(known, names, strict=True)
        ]

    async def _draft_learning(self, component: Model | Dataset, draft: Draft) -> tuple[str, str]:
        """Check what a model is trained on, or a dataset made of; return the component's state and status."""
        if isinstance(component, Dataset):
            schema = await self._checked_select(component, component.select, draft)
            if not schema.primary_key:
                raise InvalidComponentError(
                    f"{component}: its select must keep the primary key of {component.select.root()!r}, by which rows are "
                    f"sampled and folded; it has {', '.join(schema.columns)}"
                )
            return "{}", "pending"
        if component.trained is not None:
            blobs: dict[str, bytes] = {}
            trained = await asyncio.to_thread(pickled, component.trained, blobs)
            draft.blobs |= blobs
            return ModelState(trained=trained).dumps(), "ready"
        if component.trainer is None:
            return "{}", "ready"
        select = component.trainer.select
        if not isinstance(select, Dataset):
            _check_named(component, component.trainer.columns, await self._checked_select(component, select, draft))
        return "{}", "pending"

    async def _checked_select(self, component: Component, select: Any, draft: Draft) -> TableSchema:
        known = draft.listeners  # what is trained on, or kept, is read once: as it is
        return await self._checked(
            component, select, await self._registry.outputs_of(select, known), draft, bool(known)
        )

    async def _checked(
        self, component: Component, select: Any, outputs: Mapping[str, OutputTable], draft: Draft, unmade: bool
    ) -> TableSchema:
        """Return the columns of a select, which may read what is still to be made."""
        tables = draft.tables if draft.tables or unmade else None
        try:
            return await self._databackend.check(select, outputs, tables)
        except TableNotFoundError as error:
            raise TableNotFoundError(
                f"{component} selects from a table that does not exist: {error}; insert its first rows before, or declare "
                f"it: Table({select.root()!r}, {{column: datatype, ...}})"
            ) from error

    async def _draft_table(self, component: Table, draft: Draft) -> None:
        declared = self._databackend.as_made(component.schema())
        found = await self._databackend.schema(component.identifier)
        if (
            found is not None
            and not found.open
            and (dict(found.columns), found.primary_key)
            != (
                dict(declared.columns),
                declared.primary_key,
            )
        ):
            raise InvalidComponentError(
                f"there is a table {component.identifier!r} already, with other columns: it has {_described(found)}, "
                f"and declared was {_described(declared)}"
            )
        draft.tables[component.identifier] = declared

    async def _draft_listener(self, component: Listener, uuid: str, draft: Draft) -> ListenerState:
        """Check a listener against the data; return what is known of it."""
        select = component.select
        assert isinstance(select, QUERIES)  # noqa: S101 - the listener's own check
        known = await self._known(component, draft)
        outputs = await self._registry.outputs_of(select, known)
        root = select.root()
        schema = await self._checked(component, select, outputs, draft, bool(known))
        base = draft.tables.get(root) or await self._databackend.schema(root)
        assert base is not None  # noqa: S101 - `check` has found it
        _check_columns(component, schema, base)
        datatype = component.model.datatype
        key = {name: schema.columns[name] for name in schema.primary_key}
        output = OutputTable(
            name=f"_outputs_{component.identifier}"[:52] + f"_{uuid[:10]}",
            identifier=component.identifier,
            root=base.primary_key,
            key=key,
            datatype=datatype.column if isinstance(datatype, Datatype) else datatype and normalize(datatype),
            flatten=component.flatten,
        )
        state = ListenerState(output, root, select.tables(), select.listeners(), component.active)
        draft.listeners[component.identifier] = state
        return state

    async def _known(self, component: Listener, draft: Draft) -> dict[str, ListenerState]:
        """Return what is known of listeners that are to be read as they will be: their keys tell what a reader's is."""
        known = dict(draft.listeners)
        for upstream in component.listeners() - set(known):
            versions = await self._metadata.components(type_id="listener", identifier=upstream)
            states = [ListenerState.loads(each.state) for each in versions if each.status in {"ready", "pending"}]
            if len(states) > 1 and _shape(states[-1]) != _shape(states[-2]):
                known[upstream] = states[-1]
        return known


def _shape(state: ListenerState) -> tuple[object, ...]:
    """Return what decides on the key of rows that come through a listener's outputs."""
    return state.root, state.output.root, tuple(state.output.key), state.output.flatten


def _is_reshaped(newest: ComponentRecord, draft: Draft) -> bool:
    drafted = draft.listeners.get(newest.identifier) if newest.type_id == "listener" else None
    return drafted is not None and _shape(drafted) != _shape(ListenerState.loads(newest.state))


def _tuned(installed: ComponentRecord, declared: Prepared, draft: Draft) -> ComponentRecord:
    """Return the record of what is installed already, tuned as it is declared now."""
    data = declared.declaration.tuned(installed.data)
    if data == installed.data:
        return installed
    draft.changes.append(SetComponentData(installed.uuid, data))
    draft.changes.append(ComponentTuned(**installed.identity).change())
    return dataclasses.replace(installed, data=data)


def _described(schema: TableSchema) -> str:
    columns = ", ".join(f"{name} {datatype}" for name, datatype in schema.columns.items())
    return f"({columns}; primary key {', '.join(schema.primary_key)})"


def _check_columns(component: Listener, schema: TableSchema, base: TableSchema) -> None:
    """Raise unless a select has the columns of the key, and the primary key of the table that it starts from."""
    if not base.primary_key:
        raise InvalidComponentError(
            f"{component}: the table {base.name!r} has no primary key, so its rows can't be followed"
        )
    if schema.primary_key[: len(base.primary_key)] != base.primary_key:
        raise InvalidComponentError(
            f"{component}: its select must keep the primary key of {base.name!r} ({', '.join(base.primary_key)}) as it is, "
            f"one row for each key; select has the columns {', '.join(schema.columns)}"
        )
    _check_named(component, component.columns, schema)
    if component.identifier in base.columns:
        raise InvalidComponentError(
            f"{component}: the table {base.name!r} has a column of this name, which its outputs would be read by; "
            "give the listener another identifier"
        )


def _check_named(component: Component, columns: Iterable[str], schema: TableSchema) -> None:
    for column in columns:
        if column not in schema.columns and not schema.open:
            raise UnknownColumnError(
                f"{component}: its key names the column {column!r}; its select has {', '.join(schema.columns)}"
            )
