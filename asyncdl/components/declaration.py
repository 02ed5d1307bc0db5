"""Declarations: components as JSON and blobs, and back.

Plain values and queries stand in the JSON. A function or class that an import path reaches stands there by that path;
any other object is pickled and stands there by its hash. A component inside stands there by its uuid.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cloudpickle
import msgspec

from asyncdl import codec
from asyncdl.components.component import Component, Part, component_type, part_type
from asyncdl.components.fingerprint import fingerprint, reference_of
from asyncdl.errors import DatatypeError, InvalidComponentError, UntrustedArtifactError
from asyncdl.query import QUERIES, dump_query, load_query


@dataclass(slots=True)
class Declaration:
    """What a component declares.

    Attributes
    ----------
    fields
        Field name to JSON tree; children stand in it as ``{"$": "component", "v": [type_id, identifier]}``.
    blobs
        Hash to bytes.
    fingerprint
        Hash of the fields, but for those in ``tuning``, of the blobs' meaning (not their bytes) and of the children's
        fingerprints.
    tuning
        The fields that change nothing of what comes out.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    fingerprint: str = ""
    tuning: list[str] = field(default_factory=list)

    def tuned(self, data: str) -> str:
        """Return an installed component's data (a record's), with this declaration's tuning."""
        plain = msgspec.json.decode(data)
        plain["fields"] |= {name: self.fields[name] for name in self.tuning}
        return msgspec.json.encode(plain, order="sorted").decode()


def declare(component: Component, children: Mapping[tuple[str, str], str]) -> Declaration:
    """Encode a component.

    Pickling may take long: call it off the event loop.

    Parameters
    ----------
    children
        The fingerprints of its children, by type and identifier.

    Raises
    ------
    InvalidComponentError
        A field holds something that cannot be stored.
    """
    declaration = Declaration()
    prints: dict[str, Any] = {}
    for each, value in component.declared_fields():
        try:
            declaration.fields[each.name], found = _encode_field(each, value, declaration.blobs)
        except DatatypeError as error:
            raise InvalidComponentError(f"{component}: its {each.name} cannot be stored: {error}") from error
        if each.metadata.get("tuning"):
            declaration.tuning.append(each.name)
        else:
            prints[each.name] = found
    used = {f"{type_id}/{identifier}": found for (type_id, identifier), found in children.items()}
    canonical = msgspec.json.encode([component.type_id, component.identifier, prints, used], order="sorted")
    declaration.fingerprint = hashlib.sha256(canonical).hexdigest()
    return declaration


def _encode_field(field: dataclasses.Field[Any], value: Any, blobs: dict[str, bytes]) -> tuple[Any, Any]:
    """Return a field's JSON tree, and what its component's fingerprint is made of."""
    if field.metadata.get("blob"):
        return encode_blob(value, blobs), fingerprint(value)
    if isinstance(value, Part):
        encoded = {
            each.name: _encode_field(each, getattr(value, each.name), blobs) for each in dataclasses.fields(value)
        }
        trees, prints = ({name: pair[at] for name, pair in encoded.items()} for at in (0, 1))
        return {"$": "part", "v": [value.part_id, trees]}, [value.part_id, prints]
    tree = _encode(value)
    return tree, tree


def _encode(value: Any) -> Any:
    if isinstance(value, Component):
        return {"$": "component", "v": [value.type_id, value.identifier]}
    if isinstance(value, QUERIES):
        return {"$": "query", "v": dump_query(value).decode()}
    if isinstance(value, (list, tuple)) and any(isinstance(each, (Component, *QUERIES)) for each in value):
        return {"$": "list", "v": [_encode(each) for each in value]}
    if isinstance(value, Mapping):
        return {"$": "mapping", "v": {str(key): _encode(each) for key, each in value.items()}}
    return {"$": "value", "v": codec.to_plain(value)}


def encode_blob(value: Any, blobs: dict[str, bytes]) -> Any:
    """Return the tree of an object: its import path, or the hash of its pickle, which is added to ``blobs``."""
    if value is None:
        return {"$": "value", "v": None}
    reference = reference_of(value)
    return {"$": "artifact", "v": pickled(value, blobs)} if reference is None else {"$": "reference", "v": reference}


