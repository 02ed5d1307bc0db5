from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import ibis
import numpy as np
import pytest
from ibis import _
from query_catalog import Database, FakeCatalog

from asyncdl.errors import InvalidIdentifierError, QueryError
from asyncdl.query import Query, dump_query, fn, load_query, output_roots, table

t = table("docs")


def test_importing_loads_no_heavy_library() -> None:
    code = "import sys, asyncdl.query; print(sorted({'ibis', 'pandas', 'pyarrow', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("query", "text"),
    [
        (t, "docs"),
        (t.filter(t.year > 2000).select("id", "text"), "docs.filter(docs.year > 2000).select('id', 'text')"),
        (
            t.filter((t.year > 1) & ~(t.id == 2) | -t.id),
            "docs.filter(((docs.year > 1) & (~(docs.id == 2))) | (-docs.id))",
        ),
        (t.filter(_.year > 2000), "docs.filter(docs.year > 2000)"),
        (t.filter(lambda x: x.year > 2000), "docs.filter(docs.year > 2000)"),
        (t.limit(3).filter(_.year > 2000), "docs.limit(3).filter(_.year > 2000)"),
        (t.group_by("year").agg(n=_.count()), "docs.group_by('year').agg(n=docs.count())"),
        (t.mutate(a=t.tags.map(lambda x: x + 1)), "docs.mutate(a=docs.tags.map(lambda x: x + 1))"),
        (t[["id"]][0:10], "docs[['id']][0:10]"),
        (t["count"].max(), "docs['count'].max()"),
        (1 - t.year, "1 - docs.year"),
        (t.order_by(fn.desc("year")), "docs.order_by(fn.desc('year'))"),
        (t.select(fn.s.numeric()), "docs.select(fn.s.numeric())"),
        (t.outputs("length", "size"), "docs.outputs('length', 'size')"),
        (t.missing_outputs("length").ids(), "docs.missing_outputs('length').ids()"),
        (t.like({"text": "hi"}, vector_index="s", n=3), "docs.like({'text': 'hi'}, vector_index='s', n=3)"),
        (t.mutate(t.year.isin([1, t.id])), "docs.mutate(docs.year.isin([1, docs.id]))"),
    ],
)
def test_is_shown_as_it_is_written(query: Query, text: str) -> None:
    assert repr(query) == text


def test_a_long_list_is_shown_short() -> None:
    assert len(repr(t.filter(t.id.isin(list(range(10_000)))))) < 200


def test_equality_makes_an_expression_and_truth_is_refused() -> None:
    same = t.year == t.year
    assert isinstance(same, Query)
    assert isinstance(t.year != 1, Query)
    with pytest.raises(TypeError, match=r"& \| ~"):
        bool(same)
    with pytest.raises(TypeError, match=r"& \| ~"):
        _unused = t.year > 1 and t.id > 2


def test_structure_decides_equals_and_hash() -> None:
    one, other = t.filter(t.year > 2000), table("docs").filter(_.year > 2000)
    assert one.equals(other)
    assert hash(one) == hash(other)
    assert not one.equals(t.filter(t.year > 2001))
    assert not one.equals("docs")


@pytest.mark.parametrize(
    "pair", [(1, 1.0), (1, True), ("1", 1), (None, "None"), (Decimal(1), 1), (b"a", "a"), ((1,), [1])]
)
def test_literals_of_other_types_are_other_queries(pair: tuple[Any, Any]) -> None:
    assert not t.filter(t.x == pair[0]).equals(t.filter(t.x == pair[1]))


def test_arguments_do_not_run_into_each_other() -> None:
    assert not t.outputs("a", "b").equals(t.outputs("ab"))
    assert not t.foo("a", b="c").equals(t.foo("a", "c"))
    assert not t.foo(["a"], "b").equals(t.foo(["a", "b"]))


def test_rows_length_and_containment_are_refused_with_advice() -> None:
    with pytest.raises(TypeError, match=r"await db\.execute"):
        list(t)
    with pytest.raises(TypeError, match="count"):
        len(t)
    with pytest.raises(TypeError, match="isin"):
        _unused = 1 in t.year
    with pytest.raises(TypeError, match="no method"):
        t["year"]()


