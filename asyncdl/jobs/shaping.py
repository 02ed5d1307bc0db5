"""What a listener makes of rows and outputs: the model's inputs, and results that can be stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from asyncdl.components.model import Signature
from asyncdl.compute.base import RowError
from asyncdl.databackend.base import DataBackend
from asyncdl.databackend.tables import Outputs, OutputTable
from asyncdl.errors import ModelOutputError


@dataclass(frozen=True, slots=True)
class Shape:
    """How a listener's rows become inputs, and a model's outputs results.

    Parameters
    ----------
    model
        The model's name, for messages.
    signature, names
        How an input is passed, and the columns that it is made of, by the model's words for them.
    width
        How many columns the select's key has: they come first.
    flatten
        Whether an output is a list of outputs.
    """

    model: str
    signature: Signature
    names: tuple[str, ...]
    width: int
    flatten: bool

    def inputs(self, columns: Sequence[Sequence[Any]]) -> Sequence[Any]:
        """Return the model's inputs for rows, given by column."""
        values = columns[self.width :]
        if self.signature == "single":
            return values[0]
        rows = zip(*values, strict=True)
        if self.signature == "args":
            return list(rows)
        return [dict(zip(self.names, row, strict=True)) for row in rows]

    def results(self, columns: Sequence[Sequence[Any]], outputs: Sequence[Any]) -> Outputs:
        """Return what is to be stored for rows.

        Raises
        ------
        ModelOutputError
            There are not as many outputs as rows.
        """
        keys, size = columns[: self.width], len(columns[0])
        if len(outputs) != size:
            raise ModelOutputError(f"{self.model} returned {len(outputs)} outputs for {size} inputs")
        errors: dict[int, str] = {}
        if RowError in set(map(type, outputs)):
            errors = {
                at: msgspec.json.encode(value).decode()
                for at, value in enumerate(outputs)
                if isinstance(value, RowError)
            }
        if self.flatten:
            for at, value in enumerate(outputs):
                if at not in errors and not isinstance(value, (list, tuple)):
                    message = f"a flattened listener's model must return a list, not {type(value).__name__}"
                    errors[at] = _error(ModelOutputError(message))
        return Outputs(keys, outputs, errors)

    def checked(self, databackend: DataBackend, table: OutputTable, results: Outputs) -> Outputs:
        """Return results with an error for each value that cannot be stored."""
        errors = dict(results.errors)
        for at, value in enumerate(results.values):
            if at not in errors:
                parts = value if self.flatten else [value]
                wrong = next(filter(None, (databackend.encode_error(table, part) for part in parts)), None)
                if wrong is not None:
                    errors[at] = _error(wrong)
        return Outputs(results.keys, results.values, errors)


def _error(error: BaseException) -> str:
    return msgspec.json.encode(RowError(type(error).__name__, str(error), "")).decode()
