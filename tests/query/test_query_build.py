from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import ibis
import pytest
from ibis import _
from query_catalog import Database, FakeCatalog

from asyncdl.errors import ComponentNotFoundError, QueryError, TableNotFoundError, UnknownColumnError
from asyncdl.query import Query, dump_query, fn, load_query, table

t, notes, rich = table("docs"), table("notes"), table("rich")


def ids(database: Database, query: Query) -> list[Any]:
    return sorted(row["id"] for row in database.rows(query))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (t, [1, 2, 3, 4]),
        (t.filter(t.year > 2001), [3, 4]),
        (t.filter(_.year > 2001, _.text.notnull()), [3]),
        (t.filter(lambda x: (x.year == 1999) | (x.text == "three")), [1, 3]),
        (t.filter(~t.text.isin(["one", "two"])), [3]),
        (t.filter(t.year.between(2001, 2002)), [2, 3]),
        (t.filter(2002 <= t.year), [3, 4]),  # noqa: SIM300 - the reflected operator is what is tested
        (t.filter(t.year % 2 == 1, 4 // t.id == 4), [1]),
        (t.filter((t.year - t.id) ** 2 == 1998**2), [1]),
        (t.filter(t.text[0:1] == "t"), [2, 3]),
        (t.filter(t.text.upper().like("%O%")), [1, 2]),
        (t.filter("x" + t.text == "xone"), [1]),
        (t.filter(t.id.isin(notes.id)), [1, 3]),
        (t.filter(t.year > t.year.mean()), [3, 4]),
        (t.order_by(t.year.desc()).limit(1), [4]),
        (t.order_by(fn.desc("year"))[0:2], [3, 4]),
        (t.order_by(ibis.desc("year")).limit(1, offset=1), [3]),
        (t.semi_join(notes, "id"), [1, 3]),
        (t.anti_join(notes, t.id == notes.id), [2, 4]),
        (t.join(notes, t.id == notes.id).filter(_.note == "second"), [1]),
        (t.join(notes, [(_.id, _.id)]).filter(_.note == "third"), [3]),
        (t.filter(fn.or_(_.id == 1, _.id == 4)), [1, 4]),
        (t.filter(fn.coalesce(t.text, "none") == "none"), [4]),
        (t.intersect(t.filter(t.id < 3)), [1, 2]),
        (t.difference(t.filter(t.id < 3)), [3, 4]),
        (t.union(t.filter(t.id < 2)), [1, 1, 2, 3, 4]),
        (t.mutate(r=fn.row_number().over(fn.window(order_by=t.year.desc()))).filter(_.r == 0), [4]),
        (t.mutate(s=fn.cases((t.year > 2001, "new"), else_="old")).filter(_.s == "new"), [3, 4]),
        (t.mutate(s=ibis.cases((_.year > 2001, "new"), else_="old")).filter(_.s == "new"), [3, 4]),
        (t.mutate(fn.s.across(fn.s.of_type("int64"), _ + 1)), [2, 3, 4, 5]),
        (t.select(fn.s.numeric()), [1, 2, 3, 4]),
        (t.missing_outputs("length"), [3, 4]),
        (t.filter(t.id > 3).missing_outputs("length"), [4]),
        (t.missing_outputs("chunks"), [3, 4]),
        (t.missing_outputs("unborn"), [1, 2, 3, 4]),
        (t.outputs("length"), [1, 2]),
        (t.outputs("unborn"), []),
    ],
)
def test_means_what_ibis_means(database: Database, query: Query, expected: list[int]) -> None:
    assert ids(database, query) == expected
    assert ids(database, load_query(dump_query(query))) == expected


def test_groups(database: Database) -> None:
    grouped = t.group_by(new=t.year > 2001).having(_.count() > 1).agg(n=_.count(), last=lambda x: x.id.max())
    found = sorted(database.rows(grouped), key=lambda row: row["last"])
    assert found == [{"new": 0, "n": 2, "last": 2}, {"new": 1, "n": 2, "last": 4}]
    assert [*database.rows(t.count())[0].values()] == [4]
    assert [*database.rows(t.year.max())[0].values()] == [2003]