@pytest.mark.parametrize(
    "name", ["_score", "__array__", "__wrapped__", "_repr_html_", "__iter_", "__dataclass_fields__"]
)
def test_private_attributes_are_no_columns(name: str) -> None:
    assert not hasattr(t, name)


def test_is_immutable() -> None:
    with pytest.raises(AttributeError, match="mutate"):
        t.year = 3
    with pytest.raises(AttributeError, match="drop"):
        del t.year


def test_copies_and_pickles() -> None:
    query = t.filter(t.year > datetime(2000, 1, 1, tzinfo=UTC))
    assert copy.copy(query) is query
    assert copy.deepcopy({"a": query})["a"] is query
    assert pickle.loads(pickle.dumps(query)).equals(query)


@pytest.mark.parametrize("name", ["docs; drop table x", "", "_asyncdl_jobs", "a.b.c", 3])
def test_the_table_needs_a_name(name: Any) -> None:
    with pytest.raises(InvalidIdentifierError):
        table(name)


@pytest.mark.parametrize(
    "name",
    [
        "execute",
        "to_pandas",
        "to_pyarrow",
        "to_polars",
        "to_csv",
        "to_parquet",
        "to_delta",
        "to_sql",
        "compile",
        "preview",
        "visualize",
        "cache",
        "pipe",
        "op",
        "get_backend",
        "unbind",
        "sql",
        "alias",
        "schema",
        "udf",
        "to_list",
        "bind",
    ],
)
def test_what_runs_or_leaks_is_refused_when_it_is_written(name: str) -> None:
    with pytest.raises(QueryError, match=rf"cannot call {name}\(\): "):
        getattr(t, name)()
    with pytest.raises(QueryError, match=rf"cannot call {name}\(\): "):
        t.filter(getattr(_.year, name)())


def test_a_column_may_have_the_name_of_what_is_refused() -> None:
    assert t.execute.equals(t.execute)
    assert repr(t.filter(t.cache > 1)) == "docs.filter(docs.cache > 1)"


def test_real_ibis_expressions_are_refused_with_advice() -> None:
    real = ibis.table({"id": "int64"}, name="docs")
    for value in (
        real,
        real.id,
        real.id > 1,
        ibis.row_number(),
        ibis.literal(3),
        ibis.selectors.numeric(),
        ibis.window(),
    ):
        with pytest.raises(QueryError, match=r"asyncdl\.query\.fn"):
            t.filter(value)
        with pytest.raises(QueryError, match=r"asyncdl\.query\.fn"):
            t.filter([1, {"a": value}])


def test_datatypes_are_recorded_by_name() -> None:
    assert t.x.cast(int).equals(t.x.cast("int64"))
    assert t.x.cast(ibis.dtype("array<!int64>")).equals(t.x.cast("array<!int64>"))
    assert t.cast(ibis.schema({"x": "string"})).equals(t.cast({"x": "string"}))


def test_what_cannot_be_stored_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    for value in (object(), endless, {t.id}, {1: t.id}, "\ud800", [object()], np.array([object()])):
        with pytest.raises(QueryError):
            t.filter(t.id == value)


def test_an_uncalled_method_is_refused() -> None:
    with pytest.raises(QueryError, match=r"table\['ids'\]"):
        t.filter(t.ids)


def test_functions_that_get_names_are_refused() -> None:
    with pytest.raises(QueryError, match="names"):
        t.rename(lambda name: name)
    with pytest.raises(QueryError, match="a value or two"):
        t.tags.map(lambda: 1)


def test_unknown_functions_are_attribute_errors() -> None:
    assert not hasattr(fn, "connect")
    assert not hasattr(fn, "read_csv")
    assert not hasattr(fn.s, "where")
    assert "row_number" in dir(fn)


