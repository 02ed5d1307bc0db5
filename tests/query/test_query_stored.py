from __future__ import annotations

import json
import operator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from query_catalog import FakeCatalog

from asyncdl.errors import AsyncDLError, QueryError
from asyncdl.query import Query, dump_query, fn, load_query, table

t = table("docs")


def stored(*nodes: Any, version: Any = 1) -> str:
    return json.dumps({"version": version, "nodes": nodes})


def test_the_format() -> None:
    assert json.loads(dump_query(t.filter(t.year > 2000))) == {
        "version": 1,
        "nodes": [
            ["table", "docs"],
            ["attr", "year", [0]],
            ["literal", 2000],
            ["op", "gt", [1, 2]],
            ["call", "filter", [0, 3]],
        ],
    }


def test_text_written_by_the_first_version_is_read() -> None:
    text = stored(["table", "docs"], ["literal", "year"], ["call", "agg", [0, 1], ["by"]])
    assert load_query(text).equals(t.agg(by="year"))
    assert load_query(text.encode()).equals(t.agg(by="year"))


def test_only_queries_are_dumped() -> None:
    with pytest.raises(QueryError, match="is no query"):
        dump_query("docs")  # type: ignore[arg-type]


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary()
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.datetimes()
    | st.dates()
    | st.uuids(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text("$vab"), inner, max_size=3)
    ),
    max_leaves=5,
)
_names = st.sampled_from(["id", "year", "text", "count", "filter"])


def _grow(inner: st.SearchStrategy[Query]) -> st.SearchStrategy[Query]:
    return st.one_of(
        st.builds(operator.getitem, inner, _names),
        st.builds(getattr, inner, _names),
        st.builds(operator.eq, inner, _values),
        st.builds(operator.sub, inner, inner),
        st.builds(operator.invert, inner),
        st.builds(lambda query, args, kwargs: query.filter(*args, **kwargs), inner, st.lists(inner | _values, max_size=3),
                  st.dictionaries(st.sampled_from(["a", "b"]), inner | _values, max_size=2)),
        st.builds(lambda query, many: query.isin([*many, {"x": query}, (1, query)]), inner, st.lists(_values, max_size=2)),
        st.builds(lambda query: query.map(lambda x: x + query), inner),
        st.builds(lambda query: fn.coalesce(query, 1), inner),
        st.builds(operator.getitem, inner, st.slices(5)),
    )  # fmt: skip


_queries = st.recursive(st.sampled_from([t, table("notes")]), _grow, max_leaves=6)


@given(_queries)
def test_what_is_stored_comes_back(query: Query) -> None:
    data = dump_query(query)
    loaded = load_query(data)
    assert loaded.equals(query)
    assert hash(loaded) == hash(query)
    assert dump_query(loaded) == data
    assert repr(loaded) == repr(query)
    assert (loaded.tables(), loaded.listeners(), loaded.root()) == (query.tables(), query.listeners(), query.root())


@given(_queries, _queries)
def test_equal_queries_have_equal_bytes_and_others_do_not(one: Query, other: Query) -> None:
    assert one.equals(other) == (dump_query(one) == dump_query(other))
    if one.equals(other):
        assert hash(one) == hash(other)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[]",
        "null",
        b"\xff\xfe",
        "[" * 100_000,
        "{}",
        '{"version": 1}',
        stored(),
        stored(["table", "docs"], version=2),
        stored(["table", "docs"], version="1"),
        stored(["table", "docs"], version=True),
        stored("table"),
        stored([]),
        stored([1]),
        stored(["table"]),
        stored(["table", 3]),
        stored(["table", "docs; drop table users"]),
        stored(["table", "docs", [0]]),
        stored(["table", "docs"], ["attr", "year", [1]]),
        stored(["table", "docs"], ["attr", "year", [-1]]),
        stored(["table", "docs"], ["attr", "year", [True]]),
        stored(["table", "docs"], ["attr", "year", ["0"]]),
        stored(["table", "docs"], ["attr", "year", []]),
        stored(["table", "docs"], ["attr", "__class__", [0]]),
        stored(["table", "docs"], ["attr", "_arg", [0]]),
        stored(["deferred", "_"], ["attr", "__globals__", [0]]),
        stored(["table", "docs"], ["attr", "", [0]]),
        stored(["table", "docs"], ["call", "__init__", [0]]),
        stored(["table", "docs"], ["call", "execute", [0]]),
        stored(["table", "docs"], ["call", "op", [0]]),
        stored(["table", "docs"], ["call", "get_backend", [0]]),
        stored(["table", "docs"], ["literal", "x.csv"], ["call", "to_csv", [0, 1]]),
        stored(["table", "docs"], ["literal", "drop table docs"], ["call", "sql", [0, 1]]),
        stored(["deferred", "_"], ["call", "pipe", [0]]),
        stored(["table", "docs"], ["call", "filter", [0], ["a"]]),
        stored(["table", "docs"], ["call", "filter", [0, 0, 0], ["a", "a"]]),
        stored(["literal", "x"], ["call", "format", [0]]),
        stored(["literal", "x"], ["attr", "format", [0]]),
        stored(["literal", {}], ["literal", "x"], ["item", "", [0, 1]]),
        stored(["fn", "connect"]),
        stored(["fn", "read_csv"]),
        stored(["fn", "s.where"]),
        stored(["fn", "s.__class__"]),
        stored(["fn", "selectors"]),
        stored(["fn", "util"]),
        stored(["op", "matmul", []]),
        stored(["table", "docs"], ["op", "gt", [0]]),
        stored(["table", "docs"], ["op", "neg", [0, 0]]),
        stored(["import", "os"]),
        stored(["literal"]),
        stored(["literal", 1, 2]),
        stored(["literal", {"$": "pickle", "v": "x"}]),
        stored(["literal", {"$": "datetime", "v": 3}]),
        stored(["literal", {"$": "set", "v": [[1]]}]),
        stored(["table", "docs"], ["outputs", "", [0]]),
        stored(["table", "docs"], ["outputs", "", [0], ["a b"]]),
        stored(["table", "docs"], ["missing_outputs", "x; --", [0]]),
        stored(["table", "docs"], ["like", "x", [0]]),
        stored(["table", "docs"], ["function", "x", [0], ["a"]]),
        stored(["table", "docs"], ["slice", "", [0]]),
        stored(["table", "docs"], ["dict", "", [0], []]),
    ],
)
def test_what_is_no_stored_query_is_refused(text: str | bytes) -> None:
    with pytest.raises(QueryError):
        load_query(text)


