"""Tables between their files and DuckDB: Parquet, which says itself of what types its columns are, and CSV, which does not.

A CSV file that asyncdl has written has a file beside it, in its own folder, with the columns' types and the key; in it every
value is quoted and what is not quoted is NULL, such that all values come back exactly. The types of other programs' files are
DuckDB's guess, by the whole file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import duckdb

SUFFIXES = (".parquet", ".csv")
_LINE = 1 << 30
"""Bytes that a line of a CSV file has at most."""


@dataclass(frozen=True, slots=True)
class _Described:
    """What a table of a file is like: column names and DuckDB's types, the key, and the source to select from."""

    columns: Sequence[tuple[str, str]]
    key: Sequence[str]
    source: str
    shown: Mapping[str, str]


def load(raw: duckdb.DuckDBPyConnection, name: str, path: Path, types: Path) -> None:
    """Make DuckDB's table of a file; raises DuckDB's errors, `ValueError` and `KeyError` for one that is none.

    Parameters
    ----------
    types
        Where the types of a CSV file would be.
    """
    found = _describe_csv(raw, path, types) if path.suffix == ".csv" else _describe_parquet(raw, path)
    parts = [f"{quoted(column)} {kind}" for column, kind in found.columns]
    if found.key:
        parts.append(f"PRIMARY KEY ({', '.join(map(quoted, found.key))})")
    raw.execute(f"CREATE TABLE {quoted(name)} ({', '.join(parts)})")
    names = ", ".join(found.shown.get(column, quoted(column)) for column, _ in found.columns)
    raw.execute(f"INSERT INTO {quoted(name)} SELECT {names} FROM {found.source}")  # noqa: S608 - quoted


def _describe_parquet(raw: duckdb.DuckDBPyConnection, path: Path) -> _Described:
    said = raw.execute(
        "SELECT decode(value) FROM parquet_kv_metadata(?) WHERE decode(key) = 'asyncdl'", [str(path)]
    ).fetchone()
    source = f"read_parquet({text(str(path))})"
    if said is None:
        return _guessed(raw, source)
    described = json.loads(said[0])
    return _Described([(each[0], each[1]) for each in described["columns"]], described["key"], source, {})


def _describe_csv(raw: duckdb.DuckDBPyConnection, path: Path, types: Path) -> _Described:
    guess = f"read_csv({text(str(path))}, header = true, sample_size = -1, max_line_size = {_LINE})"
    try:
        described = json.loads(types.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return _guessed(raw, guess)
    with path.open("rb") as file:
        ours = file.read(1) == b'"'
    if not ours:  # another program has written it since: its columns, of our types where we know them
        there = _guessed(raw, guess.replace("header = true", "header = true, all_varchar = true"))
        known = dict(described["columns"])
        kinds = dict(_guessed(raw, guess).columns)
        columns = [(name, known.get(name, kinds[name])) for name, _ in there.columns]
        key = described["key"] if set(described["key"]) <= kinds.keys() else there.key
        return _Described(columns, key, there.source, _cast(columns))
    columns = [(each[0], each[1]) for each in described["columns"]]
    read = ", ".join(f"{text(column)}: 'VARCHAR'" for column, _ in columns)
    source = (
        f"read_csv({text(str(path))}, header = true, delim = ',', quote = '\"', escape = '\"', columns = {{{read}}}, "
        f"nullstr = '', allow_quoted_nulls = false, auto_detect = false, parallel = false, max_line_size = {_LINE})"
    )
    return _Described(columns, described["key"], source, _cast(columns))


def _cast(columns: Sequence[tuple[str, str]]) -> dict[str, str]:
    return {name: f"CAST({quoted(name)} AS {kind})" for name, kind in columns}


def _guessed(raw: duckdb.DuckDBPyConnection, source: str) -> _Described:
    """Return what another program's file is like: ``id`` is its key where all values of that differ."""
    rows = raw.execute(f"SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM {source})").fetchall()  # noqa: S608
    columns = [(row[0], row[1]) for row in rows]
    if "id" not in dict(columns):
        return _Described(columns, [], source, {})
    (unique,) = raw.execute(f"SELECT count(DISTINCT id) = count(*) FROM {source}").fetchall()[0]  # noqa: S608 - quoted
    return _Described(columns, ["id"] if unique else [], source, {})


def write(raw: duckdb.DuckDBPyConnection, name: str, path: Path, to: Path) -> str | None:
    """Write DuckDB's table in the format of ``path`` to another place; return its types in JSON, None if there is no table."""
    columns = raw.execute(
        "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = ? ORDER BY column_index", [name]
    ).fetchall()
    if not columns:
        return None
    key = raw.execute(
        "SELECT constraint_column_names FROM duckdb_constraints() WHERE table_name = ? AND constraint_type = 'PRIMARY KEY'",
        [name],
    ).fetchone()
    described = json.dumps({"columns": columns, "key": key[0] if key else []})
    is_csv = path.suffix == ".csv"
    # Parquet would cut intervals to milliseconds
    shown = ", ".join(
        f"CAST({quoted(column)} AS VARCHAR) AS {quoted(column)}" if is_csv or kind == "INTERVAL" else quoted(column)
        for column, kind in columns
    )
    options = (
        "FORMAT csv, HEADER, FORCE_QUOTE *, NULLSTR ''"
        if is_csv
        else f"FORMAT parquet, KV_METADATA {{asyncdl: {text(described)}}}"
    )
    raw.execute(f"COPY (SELECT {shown} FROM {quoted(name)}) TO {text(str(to))} ({options})")  # noqa: S608 - quoted
    return described


def quoted(name: str) -> str:
    """Return a name as DuckDB quotes it."""
    return '"' + name.replace('"', '""') + '"'


def text(value: Any) -> str:
    """Return a text as DuckDB's SQL has it."""
    return "'" + str(value).replace("'", "''") + "'"