def test_shared_steps_are_one_expression() -> None:
    view = t.view()
    expression = view.join(t, view.id == t.id).select(a=view.id, b=t.id).build(FakeCatalog()).expression
    assert expression.columns == ("a", "b")


def test_columns_with_names_of_methods() -> None:
    query = rich.filter(rich.count > 1, rich.type == "x", rich["_score"] > 0.5, rich["root"] == 1, _.count > 2)
    assert query.build(FakeCatalog()).key == ("id",)
    assert str(rich.count().build(FakeCatalog()).expression.type()) == "int64"


def test_nested_values() -> None:
    query = rich.select(
        a=rich.st.a,
        name=rich.st["name"],
        up=rich.tags.map(lambda x: x.upper()),
        deferred=rich.tags.filter(_ == "x"),
        both=rich.tags.filter(lambda x, i: i > 0),
        nested=rich.nested.map(lambda x: x.map(lambda y: x.length() + y + rich.id)),
        year=rich.ts.year(),
        js=rich.js["a"].int,
        over=rich.id.sum().over(order_by=_.ts),
        where=rich.id.sum(where=_["_score"] > 1),
    )
    schema = query.build(FakeCatalog()).expression.schema()
    assert {name: str(kind) for name, kind in schema.items()} == {
        "a": "int64",
        "name": "string",
        "up": "array<string>",
        "deferred": "array<string>",
        "both": "array<string>",
        "nested": "array<array<int64>>",
        "year": "int32",
        "js": "int64",
        "over": "int64",
        "where": "int64",
    }


def test_intervals_are_exact(database: Database) -> None:
    query = load_query(dump_query(fn.interval(timedelta(days=1, microseconds=3))))
    expression = query.build(FakeCatalog()).expression
    assert ibis.to_sql(expression, dialect="duckdb") == ibis.to_sql(
        ibis.interval(timedelta(days=1, microseconds=3)), "duckdb"
    )


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (datetime(2020, 1, 2, 3, 4, 5, 6), "timestamp(6)"),
        (datetime(2020, 1, 2, tzinfo=UTC), "timestamp('UTC')"),
        (Decimal("1.50"), "decimal(3, 2)"),
        (UUID(int=5), "uuid"),
        (b"ab", "binary"),
        (2**40, "int64"),
        (1.0, "float64"),
    ],
)
def test_literals_keep_their_type(value: object, kind: str) -> None:
    query = load_query(dump_query(fn.literal(value)))
    expression = query.build(FakeCatalog()).expression
    assert expression.op().value == value
    assert type(expression.op().value) is type(value)
    assert str(expression.type()).split("(")[0] == kind.split("(", maxsplit=1)[0]


