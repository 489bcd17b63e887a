"""What a function of the library was called with, compared with what it takes: one line where they differ."""

import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from nst_data.errors import UsageError
from nst_data.interrupts import heed_interrupts

_P = ParamSpec("_P")
_R = TypeVar("_R")
_SUCH_AS = {
    "Store": "a store, such as Store('nst-store')",
    "Source": "a source, such as open_source('photos')",
    "Version": "a version or its name",
    "Progress": "a Progress, such as Progress() for none",
}


def with_checked_arguments(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function, which raises UsageError for a store, source, version or settings of another kind than its annotation names.

    While it works, Ctrl-C ends its waits.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        heed_interrupts()
        try:
            arguments = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # says itself what is missing
        kinds = _kinds_by_name(function)
        for name, value in arguments.items():
            if name in kinds and not isinstance(value, kinds[name]):
                raise UsageError(f"`{name}`: expected {_described(kinds[name])}, found {value!r}")
        return function(*args, **kwargs)

    return call


@functools.cache
def _kinds_by_name(function: Callable[..., Any]) -> dict[str, tuple[type, ...]]:
    """The classes that an argument may have, for those that take one of ours."""
    kinds = {}
    for name, hint in typing.get_type_hints(function).items():
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        are_classes = all(isinstance(one, type) and not typing.get_origin(one) for one in options)
        if name != "return" and are_classes and any(one.__module__.startswith("nst_") for one in options):
            kinds[name] = options
    return kinds


def _described(kinds: tuple[type, ...]) -> str:
    return " or ".join(_SUCH_AS.get(one.__name__, f"{one.__name__}(...)") for one in kinds if one.__module__.startswith("nst_"))
