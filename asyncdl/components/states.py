"""What is found out of models and datasets while they are in use: JSON in their records' ``state``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from asyncdl import codec
from asyncdl.metadata.records import ComponentRecord


@dataclass(frozen=True)
class ModelState:
    """What is known of an installed model.

    Parameters
    ----------
    trained
        SHA-256 of the pickled object that training made; None: there has been none.
    metrics
        What the training reported last.
    validations
        The results of each validation, by its identifier.
    """

    trained: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    validations: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def dumps(self) -> str:
        """Return it as JSON."""
        return codec.dumps(asdict(self)).decode()

    @classmethod
    def of(cls, record: ComponentRecord) -> ModelState:
        """Return the state of an installed model."""
        return cls.loads(record.state)

    @classmethod
    def loads(cls, text: str) -> ModelState:
        """Return it from JSON."""
        return cls(**codec.loads(text))


@dataclass(frozen=True)
class DatasetState:
    """What is known of an installed dataset.

    Parameters
    ----------
    chunks
        SHA-256 of the artifacts that hold the rows of each fold, in order.
    rows
        How many rows each fold has.
    columns
        The rows' columns; empty: they are documents.
    """

    chunks: Mapping[str, list[str]] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)

    def dumps(self) -> str:
        """Return it as JSON."""
        return codec.dumps(asdict(self)).decode()

    @classmethod
    def of(cls, record: ComponentRecord) -> DatasetState:
        """Return the state of an installed dataset."""
        return cls(**codec.loads(record.state))


def readable_state(record: ComponentRecord) -> dict[str, Any]:
    """Return a model's or dataset's state as people read it; of other components nothing."""
    if record.type_id not in {"model", "dataset"}:
        return {}
    found: dict[str, Any] = codec.loads(record.state)
    return found
