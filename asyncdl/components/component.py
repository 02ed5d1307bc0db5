"""Components: what users declare."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from asyncdl.errors import InvalidComponentError, UnknownComponentTypeError
from asyncdl.names import check_component_identifier

_TYPES: dict[str, type[Component]] = {}
_PARTS: dict[str, type[Part]] = {}


@dataclass(frozen=True, eq=False)
class Part:
    """A value with fields, as a component has them, that stands in a component's field: without a name of its own."""

    part_id: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _PARTS[cls.part_id] = cls


def part_type(part_id: str) -> type[Part]:
    """Return the class of a part.

    Raises
    ------
    UnknownComponentTypeError
        There is none: a newer version of asyncdl has stored it.
    """
    found = _PARTS.get(part_id)
    if found is None:
        raise UnknownComponentTypeError(f"a component holds a {part_id!r}, which this version of asyncdl does not know")
    return found


@dataclass(frozen=True, eq=False)
class Component:
    """A value that can be installed with ``db.add``: frozen, named, and known by what it declares.

    A subclass is a frozen dataclass with a class attribute ``type_id``; from then on it can be added and loaded. Its
    fields may hold plain values, queries, other components (alone, in lists, tuples and dicts), and, in fields marked
    ``metadata={"blob": True}``, any object that can be pickled. Fields marked ``metadata={"tuning": True}`` say how and when
    work is done, and change nothing of what comes out: a component that differs in them alone is no new version.

    Parameters
    ----------
    identifier
        Its name among components of its type: letters, digits, ``_`` and ``-``; at most 48.

    Attributes
    ----------
    version, uuid
        Which installed component this is; None for one that was only declared.
    """

    type_id: ClassVar[str] = ""

    identifier: str
    version: int | None = field(default=None, kw_only=True, repr=False, metadata={"declared": False})
    uuid: str | None = field(default=None, kw_only=True, repr=False, metadata={"declared": False})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "type_id" in cls.__dict__:
            found = _TYPES.get(cls.type_id)
            if found is not None and (found.__module__, found.__qualname__) != (cls.__module__, cls.__qualname__):
                raise InvalidComponentError(f"there is a component type {cls.type_id!r} already: {found!r}")
            _TYPES[cls.type_id] = cls

    def __post_init__(self) -> None:
        if not self.type_id:
            raise UnknownComponentTypeError(f"{type(self).__name__} has no type_id, so it cannot be stored")
        check_component_identifier(self.identifier, f"the {self.type_id}")
        self.check()

    def check(self) -> None:
        """Raise `InvalidComponentError` when the declaration contradicts itself; looks at nothing outside."""

    def declared_fields(self) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
        """Yield what was declared: the fields, without identity, and their values."""
        for each in dataclasses.fields(self):
            if each.metadata.get("declared", True) and each.name != "identifier":
                yield each, getattr(self, each.name)

    def children(self) -> Iterator[Component]:
        """Yield the components that the fields hold, in order, each as often as it occurs."""
        for _, value in self.declared_fields():
            yield from _components_in(value)

    def listeners(self) -> frozenset[str]:
        """Return the identifiers of the listeners whose outputs this component reads."""
        return frozenset()

    def __str__(self) -> str:
        version = "" if self.version is None else f" version {self.version}"
        return f"{self.type_id} {self.identifier!r}{version}"


def _components_in(value: Any) -> Iterator[Component]:
    if isinstance(value, Component):
        yield value
    elif isinstance(value, Part):
        for each in dataclasses.fields(value):
            yield from _components_in(getattr(value, each.name))
    elif isinstance(value, dict):
        for each in value.values():
            yield from _components_in(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _components_in(each)


def component_type(type_id: str) -> type[Component]:
    """Return the class of a type.

    Raises
    ------
    UnknownComponentTypeError
        No class of this type has been defined in this process.
    """
    found = _TYPES.get(type_id)
    if found is None:
        known = ", ".join(sorted(_TYPES))
        raise UnknownComponentTypeError(
            f"no component type {type_id!r} is known here (known: {known}); import the module that defines it"
        )
    return found
