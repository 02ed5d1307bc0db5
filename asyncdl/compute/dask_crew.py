"""Which workers a Dask cluster has, and which of them can be given work."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)

Needs = tuple[tuple[str, float], ...]
"""What a batch needs of a worker: names and amounts of resources, sorted."""

_TO_THE_MINOR = ("python", "cloudpickle", "numpy", "pandas")
_ALIKE = ("asyncdl", "dask", "distributed")


def needs_of(resources: Mapping[str, float]) -> Needs:
    """Return resources as a key."""
    return tuple(sorted(resources.items()))


def disagreement(mine: Mapping[str, str], theirs: Mapping[str, str]) -> str | None:
    """Return in what a worker's versions differ from ours such that it must not be given work; None: in nothing.

    asyncdl, dask and distributed have to be the same; of Python and of what pickles pass through, major and minor
    version. What only one of both has installed is no disagreement.
    """
    differ = []
    for name in (*_ALIKE, *_TO_THE_MINOR):
        one, other = mine.get(name), theirs.get(name)
        if one is None or other is None or one == other:
            continue
        if name in _ALIKE or one.split(".")[:2] != other.split(".")[:2]:
            differ.append(f"{name} {other} there and {one} here")
    return ", ".join(differ) or None


class Crew:
    """The workers of a cluster.

    Parameters
    ----------
    versions
        Ours.
    """

    def __init__(self, versions: Mapping[str, str]) -> None:
        self._versions = versions
        self._threads: dict[str, int] = {}
        self._resources: dict[str, Mapping[str, float]] = {}
        self.refused: dict[str, str] = {}

    def strangers(self, threads: Mapping[str, int]) -> list[str]:
        """Take in who is there, and return whom we know nothing about yet."""
        for gone in self._threads.keys() - threads.keys():
            self._resources.pop(gone, None)
            self.refused.pop(gone, None)
        self._threads = dict(threads)
        return [each for each in threads if each not in self._resources and each not in self.refused]

    def meet(self, address: str, description: Mapping[str, Any] | BaseException) -> None:
        """Take in what a worker says of itself, or what kept it from saying anything."""
        if isinstance(description, BaseException):
            reason: str | None = f"it cannot run asyncdl: {type(description).__name__}: {description}"
        else:
            reason = disagreement(self._versions, description["versions"])
        if reason is None and not isinstance(description, BaseException):
            self._resources[address] = description["resources"]
        else:
            self.refused[address] = str(reason)
            logger.warning("the Dask worker %s is given no work: %s", address, reason)

    def __contains__(self, address: str) -> bool:
        return address in self._threads

    def able(self, needs: Needs) -> list[str]:
        """Return the workers that can be given what needs this."""
        return [
            address
            for address, offers in self._resources.items()
            if address in self._threads and all(offers.get(name, 0) >= amount for name, amount in needs)
        ]

    def threads(self, needs: Needs = ()) -> int:
        """Return how many such batches these workers run at once."""
        return sum(self._threads[each] for each in self.able(needs))

    def why_none(self, needs: Needs) -> str:
        """Say why there is nobody for what needs this."""
        if self._resources.keys() & self._threads.keys():
            offer = ",".join(f"{name}={amount:g}" for name, amount in needs)
            return f'no Dask worker offers {dict(needs)}; one that does is started with --resources "{offer}"'
        if self.refused:
            reasons = "; ".join(f"{address}: {reason}" for address, reason in sorted(self.refused.items()))
            return f"no Dask worker can be given work: {reasons}"
        return "the Dask cluster has no workers"
