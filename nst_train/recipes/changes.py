"""Values that override a recipe's own for one run, such as 7 for `generations.1.ratio`. Imports no torch."""

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from nst_data.errors import OTHER_YAML_ERRORS, UsageError, short_repr
from nst_data.yaml_faults import explain_yaml_error

_LISTS = ("evaluate", "students")  # sections that may be missing, or hold their single entry without a list
_EXPECTED = "expected KEY=VALUE, such as generations.1.ratio=7"


def parse_changes(assignments: Iterable[str]) -> dict[str, Any]:
    """Parse changes from a command line, KEY=VALUE with a YAML value; the last one wins. Raises UsageError if one cannot be parsed."""
    changes = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"`changes` {assignment}: {_EXPECTED}")
        if not value.strip():
            raise UsageError(f"`changes` {assignment}: {_EXPECTED}; null for no value")  # for example, from an unset shell variable
        try:
            changes[key.strip()] = yaml.safe_load(value)
        except (yaml.YAMLError, *OTHER_YAML_ERRORS) as error:
            raise UsageError(f"`changes` {assignment}: expected a value in YAML; {explain_yaml_error(error)[1]}") from None
    return changes


def apply_changes(content: Any, changes: Mapping[str, Any]) -> Any:  # noqa: ANN401 - anything a YAML file holds
    """The content of a recipe with other values at dotted places. Raises UsageError for a place that it cannot have.

    If an anchor shares a value between places, only the named place changes: aliases and merge keys were resolved before.
    """
    for key, value in changes.items():
        if "" in key.split("."):
            raise UsageError(f"`changes` {key}: expected words between the dots, such as generations.1.ratio")
        content = _replace_value(content, key.split("."), value, key)
    return content


def _replace_value(node: Any, steps: list[str], value: Any, key: str) -> Any:  # noqa: ANN401 - anything a YAML file holds
    if not steps:
        return value
    step, *rest = steps
    parent = ".".join(key.split(".")[: -len(steps)])
    if parent in _LISTS and step.isdigit() and not (isinstance(node, list) and node):
        node = [node] if node else [{}] if step == "0" else []
    if isinstance(node, list):
        if not node:
            raise UsageError(f"`changes` {key}: {parent} has no entries; change it as a whole: {parent}=[VALUE]")
        index = int(step) if step.isascii() and step.isdigit() else len(node)
        if index >= len(node):
            entry_range = f"entr{'ies' if len(node) > 1 else 'y'} {' to '.join(map(str, sorted({0, len(node) - 1})))}"
            tail = rest if step.isdigit() else steps if step.isidentifier() and not rest else []
            example = ".".join([parent, "0", *tail])
            raise UsageError(f"`changes` {key}: {parent} has {entry_range}, found {step}; name one, such as {example}")
        return [*node[:index], _replace_value(node[index], rest, value, key), *node[index + 1 :]]
    if node is not None and not isinstance(node, dict):
        raise UsageError(f"`changes` {key}: {parent} is {short_repr(node)}, which has no keys; change it as a whole: {parent}=VALUE")
    mapping = {} if node is None else node
    name = next((node_key for node_key in mapping if str(node_key) == step), step)  # a key may be a number
    return {**mapping, name: _replace_value(mapping.get(name), rest, value, key)}


def change_at(place: tuple[int | str, ...], changes: Iterable[str]) -> tuple[str, str] | None:
    """The change that set the value at a place of a recipe, and the position inside that value; None if no change did."""
    for key in reversed(list(changes)):
        for end in range(1, len(place) + 1):
            names = [step for step in place[:end] if isinstance(step, str)]  # without the index, in case a single entry stands for the list
            if key in (".".join(map(str, place[:end])), ".".join(names)):
                return key, ".".join(map(str, place[end:]))
    return None


def changes_inside(place: tuple[int | str, ...], changes: Iterable[str]) -> list[str]:
    """The changes to something inside a place of a recipe."""
    prefix = [str(step) for step in place]
    return [key for key in changes if key.split(".")[: len(prefix)] == prefix]
