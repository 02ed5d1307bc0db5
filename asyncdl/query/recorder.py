"""Queries: what is asked of a table, recorded as data.

Nothing here knows a schema or does I/O: ``db["docs"].filter(...)`` is a value that can be compared, stored and sent.
`asyncdl.query.build` replays it on ibis' own expressions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from asyncdl.databackend.requests import Built, Catalog
from asyncdl.errors import QueryError
from asyncdl.names import check_table
from asyncdl.query.arguments import Recorded, Recorder, is_step
from asyncdl.query.build import build
from asyncdl.query.nodes import Node, make, table_of
from asyncdl.query.shown import show
from asyncdl.query.stored import dump_node, load_node
from asyncdl.query.vocabulary import CALLS_WITH_TEXT, OWN_TABLE
from asyncdl.query.writes import Write, rows_of


class Query(Recorded):
    """A table, a query, or an expression over columns: whatever ibis offers for reading, recorded.

    Attributes are columns, and called they are ibis' methods; ``query["count"]`` is a column of any name. Operators, ibis'
    ``_``, lambdas and `fn` work as in ibis. Queries are immutable; ``==`` makes an expression, so compare them by `equals`.

    A query is not run by looking at it: ``await db.execute(query)``.
    """

    __slots__ = ()

    __array_ufunc__ = None  # numpy's scalars leave operators to us

    def __init__(self, node: Node) -> None:
        object.__setattr__(self, "_node", node)

    # what the datalayer asks

    def tables(self) -> frozenset[str]:
        """Return the tables that it reads."""
        return self._node.tables

    def listeners(self) -> frozenset[str]:
        """Return the identifiers of the listeners whose outputs it reads."""
        return self._node.listeners

    def root(self) -> str:
        """Return the table that it starts from; raises `QueryError` where there is none."""
        if self._node.root is None:
            raise QueryError(f"{self!r} starts from no table; start from db['table']")
        return self._node.root

    def build(self, catalog: Catalog) -> Built:
        """Return ibis' expression for it and the columns that identify its rows.

        A join keeps the key of its left side: it must match each row at most once where a listener selects through it.

        Raises
        ------
        TableNotFoundError, UnknownColumnError, ComponentNotFoundError
            It names what is not there.
        QueryError
            It does what ibis refuses; the message shows the step.
        """
        return build(self._node, catalog)

    def equals(self, other: object) -> bool:
        """Return whether another query has the same structure."""
        return isinstance(other, Query) and self._node.digest == other._node.digest

    # what the datalayer adds

    def outputs(self, *identifiers: str) -> Query:
        """Return the rows joined with listeners' outputs, each in a column named by the listener.

        Rows without an output, or with an error instead, are left out. A listener that flattens gives a row for each
        element, numbered in ``<identifier>_position``.
        """
        _check_texts("outputs", identifiers)
        return Query(make("outputs", "", [self._node], identifiers))

    def ids(self) -> Query:
        """Return only the columns that identify the rows."""
        return Query(make("ids", "", [self._node]))

    def missing_outputs(self, identifier: str) -> Query:
        """Return the rows that a listener has no output for, those that it failed on included."""
        _check_texts("missing_outputs", [identifier])
        return Query(make("missing_outputs", identifier, [self._node]))

    def like(self, document: Any, *, vector_index: str | None = None, n: int = 10) -> Query:
        """Return the ``n`` rows nearest to a document, best first, with their ``_score``.

        Without ``vector_index`` it is SQL's LIKE of a text column: ``docs.filter(docs.text.like("%you%"))``.
        """
        if vector_index is None:
            return self._call("like", (document,), {})
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise QueryError(f"like(n={n!r}): n is how many rows are wanted, at least 1")
        _check_texts("like", [vector_index])
        recorder = Recorder(Query)
        return Query(make("like", vector_index, [self._node, recorder.record(document), recorder.record(n)]))

    # writing

    def insert(self, rows: Any) -> Write:
        """Return the insertion of rows: a dict, an iterable of dicts, a pandas DataFrame, a pyarrow Table."""
        return Write("insert", self._written("insert"), rows=rows_of(rows))

    def upsert(self, rows: Any) -> Write:
        """Return the insertion of rows, where one with the same key has the columns that are given replaced."""
        return Write("upsert", self._written("upsert"), rows=rows_of(rows))

    def update(self, changes: Mapping[str, Any], where: Any = None) -> Write:
        """Return the change of columns to values, or to expressions such as ``docs.year + 1``.

        Parameters
        ----------
        where
            A condition; True: every row.
        """
        name = self._written("update")
        if not isinstance(changes, Mapping) or not changes or not all(isinstance(each, str) for each in changes):
            raise QueryError(f"{name}.update() needs a dict of columns and their new values, not {changes!r:.100}")
        recorder = Recorder(Query, self._node)
        recorded: dict[str, Any] = {}
        for column, value in changes.items():
            recorded[column] = Query(recorder.record(value)) if is_step(value) else value
        return Write("update", name, changes=recorded, where=self._where("update", where))

    def delete(self, where: Any = None) -> Write:
        """Return the deletion of the rows that fulfil a condition; True: of every row."""
        return Write("delete", self._written("delete"), where=self._where("delete", where))

    def _written(self, what: str) -> str:
        if self._node.kind != "table":
            raise QueryError(
                f"{what}() is asked of a table itself, db[{self._node.root!r}].{what}(...), not of {self!r}"
            )
        return self._node.name

    def _where(self, what: str, where: Any) -> Query | None:
        if where is True:
            return None
        if where is None or where is False:
            raise QueryError(
                f"{what}() needs a condition: {self!r}.{what}(..., where={self!r}.id == 3); where=True means every row"
            )
        condition = Recorder(Query, self._node).record(where)
        if condition.shape != "value":
            raise QueryError(f"{what}(where=...) needs a condition such as {self!r}.id == 3, not {show(condition)}")
        return Query(make("call", "filter", [self._node, condition]))

    # recording

    def __getattr__(self, name: str) -> Query:
        if name.startswith("_"):
            raise AttributeError(f"'Query' object has no attribute {name!r}; for a column write query[{name!r}]")
        return Query(make("attr", name, [self._node]))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"queries are immutable; a computed column is query.mutate({name}=...)")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"queries are immutable; to leave a column out write query.drop({name!r})")

    def __call__(self, *args: Any, **kwargs: Any) -> Query:
        """Record the call of the method that this attribute is."""
        if self._node.kind != "attr":
            raise TypeError(f"{self!r} is no method, so it cannot be called")
        return Query(self._node.inputs[0])._call(self._node.name, args, kwargs)

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Query:
        receiver = self._node
        own = table_of(receiver) if name in OWN_TABLE and receiver.shape in {"table", "grouped"} else None
        recorder = Recorder(Query, own, functions=name not in CALLS_WITH_TEXT)
        make("call", name, [receiver])  # refused before its arguments are looked at
        arguments = [recorder.record(each) for each in (*args, *kwargs.values())]
        return Query(make("call", name, [receiver, *arguments], kwargs))

    def __getitem__(self, key: Any) -> Query:
        return Query(make("item", inputs=[self._node, Recorder(Query).record(key)]))

    def _binary(self, name: str, other: Any) -> Query:
        return Query(make("op", name, [self._node, Recorder(Query).record(other)]))

    def _reflected(self, name: str, other: Any) -> Query:
        return Query(make("op", name, [Recorder(Query).record(other), self._node]))

    def __add__(self, other: Any) -> Query:
        return self._binary("add", other)

    def __radd__(self, other: Any) -> Query:
        return self._reflected("add", other)

    def __sub__(self, other: Any) -> Query:
        return self._binary("sub", other)

    def __rsub__(self, other: Any) -> Query:
        return self._reflected("sub", other)

    def __mul__(self, other: Any) -> Query:
        return self._binary("mul", other)

    def __rmul__(self, other: Any) -> Query:
        return self._reflected("mul", other)

    def __truediv__(self, other: Any) -> Query:
        return self._binary("truediv", other)

    def __rtruediv__(self, other: Any) -> Query:
        return self._reflected("truediv", other)

    def __floordiv__(self, other: Any) -> Query:
        return self._binary("floordiv", other)

    def __rfloordiv__(self, other: Any) -> Query:
        return self._reflected("floordiv", other)

    def __mod__(self, other: Any) -> Query:
        return self._binary("mod", other)

    def __rmod__(self, other: Any) -> Query:
        return self._reflected("mod", other)

    def __pow__(self, other: Any) -> Query:
        return self._binary("pow", other)

    def __rpow__(self, other: Any) -> Query:
        return self._reflected("pow", other)

    def __and__(self, other: Any) -> Query:
        return self._binary("and_", other)

    def __rand__(self, other: Any) -> Query:
        return self._reflected("and_", other)

    def __or__(self, other: Any) -> Query:
        return self._binary("or_", other)

    def __ror__(self, other: Any) -> Query:
        return self._reflected("or_", other)

    def __xor__(self, other: Any) -> Query:
        return self._binary("xor", other)

    def __rxor__(self, other: Any) -> Query:
        return self._reflected("xor", other)

    def __lshift__(self, other: Any) -> Query:
        return self._binary("lshift", other)

    def __rlshift__(self, other: Any) -> Query:
        return self._reflected("lshift", other)

    def __rshift__(self, other: Any) -> Query:
        return self._binary("rshift", other)

    def __rrshift__(self, other: Any) -> Query:
        return self._reflected("rshift", other)

    def __eq__(self, other: object) -> Query:  # type: ignore[override]  # an expression, as in ibis
        return self._binary("eq", other)

    def __ne__(self, other: object) -> Query:  # type: ignore[override]  # an expression, as in ibis
        return self._binary("ne", other)

    def __lt__(self, other: Any) -> Query:
        return self._binary("lt", other)

    def __le__(self, other: Any) -> Query:
        return self._binary("le", other)

    def __gt__(self, other: Any) -> Query:
        return self._binary("gt", other)

    def __ge__(self, other: Any) -> Query:
        return self._binary("ge", other)

    def __neg__(self) -> Query:
        return Query(make("op", "neg", [self._node]))

    def __invert__(self) -> Query:
        return Query(make("op", "invert", [self._node]))

    def __abs__(self) -> Query:
        return self._call("abs", (), {})

    # what Python asks

    def __hash__(self) -> int:
        return hash(self._node.digest)

    def __repr__(self) -> str:
        return show(self._node)

    def __bool__(self) -> bool:
        raise TypeError(
            f"whether {self!r} is true is known only where it is executed; write & | ~ instead of and, or, not, and "
            f"compare queries by a.equals(b)"
        )

    def __iter__(self) -> NoReturn:
        raise TypeError(f"a query has no rows until it is executed: `async for row in await db.execute({self!r})`")

    def __len__(self) -> int:
        raise TypeError(
            f"a query has no length until it is executed: `await (await db.execute({self!r}.count())).scalar()`"
        )

    def __contains__(self, value: object) -> bool:
        raise TypeError("a query contains nothing until it is executed; for a condition write column.isin([...])")

    def __copy__(self) -> Query:
        return self

    def __deepcopy__(self, memo: object) -> Query:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return load_query, (dump_query(self),)


def table(name: str) -> Query:
    """Return the query for all of a table; raises `InvalidIdentifierError`."""
    return Query(make("table", check_table(name)))


def dump_query(query: Query) -> bytes:
    """Return a query as JSON; equal queries have equal bytes."""
    if not isinstance(query, Query):
        raise QueryError(f"{query!r:.100} is no query; start from db['table']")
    return dump_node(query._node)


def load_query(text: str | bytes) -> Query:
    """Return the query that `dump_query` wrote. What it may do is checked: text from anywhere is safe to load.

    Raises
    ------
    QueryError
        This is no stored query, one of another version, or one that does what queries may not do.
    """
    return Query(load_node(text))


def output_roots(query: Query) -> frozenset[tuple[str, str | None]]:
    """Return each listener whose outputs are read, with the table that the rows they are joined to come from."""
    return query._node.roots


def _check_texts(what: str, identifiers: Any) -> None:
    if not all(isinstance(each, str) for each in identifiers):
        raise QueryError(f"{what}() takes identifiers, such as 'length', not {identifiers!r:.100}")
