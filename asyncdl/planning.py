"""What adding a component would do: told, and not done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from asyncdl.components.component import Component
from asyncdl.components.listener import Listener
from asyncdl.components.registry import ListenerState
from asyncdl.drafting import Draft
from asyncdl.errors import ComponentNotFoundError, QueryError, TableNotFoundError
from asyncdl.jobs.work import Stores
from asyncdl.metadata.records import ComponentRecord
from asyncdl.query import QUERIES

Fate = Literal["new", "changed", "tuned", "unchanged", "recomputed"]


@dataclass(frozen=True, kw_only=True)
class PlannedComponent:
    """What would become of one component.

    Attributes
    ----------
    type_id, identifier
        Its name.
    fate
        ``"new"``; ``"changed"``: it becomes a new version; ``"tuned"``: it is changed in its place, for nothing of
        what comes out changes; ``"unchanged"``: it is installed already, and equal;
        ``"recomputed"``: an installed listener, whose outputs are computed again, for it reads those of a changed one.
    version
        The version that it would have.
    retires
        The version whose outputs are read until the new one's are complete, and dropped then; None: there is none.
    rows
        On how many rows its model would be called, as the data are now; None: that is known only when what it reads has been
        computed.
    """

    type_id: str
    identifier: str
    fate: Fate
    version: int
    retires: int | None = None
    rows: int | None = 0


@dataclass(frozen=True)
class AddPlan:
    """What ``db.add(..., dry_run=True)`` and ``db.replace(..., dry_run=True)`` return: print it.

    Attributes
    ----------
    components
        What was to be added, with all that it holds, those that are used first; behind them what follows from it.
    """

    components: tuple[PlannedComponent, ...]

    def __iter__(self) -> Iterator[PlannedComponent]:
        return iter(self.components)

    def __getitem__(self, name: tuple[str, str]) -> PlannedComponent:
        """Return what would become of the component with this type and identifier."""
        for each in self.components:
            if (each.type_id, each.identifier) == name:
                return each
        raise KeyError(name)

    @property
    def changes_anything(self) -> bool:
        """Whether adding would install, or compute, anything."""
        return any(each.fate != "unchanged" for each in self.components)

    def _lines(self) -> list[tuple[str, ...]]:
        lines: list[tuple[str, ...]] = []
        for each in self.components:
            rows = "?" if each.rows is None else f"{each.rows:,}" if each.type_id == "listener" else ""
            retires = "" if each.retires is None else f"version {each.retires}"
            lines.append((each.fate, f"{each.type_id} {each.identifier}", f"{each.version}", retires, rows))
        return lines

    def __str__(self) -> str:
        lines = [_HEAD, *self._lines()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        told = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        return "\n".join(line.rstrip() for line in told)

    def __rich__(self) -> Any:
        from rich.table import Table  # noqa: PLC0415 - only where it is shown

        table = Table(*_HEAD)
        for line in self._lines():
            table.add_row(*line)
        return table


_HEAD = ("", "component", "version", "retires", "rows")


async def told(draft: Draft, components: Mapping[tuple[str, str], Component], stores: Stores) -> AddPlan:
    """Return what a draft would do.

    Parameters
    ----------
    components
        The declared ones, by type and identifier.
    """
    return AddPlan(tuple([each async for each in _Teller(draft, components, stores).each()]))


class _Teller:
    def __init__(self, draft: Draft, components: Mapping[tuple[str, str], Component], stores: Stores) -> None:
        self._draft = draft
        self._components = components
        self._stores = stores
        self._new = draft.new
        self._changed: set[str] = set()
        """Listeners whose outputs are to be replaced."""

    async def each(self) -> Any:
        for record in self._draft.records.values():
            if record.uuid in self._new:
                yield await self._drafted(record)
            elif not (record.type_id == "listener" and await self._follows(record)):
                yield PlannedComponent(
                    type_id=record.type_id,
                    identifier=record.identifier,
                    fate="tuned" if record.uuid in self._draft.tuned else "unchanged",
                    version=record.version,
                )
        for record in await self._recomputed():
            yield PlannedComponent(
                type_id="listener",
                identifier=record.identifier,
                fate="recomputed",
                version=record.version,
                rows=await self._rows(record),
            )

    async def _drafted(self, record: ComponentRecord) -> PlannedComponent:
        versions = await self._stores.metadata.components(type_id=record.type_id, identifier=record.identifier)
        standing = [each.version for each in versions if each.status != "retired"]
        is_listener = record.type_id == "listener"
        if is_listener and versions:
            self._changed.add(record.identifier)
        return PlannedComponent(
            type_id=record.type_id,
            identifier=record.identifier,
            fate="changed" if versions else "new",
            version=record.version,
            retires=standing[-1] if is_listener and standing else None,
            rows=await self._rows(record) if is_listener else 0,
        )

    async def _follows(self, record: ComponentRecord) -> bool:
        return record.uuid in {each.uuid for each in await self._recomputed()}

    async def _recomputed(self) -> list[ComponentRecord]:
        """Return the installed listeners that read, directly or not, what is to be replaced."""
        drafted = {record.identifier for record in self._new.values() if record.type_id == "listener"}
        changed, found = set(self._changed), dict[str, ComponentRecord]()
        newest = {record.identifier: (record, state) for record, state in await self._stores.registry.listeners()}
        while True:
            new = {
                name: record
                for name, (record, state) in newest.items()
                if name not in found and name not in drafted and state.active and changed.intersection(state.listeners)
            }
            if not new:
                return list(found.values())
            found |= new
            changed |= set(new)

    async def _rows(self, record: ComponentRecord) -> int | None:
        """Return how many rows a listener selects now; None where it reads what is not there yet, or not in this form."""
        component = self._components.get((record.type_id, record.identifier)) or await self._installed(record)
        assert isinstance(component, Listener) and isinstance(component.select, QUERIES)  # noqa: S101, PT018 - so it was made
        if not component.active:
            return 0
        state = self._draft.listeners.get(record.identifier) or ListenerState.loads(record.state)
        databackend = self._stores.databackend
        try:
            outputs = await self._stores.registry.outputs_of(component.select)
            schema = await databackend.check(component.select, outputs, {})
            if schema.primary_key != tuple(state.output.key):
                return None
            return await databackend.count_missing(component.select, outputs, None)
        except TableNotFoundError:
            return 0  # it is still to be made
        except (QueryError, ComponentNotFoundError):
            return None

    async def _installed(self, record: ComponentRecord) -> Component:
        versions = await self._stores.metadata.components(type_id=record.type_id, identifier=record.identifier)
        return await self._stores.registry.load(versions[-1])
