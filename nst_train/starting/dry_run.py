"""What `nst run` would do: images, steps, time and disk space. Writes nothing."""

import math
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from nst_data.arguments import with_checked_arguments
from nst_data.cards.published import public_name
from nst_data.errors import NstError
from nst_data.progress import Progress, terminal_progress
from nst_data.settings import default_top_k
from nst_data.store.manifest import PREPARATION, Kind
from nst_data.store.store import Number, Store
from nst_train.networks.image_processors import preparation_changes
from nst_train.networks.outline import extra_settings
from nst_train.networks.weights import local_name
from nst_train.recipes.finished_run import OWN_START_NAMES
from nst_train.recipes.recipe import GenerationSettings, Network, Recipe
from nst_train.recipes.run_data import RecipeData
from nst_train.settings import TrainSettings
from nst_train.starting.choosing import why_unavailable
from nst_train.starting.looking import check_classes_are_readable
from nst_train.starting.states import FINISHED_STATES, State, States
from nst_train.starting.timing import Speed, measure_speed
from nst_train.teacher_names import pin_version
from nst_train.training.request import folder_digests
from nst_train.training.schedule import Schedule, equivalent_labeled_images
from nst_train.training.validation import default_interval_epochs

_ROW_BYTES = 100  # key, hashes and numbers of a label
_SAMPLE_SIZE = 64  # pool images whose size in bytes is sampled
_CHECKPOINT_COPIES = 4  # the network, its average, and AdamW's two moments


@dataclass(frozen=True)
class Stage:
    """One version that a recipe makes. Unknown values are None; `seconds` and `bytes_on_disk` cover the remaining work only."""

    ref: str
    what: str
    state: State
    images: int
    steps: int | None
    seconds: float | None
    bytes_on_disk: int | None
    bytes_of_work: int = 0  # temporary, in addition, until it is done
    refusal: str | None = None  # for a version that differs: the line with which the run refuses

    @property
    def is_left(self) -> bool:
        """Whether there is work left to do."""
        return self.state not in FINISHED_STATES


@dataclass(frozen=True)
class Estimate:
    """All stages in order, and the free disk space."""

    stages: list[Stage]
    free_bytes: int

    @property
    def seconds(self) -> float | None:
        """Time of all remaining work; None if a part is not known."""
        stage_seconds = [one.seconds for one in self.stages if one.is_left]
        return None if None in stage_seconds else sum(one for one in stage_seconds if one is not None)

    @property
    def bytes_on_disk(self) -> int:
        """Disk space of all remaining work, as far as known, including the temporary files of the largest stage."""
        remaining = [stage for stage in self.stages if stage.is_left]
        return sum(stage.bytes_on_disk or 0 for stage in remaining) + max((stage.bytes_of_work for stage in remaining), default=0)


@with_checked_arguments
def dry_run(store: Store, recipe: Recipe, *, progress: Progress | None = None) -> Estimate:
    """Report what `self_training` would do with a recipe. Times come from a few steps on this machine, now; nothing is written.

    Args:
        store: The store in which existing versions are found.
        recipe: The whole loop.
        progress: How progress is shown; by default as lines on standard error.

    Returns:
        A `Stage` for each version, in order.

    Raises:
        NstError: The run would refuse a source, a setting or a model.
    """
    progress = progress or terminal_progress()
    data = RecipeData.open(recipe, store, progress, writes=False)
    return Estimate(list(_Stages(store, recipe, data, progress).all()), _free_bytes(store.root))


def _derived_settings(settings: TrainSettings, classes: int) -> dict[str, Any]:
    """What a training adds to the settings in its request; empty if its network is not here or refused, which is reported on timing."""
    changed, model = dict[str, Any](), local_name(settings.model)
    folders = dict[str, Any]()
    with suppress(NstError):
        changed = preparation_changes(settings.model_copy(update={"model": model})) if model else {}
        folders = folder_digests(settings)
    preparation = {PREPARATION: changed} if changed else {}
    return preparation | extra_settings(settings, classes) | folders


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


