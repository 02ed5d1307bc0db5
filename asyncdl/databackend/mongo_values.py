"""Values of declared datatypes between Python and MongoDB; what is not declared, the driver's room encodes by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

from asyncdl.databackend.documents import DocumentPlan, DocumentWrite
from asyncdl.databackend.tables import ANY
from asyncdl.datatypes import Datatypes, parse
from asyncdl.drivers.mongo_values import as_json, decimal128, is_native
from asyncdl.errors import DatatypeError

_BYTES = frozenset({"pickle", "datatype"})
_NESTED = frozenset({"json", "array", "struct", "map"})
_SAME = frozenset({"string", "boolean", "float", "binary", "uuid", "null"})


class MongoValues:
    """Encodes and decodes values of declared datatypes."""

    def __init__(self, datatypes: Datatypes) -> None:
        self.datatypes = datatypes

    def encode(self, datatype: str, values: Sequence[Any], describe: Callable[[int], str]) -> Sequence[Any]:
        """Return what the driver is given; raises `DatatypeError`, beginning with what ``describe`` says of a place."""
        if datatype == ANY:
            return values
        parsed = parse(datatype)
        checked = self.datatypes.check(datatype).column(values, describe)
        if parsed.kind in {"vector", "ndarray", "image"}:
            if parsed.kind != "vector":
                return values  # checked; the driver's room stores them as they are
            import numpy as np  # noqa: PLC0415 - heavy: only where there are vectors

            return [None if each is None else np.asarray(each, parsed.arguments[0]) for each in values]
        one = _STORED.get(parsed.kind)
        if one is None:
            return checked
        found = []
        for at, each in enumerate(checked):
            try:
                found.append(None if each is None else one(each))
            except DatatypeError as error:
                raise DatatypeError(f"{describe(at)}: {error}") from error
        return found

    def decoder(self, datatype: str) -> Callable[[Any], Any] | None:
        """Return what makes a value of what the driver gives; None: it is one already."""
        if datatype == ANY:
            return None
        parsed = parse(datatype)
        if parsed.kind in _BYTES:
            own = self.datatypes.decoder(datatype)
            assert own is not None  # noqa: S101 - it is one of asyncdl's own
            return lambda value: own(value) if isinstance(value, bytes) else value
        if parsed.kind == "date":
            return lambda value: value.date() if isinstance(value, datetime) else value
        if parsed.kind == "timestamp":
            zoned = parsed.arguments[0] is not None
            return lambda value: _zoned(value, zoned) if isinstance(value, datetime) else value
        return None

    def encode_document(self, columns: Mapping[str, str], document: dict[str, Any], what: str) -> dict[str, Any]:
        """Return a document, or part of one, with the values of declared columns as the driver is given them."""
        declared = [name for name in document if name in columns and columns[name] != ANY]
        if not declared:
            return document
        found = dict(document)
        for name in declared:
            where = f"{what}, key {name!r}"
            found[name] = self.encode(columns[name], [document[name]], lambda at, where=where: where)[0]  # type: ignore[misc]
        return found

    def asked(self, columns: Mapping[str, str], plan: DocumentPlan) -> DocumentPlan:
        """Return a plan whose filters have values as declared columns store them.

        All but dates stand in the database as the driver writes them by itself.
        """
        dates = {name for name, datatype in columns.items() if datatype == "date"}
        if not dates:
            return plan
        call = plan.call
        if call is not None:
            args, options = tuple(_dated(call.args, dates)), _dated(call.options, dates)
            call = replace(call, args=args, options=options)
        return replace(plan, stages=tuple(_dated(plan.stages, dates)), call=call)

    def concerned(self, columns: Mapping[str, str], request: DocumentWrite) -> DocumentWrite:
        """Return writes whose filters have values as declared columns store them."""
        dates = {name for name, datatype in columns.items() if datatype == "date"}
        if not dates:
            return request
        return replace(
            request, operations=[replace(each, where=_dated(each.where, dates)) for each in request.operations]
        )

    def decode(self, columns: Mapping[str, str], documents: Sequence[dict[str, Any]]) -> None:
        """Decode the values of declared columns, in place."""
        for name, datatype in columns.items():
            decode = self.decoder(datatype)
            if decode is not None:
                for each in documents:
                    if name in each:
                        each[name] = decode(each[name])


def _dated(tree: Any, names: set[str], *, inside: bool = False) -> Any:
    """Return a tree of filters with the dates that stand under some names as they are stored."""
    if isinstance(tree, Mapping):
        return {name: _dated(each, names, inside=inside or name in names) for name, each in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_dated(each, names, inside=inside) for each in tree]
    return _date(tree) if inside and type(tree) is date else tree


def _zoned(value: datetime, zoned: bool) -> datetime:
    if zoned:
        return value if value.tzinfo is not None else value.replace(tzinfo=UTC)
    return value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)


def _integer(value: int) -> int:
    if not -(2**63) <= value < 2**63:
        raise DatatypeError(f"MongoDB cannot store the integer {value}: it holds 64 bits")
    return value


def _date(value: date) -> datetime:
    return datetime(value.year, value.month, value.day)


_STORED: dict[str, Callable[[Any], Any]] = {
    "integer": _integer,
    "decimal": decimal128,
    "date": _date,
    "time": as_json,
    "interval": as_json,
    **dict.fromkeys(_NESTED, lambda value: value if is_native(value) else as_json(value)),
}
