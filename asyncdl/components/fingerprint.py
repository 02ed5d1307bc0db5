"""Fingerprints of objects: equal for equal declarations, in any process.

Pickles are not: they depend on the identity of strings, on the order of sets, and cloudpickle's on more. So an object
is written by a pickler that sorts sets, ignores the identity of constants, and describes functions by what they do.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import io
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from asyncdl.errors import InvalidComponentError


def reference_of(value: Any) -> str | None:
    """Return the import path ``"module:qualified.name"`` of a function or class, None where another process has none."""
    if not isinstance(value, (types.FunctionType, types.BuiltinFunctionType, type)):
        return None
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    if module in {None, "__main__", "__mp_main__"} or "<" in name:
        return None
    found: Any = sys.modules.get(str(module))
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}:{name}" if found is value else None


def fingerprint(value: Any) -> str:
    """Return the SHA-256, in hexadecimal, of what an object is.

    Raises
    ------
    InvalidComponentError
        The object, or something that it holds, cannot be pickled.
    """
    buffer = io.BytesIO()
    try:
        _Canonical(buffer).dump(value)
    except Exception as error:  # what `__reduce__` and `__getstate__` of the user's objects may raise
        raise InvalidComponentError(f"{value!r} cannot be stored: {error}") from error
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


# the C pickler's memo cannot be overridden
_Pickler: Any = pickle._Pickler  # type: ignore[attr-defined,unused-ignore]


class _Canonical(_Pickler):  # type: ignore[misc]
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=4)
        self._met: dict[int, int] = {}

    def memoize(self, obj: Any) -> None:
        # Two equal constants may or may not be one object: never refer back to one.
        if not isinstance(obj, (str, bytes, tuple)) and not _is_dtype(obj):
            super().memoize(obj)

    def reducer_override(self, obj: Any) -> Any:
        # What is described becomes a call of `tuple`: never made, since a fingerprint is not loaded.
        if isinstance(obj, types.FunctionType):
            return self._once(obj) or self._function(obj)
        if isinstance(obj, type) and reference_of(obj) is None and obj.__module__ != "builtins":
            return self._once(obj) or self._class(obj)
        described = _describe(obj)
        return NotImplemented if described is None else (tuple, (described,))

    def _once(self, obj: Any) -> Any:
        if id(obj) in self._met:  # recursion: by the order of first meeting
            return tuple, (("again", self._met[id(obj)]),)
        self._met[id(obj)] = len(self._met)
        return None

    def _function(self, function: types.FunctionType) -> Any:
        reference = reference_of(function)
        if reference is not None:
            return tuple, (("function", reference, _source(function)),)
        used = {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}
        closure = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
        parts = (
            _code(function.__code__),
            function.__defaults__,
            function.__kwdefaults__,
            closure,
            sorted(used.items()),
        )
        return tuple, (("function", *parts),)

    def _class(self, cls: type) -> Any:
        body = [(name, _unwrapped(value)) for name, value in sorted(vars(cls).items()) if name not in _HIDDEN]
        return tuple, (("class", cls.__qualname__, cls.__bases__, body),)

    def save_set(self, obj: Any) -> None:
        self.save_reduce(tuple, (("set", *sorted(fingerprint(each) for each in obj)),), obj=obj)

    def save_dict(self, obj: dict[Any, Any]) -> None:
        # Insertion order is not part of what a dict is; keys that do not compare are ordered by their own prints.
        items = sorted(obj.items(), key=lambda item: (type(item[0]).__name__, _sortable(item[0])))
        self.save_reduce(tuple, (("dict", *(part for item in items for part in item)),), obj=obj)

    dispatch = {**_Pickler.dispatch, set: save_set, frozenset: save_set, dict: save_dict}  # noqa: RUF012


_HIDDEN = {
    "__dict__", "__weakref__", "__module__", "__doc__", "__abstractmethods__", "_abc_impl",
    "__firstlineno__", "__static_attributes__",
}  # fmt: skip


def _describe(obj: Any) -> tuple[Any, ...] | None:
    """Return what an object is that pickle refuses or writes by its name alone; None: it is none of these."""
    if isinstance(obj, types.ModuleType):
        return ("module", obj.__name__)
    if isinstance(obj, types.CodeType):
        return ("code", *_code(obj))
    if isinstance(obj, types.CellType):
        return ("cell", obj.cell_contents)
    if isinstance(obj, types.MappingProxyType):
        return ("mapping", dict(obj))
    if isinstance(obj, functools.cached_property):
        return ("cached_property", obj.func)
    if isinstance(obj, functools._lru_cache_wrapper):
        return ("lru_cache", obj.__wrapped__)
    return None


def _is_dtype(obj: Any) -> bool:
    # arrays share them, those that were unpickled do not
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(obj, numpy.dtype)


def _sortable(key: Any) -> str:
    return key if isinstance(key, str) else fingerprint(key)


def _filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _unwrapped(member: Any) -> Any:
    if isinstance(member, (staticmethod, classmethod)):
        return [type(member).__name__, member.__func__]
    if isinstance(member, property):
        return [member.fget, member.fset, member.fdel]
    if isinstance(member, (types.MemberDescriptorType, types.GetSetDescriptorType)):
        return member.__name__
    return member


def _code(code: types.CodeType) -> tuple[Any, ...]:
    constants = tuple(("code", *_code(each)) if isinstance(each, types.CodeType) else each for each in code.co_consts)
    names = (code.co_names, code.co_varnames, code.co_freevars)
    arguments = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
    return (code.co_code, code.co_exceptiontable, constants, *names, *arguments, code.co_flags)


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the names of the globals that a function uses, its inner functions included."""
    for instruction in dis.get_instructions(code):  # co_names has the names of attributes too
        if instruction.opname in {"LOAD_GLOBAL", "LOAD_NAME"}:
            yield instruction.argval
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from _names(each)


def _source(function: Callable[..., Any]) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):  # built in, or its file is gone
        return ""
