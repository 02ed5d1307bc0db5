"""ibis' functions that belong to no table or column, recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asyncdl.errors import QueryError
from asyncdl.query.arguments import Recorder
from asyncdl.query.nodes import make
from asyncdl.query.recorder import Query
from asyncdl.query.vocabulary import FUNCTIONS, SELECTORS


class Namespace:
    """Functions by name, to be called as ibis' own; each returns a `Query`."""

    def __init__(self, prefix: str, names: frozenset[str]) -> None:
        self._prefix = prefix
        self._names = names

    def __getattr__(self, name: str) -> Callable[..., Query]:
        if name.startswith("_"):
            raise AttributeError(name)
        full = f"{self._prefix}{name}"

        def function(*args: Any, **kwargs: Any) -> Query:
            recorder = Recorder(Query)
            arguments = [recorder.record(each) for each in (*args, *kwargs.values())]
            return Query(make("fn", full, arguments, kwargs))

        try:
            make("fn", full)
        except QueryError as error:
            raise AttributeError(str(error)) from error
        function.__name__ = function.__qualname__ = full
        return function

    def __dir__(self) -> list[str]:
        return sorted(self._names)


class Functions(Namespace):
    """ibis' functions: ``fn.row_number()``, ``fn.coalesce(t.a, 0)``; its selectors: ``fn.s.numeric()``."""

    def __init__(self) -> None:
        super().__init__("", FUNCTIONS)
        self.s = Namespace("s.", SELECTORS)


fn = Functions()