@dataclass
class _Stages:
    store: Store
    recipe: Recipe
    data: RecipeData
    progress: Progress
    _speeds: dict[str, Speed | None] = field(default_factory=dict)
    _last_training: tuple[TrainSettings, int] | None = None  # the training before, with the number of images in a step
    _reported: set[str] = field(default_factory=set)
    _are_readable: bool = False  # whether the classes of the labeled images were checked

    @cached_property
    def _states(self) -> States:
        return States(self.store, self.recipe, self.data, self.progress)

    def all(self) -> Iterator[Stage]:
        """All versions of the recipe, in the order they are made."""
        has_teacher, is_selected = self.data.teacher is not None, False
        for number, group in groupby(self.recipe.networks, lambda network: network.generation):
            networks = list(group)
            if has_teacher:
                yield from self._label_stages(number, is_selected)
                is_selected = True
            for network in networks:
                yield from self._training_stages(network, network.store_name(self.recipe.name), number, has_teacher)
            has_teacher = True
        for network in networks if self.recipe.control else []:
            yield from self._training_stages(network, network.store_name(self.recipe.name, "control"), 0, with_pseudo=False)

    def _label_stages(self, number: int, is_selected: bool) -> Iterator[Stage]:
        """The labels of the pool and the selection by them; with `when: once`, later generations label the selected images only."""
        select, classes = self.recipe.select, len(self.data.class_names)
        rows = self._n_pool_rows
        selected = min(rows, select.per_class * classes) if isinstance(select.per_class, int) else rows
        label, balancing = self.recipe.label, select.balance_settings.for_request()
        if select.by and not is_selected:  # the speed of this model is not known
            plain = label.model_copy(update={"noise": False, "temperature": 1.0})
            yield self._label_stage("generation", Number(0), "label the pool", rows, plain.for_request(), is_timed=False)
            yield self._label_stage("edition", Number(0, 1), "select", selected, balancing)
        if select.when == "once" and (is_selected or select.by):
            yield self._label_stage("edition", Number(number, 1), "label again", selected, label.for_request())
            return
        yield self._label_stage("generation", Number(number), "label the pool", rows, label.for_request())
        yield self._label_stage("edition", Number(number, 1), "select", selected, balancing)

    def _label_stage(
        self, kind: Kind, number: Number, action: str, images: int, recipe_settings: dict[str, Any], is_timed: bool = True
    ) -> Stage:
        classes = len(self.data.class_names)
        top_k = self.recipe.label.top_k or default_top_k(classes)
        bytes_on_disk = images * (_ROW_BYTES + (6 * top_k if top_k else 2 * classes))
        ref, seconds = f"{self.recipe.name}@{number}", None
        state, refusal = self._states.state_of(kind, self.recipe.name, number, recipe_settings)
        if state in FINISHED_STATES:
            return Stage(ref, action, state, images, None, 0.0, 0)
        if action == "select":
            seconds = 0.0
            bytes_on_disk += images * self._bytes_per_image if self.recipe.select.embed_images else 0
        elif is_timed and self._last_training and (speed := self._measure_speed(*self._last_training)):
            seconds = images * speed.seconds_per_label
        return Stage(ref, action, state, images, None, seconds, bytes_on_disk, refusal=refusal)

    def _training_stages(self, network: Network, name: str, number: int, with_pseudo: bool) -> Iterator[Stage]:
        settings: GenerationSettings = network.settings
        if settings.finetune is None:
            yield self._training_stage(settings.first_training, name, number, with_pseudo)
            return
        yield self._training_stage(settings.first_training, f"{name}-before-finetuning", number, with_pseudo)
        yield self._training_stage(settings.finetune, name, number, with_pseudo=False)

    def _training_stage(self, settings: TrainSettings, name: str, number: int, with_pseudo: bool) -> Stage:
        if self.data.labeled is None:
            settings = settings.for_pseudo_only()
        labeled, per_step = len(self.data.labeled or []), settings.batch_size
        if with_pseudo:
            per_step = (0 if settings.pseudo_only else per_step) + settings.batch_size * settings.ratio
        if settings.start and settings.start not in OWN_START_NAMES:
            with suppress(NstError):  # it does not exist yet
                settings = settings.model_copy(update={"start": pin_version(settings.start, self.store)})
        self._last_training = settings, per_step
        steps = None if settings.probe else Schedule.of(settings, self._n_labeled(settings)).steps
        requested = settings.for_probe() if settings.probe else settings if with_pseudo else settings.for_labeled_only()
        requested = requested if self.data.validation and not settings.probe else requested.without_validation()
        request_settings = requested.for_request() | _derived_settings(requested, len(self.data.class_names))
        ref, (state, refusal) = f"{name}@{Number(number)}", self._states.state_of("teacher", name, Number(number), request_settings)
        action = f"{'probe' if settings.probe else 'train'} {public_name(settings.model)}"
        if state in FINISHED_STATES:
            return Stage(ref, action, state, labeled, steps, 0.0, 0)
        self._check_classes_are_readable()
        if (speed := self._measure_speed(settings, per_step)) is None:
            return Stage(ref, action, state, labeled, steps, None, None, refusal=refusal)
        weights, tested = 4 * speed.parameters, len(self.data.test or []) * speed.seconds_per_label
        if steps is None:
            features = labeled * (4 * speed.features + _ROW_BYTES)
            return Stage(ref, action, state, labeled, None, tested + labeled * speed.seconds_per_label, weights + features, refusal=refusal)
        steps_left = steps - (self._steps_done(name, number) if state == "begun" else 0)
        validated = self._n_validated(settings, steps_left, per_step) * speed.seconds_per_label
        seconds = tested + validated + steps_left * speed.seconds_per_step
        work = (self.recipe.run.keep_checkpoints + 1) * _CHECKPOINT_COPIES * weights
        return Stage(ref, action, state, labeled, steps, seconds, weights, work, refusal)

    def _check_classes_are_readable(self) -> None:
        """Check once, before the first unfinished training. Raises NstError like the training."""
        if self.data.labeled is not None and not self._are_readable:
            check_classes_are_readable(self.data.labeled)
            self._are_readable = True

    def _n_validated(self, settings: TrainSettings, steps: int, per_step: int) -> int:
        """The number of images scored by the validations during `steps` steps."""
        images, labeled = len(self.data.validation or []), self._n_labeled(settings)
        if not images:
            return 0
        epochs = settings.validate_every or default_interval_epochs(images, round(labeled * per_step) // settings.batch_size)
        return images * math.ceil(steps * settings.batch_size / (epochs * labeled))

    @property
    def _n_pool_rows(self) -> int:
        """The number of pool images that are labeled."""
        return min(len(self.data.pool), self.recipe.label.limit or len(self.data.pool))

    def _n_labeled(self, settings: TrainSettings) -> float:
        """The number of labeled images, or what replaces it if there are none: an edition has at most its quota of each class."""
        if self.data.labeled is not None:
            return len(self.data.labeled)
        quota = self.recipe.select.per_class
        return equivalent_labeled_images(quota * len(self.data.class_names) if isinstance(quota, int) else self._n_pool_rows, settings)

    @cached_property
    def _bytes_per_image(self) -> int:
        """The average over a sample of the pool; 0 if none can be read."""
        pool, sizes = self.data.pool, list[int]()
        for row in pool.rows(np.unique(np.linspace(0, len(pool) - 1, min(_SAMPLE_SIZE, len(pool))).astype(np.int64))):
            with suppress(OSError, NstError):
                sizes.append(len(row.read()))
        return sum(sizes) // max(1, len(sizes))

    def _measure_speed(self, settings: TrainSettings, per_step: int) -> Speed | None:
        """Time equal settings once; None if the network cannot be created here, which is reported once."""
        if settings.pretrained and (reason := why_unavailable(settings.model)):
            self._report_once(f"{settings.model}: its weights are not available now: {reason}; the run will need them")
        key = f"{settings.model_dump_json(exclude={'seed', 'steps', 'epochs', 'start', 'pretrained'})} {per_step}"
        if key not in self._speeds:
            try:
                images = self.data.labeled or self.data.pool
                names, of_recipe = self.data.class_names, (self.recipe.label, self.recipe.run)
                self._speeds[key] = measure_speed(settings, images, names, self.data.pool, per_step, *of_recipe)
            except NstError as error:
                self._speeds[key] = None
                self._report_once(f"{settings.model}: not timed: {error}")
        return self._speeds[key]

    def _report_once(self, line: str) -> None:
        if line not in self._reported:
            self._reported.add(line)
            self.progress.say(line)

    def _steps_done(self, name: str, number: int) -> int:
        """The last checkpoint of a training in progress."""
        step = self.store.describe_progress(f"{name}@{Number(number)}").removeprefix("step ").replace(",", "")
        return int(step) if step.isdigit() else 0
