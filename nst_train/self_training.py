"""Noisy Student Training: Algorithm 1 of the paper over a recipe.

Where it departs from the paper:
- the selection is made anew for each generation, by its own teacher; with `select: {when: once}` it is made once, as in the paper,
  by the first teacher (the paper's was an EfficientNet-B0: 3.1, A.4);
- copies of a class are spread evenly instead of drawn at random;
- images of the labeled, the validation and the test set are taken out of the pool, with their near-duplicates; the paper names only
  evaluation sets;
- there is no finetuning at a larger resolution.
"""

from dataclasses import dataclass
from pathlib import Path

from nst_data.editions import balance, check_classes
from nst_data.progress import Progress
from nst_data.settings import BalanceSettings
from nst_data.sources import Source, check_trainable, match_classes, open_source
from nst_data.store import Store, Version
from nst_train.device import this_process
from nst_train.evaluate import measure
from nst_train.label import label, label_like
from nst_train.models import check_names
from nst_train.settings import LabelRunSettings, Recipe, SourceSettings
from nst_train.trackers import check_trackers
from nst_train.train import train


@dataclass(frozen=True)
class Generation:
    """One trained network and what it was trained on; `corpus` and `edition` are None where that was labeled images alone."""

    teacher: Version
    corpus: Version | None = None
    edition: Version | None = None


def self_training(recipe: Recipe, store: Store, progress: Progress | None = None) -> list[Generation]:
    """Run the whole loop, or what is left of it; the generations in order, the control last where the recipe asks for one."""
    progress = progress or Progress()
    labeled, pool = _open(recipe.labeled, labeled=True), _open(recipe.pool, indexes=store.indexes)
    test = _open(recipe.test, labeled=True) if recipe.test else None
    validation = _open(recipe.validation, labeled=True) if recipe.validation else None
    _check(recipe, labeled, validation, test)
    held_out = [source for source in (labeled, validation, test) if source]
    first, *students = recipe.generations
    reading = LabelRunSettings(decode_threads=recipe.run.decode_threads)
    selection = BalanceSettings.model_validate(recipe.select.model_dump(exclude={"when"}))
    teachers = f"{recipe.name}-teacher"

    teacher = train(store, teachers, first, labeled, generation=0, run=recipe.run, progress=progress, validation=validation)
    _measure(teacher, test, recipe, store, progress)
    generations = [Generation(teacher)]
    edition: Version | None = None
    for number, settings in enumerate(students, start=1):
        if edition is None or recipe.select.when == "every_generation":
            corpus: Version | None = label(store, recipe.name, teacher.ref, pool, recipe.label, number, reading, progress)
            assert corpus is not None
            with this_process().main_process_first():
                edition = balance(store, corpus, selection, held_out, 1, pool, progress)
        else:
            corpus, edition = None, label_like(store, edition, teacher.ref, pool, recipe.label, number, reading, progress)
        student = train(store, teachers, settings, labeled, edition, pool, number, recipe.run, progress, validation)
        _measure(student, test, recipe, store, progress)
        generations.append(Generation(student, corpus, edition))
        teacher = student
    if recipe.control:
        name = f"{recipe.name}-control"
        control = train(store, name, students[-1], labeled, generation=0, run=recipe.run, progress=progress, validation=validation)
        _measure(control, test, recipe, store, progress)
        generations.append(Generation(control))
    return generations


def _check(recipe: Recipe, labeled: Source, *scored: Source | None) -> None:
    """What would stop a later generation stops the loop before its first."""
    check_trainable(labeled)
    check_trackers(recipe.run.tracker)
    check_classes(recipe.select, labeled.class_names or [])
    for settings in recipe.generations:
        check_names(settings)
    for source in filter(None, scored):
        match_classes(source.class_names or [], labeled.class_names or [], source.location, subset=True)


def _open(settings: SourceSettings, labeled: bool = False, indexes: Path | None = None) -> Source:
    return open_source(settings.source, labeled, settings.class_names, settings.image_column, indexes=indexes)


def _measure(teacher: Version, test: Source | None, recipe: Recipe, store: Store, progress: Progress) -> None:
    if test is not None:
        measure(store, teacher, test, "test", recipe.run, progress)
