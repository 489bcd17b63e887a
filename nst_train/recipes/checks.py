"""Checks before the first generation for anything that would stop a later one, and reports of settings that have no effect."""

from pathlib import Path
from typing import TypeVar

from nst_data.errors import NstError, UsageError
from nst_data.progress import Progress
from nst_data.selection.editions import check_known_classes
from nst_data.sources import Source, check_trainable, match_classes
from nst_data.store.store import Number, Store
from nst_train.classifiers.teachers import load_classifier
from nst_train.classifiers.zero_shot import check_zero_shot
from nst_train.device import this_device
from nst_train.evaluation.corruptions import MIN_SIDE_PX, check_opencv
from nst_train.evaluation.evaluate import load_candidate
from nst_train.evaluation.imagenet_classes import known_wnids, output_columns
from nst_train.evaluation.imagenet_suites import suite_wnids
from nst_train.evaluation.suites import open_suite
from nst_train.evaluation.trials import Trial
from nst_train.evaluation_settings import CORRUPTED, EXTRA_CORRUPTED
from nst_train.features.backbone import last_layer
from nst_train.networks.models import check_model_and_optimizer, published_size, takes_momentum
from nst_train.networks.outline import create_outline
from nst_train.noise_settings import Noise
from nst_train.recipes.dead_keys import idle_first_keys
from nst_train.recipes.recipe import Recipe
from nst_train.recipes.sections import EvaluationSettings
from nst_train.settings import TrainSettings
from nst_train.teacher_names import TeacherName, is_in_store
from nst_train.training.optimizer import check_optimizer
from nst_train.training.trackers import resolve_trackers
from nst_train.zero_shot_settings import ZeroShot


def report_idle_settings(recipe: Recipe, progress: Progress) -> None:
    """Report settings that have no effect but are not errors, since generations share them."""
    for key in idle_first_keys(recipe):
        progress.say(f"generations.0.{key} changes nothing: the first generation is trained on labeled images only")
    for network in recipe.networks:
        settings = network.settings
        if settings.momentum != TrainSettings.model_fields["momentum"].default and not takes_momentum(settings.optimizer):
            progress.say(f"{network.key}.momentum changes nothing: {settings.optimizer} has none")


def check_recipe(recipe: Recipe, labeled: Source | None, class_names: list[str], *scored: Source | None) -> None:
    """Raises NstError for settings, classes and networks that would stop a later generation."""
    if labeled is not None:
        check_trainable(labeled)
    resolve_trackers(recipe.run.tracker)
    check_known_classes(recipe.select, class_names)
    outlined: list[TrainSettings] = []
    for network in recipe.networks:
        for settings in filter(None, (network.settings.first_training, network.settings.finetune)):
            check_model_and_optimizer(settings)
            check_optimizer(settings, this_device())
            shape = settings.model_copy(update={"noise": Noise.none()} if settings.probe else {"seed": 0, "start": None})
            if shape not in outlined:
                outlined.append(shape)
                if (bare := create_outline(shape, len(class_names))) is not None and settings.probe:
                    last_layer(bare, len(class_names), settings.model)
    for network in recipe.networks if recipe.control else []:  # a control has no pseudo-labels
        settings = network.settings
        is_last = network.generation == recipe.networks[-1].generation
        if is_last and (settings.mixup or settings.cutmix) and settings.batch_size % 2:
            raise UsageError(
                f"{network.key}.batch_size: `mixup` and `cutmix` mix pairs of labeled images in a `control`; expected an even number, "
                f"found {settings.batch_size}"
            )
    for source in filter(None, scored):
        match_classes(source.class_names or [], class_names, source.location, subset=True)


N = TypeVar("N", bound=TeacherName)


def resolve_model(key: str, name: N, store: Store, class_names: list[str] | None) -> tuple[N | str, list[str]]:
    """The model at a key of a recipe, pinned to its version if it is in the store (a newer one may appear), and its classes.

    Raises NstError if it does not exist, or has other classes than the labeled images, if there are any.
    """
    pinned: N | str = name
    try:
        if isinstance(name, str) and is_in_store(name, store):
            version = store.open(name, "teacher")
            pinned, classes = version.ref, list(version.manifest.class_names)
        elif isinstance(name, ZeroShot):
            classes = check_zero_shot(name)
        else:
            classes = load_classifier(name, store)[0].class_names
        if class_names is not None:
            match_classes(classes, class_names, str(name), advice="Name a model with the classes of the labeled images")
    except NstError as error:
        raise type(error)(f"{key}: {error}") from None
    return pinned, classes


def check_selection(recipe: Recipe, store: Store) -> None:
    """Raises NstError if the first student's images were selected by its own teacher, before the recipe named another model."""
    first_student = next(network.generation for network in recipe.networks if network.generation)
    for version in store.versions(recipe.name) if recipe.select.by else []:
        if version.number == Number(first_student) and version.is_readable and version.manifest.kind == "generation":
            raise NstError(
                f"`select.by` {recipe.select.by}: in this store {recipe.name} selects by its own teacher ({version.ref}); "
                "give the recipe another `name`, or remove `by`"
            )


def check_reviews(recipe: Recipe, store: Store, class_names: list[str]) -> None:
    """Raises NstError if a review does not exist, or has other classes than the labeled images."""
    for ref in recipe.reviews.values():
        try:
            match_classes(store.open(ref, "review").manifest.class_names, class_names, ref, subset=True)
        except NstError as error:
            raise type(error)(f"reviews: {error}") from None


def check_evaluations(
    recipe: Recipe, store: Store, evaluations: list[tuple[EvaluationSettings, Path | Source]], class_names: list[str], location: str
) -> None:
    """Raises NstError for evaluations that the recipe's networks cannot run; `location` is where their classes come from."""
    for settings, data in evaluations:
        if {CORRUPTED, EXTRA_CORRUPTED} & set(settings.suite):
            _check_sizes(recipe)
        reference = settings.relative_to
        if reference and (reference != f"{recipe.name}-teacher@gen-0" or recipe.teacher) and isinstance(data, Source):
            Trial.from_source(reference, data, load_candidate(reference, store).classifier)
        if isinstance(data, Source):
            match_classes(data.class_names or [], class_names, data.location, subset=True)
        else:
            wnids = suite_wnids(settings.suite[0])
            shared_wnids = known_wnids(class_names, wnids) if settings.partial else []
            output_columns(class_names, shared_wnids or wnids, f"{location}, for {settings.suite[0]}")
            open_suite(settings.suite[0], data, settings)


def _check_sizes(recipe: Recipe) -> None:
    check_opencv()
    for network in recipe.networks:
        final = network.settings.finetune or network.settings
        size = final.test_size or final.image_size or published_size(final.model)
        if size is not None and size < MIN_SIDE_PX:
            raise UsageError(
                f"generation {network.generation}: corruptions require images of {MIN_SIDE_PX} px or more, found {size}; "
                "set a larger `test_size` or `image_size`, or remove them from `evaluate`"
            )