def test_numpy_leaves_operators_to_queries() -> None:
    assert (np.int64(3) + t.year).equals(3 + t.year)
    assert (np.float64(0.5) * t.year).equals(0.5 * t.year)
    assert (np.int64(3) < t.year).equals(t.year > 3)


def test_nested_functions_keep_their_parameters_apart() -> None:
    query = t.mutate(a=t.nested.map(lambda x: x.map(lambda y: x.length() + y)))
    assert repr(query) == "docs.mutate(a=docs.nested.map(lambda x: x.map(lambda y: x.length() + y)))"
    assert load_query(dump_query(query)).equals(query)


def test_deferred_calls_of_ibis_functions_are_read() -> None:
    deferred = ibis.cases((_.year > 2000, "new"), else_=_.text)
    assert t.mutate(age=deferred).equals(t.mutate(age=fn.cases((t.year > 2000, "new"), else_=t.text)))
    assert t.order_by(ibis.desc("year")).equals(t.order_by(t["year"].desc(nulls_first=False)))
    assert t.filter(_.id.isin([1, (2, {"a": 3})])).equals(t.filter(t.id.isin([1, (2, {"a": 3})])))
    with pytest.raises(QueryError, match="cannot be stored"):
        t.mutate(age=ibis.common.deferred.deferrable(lambda x: x)(_.year))


def test_deferred_resolves_private_names_to_errors() -> None:
    with pytest.raises(QueryError, match="attribute"):
        t.filter(_._arg)


def test_tables_listeners_and_root_need_no_schema() -> None:
    query = (
        t.outputs("a").join(table("notes").missing_outputs("b"), "id").filter(t.id.isin(table("pairs").a)).outputs("c")
    )
    assert query.tables() == {"docs", "notes", "pairs"}
    assert query.listeners() == {"a", "b", "c"}
    assert query.root() == "docs"
    assert output_roots(query) == {("a", "docs"), ("b", "notes"), ("c", "docs")}
    with pytest.raises(QueryError, match="no table"):
        fn.now().root()


def test_outputs_are_asked_of_rows_by_identifiers() -> None:
    for bad in (lambda: t.year.outputs("a"), t.outputs, lambda: t.outputs("a", "a"), lambda: t.outputs(3)):
        with pytest.raises(QueryError):
            bad()
    with pytest.raises(InvalidIdentifierError):
        t.outputs("a b; --")
    with pytest.raises(InvalidIdentifierError):
        t.missing_outputs("_x.y")


def test_like_is_sql_without_an_index_and_needs_a_number_with_one() -> None:
    assert repr(t.text.like("a%")) == "docs.text.like('a%')"
    for n in (0, -1, True, 1.5):
        with pytest.raises(QueryError, match="at least 1"):
            t.like("x", vector_index="s", n=n)  # type: ignore[arg-type]


def test_deep_chains_are_recorded_stored_and_built() -> None:
    query = t
    for each in range(500):
        query = query.filter(query.year > each)
    assert repr(query).endswith(".filter(_.year > 499)")
    assert query.tables() == {"docs"}
    data = dump_query(query)
    assert len(data) < 100_000
    loaded = load_query(data)
    assert loaded.equals(query)
    assert hash(loaded) == hash(query)
    assert pickle.loads(pickle.dumps(query)).equals(query)
    built = query.build(FakeCatalog())
    assert built.key == ("id",)
    depth, relation = 0, built.expression.op()
    while hasattr(relation, "parent"):
        depth, relation = depth + 1, relation.parent
    assert depth == 500


def test_shared_steps_are_stored_and_built_once() -> None:
    column = t.year
    for _each in range(200):
        column = column + column
    data = dump_query(t.mutate(x=column))
    assert len(data) < 20_000
    assert load_query(data).equals(t.mutate(x=column))
    assert len(repr(column)) < 10_000


def test_very_deep_expressions_end_in_an_error_of_ours_or_work(database: Database) -> None:
    column = t.year
    for each in range(30):
        column = column + each
    assert database.rows(t.filter(t.id == 1).select(x=column)) == [{"x": 1999 + sum(range(30))}]
