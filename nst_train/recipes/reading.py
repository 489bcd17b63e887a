"""From a recipe's YAML file to settings; errors are reported with their line."""

from collections.abc import Hashable, Mapping
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ValidationError

from nst_data.arguments import with_checked_arguments
from nst_data.errors import OTHER_YAML_ERRORS, UsageError, short_repr
from nst_data.settings import describe_validation_error, unknown_key_message
from nst_data.yaml_faults import explain_yaml_error
from nst_train.recipes.changes import apply_changes, change_at, changes_inside
from nst_train.recipes.dead_keys import dead_keys
from nst_train.recipes.recipe import GenerationSettings, Recipe, StudentSettings
from nst_train.recipes.sections import EvaluationSettings, SourceSettings, TeacherSettings
from nst_train.recipes.sources import resolve_sources

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

NO_CHANGES: Mapping[str, Any] = MappingProxyType({})
_EXAMPLES = {SourceSettings: "source: ...", EvaluationSettings: "suite: [corruptions]", GenerationSettings: "model: ..."}
_MAX_SHOWN = 60
_EXAMPLES |= {TeacherSettings: "model: ...", StudentSettings: "name: ..., model: ..."}


@with_checked_arguments
def load_recipe(path: Path | str, *, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe.

    Args:
        path: A YAML file such as examples/image_folder.yaml. Relative sources are next to it, or on the Hub.
        changes: Values that override the file's, by their place: `{"generations.1.ratio": 7}`. The result is the same as that of a file
            with these values.

    Returns:
        The recipe, for `self_training`. `Recipe(...)` creates one without a file.

    Raises:
        UsageError: Something in it is wrong; the message names the key and its line.
    """
    path = Path(path)
    return parse_recipe(_read_text(path), path, changes or {})


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: expected a recipe in UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; expected a recipe, see examples/image_folder.yaml") from None


def parse_recipe(text: str, path: Path, changes: Mapping[str, Any] = NO_CHANGES) -> Recipe:
    """Parse a recipe, with other values at dotted places; `path` is the file of the text."""
    try:
        content = yaml.safe_load(text)
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, *OTHER_YAML_ERRORS) as error:
        line, fault = explain_yaml_error(error)
        raise UsageError(f"{path}{line}: expected YAML; {fault}") from None
    if not isinstance(content, dict):
        kinds = {NoneType: "an empty file", list: "a list", str: "text"}
        actual = kinds.get(type(content)) or short_repr(content)
        raise UsageError(f"{path}: expected a recipe with the keys {', '.join(Recipe.model_fields)}, found {actual}")
    _check_duplicate_keys(path, tree, set())
    content = apply_changes(content, changes)
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{path}{_explain(error, tree, changes)}") from None
    except RecursionError:
        raise UsageError(f"{path}: expected a recipe, found lists or mappings that are nested too deeply, or hold themselves") from None
    for place, reason in dead_keys(content, recipe):
        raise UsageError(f"{path}{_describe_place(tree, place, changes)}: has no effect: {reason}; remove it")
    try:
        return resolve_sources(path, recipe)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _check_duplicate_keys(path: Path, node: yaml.Node | None, seen: set[int]) -> None:
    """Raises UsageError for a duplicate key, of which YAML drops the first."""
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_duplicate_keys(path, value, seen)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[Hashable, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode):
            if key.value in lines and key.value != "<<":
                raise UsageError(f"{path}, line {line}: {key.value}: duplicate key, first on line {lines[key.value]}; remove one")
            lines[key.value] = line
        _check_duplicate_keys(path, value, seen)


def written_settings(path: Path, changes: Mapping[str, Any] = NO_CHANGES) -> dict[str, Any]:
    """What a recipe accepted by `load_recipe` spells out, without the values from presets and defaults."""
    content: dict[str, Any] = apply_changes(yaml.safe_load(path.read_text("utf-8")), changes)
    seed = {"seed": content["seed"]} if "seed" in content else {}
    return content | {name: [seed | entry for entry in content.get(name, [])] for name in ("generations", "students")}


def _explain(error: ValidationError, tree: yaml.Node | None, changes: Mapping[str, Any]) -> str:
    """The first error as one line: line number or change, place, what was expected and what was found."""
    details = error.errors()[0]
    line = _describe_place(tree, details["loc"], changes) + ": "
    changed_keys = changes_inside(details["loc"], changes) if change_at(details["loc"], changes) is None else []
    if details["type"] == "extra_forbidden":
        line = f", `changes` {changed_keys[0]}: {'.'.join(map(str, details['loc']))}: " if changed_keys else line
        return line + unknown_key_message(str(details["loc"][-1]), _model_at(details["loc"][:-1]))
    if details["type"] == "missing":
        return line + "missing"
    message = _expectation(details["type"], details["loc"]) or describe_validation_error(details)
    context = f" (with `changes` {', '.join(changed_keys)})" if changed_keys else ""
    names_input = isinstance(details["input"], dict) or ", found " in message
    actual = "" if names_input else f", found {_written_value(tree, details, changes)}"
    is_not_text = message.startswith("expected text") and not isinstance(details["input"], str | NoneType | list | dict)
    return line + message + actual + ("; put it in quotes" if is_not_text else "") + context


def _written_value(tree: yaml.Node | None, error: "ErrorDetails", changes: Mapping[str, Any]) -> str:
    """The value of an error as it is written in the file: `yes` rather than the true that YAML makes of it."""
    value = error["input"]
    if value is None or isinstance(value, str) or error["type"] == "invalid_key" or change_at(error["loc"], changes):
        return short_repr(value)
    node = _locate(tree, error["loc"])[1]
    return str(node.value) if isinstance(node, yaml.ScalarNode) and len(node.value) <= _MAX_SHOWN else short_repr(value)


def _describe_place(tree: yaml.Node | None, place: tuple[int | str, ...], changes: Mapping[str, Any]) -> str:
    """A place of a recipe with its line, or with the change that set its value."""
    if change := change_at(place, changes):
        key, inside = change
        return f", `changes` {key}" + (f": {inside}" if inside else "")
    return f", line {_locate(tree, place)[0]}: {'.'.join(map(str, place))}" if place else ""


def _expectation(error: str, place: tuple[int | str, ...]) -> str | None:
    """What is expected where pydantic found a value of another type; None for other errors."""
    model = _model_at(place)
    example = "{" + (_EXAMPLES.get(model) or f"{next(iter(model.model_fields))}: ...") + "}"
    if error in ("model_type", "dict_type"):
        return f"expected `{example}`"
    if error == "list_type":
        return (
            f"expected a list such as `[{example}, {example}]`"
            if issubclass(model, GenerationSettings)
            else f"expected `{example}`, or a list"
        )
    return "expected keys that are text" if error == "invalid_key" else None


def _locate(node: yaml.Node | None, place: tuple[int | str, ...]) -> tuple[int, yaml.Node | None]:
    """(line, value) of a place, as far as it is in the file; the value is None if it is not."""
    line = node.start_mark.line if node else 0
    for step in place:
        if isinstance(node, yaml.MappingNode):
            pairs = [(key, value) for key, value in node.value if key.value == str(step)]
            pairs = pairs or [(key, value) for key, value in node.value if not key.tag.endswith((":str", ":merge"))]  # 5: or ~:
            if not pairs and isinstance(step, int):
                continue  # a single entry where a list may stand
            if not pairs:
                return line + 1, None
            line, node = pairs[0][0].start_mark.line, pairs[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            node = node.value[step]
            line = node.start_mark.line
    return line + 1, node


def _model_at(place: tuple[int | str, ...]) -> type[BaseModel]:
    """The settings class at a place of the recipe, or around it."""
    model: type[BaseModel] = Recipe
    for step in place:
        if isinstance(step, str) and step in model.model_fields:
            model = _model_in(model.model_fields[step].annotation) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 - any type annotation
    """The settings class in an annotation such as `list[X]` or `X | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for argument in getattr(annotation, "__args__", ()) if (model := _model_in(argument))), None)
