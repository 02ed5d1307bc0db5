"""What makes a database's object in another process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

D_co = TypeVar("D_co", covariant=True)


class Elsewhere(Generic[D_co]):
    """Makes a database's object, not open yet, from its URI; it can be pickled, and its repr shows no password.

    Parameters
    ----------
    make
        The class.
    """

    def __init__(self, make: Callable[[str], D_co], uri: str) -> None:
        self._make = make
        self._uri = uri

    def __call__(self) -> D_co:
        """Return the object."""
        return self._make(self._uri)
