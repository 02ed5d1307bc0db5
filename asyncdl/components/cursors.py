"""The names of the cursors that belong to components, and go with them.

They go by identifier: versions of one component share them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable


def gate_of(listener: str) -> str:
    """Return the cursor that stands below 0 while a listener is paused."""
    return f"pause:{listener}"


def rate_of(model: str) -> str:
    """Return the cursor that says from when on a model with a rate limit may be called again."""
    return f"rate:{model}"


def shares_of(model: str) -> str:
    """Return the cursor that counts the changes of who may call a model how often at once."""
    return f"shares:{model}"


def share_of(model: str, owner: str) -> str:
    """Return the cursor that holds one process's share of a model's calls."""
    return f"share:{model}:{owner}"


def belonging(type_id: str, identifier: str, names: Iterable[str]) -> Collection[str]:
    """Return those among the names of cursors that belong to a component."""
    if type_id == "listener":
        return [each for each in names if each == gate_of(identifier)]
    if type_id == "model":
        own = {rate_of(identifier), shares_of(identifier)}
        return [each for each in names if each in own or each.startswith(share_of(identifier, ""))]
    return []
