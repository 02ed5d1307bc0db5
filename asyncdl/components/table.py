"""Tables: declared columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from asyncdl.components.component import Component
from asyncdl.components.datatype import Datatype
from asyncdl.databackend.tables import MISSING_KEY, TableSchema
from asyncdl.datatypes import normalize
from asyncdl.errors import InvalidComponentError
from asyncdl.names import check_column, check_table


@dataclass(frozen=True, eq=False)
class Table(Component):
    """A table with exactly these columns; without it, a table comes into being from the first rows inserted.

    Parameters
    ----------
    columns
        Column name to datatype (`asyncdl.datatypes`, or a `Datatype`).
    primary_key
        The column or columns that identify a row. ``id`` is added as a string when it is not among the columns.
    """

    type_id: ClassVar[str] = "table"

    columns: Mapping[str, str | Datatype]
    primary_key: str | tuple[str, ...] = field(default=MISSING_KEY, kw_only=True)

    def check(self) -> None:
        """Raise when a name or datatype cannot be used."""
        check_table(self.identifier)
        if not isinstance(self.columns, Mapping):
            raise InvalidComponentError(f"{self}: columns is {self.columns!r}; it must map column to datatype")
        for name in (*self.columns, *self._key):
            check_column(name)
        missing = [name for name in self._key if name not in self.columns and name != MISSING_KEY]
        if missing:
            raise InvalidComponentError(f"{self}: primary key columns {missing} are not among its columns")
        self.schema()

    @property
    def _key(self) -> tuple[str, ...]:
        return (self.primary_key,) if isinstance(self.primary_key, str) else tuple(self.primary_key)

    def schema(self) -> TableSchema:
        """Return the table's schema."""
        columns = {} if MISSING_KEY in self.columns or self._key != (MISSING_KEY,) else {MISSING_KEY: "string"}
        for name, datatype in self.columns.items():
            columns[name] = datatype.column if isinstance(datatype, Datatype) else normalize(datatype)
        return TableSchema(self.identifier, columns, self._key)
