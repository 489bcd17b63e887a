"""Cells of a table that cannot be class names, and class names that are likely mistakes, judged by their spelling only."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable

_MISSING, _MAY_BE_MISSING = frozenset(("nan", "NaN")), frozenset(("None", "null", "NA", "N/A"))
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_MOST_SHOWN = 3


def no_class(words: Collection[str], is_asked: bool) -> tuple[str, str] | None:
    """The first word that is not a class (a missing value, or a fraction in a column of numbers), with what is wrong and what to do.

    With `is_asked` the user has named the column, and fractions are accepted as classes.
    """
    if (missing := next((word for word in words if word in _MISSING), None)) is not None:
        return missing, "which programs write where a label is missing; drop such rows, or rename the class"
    if not is_asked and all(_NUMBER.fullmatch(word) for word in words):
        fraction = next((word for word in words if float(word) % 1), None)
        if fraction is not None:
            return fraction, "expected class names or whole numbers; name the column of classes with `label_column`"
    return None


def likely_slips(class_names: Iterable[str]) -> list[str]:
    """Warnings, one line each, about class names that were collected from the cells of a table."""
    names = sorted(class_names)
    numbers = [name for name in names if _NUMBER.fullmatch(name)]
    others = [name for name in names if not _NUMBER.fullmatch(name)]
    lines = differing_in_case(names)
    if missing := [name for name in names if name in _MAY_BE_MISSING]:
        lines.append(f"warning: classes that may be missing labels: {_few(missing)}")
    if numbers and others:
        lines.append(f"warning: numbers and names are classes side by side: {_few(numbers)} beside {_few(others)}")
    return lines


def differing_in_case(class_names: Iterable[str]) -> list[str]:
    """A one-item list with a line about class names that differ only in case; empty if there are none."""
    alike = defaultdict(list)
    for name in sorted(class_names):
        alike[name.casefold()].append(name)
    pairs = [" and ".join(same) for same in alike.values() if len(same) > 1]
    return [f"warning: classes that differ only in case: {_few(pairs)}"] if pairs else []


def _few(names: list[str]) -> str:
    return ", ".join(names[:_MOST_SHOWN]) + ", ..." * (len(names) > _MOST_SHOWN)
