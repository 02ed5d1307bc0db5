"""Components as folders: ``component.json`` beside ``blobs/``, to be copied, reviewed, kept in version control.

A function or class stands in it by its import path; only what no path leads to is a blob, and a pickle.
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import anyio
import msgspec

from asyncdl.components.component import Component
from asyncdl.components.declaration import blobs_of, declare, pickled, restore, unpickle
from asyncdl.components.model import Model
from asyncdl.errors import ArtifactCorruptError, InvalidComponentError

_FORMAT = 1
Identity = tuple[str, str]


async def write_component(component: Component, path: Path) -> None:
    """Write a component, and all that it holds, to a folder, which is made; files of its names there are replaced."""
    entries: list[dict[str, Any]] = []
    blobs: dict[str, bytes] = {}
    await asyncio.to_thread(_flatten, component, entries, blobs, {})
    folder = anyio.Path(path)
    await (folder / "blobs").mkdir(parents=True, exist_ok=True)
    for sha256, data in blobs.items():
        await (folder / "blobs" / sha256).write_bytes(data)
    document = msgspec.json.encode({"asyncdl": _FORMAT, "components": entries}, order="sorted")
    await (folder / "component.json").write_bytes(msgspec.json.format(document, indent=2) + b"\n")


def _flatten(
    component: Component, entries: list[dict[str, Any]], blobs: dict[str, bytes], prints: dict[Identity, str]
) -> None:
    """Append a component's entry after those of what it holds."""
    children = list(component.children())
    for child in children:
        if (child.type_id, child.identifier) not in prints:
            _flatten(child, entries, blobs, prints)
    held = {(child.type_id, child.identifier): prints[child.type_id, child.identifier] for child in children}
    declaration = declare(component, held)
    prints[component.type_id, component.identifier] = declaration.fingerprint
    blobs |= declaration.blobs
    entry = {"type_id": component.type_id, "identifier": component.identifier, "fields": declaration.fields}
    if isinstance(component, Model) and component.trained is not None:
        entry["trained"] = pickled(component.trained, blobs)
    entries.append(entry)


async def read_component(path: Path, *, allow_pickle: bool) -> Component:
    """Return the component that `write_component` wrote, with all that it holds; nothing is installed.

    Raises
    ------
    InvalidComponentError
        There is none, or it is not in a format of this asyncdl.
    ArtifactCorruptError
        A blob is missing, or is not what was written.
    UntrustedArtifactError
        It has pickles, and ``allow_pickle`` is False.
    """
    folder = anyio.Path(path)
    try:
        document = msgspec.json.decode(await (folder / "component.json").read_bytes())
        entries = document["components"]
        if document["asyncdl"] != _FORMAT or not entries:
            raise InvalidComponentError(
                f"{path} has a component in the format {document['asyncdl']!r}; this reads {_FORMAT}"
            )
        hashes = {sha256 for entry in entries for sha256 in blobs_of(entry["fields"])}
        hashes |= {entry["trained"] for entry in entries if "trained" in entry}
    except (OSError, msgspec.DecodeError, KeyError, TypeError, AttributeError) as error:
        raise InvalidComponentError(f"{path} does not hold an exported component: {error}") from error
    blobs = {sha256: await _blob(folder, sha256) for sha256 in hashes}
    return await asyncio.to_thread(_build, entries, blobs, allow_pickle)


async def _blob(folder: anyio.Path, sha256: Any) -> bytes:
    if not isinstance(sha256, str) or len(sha256) != 64 or not sha256.isalnum():
        raise InvalidComponentError(f"{folder}: {sha256!r} is not the name of a blob")
    try:
        data = await (folder / "blobs" / sha256).read_bytes()
    except OSError as error:
        raise ArtifactCorruptError(f"{folder} lacks the blob {sha256}: {error}") from error
    if await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest()) != sha256:
        raise ArtifactCorruptError(f"the blob {sha256} in {folder} has been changed since it was written")
    return data


def _build(entries: list[dict[str, Any]], blobs: dict[str, bytes], allow_pickle: bool) -> Component:
    built: dict[Identity, Component] = {}
    try:
        for entry in entries:
            trained: dict[str, Any] = {}
            if "trained" in entry:
                trained["trained"] = unpickle(blobs[entry["trained"]], allow_pickle=allow_pickle)
            component = restore(
                entry["type_id"],
                entry["identifier"],
                entry["fields"],
                blobs,
                built,
                allow_pickle=allow_pickle,
                **trained,
            )
            built[entry["type_id"], entry["identifier"]] = component
    except (KeyError, TypeError) as error:
        raise InvalidComponentError(f"an exported component is incomplete: {error!r}") from error
    return component
