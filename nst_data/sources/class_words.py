"""Cells of a table that cannot be class names, and class names that are likely mistakes, judged by their spelling only."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable

_MISSING, _MAY_BE_MISSING = frozenset(("nan", "NaN")), frozenset(("None", "null", "NA", "N/A"))
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_MAX_SHOWN = 3


def find_non_class(texts: Collection[str], is_requested: bool) -> tuple[str, str] | None:
    """The first text that is not a class (a missing value, or a fraction in a column of numbers), with what is wrong and what to do.

    With `is_requested` the user has named the column, and fractions are accepted as classes.
    """
    if (missing := next((text for text in texts if text in _MISSING), None)) is not None:
        return missing, "which programs write where a label is missing; drop such rows, or rename the class"
    if not is_requested and all(_NUMBER.fullmatch(text) for text in texts):
        fraction = next((text for text in texts if float(text) % 1), None)
        if fraction is not None:
            return fraction, "expected class names or whole numbers; name the column of classes with `label_column`"
    return None


def class_name_warnings(class_names: Iterable[str]) -> list[str]:
    """Warnings, one line each, about class names that were collected from the cells of a table."""
    names = sorted(class_names)
    numbers = [name for name in names if _NUMBER.fullmatch(name)]
    non_numbers = [name for name in names if not _NUMBER.fullmatch(name)]
    lines = case_warnings(names)
    if missing := [name for name in names if name in _MAY_BE_MISSING]:
        lines.append(f"warning: classes that may be missing labels: {_abbreviate(missing)}")
    if numbers and non_numbers:
        lines.append(f"warning: numbers and names are classes side by side: {_abbreviate(numbers)} beside {_abbreviate(non_numbers)}")
    return lines


def case_warnings(class_names: Iterable[str]) -> list[str]:
    """A one-item list with a line about class names that differ only in case; empty if there are none."""
    by_folded_name = defaultdict(list)
    for name in sorted(class_names):
        by_folded_name[name.casefold()].append(name)
    pairs = [" and ".join(group) for group in by_folded_name.values() if len(group) > 1]
    return [f"warning: classes that differ only in case: {_abbreviate(pairs)}"] if pairs else []


def _abbreviate(names: list[str]) -> str:
    return ", ".join(names[:_MAX_SHOWN]) + ", ..." * (len(names) > _MAX_SHOWN)
