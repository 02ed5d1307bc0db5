"""Filters: which events a subscription or a handler is for."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence

from asyncdl.errors import ConfigurationError
from asyncdl.events.types import Event
from asyncdl.metadata.records import EventRecord


@dataclasses.dataclass(frozen=True, slots=True)
class EventFilter:
    """What is asked for, in terms that the store can select by, and the rest.

    Parameters
    ----------
    classes
        Of the events, with those derived from them; none: all.
    topics
        The events' topics; none: all.
    component
        A component's type and identifier, to be asked of what the store has selected; None: no matter.
    """

    classes: tuple[type[Event], ...]
    topics: tuple[str, ...]
    component: tuple[str, str] | None = None

    @classmethod
    def of(
        cls,
        types: Collection[type[Event]] = (),
        *,
        table: str | None = None,
        component: tuple[str, str] | None = None,
        topics: Collection[str] = (),
    ) -> EventFilter:
        """Return the filter for events of these types, and those derived from them, about a table or a component.

        Raises
        ------
        ConfigurationError
            No event could ever pass.
        """
        if sum(bool(each) for each in (table, component, topics)) > 1:
            raise ConfigurationError("an event is about one of table, component and topics: give one of them")
        classes = tuple(types)
        if table is not None:
            classes = _narrowed(classes, {each for each in _all() if each.topic_field == "table"}, "tables")
            return cls(classes, (table,))
        if component is not None:
            type_id, identifier = component
            told = {each for each in _all() if each.component_type == type_id or _says_its_type(each)}
            classes = _narrowed(classes, told, f"components of type {type_id!r}")
            return cls(classes, (identifier,), (type_id, identifier))
        return cls(classes, tuple(topics))

    @property
    def types(self) -> list[str]:
        """The names of the classes, with those derived from them, as the store knows them; none: all."""
        return sorted({each.__name__ for each in _with_derived(self.classes)})

    def takes(self, event: Event) -> bool:
        """Return whether an event passes."""
        if self.classes and not isinstance(event, self.classes):
            return False
        topic = str(getattr(event, event.topic_field, ""))
        return (not self.topics or topic in self.topics) and self.takes_selected(event)

    def among(self, records: Sequence[EventRecord]) -> Sequence[EventRecord]:
        """Return those that pass of records that the store has selected by type and topic."""
        if self.component is None:
            return records
        return [record for record in records if self.takes_selected(Event.from_record(record))]

    def takes_selected(self, event: Event) -> bool:
        """Return whether an event passes that the store has selected by type and topic."""
        return self.component is None or self.component[0] == getattr(event, "type_id", event.component_type)


def _with_derived(types: Iterable[type[Event]]) -> Iterable[type[Event]]:
    for each in types:
        yield each
        yield from _with_derived(each.__subclasses__())


def _all() -> set[type[Event]]:
    return set(_with_derived([Event]))


def _says_its_type(each: type[Event]) -> bool:
    return {"type_id", "identifier"} <= set(getattr(each, "__dataclass_fields__", ()))


def _narrowed(asked: Collection[type[Event]], told: set[type[Event]], what: str) -> tuple[type[Event], ...]:
    found = set(_with_derived(asked)) & told if asked else told
    if not found:
        names = ", ".join(sorted(each.__name__ for each in asked))
        raise ConfigurationError(f"no event of type {names} tells of {what}, so none would ever come")
    return tuple(sorted(found, key=lambda each: each.__name__))
