"""Datasets: the rows of a query, kept as they were."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from asyncdl import codec
from asyncdl.components.component import Component
from asyncdl.databackend.requests import ReadQuery
from asyncdl.errors import InvalidComponentError
from asyncdl.query import QUERIES, MongoQuery

Fold = Literal["train", "valid"]
FOLDS: tuple[Fold, ...] = ("train", "valid")

_SPAN = 2**64


@dataclass(frozen=True, eq=False)
class Dataset(Component):
    """The rows of a query, read when it is added and kept as an artifact: what is written later changes nothing in it.

    Which rows are sampled, and which fold each is in, follows from its primary key and the seed: it is the same on every
    machine, and a row that comes or goes moves no other.

    Parameters
    ----------
    select
        The rows. It must keep the primary key of its table.
    sample
        How many rows to take, at most; None: all.
    seed
        Another one samples other rows, and divides them into other folds.
    valid_fraction
        Which part of the rows, between 0 and 1, is the fold ``"valid"``; the others are the fold ``"train"``. A `Trainer`
        takes the one, a `Validation` the other. 0: there are no folds, and both take all rows.
    """

    type_id: ClassVar[str] = "dataset"

    select: ReadQuery = field(kw_only=True)
    sample: int | None = field(default=None, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    valid_fraction: float = field(default=0.0, kw_only=True)

    def check(self) -> None:
        """Raise `InvalidComponentError` when it selects no rows, or its numbers make no sense."""
        check_select(self, self.select)
        if self.sample is not None and self.sample < 1:
            raise InvalidComponentError(f"{self}: sample is {self.sample!r}; it must be positive")
        if not 0 <= self.valid_fraction < 1:
            raise InvalidComponentError(f"{self}: valid_fraction is {self.valid_fraction!r}; it must be in [0, 1)")

    def listeners(self) -> frozenset[str]:
        """Return the identifiers of the listeners whose outputs it reads."""
        return self.select.listeners()

    def rank(self, key: Any) -> int:
        """Return a row's place in the order by which rows are sampled: the first ones are."""
        return self._hash("sample", key)

    def fold(self, key: Any) -> Fold:
        """Return the fold of the row with this primary key."""
        return "valid" if self._hash("fold", key) < self.valid_fraction * _SPAN else "train"

    def _hash(self, purpose: str, key: Any) -> int:
        return int.from_bytes(hashlib.blake2b(codec.dumps([purpose, self.seed, key]), digest_size=8).digest())


def check_select(owner: Any, select: Any) -> None:
    """Raise `InvalidComponentError` unless this is a query that gives rows."""
    if not isinstance(select, QUERIES) or (isinstance(select, MongoQuery) and select.gives != "rows"):
        raise InvalidComponentError(f"{owner}: select is {select!r}; it must be a query, such as db['table']")
