"""Compare the arguments of a library call with the function's annotations, reporting mismatches in one line."""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np

from nst_data.errors import UsageError
from nst_data.interrupts import make_waits_interruptible

_P = ParamSpec("_P")
_R = TypeVar("_R")
_TYPE_DESCRIPTIONS = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "True or False",
    "Path": "a path",
    "Store": "a store, such as Store('nst-store')",
    "Source": "a source, such as open_source('photos')",
    "Version": "a version or its name",
    "Progress": "a Progress, such as Progress() for none",
}


_LIST_DESCRIPTIONS = {"Source": "a list of sources, such as [open_source('photos/test')]", "str": "a list of text"}


def with_checked_arguments(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a function to raise UsageError if an argument does not match its annotation.

    Also makes Ctrl-C interrupt waits while the function runs.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        make_waits_interruptible()
        try:
            arguments = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # raises Python's own error about missing arguments
        hints = _type_hints(function)
        for name, value in arguments.items():
            if name in hints and not _matches_hint(value, hints[name]):
                raise UsageError(_mismatch_message(name, value, hints[name]))
        return function(*args, **kwargs)

    return call


@functools.cache
def _type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(function)


def _mismatch_message(name: str, value: object, hint: Any) -> str:  # noqa: ANN401 - any type annotation
    """What is wrong with an argument; for a list, about its first invalid item."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        for items in (typing.get_args(option)[0] for option in options if typing.get_origin(option) is Sequence):
            index, item = next((position, item) for position, item in enumerate(value) if not _matches_hint(item, items))
            return f"`{name}[{index}]`: expected {_describe_hint(items)}, found {item!r}"
    return f"`{name}`: expected {_describe_hint(hint)}, found {value!r}"


def _matches_hint(value: object, hint: Any) -> bool:  # noqa: ANN401 - any type annotation
    """Whether a value matches an annotation, as far as that is checked; the contents of mappings are not."""
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_matches_hint(value, item) for item in args)
    if origin is Sequence:
        return isinstance(value, Sequence) and not isinstance(value, str | bytes) and all(_matches_hint(item, args[0]) for item in value)
    if origin in (int, float):
        return isinstance(value, (int, np.integer) if origin is int else (int, float, np.number)) and not isinstance(value, bool)
    if origin is bool:
        return isinstance(value, bool | np.bool_)
    return not isinstance(origin, type) or isinstance(value, origin)


def _describe_hint(hint: Any) -> str:  # noqa: ANN401 - any type annotation
    """An annotation in words."""
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        is_version = any(getattr(option, "__name__", "") == "Version" for option in args)  # a version's name is given as str
        options = [option for option in args if option is not types.NoneType and not (option is str and is_version)]
        single = [option for option in options if typing.get_origin(option) is not Sequence]
        descriptions = list(dict.fromkeys(map(_describe_hint, single)))
        if single and len(single) < len(options):
            return ", ".join(descriptions) + ", or a list of these"
        return " or ".join(dict.fromkeys(map(_describe_hint, options)))
    if origin is Sequence:
        name = getattr(args[0], "__name__", "")
        return _LIST_DESCRIPTIONS.get(name) or f"a list with {_describe_hint(args[0])} in each place"
    if origin is typing.Literal:
        return " or ".join(map(repr, args))
    name = getattr(origin, "__name__", str(origin))
    return _TYPE_DESCRIPTIONS.get(name) or (f"{name}(...)" if origin.__module__.startswith("nst_") else name)
