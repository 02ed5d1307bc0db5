"""Installing: `add`, `replace` and `remove`, each one commit."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from asyncdl.artifacts import ArtifactLeases
from asyncdl.components.component import Component, Part
from asyncdl.components.cursors import belonging
from asyncdl.components.dataset import Dataset
from asyncdl.components.datatype import Datatype
from asyncdl.components.declaration import pickled
from asyncdl.components.listener import Listener
from asyncdl.components.model import Model
from asyncdl.components.registry import Identity, ListenerState, Prepared, encode_data
from asyncdl.components.states import ModelState
from asyncdl.components.table import Table
from asyncdl.databackend.base import OutputTable, TableSchema
from asyncdl.datatypes import normalize
from asyncdl.errors import (
    ComponentInUseError,
    ConflictError,
    InvalidComponentError,
    TableNotFoundError,
    UnknownColumnError,
    UntrustedArtifactError,
)
from asyncdl.events.types import ComponentAdded, ComponentReady, ComponentRemoved, ComponentTuned
from asyncdl.jobs.dropping import Dropping
from asyncdl.jobs.work import Stores
from asyncdl.metadata.base import (
    UNFINISHED,
    Change,
    ComponentRecord,
    DeleteComponent,
    DeleteCursor,
    EventRecord,
    JobFilter,
    PutComponent,
    SetComponentData,
    SetJobState,
)
from asyncdl.query import QUERIES

_ATTEMPTS = 20
"""Commits tried before a conflict with others is given up on; each means that another one got through."""


@dataclass
class Installed:
    """What an installation led to: the records, in order, and the events of what was new."""

    records: list[ComponentRecord]
    events: list[EventRecord]

    @property
    def created(self) -> bool:
        """Whether anything is new."""
        return any(each.type == ComponentAdded.__name__ for each in self.events)


@dataclass
class _Draft:
    """An installation being put together."""

    records: dict[Identity, ComponentRecord] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    tables: dict[str, TableSchema] = field(default_factory=dict)
    listeners: dict[str, ListenerState] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class _Order:
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


class Installer:
    """Puts components into the stores and takes them out."""

    def __init__(self, stores: Stores, leases: ArtifactLeases, dropping: Dropping) -> None:
        self._stores = stores
        self._dropping = dropping
        self._registry = stores.registry
        self._metadata = stores.metadata
        self._databackend = stores.databackend
        self._leases = leases

    # in

    async def add(self, component: Component) -> Installed:
        """Install a component with all that it holds; what is installed already, and equal, is left alone."""
        return await self._install(await self._registry.prepare(component))

    async def retrain(self, identifier: str, first: int = 0, last: int = 0, *besides: Change) -> Installed:
        """Install a new version of a model, equal to the newest, and new versions of all that use it.

        Parameters
        ----------
        first, last
            The range of events that caused it.
        besides
            What is committed with it.

        Raises
        ------
        ComponentNotFoundError
            There is no such model.
        InvalidComponentError
            It has no trainer.
        """
        model = await self._registry.load(await self._registry.find("model", identifier))
        assert isinstance(model, Model)  # noqa: S101 - records of this type become models
        if model.trainer is None:
            raise InvalidComponentError(f"{model} has no trainer, so it cannot be trained")
        new = _substitute(model, {})
        return await self._install(
            await self._with_its_users(new), _Order({("model", identifier)}, first, last, besides)
        )

    async def replace(self, component: Component) -> Installed:
        """Install a component as a new version, and new versions of all that use it, which then use this one."""
        return await self._install(await self._with_its_users(component))

    async def _with_its_users(self, component: Component) -> list[Prepared]:
        old = await self._registry.find(component.type_id, component.identifier)
        replaced: dict[Identity, Component] = {(component.type_id, component.identifier): component}
        for parent in await self._users(old):
            loaded = await self._registry.load(parent)
            replaced[parent.type_id, parent.identifier] = _substitute(loaded, replaced)
        prepared: dict[Identity, Prepared] = {}
        for each in replaced.values():
            prepared |= {found.identity: found for found in await self._registry.prepare(each)}
        return list(prepared.values())

    async def _users(self, record: ComponentRecord) -> list[ComponentRecord]:
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

    async def _install(self, prepared: Sequence[Prepared], order: _Order = _Order()) -> Installed:
        self._check_trust(prepared)
        for _ in range(_ATTEMPTS):
            draft = await self._draft(prepared, order)
            if not draft.changes:
                return Installed(list(draft.records.values()), [])
            blobs = {sha256: data for each in prepared for sha256, data in each.declaration.blobs.items()} | draft.blobs
            try:
                async with self._leases.held(blobs) as release:
                    for data in blobs.values():
                        await self._registry.artifact_store.put(data)
                    events = await self._commit(draft, [*release, *order.besides])
            except ConflictError as error:
                conflict = error
                continue
            return Installed(list(draft.records.values()), events)
        raise conflict

    def _check_trust(self, prepared: Sequence[Prepared]) -> None:
        for each in prepared:
            trains = isinstance(each.component, Model) and each.component.trainer is not None
            if (each.declaration.blobs or trains) and not self._registry.allow_pickle:
                raise UntrustedArtifactError(
                    f"{each.component} holds an object that no import path leads to (or is trained), so it would be stored as "
                    "a pickle, and the setting pickle=False forbids decoding it; move it to an importable module"
                )

    async def _draft(self, prepared: Sequence[Prepared], order: _Order) -> _Draft:
        draft = _Draft()
        anew = set(order.anew)
        for each in prepared:
            newest = await self._registry.newest(*each.identity)
            if not anew.isdisjoint(each.children):  # it uses what is installed anew, and so is itself
                anew.add(each.identity)
            same = newest is not None and newest.fingerprint == each.declaration.fingerprint
            if newest is not None and same and each.identity not in anew:
                draft.records[each.identity] = _tuned(newest, each, draft)
            else:
                await self._draft_one(each, newest, draft, order)
        return draft

    async def _draft_one(self, each: Prepared, newest: ComponentRecord | None, draft: _Draft, order: _Order) -> None:
        component = each.component
        children = {identity: draft.records[identity].uuid for identity in each.children}
        links = list(children.values())
        version, uuid, state, status = (0 if newest is None else newest.version + 1), uuid4().hex, "{}", "ready"
        if isinstance(component, Table):
            await self._draft_table(component, draft)
        elif isinstance(component, Datatype):
            self._registry.register(component)
        elif isinstance(component, Listener):
            found = await self._draft_listener(component, uuid, draft)
            state, status = found.dumps(), "pending" if component.active else "ready"
        elif isinstance(component, (Model, Dataset)):
            state, status = await self._draft_learning(component, draft)
        for upstream in sorted(component.listeners()):
            known = draft.records.get(("listener", upstream))
            links.append((known or await self._registry.find("listener", upstream)).uuid)
        trained = [] if not isinstance(component, Model) else filter(None, [ModelState.loads(state).trained])
        record = ComponentRecord(
            uuid=uuid,
            type_id=component.type_id,
            identifier=component.identifier,
            version=version,
            fingerprint=each.declaration.fingerprint,
            status=status,
            data=encode_data(each.declaration.fields, children),
            created=time.time(),
            state=state,
        )
        draft.records[each.identity] = record
        identity = record.identity
        artifacts = dict.fromkeys([*each.declaration.blobs, *trained])
        draft.changes.append(PutComponent(record, list(dict.fromkeys(links)), list(artifacts)))
        draft.changes.append(ComponentAdded(**identity).change(order.first, order.last))
        if status == "ready":
            draft.changes.append(ComponentReady(**identity).change(order.first, order.last))

    async def _draft_learning(self, component: Model | Dataset, draft: _Draft) -> tuple[str, str]:
        """Check what a model is trained on, or a dataset made of; return the component's state and status."""
        if isinstance(component, Dataset):
            schema = await self._checked(component, component.select, draft)
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
            _check_named(component, component.trainer.columns, await self._checked(component, select, draft))
        return "{}", "pending"

    async def _checked(self, component: Component, select: Any, draft: _Draft) -> TableSchema:
        """Return the columns of a select, which may read what is still to be made."""
        outputs = await self._registry.outputs_of(select, draft.listeners)
        unmade = draft.tables if draft.tables or draft.listeners else None
        try:
            return await self._databackend.check(select, outputs, unmade)
        except TableNotFoundError as error:
            raise TableNotFoundError(
                f"{component} selects from a table that does not exist: {error}; insert its first rows before, or declare "
                f"it: Table({select.root()!r}, {{column: datatype, ...}})"
            ) from error

    async def _draft_table(self, component: Table, draft: _Draft) -> None:
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

    async def _draft_listener(self, component: Listener, uuid: str, draft: _Draft) -> ListenerState:
        """Check a listener against the data; return what is known of it."""
        select = component.select
        assert isinstance(select, QUERIES)  # noqa: S101 - the listener's own check
        schema = await self._checked(component, select, draft)
        root = select.root()
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

    async def _commit(self, draft: _Draft, release: Sequence[Change]) -> list[EventRecord]:
        changes = [*draft.changes, *release]
        made = [each.output for each in draft.listeners.values() if each.output.datatype is not None]
        async with self._databackend.transaction() as tx:
            for schema in draft.tables.values():
                await self._databackend.create_table(schema, tx)
            if self._stores.shared:
                for each in made:
                    await self._databackend.create_outputs(each, tx)
                return await self._metadata.commit(*changes, joining=tx)
        # A listener's own job makes its table, should we die between these two.
        events = await self._metadata.commit(*changes)
        async with self._databackend.transaction() as tx:
            for each in made:
                await self._databackend.create_outputs(each, tx)
        return events

    # out

    async def remove(self, type_id: str, identifier: str, version: int | None, *, recursive: bool) -> list[str]:
        """Remove a component's versions (or one), and return the ids of the jobs that were cancelled with them."""
        if version is None:
            first = await self._registry.find(type_id, identifier)
            records = await self._metadata.components(type_id=first.type_id, identifier=first.identifier)
        else:
            records = [await self._registry.find(type_id, identifier, version)]
        return await self.remove_all([record.uuid for record in records], recursive=recursive)

    async def remove_all(self, uuids: Collection[str], *, recursive: bool) -> list[str]:
        """Remove components by uuid, all or none."""
        for _ in range(_ATTEMPTS):
            records = await self._with_users(await self._metadata.components(uuids=uuids), recursive=recursive)
            artifacts = {sha256 for record in records for sha256 in await self._metadata.artifacts(record.uuid)}
            jobs = [
                job.id
                for record in records
                for job in await self._metadata.jobs(JobFilter(states=UNFINISHED, target=record.uuid, limit=100_000))
            ]
            try:
                async with self._leases.dropping(artifacts) as announced:
                    await self._commit_removal(records, jobs, announced)
                    for record in records:
                        self._registry.forget(record.uuid)
                        self._stores.compute.forget(record.uuid)
            except (ConflictError, ComponentInUseError) as error:
                conflict = error
                continue
            return jobs
        raise conflict

    async def _with_users(self, records: Iterable[ComponentRecord], *, recursive: bool) -> list[ComponentRecord]:
        """Return what is to go, users before what they use.

        Raises
        ------
        ComponentInUseError
            There are others that use them.
        """
        going = {record.uuid: record for record in records}
        ordered: dict[str, ComponentRecord] = {}
        users: list[ComponentRecord] = []

        async def visit(record: ComponentRecord) -> None:
            for parent in await self._metadata.parents(record.uuid):
                if parent.uuid not in going:
                    users.append(parent)
                    going[parent.uuid] = parent
                if parent.uuid not in ordered:
                    await visit(parent)
            ordered[record.uuid] = record

        for record in list(going.values()):
            if record.uuid not in ordered:
                await visit(record)
        if users and not recursive:
            names = ", ".join(f"{each.type_id} {each.identifier!r} version {each.version}" for each in users)
            raise ComponentInUseError(
                f"this is used by {names}; remove those first, or all at once with remove(..., recursive=True)"
            )
        return list(ordered.values())

    async def _commit_removal(
        self, records: Sequence[ComponentRecord], jobs: Sequence[str], announced: Sequence[Change]
    ) -> None:
        now = time.time()
        changes: list[Change] = [
            SetJobState(job, "cancelled", UNFINISHED, now, "its component was removed") for job in jobs
        ]
        changes += [DeleteComponent(record.uuid) for record in records]
        changes += [ComponentRemoved(**record.identity).change() for record in records]
        changes += await self._forgetting(records)
        changes += announced
        outputs = [ListenerState.loads(record.state).output for record in records if record.type_id == "listener"]

        async def commit(tx: Any) -> bool:
            await self._metadata.commit(*changes, joining=tx)
            return True

        await self._dropping.drop(outputs, commit)

    async def _forgetting(self, records: Sequence[ComponentRecord]) -> list[Change]:
        """Return the changes that forget the cursors of components of which no version stays."""
        going, names = {record.uuid for record in records}, await self._metadata.cursors()
        found: dict[str, None] = {}
        for type_id, identifier in {(record.type_id, record.identifier) for record in records}:
            owned = belonging(type_id, identifier, names)
            if owned:
                versions = await self._metadata.components(type_id=type_id, identifier=identifier)
                found |= dict.fromkeys(owned) if going.issuperset(each.uuid for each in versions) else {}
        return [DeleteCursor(name) for name in found]


def _tuned(installed: ComponentRecord, declared: Prepared, draft: _Draft) -> ComponentRecord:
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


def _substitute(component: Component, replaced: Mapping[Identity, Component]) -> Component:
    """Return a component as newly declared, with others in the place of those that it holds."""

    def exchange(value: Any) -> Any:
        if isinstance(value, Component):
            return replaced.get((value.type_id, value.identifier), value)
        if isinstance(value, Part):
            return dataclasses.replace(
                value, **{each.name: exchange(getattr(value, each.name)) for each in dataclasses.fields(value)}
            )
        if isinstance(value, Mapping):
            return {key: exchange(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(exchange(each) for each in value)
        return value

    fields = {each.name: exchange(value) for each, value in component.declared_fields()}
    undeclared: dict[str, Any] = {
        each.name: each.default for each in dataclasses.fields(component) if not each.metadata.get("declared", True)
    }
    return dataclasses.replace(component, **fields, **undeclared)