KEYS: list[tuple[Query, tuple[str, ...]]] = [
    (t, ("id",)),
    (table("pairs"), ("a", "b")),
    (table("keyless"), ()),
    (t.filter(t.year > 1).order_by("year").limit(2).distinct().view().head(1), ("id",)),
    (t.mutate(x=1).drop("text").fill_null({"year": 0}).drop_null("year").sample(0.5), ("id",)),
    (t.cast({"year": "string"}), ("id",)),
    (t.cast({"id": "string"}), ()),
    (t.select("id"), ("id",)),
    (t.select("year"), ()),
    (t.drop("id"), ()),
    (t.select(id=t.id + 1), ()),
    (t.mutate(id=t.year), ()),
    (t.select(id=t.year, other=t.id), ("other",)),
    (t.select("id", other=t.id), ("id",)),
    (t.rename(new="id"), ("new",)),
    (t.rename({"new": "id"}).filter(_.new > 1).select(newer="new"), ("newer",)),
    (table("pairs").select("a", "v"), ()),
    (table("pairs").select("b", "a"), ("a", "b")),
    (t.select("text", fn.s.numeric()), ("id",)),
    (t.group_by("id").agg(n=_.count()), ()),
    (t.distinct(on="year"), ()),
    (t.group_by("year").mutate(n=_.count()), ("id",)),
    (t.union(t), ()),
    (t.intersect(t), ("id",)),
    (t.difference(t.filter(t.id > 1)), ("id",)),
    (t.intersect(t.mutate(id=t.year)), ()),
    (t.semi_join(notes, "id"), ("id",)),
    (t.anti_join(notes, "id"), ("id",)),
    (t.join(notes, "id"), ("id",)),
    (t.left_join(notes, "id").select("id", "note"), ("id",)),
    (t.left_join(notes, "id").select(doc="id", note="note"), ("doc",)),
    (t.cross_join(notes), ("id",)),
    (t.right_join(notes, "id"), ()),
    (t.outer_join(notes, "id"), ()),
    (notes.join(t, "id"), ("note_id",)),
    (notes.join(t, "id").select("id", "text"), ()),
    (rich.unnest("tags"), ()),
    (rich.select("id", rich.tags.unnest()), ()),
    (t.count(), ()),
    (t.year, ()),
    (t.ids(), ("id",)),
    (t.outputs("length"), ("id",)),
    (t.outputs("chunks"), ("id", "chunks_position")),
    (t.outputs("chunks", "size"), ("id", "chunks_position")),
    (t.outputs("chunks").outputs("length").filter(_.chunks > 1), ("id", "chunks_position")),
    (t.outputs("chunks").select("id", "chunks"), ()),
    (t.outputs("chunks").drop("chunks_position"), ()),
    (t.outputs("chunks").join(notes, "id"), ("id", "chunks_position")),
    (t.outputs("chunks").rename(at="chunks_position").select("at", "id"), ("id", "at")),
    (t.join(notes, "id").outputs("chunks"), ("id", "chunks_position")),
    (t.join(notes, "id").missing_outputs("length"), ("id",)),
    (t.outputs("unborn"), ("id", "unborn_position")),
    (t.outputs("unborn", "length").select("id", "unborn_position"), ("id", "unborn_position")),
    (t.outputs("chunks").ids(), ("id", "chunks_position")),
]


@pytest.mark.parametrize(("query", "key"), KEYS, ids=[repr(query) for query, _key in KEYS])
def test_the_key_is_followed(database: Database, query: Query, key: tuple[str, ...]) -> None:
    assert database.key(query) == key


def test_outputs_are_joined_on_the_key(database: Database) -> None:
    found = database.rows(t.outputs("length").order_by("id"))
    assert found == [
        {"id": 1, "year": 1999, "text": "one", "length": 3},
        {"id": 2, "year": 2001, "text": "two", "length": 3},
    ]
    assert database.rows(table("pairs").outputs("of_pairs")) == [{"a": 1, "b": 2, "v": "y", "of_pairs": 5}]
    renamed = t.select(new=t.id).outputs("length").order_by("new")
    assert database.rows(renamed) == [{"new": 1, "length": 3}, {"new": 2, "length": 3}]


def test_flattened_outputs_are_rows_of_their_own(database: Database) -> None:
    chunks = t.select("id").outputs("chunks").order_by("chunks_position")
    assert database.rows(chunks) == [
        {"id": 1, "chunks": 100, "chunks_position": 0},
        {"id": 1, "chunks": 101, "chunks_position": 1},
    ]
    both = [{"id": 1, "chunks": 100, "chunks_position": 0, "size": 7}]
    assert database.rows(t.select("id").outputs("chunks", "size")) == both
    assert database.rows(chunks.outputs("size")) == both
    missing = t.select("id").outputs("chunks").missing_outputs("size")
    assert database.rows(missing) == [{"id": 1, "chunks": 101, "chunks_position": 1}]
    rows = t.select("id").outputs("length", "chunks").order_by("chunks_position").filter(_.length == 3)
    assert [row["chunks"] for row in database.rows(rows)] == [100, 101]


