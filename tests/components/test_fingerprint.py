"""Fingerprints: equal for equal declarations in any process, different for different ones."""

from __future__ import annotations

import copy
import functools
import json
import math
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from typing import Any

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC

from asyncdl.components.fingerprint import fingerprint, reference_of
from asyncdl.errors import InvalidComponentError

SUBJECTS = """
    import dataclasses, enum, functools, math
    import numpy as np
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler
    from sklearn.svm import SVC

    LIMIT = 3
    NAMES = {"c", "a", "b"}

    def uses_globals(x):
        return math.floor(x) > LIMIT and x in NAMES

    def outer(n):
        def inner(x, *, by=("a", 1)):
            return [inner, n, {y for y in x if y in {"p", "q", "r"}}]
        return inner

    def recursive(n):
        return n and recursive(n - 1)

    @functools.lru_cache
    def cached(x):
        return x + LIMIT

    class Base:
        def __init__(self, n):
            super().__init__()
            self.n = n

    class Model(Base):
        kinds = frozenset({"x", "y", "z"})
        def __init__(self, n):
            super().__init__(n)
            self.names = {"one", "two", "three"}
        def __call__(self, x):
            return Model(self.n), LIMIT
        @property
        def twice(self):
            return self.n * 2
        @staticmethod
        def plain(x):
            return x
        @functools.cached_property
        def slow(self):
            return self.n

    class Slotted:
        __slots__ = ("a", "b")

    class Color(enum.Enum):
        RED = 1
        GREEN = 2

    @dataclasses.dataclass(frozen=True)
    class Settings:
        n: int = 1
        tags: list = dataclasses.field(default_factory=list)

    subjects = {
        "lambda": lambda x, y=2: x + y,
        "globals": uses_globals,
        "closure": outer({"k", "l", "m"}),
        "recursive": recursive,
        "cached": cached,
        "class": Model,
        "instance": Model(2),
        "bound method": Model(2).__call__,
        "slots": Slotted,
        "enum": Color.RED,
        "dataclass": Settings(2, ["x"]),
        "partial": functools.partial(uses_globals, x=1),
        "set": {"a", "b", ("c", 1), frozenset({"d", "e"})},
        "dict": {"b": 1, "a": {2: "x", "2": "y", None: "z"}},
        "strings": ["ab", "a" + "b", "".join("ab")],
        "array": np.arange(6.0).reshape(2, 3),
        "estimator": make_pipeline(StandardScaler(), FunctionTransformer(lambda x: x * LIMIT), SVC(C=2)),
        "fitted": SVC(random_state=1).fit([[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1]),
        "library": [math.sqrt, np.sum, json_dumps, len, SVC, int],
    }
"""

SCRIPT = "from json import dumps as json_dumps\n{subjects}\nfrom asyncdl.components.fingerprint import fingerprint\n"


def prints_of_another_process(seed: int) -> dict[str, str]:
    body = SCRIPT.format(subjects=textwrap.dedent(SUBJECTS))
    body += "print(json_dumps({name: fingerprint(each) for name, each in subjects.items()}))\n"
    environment = os.environ | {"PYTHONHASHSEED": str(seed)}
    command = [sys.executable, "-c", body]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert done.stderr == ""
    found: dict[str, str] = json.loads(done.stdout)
    return found


