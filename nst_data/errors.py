"""Errors caused by input: one line that says what was expected, what was found and what to do."""

import re
import reprlib
from collections.abc import Iterable
from datetime import date


class NstError(ValueError):
    """The work cannot be done on this input (exit status 1)."""


class UsageError(NstError):
    """The command, recipe or reference itself is wrong (exit status 2)."""


OTHER_YAML_ERRORS = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What PyYAML raises in addition to its YAMLError: for an impossible date, a tag that does not fit its value, deep nesting."""


class _YamlRepr(reprlib.Repr):
    """Format values as YAML and JSON do."""

    def repr_bool(self, value: bool, _: int) -> str:
        return str(value).lower()

    def repr_NoneType(self, _value: None, _: int) -> str:  # noqa: N802
        return "null"

    def repr_date(self, value: date, _: int) -> str:
        return value.isoformat()

    repr_datetime = repr_date


_SHORT_REPR = _YamlRepr()
_SHORT_REPR.maxstring = _SHORT_REPR.maxother = _SHORT_REPR.maxlong = 1_000
_SHORT_REPR.maxlist = _SHORT_REPR.maxtuple = _SHORT_REPR.maxdict = 20
_SHORT_REPR.maxlevel = 3


def short_repr(value: object) -> str:
    """A value as written in YAML or JSON, or `nothing` for None.

    Long or deeply nested values are shortened, because YAML aliases can make small files expand exponentially.
    """
    return "nothing" if value is None else _SHORT_REPR.repr(value)


def format_names(names: Iterable[str]) -> str:
    """Column names listed for a message, quoted if they have leading or trailing whitespace, which would be invisible."""
    return ", ".join(name if name == name.strip() and name else repr(name) for name in names) or "no column"


def first_line(error: BaseException) -> str:
    """The first line of another library's error message, or the name of its class if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


_USER_INFO = re.compile(
    r"\b((?:s3|gs|gcs|az|hf|https?|ftp):/{1,2})[^/\s@'\"]+@"
    r"|\b((?:s3|gs|gcs|az|hf|abfss?):/{1,2})[^/\s@'\"]+:[^/\s@'\"]*@?",  # also matches incomplete credentials
    re.IGNORECASE,
)
_QUERY = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:/{1,2}[^\s?'\"]+)\?[^\s'\";,]*=[^\s'\";,]*")


def redact_secrets(line: str) -> str:
    """Remove credentials in URLs from a line before it is shown."""
    return _QUERY.sub(r"\1", _USER_INFO.sub(r"\1\2", line))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this machine or its GPU is out of memory; libraries raise various classes for that."""
    phrases = ("out of memory", "can't allocate memory", "Cannot allocate memory", "Unable to allocate")
    return isinstance(error, MemoryError) or any(phrase in str(error) for phrase in phrases)
