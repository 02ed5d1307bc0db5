"""Installing: `add`, `replace` and `remove`, each one commit.

What such a commit does follows from what is installed: which version is the newest, and what uses it. So one is made after the
other: a cursor counts them, and each is on condition that it still stands where it stood before the first look. Of two that
meet, in whatever process, one is put together again. Else a listener could be added on a model in the moment in which another
takes its place, and stay on the old one for ever.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections import ChainMap
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from asyncdl.artifacts import ArtifactLeases
from asyncdl.components.component import Component, Part
from asyncdl.components.cursors import belonging
from asyncdl.components.model import Model
from asyncdl.components.registry import Identity, Prepared
from asyncdl.drafting import AS_DECLARED, Draft, Drafter, Order
from asyncdl.errors import (
    ComponentInUseError,
    ConflictError,
    InvalidComponentError,
    UntrustedArtifactError,
)
from asyncdl.events.types import ComponentAdded, ComponentRemoved
from asyncdl.jobs.dropping import Dropping, announce_dropping
from asyncdl.jobs.work import Stores
from asyncdl.metadata.base import JobFilter
from asyncdl.metadata.changes import Change, DeleteComponent, DeleteCursor, DeleteIntent, MoveCursor, SetJobState
from asyncdl.metadata.records import UNFINISHED, ComponentRecord, EventRecord
from asyncdl.planning import AddPlan, told

_ATTEMPTS = 100
"""Commits tried before a conflict with others is given up on; each means that another one got through."""
_COUNT = "installations"
"""The cursor that counts them."""


@dataclass
class Installed:
    """What an installation led to: the records, in order, and the events of what was new."""

    records: list[ComponentRecord]
    events: list[EventRecord]

    @property
    def created(self) -> bool:
        """Whether anything is new."""
        return any(each.type == ComponentAdded.__name__ for each in self.events)


class Installer:
    """Puts components into the stores and takes them out."""

    def __init__(self, stores: Stores, leases: ArtifactLeases, dropping: Dropping) -> None:
        self._stores = stores
        self._dropping = dropping
        self._registry = stores.registry
        self._metadata = stores.metadata
        self._databackend = stores.databackend
        self._leases = leases
        self._drafter = Drafter(self._databackend, self._registry)
        self._turn = asyncio.Lock()

    # in

    async def add(self, component: Component) -> Installed:
        """Install a component with all that it holds; what is installed already, and equal, is left alone."""
        prepared = await self._registry.prepare(component)

        async def declared() -> Sequence[Prepared]:
            return prepared

        return await self._install(declared)

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

        async def again() -> Sequence[Prepared]:
            model = await self._registry.load(await self._registry.find("model", identifier))
            assert isinstance(model, Model)  # noqa: S101 - records of this type become models
            if model.trainer is None:
                raise InvalidComponentError(f"{model} has no trainer, so it cannot be trained")
            return await self._replacement(_substitute(model, {}))

        return await self._install(again, Order({("model", identifier)}, first, last, besides))

    async def replace(self, component: Component) -> Installed:
        """Install a component as a new version, and new versions of all that use it, which then use this one."""
        return await self._install(lambda: self._replacement(component))

    async def plan(self, component: Component, *, replacing: bool) -> AddPlan:
        """Return what adding or replacing a component would do; nothing is written."""
        prepared = await (self._replacement(component) if replacing else self._registry.prepare(component))
        self._check_trust(prepared)
        draft = await self._drafter.draft(prepared)
        return await told(draft, {each.identity: each.component for each in prepared}, self._stores)

    async def _replacement(self, component: Component) -> list[Prepared]:
        old = await self._registry.find(component.type_id, component.identifier)
        replaced: dict[Identity, Component] = {(component.type_id, component.identifier): component}
        for parent in await self._drafter.users(old):
            loaded = await self._registry.load(parent)
            replaced[parent.type_id, parent.identifier] = _substitute(loaded, replaced)
        prepared: dict[Identity, Prepared] = {}
        for each in replaced.values():
            prepared |= {found.identity: found for found in await self._registry.prepare(each)}
        return list(prepared.values())

    async def _install(
        self, prepare: Callable[[], Awaitable[Sequence[Prepared]]], order: Order = AS_DECLARED
    ) -> Installed:
        """Install what is prepared; as often as it takes, until nobody else has installed anything meanwhile."""
        kept: set[str] = set()
        async with AsyncExitStack() as until_installed:
            settled: list[DeleteIntent] = []
            for attempt in range(_ATTEMPTS):
                if attempt == 1:  # of those who were in each other's way in this process, one tries at a time
                    await until_installed.enter_async_context(self._turn)
                await _pause(attempt)
                stands = await self._metadata.cursor(_COUNT) or 0
                draft, blobs = await self._drafted(await prepare(), order)
                if not draft.changes:
                    for each in settled:  # what somebody else has installed meanwhile was stored in vain
                        self._stores.intents.leave(each)
                    return Installed(list(draft.records.values()), [])
                new = blobs.keys() - kept
                settled += await until_installed.enter_async_context(self._leases.held(new))
                for sha256 in new:
                    await self._registry.artifact_store.put(blobs[sha256])
                kept |= new
                try:
                    events = await self._commit(draft, [_counted(stands), *settled, *order.besides])
                except ConflictError as error:
                    conflict = error
                else:
                    return Installed(list(draft.records.values()), events)
            raise conflict

    async def _drafted(self, prepared: Sequence[Prepared], order: Order) -> tuple[Draft, dict[str, bytes]]:
        """Return what is to be written, and the artifacts that it refers to."""
        self._check_trust(prepared)
        draft = await self._drafter.draft(prepared, order)
        for datatype in draft.datatypes:
            self._registry.register(datatype)
        declared = [each.declaration.blobs for each in prepared]
        return draft, dict(ChainMap(draft.blobs, *declared))

    def _check_trust(self, prepared: Sequence[Prepared]) -> None:
        for each in prepared:
            trains = isinstance(each.component, Model) and each.component.trainer is not None
            if (each.declaration.blobs or trains) and not self._registry.allow_pickle:
                raise UntrustedArtifactError(
                    f"{each.component} holds an object that no import path leads to (or is trained), so it would be stored as "
                    "a pickle, and the setting pickle=False forbids decoding it; move it to an importable module"
                )

    async def _commit(self, draft: Draft, besides: Sequence[Change]) -> list[EventRecord]:
        changes = [*draft.changes, *besides]
        made = [each.output for each in draft.listeners.values() if each.output.datatype is not None]
        async with self._databackend.transaction() as tx:
            for schema in draft.tables.values():
                await self._databackend.create_table(schema, tx)
            if self._stores.shared:
                for each in made:
                    await self._databackend.create_outputs(each, tx)
                return await self._metadata.commit(*changes, joining=tx)
        if not made:
            return await self._metadata.commit(*changes)
        intent = await announce_dropping(self._stores.intents, made)
        with self._stores.intents.settling(intent):
            async with self._databackend.transaction() as tx:
                for each in made:
                    await self._databackend.create_outputs(each, tx)
            return await self._metadata.commit(*changes, intent)

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
        for attempt in range(_ATTEMPTS):
            await _pause(attempt)
            stands = await self._metadata.cursor(_COUNT) or 0
            records = await self._with_users(await self._metadata.components(uuids=uuids), recursive=recursive)
            artifacts = {sha256 for record in records for sha256 in await self._metadata.artifacts(record.uuid)}
            jobs = [
                job.id
                for record in records
                for job in await self._metadata.jobs(JobFilter(states=UNFINISHED, target=record.uuid, limit=100_000))
            ]
            try:
                async with self._leases.dropping(artifacts) as announced:
                    await self._commit_removal(records, jobs, [_counted(stands), *announced])
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
        self, records: Sequence[ComponentRecord], jobs: Sequence[str], besides: Sequence[Change]
    ) -> None:
        now = self._metadata.clock.now()
        changes: list[Change] = [
            SetJobState(job, "cancelled", UNFINISHED, now, "its component was removed") for job in jobs
        ]
        changes += [DeleteComponent(record.uuid) for record in records]
        changes += [ComponentRemoved(**record.identity).change() for record in records]
        changes += await self._forgetting(records)
        changes += besides
        listeners = [record for record in records if record.type_id == "listener"]

        async def commit(tx: Any, dropping: Sequence[Change]) -> bool:
            await self._metadata.commit(*changes, *dropping, joining=tx)
            return True

        await self._dropping.drop(listeners, commit)

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


async def _pause(attempt: int) -> None:
    await asyncio.sleep(random.random() * min(attempt, 20) / 100)  # noqa: S311 - jitter


def _counted(stands: int) -> Change:
    """Return what counts an installation, or a removal, on condition that there was no other since it was looked up."""
    return MoveCursor(_COUNT, stands + 1, expected=stands)


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
