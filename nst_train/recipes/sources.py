"""Where the sources of a recipe are: next to it, at an absolute or home path, or else on the Hub. Imports no torch."""

import glob
import os
from pathlib import Path
from typing import Any, TypeVar

from nst_data.errors import UsageError
from nst_data.hub.reference import HubReference
from nst_data.sources.addresses import file_tree_at
from nst_data.sources.files import absolute_path
from nst_data.sources.patterns import is_pattern
from nst_train.recipes.recipe import GenerationSettings, Recipe
from nst_train.recipes.sections import EvaluationSettings, SourceSettings, TeacherSettings
from nst_train.settings import TrainSettings

Trained = TypeVar("Trained", bound=TrainSettings)
_FOLDER = "local-dir:"


def resolve_sources(path: Path, recipe: Recipe) -> Recipe:
    """The recipe at `path` with sources as commands accept them, absolute or on the Hub. Raises UsageError if a source is ambiguous."""
    folder = path.absolute().parent

    def resolve_source(settings: SourceSettings | None) -> SourceSettings | None:
        if settings is None:
            return None
        resolved = settings.map_sources(lambda source: locate_source(folder, source))
        return resolved.model_copy(update={"class_names": _resolve_file(folder, settings.class_names)})

    def resolve_evaluation(entry: EvaluationSettings) -> EvaluationSettings:
        if entry.data is None or not entry.is_published:
            return entry.model_copy(update={"data": resolve_source(entry.data)})
        return entry.model_copy(update={"data": entry.data.map_sources(lambda source: str(_resolve_file(folder, source)))})

    teacher = recipe.teacher and _resolve_teacher(folder, recipe.teacher)
    by = recipe.select.by and _resolve_model(folder, recipe.select.by)
    sources = {role: resolve_source(getattr(recipe, role)) for role in ("labeled", "validation", "test", "pool")}
    return recipe.model_copy(
        update={
            **sources,
            "teacher": teacher,
            "select": recipe.select.model_copy(update={"by": by}),
            "evaluate": [resolve_evaluation(entry) for entry in recipe.evaluate],
            "generations": [_resolve_training(folder, entry) for entry in recipe.generations],
            "students": [_resolve_training(folder, entry) for entry in recipe.students],
        }
    )


def _resolve_training(folder: Path, settings: Trained) -> Trained:
    """A training with absolute folders of its network and start; a folder that is not next to the recipe is left as it is."""
    changed: dict[str, Any] = {}
    for name in ("model", "start"):
        value = getattr(settings, name)
        if isinstance(value, str) and value.startswith(_FOLDER):
            resolved = _resolve_model(folder, value)
            changed[name] = resolved if os.path.isdir(resolved.removeprefix(_FOLDER)) else value
    if isinstance(settings, GenerationSettings) and settings.finetune is not None:
        changed["finetune"] = _resolve_training(folder, settings.finetune)
    return settings.model_copy(update=changed)


def locate_source(folder: Path, source: str) -> str:
    """A source of a recipe in `folder`, as commands accept it: an absolute path or pattern, or a Hub reference.

    What is next to the recipe comes first. Raises UsageError for a reference that a command would take for a path somewhere else.
    """
    if file_tree_at(source) is not None:
        return source
    path = str(Path(folder, os.path.expanduser(source)))
    if os.path.exists(path):
        return path
    if is_pattern(source):
        return str(Path(glob.escape(str(folder)), os.path.expanduser(source)))
    reference = HubReference.parse(source)
    if reference is None:
        return path
    if os.path.exists(source):
        pinned = HubReference(reference.repo, reference.revision or "main", reference.config, reference.split)
        raise UsageError(
            f"{source}: exists in the current folder but not next to the recipe ({folder}), where relative paths start; "
            f"give an absolute path, or {pinned} for the Hub dataset"
        )
    return source


def _resolve_teacher(folder: Path, teacher: TeacherSettings) -> TeacherSettings:
    """A teacher with absolute paths of its folder and word files."""
    options = {"class_names": teacher.class_names, "prompts": teacher.prompts}
    files = {name: _resolve_file(folder, value) for name, value in options.items() if isinstance(value, str)}
    return teacher.model_copy(update={"model": _resolve_model(folder, teacher.model), **files})


def _resolve_model(folder: Path, name: str) -> str:
    """A model name; the path of a folder is resolved against the recipe's."""
    if not name.startswith(_FOLDER):
        return name
    return f"{_FOLDER}{absolute_path(str(_resolve_file(folder, name.removeprefix(_FOLDER))))}"


def _resolve_file(folder: Path, name: str | None) -> str | None:
    return None if name is None else str(Path(folder, os.path.expanduser(name)))
