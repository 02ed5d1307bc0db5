"""Datatypes of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from asyncdl.components.component import Component
from asyncdl.errors import InvalidComponentError


@dataclass(frozen=True, eq=False)
class Datatype(Component):
    """Turns values into bytes and back, so that columns and outputs can hold them.

    Parameters
    ----------
    encoder
        ``encoder(value) -> bytes``. It raises for a value that it cannot encode.
    decoder
        ``decoder(data) -> value``.
    """

    type_id: ClassVar[str] = "datatype"

    encoder: Callable[[Any], bytes] = field(metadata={"blob": True})
    decoder: Callable[[bytes], Any] = field(metadata={"blob": True})

    def check(self) -> None:
        """Raise `InvalidComponentError` when encoder or decoder cannot be called."""
        if not callable(self.encoder) or not callable(self.decoder):
            raise InvalidComponentError(f"{self}: encoder and decoder must be callable")

    @property
    def column(self) -> str:
        """How a schema names it."""
        return f"datatype({self.identifier})"
