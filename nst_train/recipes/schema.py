"""The JSON schema of recipes, with which editors complete, explain and check the keys of a YAML file. Imports no torch."""

import json
from pathlib import Path
from typing import Any

from nst_data.store.files import write_text
from nst_train.recipes.recipe import MAY_BE_EMPTY, Recipe

SCHEMA_FILE = "recipe.schema.json"
MODELINE = f"# yaml-language-server: $schema={SCHEMA_FILE}"  # the first line of a recipe; refers to the file next to it
_TITLE = "Recipe of nst run"
_EXPONENT = r"^[+-]?[0-9]+(\.[0-9]*)?[eE][+-]?[0-9]+$"  # 1e-3, which is a string in YAML 1.1; bounds apply to numbers only
_FROM_PRESET = "model"  # or of the generation that a `finetune` belongs to


def recipe_schema() -> dict[str, Any]:
    """What `load_recipe` accepts, as a draft 2020-12 schema, except for rules that involve several keys."""
    schema: dict[str, Any] = _simplify(Recipe.model_json_schema())
    for name in MAY_BE_EMPTY:
        section = schema["properties"][name]
        description = {"description": section.pop("description")} if "description" in section else {}
        schema["properties"][name] = {"anyOf": [*section.pop("anyOf", [section]), {"type": "null"}]} | description
    for settings in schema["$defs"].values():
        if "preset" in settings["properties"]:
            settings["required"] = [name for name in settings.get("required", []) if name != _FROM_PRESET]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": _TITLE} | schema


def schema_text() -> str:
    """The content of the schema file."""
    return json.dumps(recipe_schema(), indent=1) + "\n"


def write_schema(folder: Path) -> bool:
    """Write the schema next to a recipe, unless another file has its name. Returns whether it is there."""
    path = folder / SCHEMA_FILE
    is_ours = not path.exists() or (path.is_file() and f'"title": "{_TITLE}"' in path.read_text("utf-8", errors="replace"))
    if is_ours:
        write_text(path, schema_text())
    return is_ours


def _simplify(node: Any, has_setting_names: bool = False) -> Any:  # noqa: ANN401 - any JSON
    """Drop what pydantic adds for programs: titles, defaults that are whole sections or empty, lists of arguments.

    A number may also be a string with an exponent, which pydantic parses.

    `has_setting_names`: the node's own keys are names of settings, which may be called title or default.
    """
    if isinstance(node, list):
        return [_simplify(item) for item in node]
    if not isinstance(node, dict):
        return node
    plain = {}
    for key, value in node.items():
        if not has_setting_names and (key == "title" or (key == "default" and (isinstance(value, dict) or value in (None, [])))):
            continue
        is_text = key == "description" and isinstance(value, str)
        plain[key] = value.partition("\n\nArgs:")[0] if is_text else _simplify(value, has_setting_names=key in ("properties", "$defs"))
    if not has_setting_names and plain.get("type") == "number":
        plain |= {"type": ["number", "string"], "pattern": _EXPONENT}
    return plain
