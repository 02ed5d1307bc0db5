"""Columns of values between Python and a SQL database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Generic, TypeVar

from asyncdl.databackend.sql_dialect import FromStorage, Storage
from asyncdl.databackend.tables import Row
from asyncdl.datatypes import Datatypes, parse
from asyncdl.errors import AsyncDLError, DatatypeError

Describe = Callable[[int], str]
S_co = TypeVar("S_co", bound=Storage, covariant=True)
RowDecoder = Callable[[list[Row]], list[Row]]

_HEAVY = frozenset({"image", "pickle", "datatype", "ndarray", "json", "array", "struct", "map"})


class Values(Generic[S_co]):
    """Encodes and decodes columns.

    Parameters
    ----------
    dialect
        How the database stores values.
    datatypes
        How asyncdl's own become bytes.
    """

    def __init__(self, dialect: S_co, datatypes: Datatypes) -> None:
        self.dialect = dialect
        self.datatypes = datatypes
        self._decoder = lru_cache(maxsize=512)(self._make_decoder)

    def check(self, datatype: str, values: Sequence[Any], describe: Describe) -> Sequence[Any]:
        """Return a column's values as they will be read again; raises `DatatypeError`."""
        return self.datatypes.check(datatype).column(values, describe)

    def store(self, datatype: str, values: Sequence[Any], describe: Describe) -> Sequence[Any]:
        """Return what the driver is given for values that `check` returned; raises `DatatypeError`."""
        one = self.dialect.to_storage(parse(datatype))
        if one is None:
            return values
        try:
            return [None if each is None else one(each) for each in values]
        except DatatypeError:
            return self._store_slowly(one, values, describe)

    @staticmethod
    def _store_slowly(one: Callable[[Any], Any], values: Sequence[Any], describe: Describe) -> Sequence[Any]:
        for index, each in enumerate(values):
            try:
                if each is not None:
                    one(each)
            except DatatypeError as error:
                raise DatatypeError(f"{describe(index)}: {error}") from error
        raise AssertionError("a value that could not be stored could be when it was tried again")

    def encode(self, datatype: str, values: Sequence[Any], describe: Describe) -> Sequence[Any]:
        """Return what the driver is given for a column; raises `DatatypeError`."""
        return self.store(datatype, self.check(datatype, values, describe), describe)

    def encode_one(self, datatype: str, value: Any, what: str) -> Any:
        """Return what the driver is given for a value."""
        return self.encode(datatype, [value], lambda _: what)[0]

    def decoder(self, datatype: str, *, computed: bool = False) -> FromStorage | None:
        """Return what turns a column into Python's values; None: they are already."""
        return self._decoder(datatype, computed)

    def _make_decoder(self, datatype: str, computed: bool) -> FromStorage | None:
        own = self.datatypes.decoder(datatype)
        if own is None:
            return self.dialect.from_storage(parse(datatype), computed=computed)
        return lambda values: [own(each) if isinstance(each, bytes) else each for each in values]

    def rows(self, columns: Sequence[tuple[str, str, bool]]) -> RowDecoder | None:
        """Return what decodes rows of these columns (name, datatype, whether computed); None: rows are as they should be."""
        decoders = [
            (at, name, self.decoder(datatype, computed=computed))
            for at, (name, datatype, computed) in enumerate(columns)
        ]
        needed = [(at, name, decode) for at, name, decode in decoders if decode is not None]
        if not needed:
            return None

        def decode_rows(rows: list[Row]) -> list[Row]:
            if not rows:
                return rows
            taken = list(zip(*rows, strict=True))
            for at, name, decode in needed:
                try:
                    taken[at] = decode(taken[at])  # type: ignore[call-overload]
                except AsyncDLError as error:
                    raise type(error)(f"column {name!r}: {error}") from error
            return list(zip(*taken, strict=True))

        return decode_rows


def heavy(datatypes: Sequence[str]) -> bool:
    """Return whether values of one of these datatypes take long to encode or decode."""
    return any(parse(each).kind in _HEAVY for each in datatypes)
