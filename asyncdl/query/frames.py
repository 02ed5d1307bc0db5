"""Rows as pandas and Arrow tables, every value kept exactly.

pandas and pyarrow are imported where they are used: they take longer to import than all of asyncdl.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from asyncdl.errors import DatatypeError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_INT64 = 2**63
_WIDEST = 10**76


def to_pandas(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> pd.DataFrame:
    """Return rows as a DataFrame; see `Cursor.to_pandas`."""
    import pandas as pd  # noqa: PLC0415 - heavy

    series = [_series([row[at] for row in rows]) for at in range(len(columns))]
    frame = pd.concat(series, axis=1) if series else pd.DataFrame(index=range(len(rows)))
    frame.columns = pd.Index(list(columns), dtype=object)
    return frame


def _series(values: list[Any]) -> pd.Series[Any]:
    import pandas as pd  # noqa: PLC0415 - heavy

    present = [each for each in values if each is not None]
    kinds = {type(each) for each in present}
    kind = kinds.pop() if len(kinds) == 1 else None
    dtype = _dtype(kind, present, nulls=len(present) < len(values))
    if dtype is None:
        return pd.Series(_objects(values), dtype=object)
    if isinstance(dtype, str) and dtype == "float64":
        values = [math.nan if each is None else each for each in values]
    series: pd.Series[Any] = pd.Series(values, dtype=dtype)
    return series


def _dtype(kind: type | None, present: list[Any], *, nulls: bool) -> Any:
    """Return the dtype that keeps values of a class exactly; None: objects do."""
    if kind is int and all(-_INT64 <= each < _INT64 for each in present):
        return "Int64" if nulls else "int64"
    if kind is bool:
        return "boolean" if nulls else "bool"
    if kind is float and not (nulls and any(map(math.isnan, present))):
        return "float64"  # a null would be taken for one of the NaNs
    if kind is datetime:
        zones = {str(each.tzinfo) for each in present}
        folds = any(each.fold for each in present)
        if len(zones) == 1 and not folds:
            import pandas as pd  # noqa: PLC0415 - heavy

            zone = present[0].tzinfo
            return "datetime64[us]" if zone is None else pd.DatetimeTZDtype("us", zone)
    return None


def _objects(values: list[Any]) -> Any:
    """Return an array of objects; numpy itself would make a matrix of arrays of one length."""
    import numpy as np  # noqa: PLC0415 - heavy

    array = np.empty(len(values), dtype=object)
    for at, value in enumerate(values):
        array[at] = value
    return array


def to_arrow(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> pa.Table:
    """Return rows as an Arrow table; see `Cursor.to_arrow`."""
    import pyarrow as pa  # noqa: PLC0415 - heavy

    arrays = [_array(name, [row[at] for row in rows]) for at, name in enumerate(columns)]
    return pa.Table.from_arrays(arrays, names=list(columns))


def _array(name: str, values: list[Any]) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - heavy

    values = [_for_arrow(each) for each in values]
    try:
        return pa.array(values, type=_arrow_type(values), from_pandas=False)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise DatatypeError(
            f"the column {name!r} has no type in Arrow: {error}; use to_list() or to_pandas(), or cast it in the query"
        ) from error


def _arrow_type(values: list[Any]) -> Any:
    """Return the type of integers beyond 64 bits; None: Arrow finds it."""
    import pyarrow as pa  # noqa: PLC0415 - heavy

    integers = [each for each in values if type(each) is int]
    if not integers or all(-_INT64 <= each < _INT64 for each in integers):
        return None
    low, high = min(integers), max(integers)
    if low >= 0 and high < 2 * _INT64:
        return pa.uint64()
    return pa.decimal256(76, 0) if low > -_WIDEST and high < _WIDEST else None


def _for_arrow(value: Any) -> Any:
    import numpy as np  # noqa: PLC0415 - heavy

    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, np.ndarray) and value.ndim != 1:
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return list(value)
    return value