def made_by(source: str) -> Any:
    """Return what a script, run as ``__main__``, calls ``subject``."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(textwrap.dedent(source), "<script>", "exec", dont_inherit=True), namespace)
    return namespace["subject"]


def test_equal_in_processes_of_different_hash_seeds() -> None:
    one, two, three = (prints_of_another_process(seed) for seed in (0, 1, 12345))
    assert one == two == three
    assert len(set(one.values())) == len(one)
    here = made_by(SCRIPT.format(subjects=textwrap.dedent(SUBJECTS)) + "\nsubject = subjects")
    assert {name: fingerprint(each) for name, each in here.items()} == one


DIFFERENT = {
    "code": ("subject = lambda x: x + 1", "subject = lambda x: x + 2"),
    "operator": ("subject = lambda x: x + 1", "subject = lambda x: x - 1"),
    "type of a constant": ("subject = lambda x: x + 1", "subject = lambda x: x + 1.0"),
    "attribute": ("subject = lambda x: x.lower()", "subject = lambda x: x.upper()"),
    "inner code": ("subject = lambda x: [y + 1 for y in x]", "subject = lambda x: [y + 2 for y in x]"),
    "set constant": ("subject = lambda x: x in {'a', 'b'}", "subject = lambda x: x in {'a', 'c'}"),
    "default": ("subject = lambda x, y=1: x", "subject = lambda x, y=2: x"),
    "keyword default": ("def subject(x, *, y=1): ...", "def subject(x, *, y=2): ..."),
    "keyword only": ("def subject(x, y): return x", "def subject(x, *, y): return x"),
    "positional only": ("def subject(x, y): return x", "def subject(x, y, /): return x"),
    "coroutine": ("def subject(x): return x", "async def subject(x): return x"),
    "closure": (
        "make = lambda n: lambda x: x + n\nsubject = make(1)",
        "make = lambda n: lambda x: x + n\nsubject = make(2)",
    ),
    "function in a closure": (
        "make = lambda f: lambda x: f(x)\nsubject = make(lambda x: 1)",
        "make = lambda f: lambda x: f(x)\nsubject = make(lambda x: 2)",
    ),
    "global constant": ("N = 1\ndef subject(x): return x + N", "N = 2\ndef subject(x): return x + N"),
    "global of an inner function": (
        "N = 1\ndef subject(x): return [y + N for y in x]",
        "N = 2\ndef subject(x): return [y + N for y in x]",
    ),
    "function used": (
        "def f(x): return 1\ndef subject(x): return f(x)",
        "def f(x): return 2\ndef subject(x): return f(x)",
    ),
    "constant of a function used": (
        "N = 1\ndef f(x): return N\ndef subject(x): return f(x)",
        "N = 2\ndef f(x): return N\ndef subject(x): return f(x)",
    ),
    "module used": (
        "import math as m\ndef subject(x): return m.sqrt(x)",
        "import cmath as m\ndef subject(x): return m.sqrt(x)",
    ),
    "method": (
        "class A:\n    def f(self): return 1\nsubject = A()",
        "class A:\n    def f(self): return 2\nsubject = A()",
    ),
    "class attribute": ("class subject:\n    n = 1", "class subject:\n    n = 2"),
    "kind of method": (
        "class subject:\n    @staticmethod\n    def f(x): return x",
        "class subject:\n    @classmethod\n    def f(x): return x",
    ),
    "base class": (
        "class A: n = 1\nclass subject(A): ...",
        "class A: n = 2\nclass subject(A): ...",
    ),
    "cached function": (
        "import functools\n@functools.cache\ndef subject(x): return 1",
        "import functools\n@functools.cache\ndef subject(x): return 2",
    ),
    "cached property": (
        "import functools\nclass subject:\n    @functools.cached_property\n    def f(self): return 1",
        "import functools\nclass subject:\n    @functools.cached_property\n    def f(self): return 2",
    ),
    "state": (
        "class A:\n    def __init__(self, n): self.n = n\nsubject = A(1)",
        "class A:\n    def __init__(self, n): self.n = n\nsubject = A(2)",
    ),
    "partial": (
        "import functools\nsubject = functools.partial(int, base=2)",
        "import functools\nsubject = functools.partial(int, base=8)",
    ),
}


@pytest.mark.parametrize(("one", "two"), DIFFERENT.values(), ids=DIFFERENT.keys())
def test_what_does_something_else_differs(one: str, two: str) -> None:
    assert fingerprint(made_by(one)) == fingerprint(made_by(one))
    assert fingerprint(made_by(one)) != fingerprint(made_by(two))


EQUAL = {
    "comments and lines": ("subject = lambda x: x + 1", "\n\n# here\nsubject = lambda x: (  # there\n    x + 1)"),
    "a global that is not used": ("N = 1\ndef subject(x): return x", "N = 2\ndef subject(x): return x"),
    "a global named as an attribute": (
        "import threading\nlower = threading.Lock()\ndef subject(x): return x.lower()",
        "def subject(x): return x.lower()",
    ),
    "order of a dict": ("subject = {'a': 1, 'b': 2}", "subject = {'b': 2, 'a': 1}"),
    "order of methods": (
        "class subject:\n    def f(self): return 1\n    def g(self): return 2",
        "class subject:\n    def g(self): return 2\n    def f(self): return 1",
    ),
    "sharing of constants": (
        "t = (1, 'x', 2.5, (3,))\nsubject = [t, t, {'k': t}]",
        "import pickle\nt = lambda: pickle.loads(pickle.dumps((1, 'x', 2.5, (3,))))\nsubject = [t(), t(), {'k': t()}]",
    ),
    "documentation of a class": ("class subject:\n    'one'", "class subject:\n    'two'"),
}


@pytest.mark.parametrize(("one", "two"), EQUAL.values(), ids=EQUAL.keys())
def test_what_does_the_same_is_equal(one: str, two: str) -> None:
    assert fingerprint(made_by(one)) == fingerprint(made_by(two))


VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**70, 0.0, 1.0, -0.0, 1j, "", "1", b"1", "é", "e\u0301"),
    *((), (1,), [], [1], [[1]], {}, {1: 2}, {"1": 2}, set(), {1}, {"1"}, {(1, 2)}, [1, 2], [2, 1], [(1, 2)], [[1, 2]]),
    *(len, int, math.sqrt, math, json, range(3), slice(1), ..., functools.partial(len)),
]


def test_different_values_differ() -> None:
    prints = [fingerprint(each) for each in VALUES]
    assert len(set(prints)) == len(VALUES)
    assert prints == [fingerprint(each if each in (math, json) else copy.deepcopy(each)) for each in VALUES]
    assert all(len(each) == 64 for each in prints)


ARRAYS = [
    np.zeros(3),
    np.zeros(3, np.float32),
    np.zeros((3, 1)),
    np.array([0.0, 0.0, 1e-300]),
    np.array([], "int64"),
    np.array(["a", "b"]),
    np.array([1, "a", None], object),
    np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]),
    np.float64(0),
    np.dtype("float64"),
]


def test_arrays_by_their_values() -> None:
    prints = [fingerprint(each) for each in ARRAYS]
    assert len(set(prints)) == len(prints)
    assert prints == [fingerprint(copy.deepcopy(each)) for each in ARRAYS]
    assert prints == [fingerprint(pickle.loads(pickle.dumps(each))) for each in ARRAYS]


def test_objects_that_were_stored_one_by_one_equal_those_that_were_not() -> None:
    whole = {"x": np.arange(3.0), "y": np.arange(4.0), "z": np.float64(1)}
    assert fingerprint({key: pickle.loads(pickle.dumps(each)) for key, each in whole.items()}) == fingerprint(whole)


def test_estimators_by_their_parameters_and_what_they_learned() -> None:
    def fitted(model: Any, shift: float = 0.0) -> Any:
        x = np.random.default_rng(0).normal(size=(40, 3)) + shift
        return model.fit(x, (x[:, 0] > shift).astype(int))

    def make() -> list[Any]:
        return [
            SVC(),
            SVC(C=2),
            SVC(kernel="linear"),
            LogisticRegression(),
            make_pipeline(StandardScaler(), SVC()),
            make_pipeline(StandardScaler(), SVC(C=2)),
            make_pipeline(FunctionTransformer(np.log1p), SVC()),
            make_pipeline(FunctionTransformer(lambda x: x + 1), SVC()),
            make_pipeline(FunctionTransformer(lambda x: x + 2), SVC()),
            fitted(SVC()),
            fitted(SVC(), shift=1.0),
            fitted(LogisticRegression()),
            fitted(KMeans(n_clusters=2, random_state=0, n_init=1)),
        ]

    prints = [fingerprint(each) for each in make()]
    assert len(set(prints)) == len(prints)
    assert [fingerprint(each) for each in make()] == prints
    for index in (0, 4, 9, 11):
        assert fingerprint(pickle.loads(pickle.dumps(make()[index]))) == prints[index]


def test_an_importable_function_by_its_name_and_source(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def module(name: str, body: str) -> Any:
        (tmp_path / f"{name}.py").write_text(body)
        return __import__(name)

    monkeypatch.syspath_prepend(str(tmp_path))
    one = module("asyncdl_test_one", "def f(x):\n    return x + 1\n")
    two = module("asyncdl_test_two", "def f(x):\n    return x + 1\n")
    assert reference_of(one.f) == "asyncdl_test_one:f"
    assert fingerprint(one.f) == fingerprint(one.f) != fingerprint(two.f)
    before = fingerprint(one.f)
    (tmp_path / "asyncdl_test_one.py").write_text("def f(x):\n    return x + 22\n")
    sys.modules.pop("asyncdl_test_one")
    again = __import__("asyncdl_test_one")
    assert again.f(0) == 22
    assert fingerprint(again.f) != before


class Importable:
    def method(self) -> None: ...


def test_references() -> None:
    assert reference_of(Importable) == f"{__name__}:Importable"
    assert reference_of(Importable.method) == f"{__name__}:Importable.method"
    assert reference_of(len) == "builtins:len"
    assert reference_of(math.sqrt) == "math:sqrt"
    for nowhere in (lambda x: x, made_by("def subject(): ..."), Importable(), Importable().method, 5, "x"):
        assert reference_of(nowhere) is None


def test_objects_that_hold_themselves() -> None:
    source = """
        class Node:
            def __init__(self, n):
                self.n, self.me = n, [self]
        subject = Node({})
    """
    assert fingerprint(made_by(source.format(1))) == fingerprint(made_by(source.format(1)))
    assert fingerprint(made_by(source.format(1))) != fingerprint(made_by(source.format(2)))


class Refuses:
    def __reduce__(self) -> str:
        raise RuntimeError("not this one")


def generator() -> Any:
    yield 1


UNSTORABLE: list[Any] = [threading.Lock(), generator(), Refuses(), {"deep": [threading.Lock()]}, lambda: LOCK]
LOCK = threading.Lock()


@pytest.mark.parametrize("value", UNSTORABLE, ids=["lock", "generator", "refuses", "nested", "global"])
def test_what_cannot_be_pickled_is_refused(value: Any) -> None:
    with pytest.raises(InvalidComponentError) as caught:
        fingerprint(value)
    assert "cannot be stored" in str(caught.value)


def test_a_list_that_is_nested_without_end_is_refused() -> None:
    endless: dict[str, Any] = {}
    endless["self"] = endless
    with pytest.raises(InvalidComponentError):
        fingerprint(endless)
