"""Applications: components that belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from asyncdl.components.component import Component
from asyncdl.errors import InvalidComponentError


@dataclass(frozen=True, eq=False)
class Application(Component):
    """Components that are installed together, all or nothing.

    Parameters
    ----------
    components
        The components, in any order.
    """

    type_id: ClassVar[str] = "application"

    components: Sequence[Component]

    def check(self) -> None:
        """Raise `InvalidComponentError` when something else than components is among them."""
        for each in self.components:
            if not isinstance(each, Component):
                raise InvalidComponentError(f"{self}: {each!r} is not a component")