def test_outputs_that_do_not_exist_yet_have_columns(database: Database) -> None:
    query = t.outputs("unborn")
    assert query.build(database.catalog).expression.columns == ("id", "year", "text", "unborn", "unborn_position")
    assert database.rows(query) == []


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (t.outputs("size"), ["size", "chunks", ".outputs('chunks', 'size')"]),
        (t.missing_outputs("size"), ["'chunks'"]),
        (t.mutate(length=1).outputs("length"), ["already", "'length'"]),
        (t.mutate(chunks_position=1).outputs("chunks"), ["already", "'chunks_position'"]),
        (t.outputs("length").outputs("length"), ["already"]),
        (t.drop("id").outputs("length"), ["docs", "(id)"]),
        (t.drop("id").ids(), ["(id)"]),
        (t.count().as_table().ids(), ["nothing identifies"]),
        (table("keyless").ids(), ["no primary key"]),
        (table("pairs").outputs("length"), ["'pairs'", "(a, b)", "'length'", "(id)"]),
        (notes.outputs("length"), ["'notes'", "note_id"]),
        (t.mutate(id=t.year).missing_outputs("length"), ["(id)"]),
        (t.like("x", vector_index="search"), ["vector search is not available"]),
        (t.join(notes, t.id == notes.note_id, rname="{name}"), ["id", "lname="]),
    ],
)
def test_what_cannot_be_joined_says_why(database: Database, query: Query, words: list[str]) -> None:
    with pytest.raises(QueryError) as caught:
        query.build(database.catalog)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    "query",
    [
        t.filter(t.yaer > 1),
        t.filter(t["yaer"] > 1),
        t.filter(_.yaer > 1),
        t.select("yaer"),
        t.select(["id", "yaer"]),
        t.order_by("yaer"),
        t.drop("yaer"),
        t.group_by("yaer").agg(n=_.count()),
        t.group_by("id").agg(n=_.yaer.max()),
        t.rename(x="yaer"),
        t.cast({"yaer": "string"}),
        t.distinct(on="yaer"),
        t.filter(fn.or_(_.yaer > 1, _.id > 2)),
        t.join(notes, "yaer"),
        t.update({"yaer": 1}, where=t.yaer == 3).request().where,
    ],
    ids=repr,
)
def test_missing_columns_are_named_with_what_there_is(query: Query) -> None:
    with pytest.raises(UnknownColumnError, match="there is no column 'yaer'") as caught:
        query.build(FakeCatalog())
    assert "did you mean 'year'?" in str(caught.value)
    assert "id, year, text" in str(caught.value)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (t.flter(t.id > 1), "did you mean 'filter'?"),
        (t.text.uper(), "did you mean 'upper'?"),
        (t.year.upper(), "no method upper()"),
        (t.filter(t.year + "a"), "docs.year + 'a'"),
        (t.filter(1, 2, bogus=3), "bogus"),
        (t.limit("a"), "docs.limit('a')"),
        (t.year[0], "docs.year[0]"),
        (t.filter(t.limit), "is a method: call it"),
        (fn.literal(1).year, "there is no year"),
        (rich.st.nope, "nope"),
    ],
)
def test_what_ibis_refuses_shows_the_step(query: Query, words: str) -> None:
    with pytest.raises(QueryError) as caught:
        query.build(FakeCatalog())
    assert words in str(caught.value)


def test_the_cause_is_kept() -> None:
    with pytest.raises(QueryError) as caught:
        t.filter(t.year + "a").build(FakeCatalog())
    assert isinstance(caught.value.__cause__, TypeError)


def test_errors_of_the_catalog_pass() -> None:
    with pytest.raises(TableNotFoundError):
        table("nothing").build(FakeCatalog())
    with pytest.raises(ComponentNotFoundError):
        t.outputs("nothing").build(FakeCatalog())


@pytest.mark.parametrize("make", [lambda: fn.window(order_by="id"), lambda: t.group_by("id"), fn.s.numeric])
def test_what_is_no_rows_or_value_is_no_query(make: Callable[[], Query]) -> None:
    with pytest.raises(QueryError, match="is no query"):
        make().build(FakeCatalog())


def test_every_recorded_function_exists_in_ibis() -> None:
    from asyncdl.query.vocabulary import FUNCTIONS, SELECTORS

    assert [name for name in FUNCTIONS if not hasattr(ibis, name)] == []
    assert [name for name in SELECTORS if not hasattr(ibis.selectors, name)] == []