@pytest.mark.parametrize(
    "text",
    [
        stored(["literal", "abc"], ["literal", 10**12], ["op", "mul", [0, 1]]),
        stored(["literal", 10], ["literal", 10**9], ["op", "pow", [0, 1]]),
        stored(["table", "docs"], ["attr", "id", [0]], ["literal", "%s"], ["op", "mod", [2, 1]]),
        stored(["param", "0.0"]),
        stored(["param", "x"], ["call", "abs", [0]]),
        stored(["literal", 3]),
        stored(["list", "", []]),
        stored(["table", "docs"], ["literal", "__class__"], ["item", "", [0, 1]]),
        stored(["table", "docs"], ["attr", "id", [0]], ["literal", "__class__"], ["item", "", [1, 2]]),
        stored(["deferred", "_"], ["call", "resolve_", [0]]),
        stored(["deferred", "_"], ["call", "mro", [0]]),
        stored(["table", "docs"], ["call", "copy", [0]]),
        stored(["table", "docs"], ["call", "columns", [0]]),
        stored(["table", "docs"], ["attr", "columns", [0]]),
        stored(["table", "docs"], ["literal", "id"], ["call", "group_by", [0, 1]], ["attr", "table", [2]]),
        stored(["fn", "window"], ["attr", "groupings", [0]]),
        stored(["fn", "e"], ["call", "e", [0]]),
    ],
)
def test_what_loads_but_cannot_be_meant_is_refused_when_built(text: str) -> None:
    query = load_query(text)
    with pytest.raises(QueryError):
        query.build(FakeCatalog())


def test_a_very_long_query_is_refused_or_stays_flat() -> None:
    nodes: list[Any] = [["table", "docs"], ["attr", "id", [0]]]
    nodes += [["op", "neg", [at]] for at in range(1, 20_000)]
    query = load_query(stored(*nodes))
    assert load_query(dump_query(query)).equals(query)
    assert len(repr(query)) < 5000
    with pytest.raises(QueryError, match="steps"):
        load_query(stored(*([["table", "docs"]] * 200_001)))


def test_nested_containers_do_not_explode() -> None:
    nodes: list[Any] = [["table", "docs"], ["attr", "id", [0]]]
    nodes += [["list", "", [at, at]] for at in range(1, 60)]
    query = load_query(stored(*nodes))
    assert load_query(dump_query(query)).equals(query)
    assert len(repr(query)) < 5000


KINDS = [
    "table",
    "attr",
    "call",
    "fn",
    "op",
    "item",
    "list",
    "dict",
    "slice",
    "function",
    "param",
    "deferred",
    "outputs",
]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(KINDS),
            st.sampled_from(
                ["docs", "id", "", "filter", "gt", "neg", "0", "0.0", "map", "s.numeric", "count", "select"]
            ),
            st.lists(st.integers(0, 5), max_size=3),
            st.lists(st.sampled_from(["a", "b", "length"]), max_size=2),
        ),
        max_size=6,
    )
)
def test_random_steps_load_and_build_or_are_refused(steps: list[Any]) -> None:
    nodes: list[Any] = [["table", "docs"], ["attr", "id", [0]], *map(list, steps)]
    try:
        query = load_query(stored(*nodes))
    except QueryError:
        return
    assert load_query(dump_query(query)).equals(query)
    try:
        built = query.build(FakeCatalog())
    except AsyncDLError:
        return
    assert type(built.expression).__module__.startswith("ibis.expr.types")
