"""The opened sources of a recipe, after checking everything that would stop a later generation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from nst_data.progress import Progress
from nst_data.sources import Source
from nst_data.store.store import Store
from nst_train.holdout import hold_out_across_processes, warn_of_leaks
from nst_train.recipes.checks import check_evaluations, check_recipe, check_reviews, check_selection, resolve_model
from nst_train.recipes.opened_sources import OpenedSources
from nst_train.recipes.recipe import Recipe
from nst_train.recipes.sections import EvaluationSettings
from nst_train.teacher_names import TeacherName


@dataclass(frozen=True)
class RecipeData:
    """The data of a recipe. With `holdout`, `labeled` and `test` are two parts of one source."""

    labeled: Source | None
    class_names: list[str]  # of the labeled images or, without any, of the teacher
    pool: Source
    test: Source | None
    validation: Source | None
    evaluations: list[tuple[EvaluationSettings, Path | Source]]
    teacher: TeacherName | None  # a trained model instead of generation 0, with its version
    selector: str | None  # a model that selects, with its version
    held_out: list[Source]  # none of these images is trained on with a pseudo-label,
    evaluated: list[Source]  # nor any of these, the other images that `evaluate` names

    @classmethod
    def open(cls, recipe: Recipe, store: Store, progress: Progress, *, writes: bool = True, sources: OpenedSources | None = None) -> Self:
        """Open and check everything. Raises NstError for a missing source, or anything that would stop a later generation.

        With `writes` False, the store is not changed.
        """
        sources = sources or OpenedSources.open(recipe, store, progress, writes=writes)
        all_labeled, pool, test, validation = sources.labeled, sources.pool, sources.test, sources.validation
        labeled = all_labeled
        teacher: TeacherName | None = None
        class_names = None if all_labeled is None else all_labeled.class_names or []
        if class_names is None:
            assert recipe.teacher is not None, "the recipe was checked"
            teacher, class_names = resolve_model("teacher", recipe.teacher.teacher_name, store, None)
        check_recipe(recipe, all_labeled, class_names, validation, test)
        check_selection(recipe, store)
        check_reviews(recipe, store, class_names)
        if recipe.teacher is not None and teacher is None:
            teacher, _ = resolve_model("teacher", recipe.teacher.teacher_name, store, class_names)
        selector = resolve_model("select.by", recipe.select.by, store, class_names)[0] if recipe.select.by else None
        if recipe.holdout and all_labeled:  # after the faster checks, since it reads all images
            labeled, test = hold_out_across_processes(all_labeled, recipe.holdout, recipe.seed, store, progress, writes)
        evaluations = [(settings, _resolve_data(data, test)) for settings, data in sources.evaluations]
        check_evaluations(recipe, store, evaluations, class_names, all_labeled.location if all_labeled else f"`teacher` {teacher}")
        if recipe.holdout and labeled:
            _warn_of_leaks(recipe, store, labeled, teacher, selector, progress)
        held_out = [source for source in (all_labeled, validation, None if recipe.holdout else test) if source]
        other_sources = [data for _, data in evaluations if isinstance(data, Source) and data is not test]
        return cls(
            labeled,
            class_names,
            pool,
            test,
            validation,
            evaluations,
            teacher,
            selector,
            held_out,
            _distinct_sources(other_sources, held_out),
        )


def _warn_of_leaks(
    recipe: Recipe, store: Store, labeled: Source, teacher: TeacherName | None, selector: str | None, progress: Progress
) -> None:
    """`warn_of_leaks` for the models that a recipe names."""
    models = [teacher, selector, *(network.settings.start for network in recipe.networks)]
    warn_of_leaks([model for model in models if isinstance(model, str) and model not in ("", "teacher")], store, labeled, progress)


def _distinct_sources(sources: list[Source], known: list[Source]) -> list[Source]:
    """The sources whose images differ from those of `known` and of each other."""
    by_fingerprint = {source.images_fingerprint: source for source in sources}
    return [source for fingerprint, source in by_fingerprint.items() if fingerprint not in {other.images_fingerprint for other in known}]


def _resolve_data(data: Path | Source | None, test: Source | None) -> Path | Source:
    """The data of an evaluation, or the test images if it names none."""
    chosen = test if data is None else data
    assert chosen is not None, "the recipe was checked"
    return chosen