def pickled(value: Any, blobs: dict[str, bytes]) -> str:
    """Return the hash of an object's pickle, which is added to ``blobs``.

    Raises
    ------
    InvalidComponentError
        It cannot be pickled.
    """
    try:
        data = cloudpickle.dumps(value, protocol=5)
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidComponentError(f"{value!r} cannot be pickled: {error}") from error
    sha256 = hashlib.sha256(data).hexdigest()
    blobs[sha256] = data
    return sha256


def restore(
    type_id: str,
    identifier: str,
    fields: Mapping[str, Any],
    blobs: Mapping[str, bytes],
    children: Mapping[tuple[str, str], Component],
    *,
    allow_pickle: bool,
    **identity: Any,
) -> Component:
    """Decode a component; the reverse of `declare`. Unpickling may take long: call it off the event loop.

    Raises
    ------
    UnknownComponentTypeError
        Its type is not known in this process.
    UntrustedArtifactError
        It holds a pickle, and ``allow_pickle`` is False.
    InvalidComponentError
        An import path leads nowhere.
    """

    def decode(tree: Any) -> Any:
        kind, value = tree["$"], tree["v"]
        if kind == "component":
            return children[tuple(value)]
        if kind == "query":
            return load_query(value)
        if kind == "list":
            return [decode(each) for each in value]
        if kind == "mapping":
            return {key: decode(each) for key, each in value.items()}
        if kind == "part":
            return part_type(value[0])(**{name: decode(each) for name, each in value[1].items()})
        if kind == "reference":
            return resolve(value)
        if kind == "artifact":
            return unpickle(blobs[value], allow_pickle=allow_pickle)
        return codec.from_plain(value)

    values = {name: decode(tree) for name, tree in fields.items()}
    return component_type(type_id)(identifier=identifier, **values, **identity)


def readable(tree: Any) -> Any:
    """Return a declared field as people read it: values as they are, all else by name."""
    kind, value = tree["$"], tree["v"]
    if kind == "value":
        return codec.from_plain(value)
    if kind == "query":
        return repr(load_query(value))
    if kind == "list":
        return [readable(each) for each in value]
    if kind == "mapping":
        return {key: readable(each) for key, each in value.items()}
    if kind == "part":
        return {key: readable(each) for key, each in value[1].items()}
    return "/".join(value) if kind == "component" else value


def blobs_of(fields: Mapping[str, Any]) -> set[str]:
    """Return the hashes of the artifacts that a declaration refers to."""
    parts = [tree["v"][1] for tree in fields.values() if tree["$"] == "part"]
    own = {tree["v"] for tree in fields.values() if tree["$"] == "artifact"}
    return own.union(*map(blobs_of, parts))


def asks(tree: Any) -> bool:
    """Return whether a declared field, or all fields of a declaration by name, hold a query."""
    if isinstance(tree, list):
        return any(map(asks, tree))
    if not isinstance(tree, Mapping):
        return False
    return tree.get("$") == "query" or (tree.get("$") != "value" and any(map(asks, tree.values())))


def resolve(reference: str) -> Any:
    """Return what an import path leads to.

    Raises
    ------
    InvalidComponentError
        It leads nowhere.
    """
    module, _, name = reference.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidComponentError(
            f"{reference!r} cannot be imported here ({error}); it was importable where the component was added"
        ) from error
    return found


def unpickle(data: bytes, *, allow_pickle: bool) -> Any:
    """Decode a pickled object.

    Raises
    ------
    UntrustedArtifactError
        ``allow_pickle`` is False.
    """
    if not allow_pickle:
        raise UntrustedArtifactError(
            "decoding this object would run pickled code; allow it with connect(..., pickle=True) if you trust "
            "everybody who can write to the metadata and artifact stores"
        )
    return pickle.loads(data)  # noqa: S301 - the setting allows it, and the artifact store has verified the hash
