"""`nst train`."""

import shlex
from collections.abc import Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nst_train.settings import PROBE_SETTINGS, PSEUDO_LABEL_SETTINGS, RunSettings, TrainSettings

from .messages import cli_progress
from .options import (
    ClassNamesOption,
    HoldoutSeedOption,
    ImageColumnOption,
    JsonOption,
    LabelColumnOption,
    ShowSettingsOption,
    StoreOption,
    check_holdout,
    open_store,
    open_version,
    option_name,
    prefix_of,
    print_json,
    with_settings,
)
from .show_settings import print_settings, settings_report

if TYPE_CHECKING:
    from nst_data.self_contained.remote import StreamedEdition
    from nst_data.sources import Source
    from nst_data.store.counts import TeacherCounts
    from nst_data.store.store import Store, Version


@with_settings(settings=TrainSettings, run=RunSettings)
def train(
    settings: TrainSettings,
    run: RunSettings,
    given: dict[str, dict[str, Any]],
    labeled: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE", help="Labeled images: class folders, or a label column. Repeatable. Not needed with --pseudo."),
    ] = None,
    holdout: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Hold out this share of each class for testing: the split that a recipe's `holdout` makes."),
    ] = None,
    holdout_seed: HoldoutSeedOption = 0,
    name: Annotated[
        str | None,
        typer.Option(metavar="TEACHER", help="Name for the trained model (required); a student is the next teacher."),
    ] = None,
    pseudo: Annotated[str | None, typer.Option(metavar="CORPUS@gen-N.K", help="An edition of pseudo-labels: trains a student.")] = None,
    stream: Annotated[
        bool,
        typer.Option("--stream", help="Stream an edition with images from the Hub or an address, keeping a few shards on disk at a time."),
    ] = False,
    pool: Annotated[str | None, typer.Option(metavar="SOURCE", help="The edition's images, if they have moved since labeling.")] = None,
    reviews: Annotated[
        str | None,
        typer.Option(
            metavar="CORPUS@review-N",
            help="Reviewed labels: they replace those of labeled images, and reviewed pool images become labeled.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE", help="Do not train on these images; with --reviews, without --pseudo. Repeatable."),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Labeled images to select the best weights by; without them the last weights are kept."),
    ] = None,
    generation: Annotated[int | None, typer.Option(min=0, metavar="N", help="Generation number; by default the next free one.")] = None,
    class_names: ClassNamesOption = None,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    store: StoreOption = None,
    show_settings: ShowSettingsOption = False,
    json: JsonOption = False,
) -> None:
    """Train a teacher on labeled images, or a noised student on labeled and pseudo-labeled ones. The defaults are the paper's."""
    from nst_data.errors import UsageError
    from nst_data.sources import open_source

    check_holdout(holdout, holdout_seed)
    if holdout and labeled is None:
        raise UsageError("--holdout applies to labeled images; add them with --labeled SOURCE, or remove it")
    opened_store = open_store(store)
    open_labeled = partial(open_source, labeled=True, class_names=class_names, image_column=image_column, label_column=label_column)
    edition = _open_edition(opened_store, pseudo, stream)
    student = edition is not None or (show_settings and labeled is None)
    _check_option_use(settings, given["settings"], student, pool is not None and reviews is None, validation is not None)
    if show_settings:
        images = open_labeled(labeled) if labeled else None
        if images and holdout:
            from nst_train.holdout import hold_out_across_processes

            images, _ = hold_out_across_processes(images, holdout, holdout_seed, opened_store, cli_progress(), writes=False)
        report = settings_report(settings, run, given, partial(_as_option, given["settings"]), images, edition, student)
        (print_json if json else print_settings)(report)
        return
    if name is None or (labeled is None and edition is None):
        raise UsageError(f"{'--name TEACHER' if labeled or edition else '--labeled SOURCE'} is missing; see `nst train --help`")
    columns = {"--class-names": class_names, "--image-column": image_column, "--label-column": label_column}
    if labeled is None and validation is None and (unused := [option for option, value in columns.items() if value]):
        raise UsageError(f"{unused[0]} applies to labeled images; add them with --labeled SOURCE, or remove it")
    images = open_labeled(labeled) if labeled else None
    validation_images = open_labeled(validation) if validation else None
    pool_images = _open_pool(pool, edition, opened_store)
    from nst_data.store.store import Version
    from nst_train.holdout import hold_out_across_processes, warn_if_not_excluded
    from nst_train.networks.models import check_model_and_optimizer, takes_momentum
    from nst_train.training.train import train as train_network

    progress = cli_progress()
    check_model_and_optimizer(settings)
    if "momentum" in given["settings"] and not takes_momentum(settings.optimizer):
        progress.say(f"--momentum has no effect: {settings.optimizer} does not use momentum")
    excluded = [open_source(source, image_column=image_column) for source in exclude or []]
    if images and holdout:
        all_images = images
        images, held_out = hold_out_across_processes(images, holdout, holdout_seed, opened_store, progress)
        if isinstance(edition, Version):
            warn_if_not_excluded(edition, opened_store, all_images, held_out, progress)
        excluded = [held_out, *excluded] if reviews and edition is None else excluded  # the pool may contain them too, reviewed
    version = train_network(
        opened_store,
        name,
        images,
        settings,
        pseudo=edition,
        pool=pool_images,
        reviews=open_version(opened_store, reviews, "review") if reviews else None,
        exclude=excluded,
        generation=generation,
        run=run,
        progress=progress,
        validation=validation_images,
    )
    _print_trained(version, json, _holdout_options(labeled, holdout, holdout_seed, columns) or "--data SOURCE")


def _print_trained(version: "Version", json: bool, evaluate_options: str) -> None:
    """Print what was trained and which commands may come next; `evaluate_options` are options of `nst evaluate`."""
    from nst_data.store.manifest import TeacherManifest

    counts = TeacherManifest.from_manifest(version.manifest).counts
    if json:
        print_json({"ref": version.ref, "folder": version.location, "digest": version.manifest.digest, "counts": counts.model_dump()})
        return
    print(f"{version.ref}: {counts.parameters:,} parameters{_training_summary(counts)}")
    print(f"  {version.location}\n  next: nst evaluate {version.ref} {evaluate_options}", end="")
    print(f", or nst label POOL --teacher {version.ref} --corpus NAME")


def _holdout_options(labeled: list[str] | None, holdout: float | None, seed: int, columns: Mapping[str, str | None]) -> str:
    """The options of `nst evaluate` that measure on the images held out here; empty if they come from several sources."""
    if not holdout or labeled is None or len(labeled) != 1:
        return ""
    options = {"--data": labeled[0], "--holdout": str(holdout), "--holdout-seed": str(seed) if seed else None, **columns}
    return " ".join(f"{option} {shlex.quote(value)}" for option, value in options.items() if value)


def _check_option_use(settings: TrainSettings, user_settings: Collection[str], student: bool, has_pool: bool, validates: bool) -> None:
    """Raises UsageError for an option from the command line (`user_settings`) that has no effect."""
    from nst_data.errors import UsageError

    if not student and (has_pool or any(option in user_settings for option in PSEUDO_LABEL_SETTINGS)):
        options = "--pool, --ratio, --loss, --hard and --pseudo-..."
        raise UsageError(f"{options} apply to pseudo-labeled images; add an edition with --pseudo CORPUS@gen-N.K")
    if not validates and "validate_every" in user_settings:
        raise UsageError("--validate-every applies to validation images; add them with --validation SOURCE")
    if settings.probe and (unused := [name for name in user_settings if name not in PROBE_SETTINGS]):
        raise UsageError(f"{option_name(unused[0])} has no effect with --probe, which fits only the last layer; remove it")


def _training_summary(counts: "TeacherCounts") -> str:
    """How the weights were obtained, as the end of a sentence."""
    if probe := counts.probe:
        chosen = f", the best over {probe.folds} folds" if probe.folds else ""
        return f", the last layer fitted on {counts.labeled:,} images (C = {probe.strength:.3g}{chosen})"
    best = f", the weights of step {counts.best_step:,}, best on the validation images" if counts.best_step is not None else ""
    return f" after {counts.steps:,} step{'s' * (counts.steps != 1)}{best}"


def _as_option(user_values: Mapping[str, Any], path: str) -> str:
    *outer, name = path.split(".")
    option = option_name("".join([*map(prefix_of, outer), name]))
    return option.replace("--", "--no-", 1) if user_values.get(path) is False else option


def _open_edition(store: "Store", ref: str | None, stream: bool) -> "Version | StreamedEdition | None":
    """Open the edition from the store or the Hub; with `stream`, only its manifest is fetched."""
    from nst_data.errors import UsageError

    if not stream:
        return open_version(store, ref, "edition") if ref else None
    if ref is not None and "/" not in ref and store.address is not None:
        ref = store.open(ref, "edition").location
    if ref is None or "/" not in ref:
        found_text = f", found {ref}, which is in the store" if ref else ""
        raise UsageError(
            f"--stream: expected an edition on the Hub or at an address, --pseudo OWNER/NAME@gen-N.K{found_text}; pass one, or remove "
            "--stream"
        )
    from nst_data.self_contained.remote import StreamedEdition

    return StreamedEdition.open(ref, cli_progress())


def _open_pool(location: str | None, edition: "Version | StreamedEdition | None", store: "Store") -> "Source | None":
    """Open the pool that the user names. Raises UsageError if it is required, before a network library is imported."""
    if location is None:
        from nst_data.self_contained.images import needs_pool
        from nst_data.sources.labeled_pool import EDITION_HINT, check_pool_is_own
        from nst_data.store.version import Version

        if isinstance(edition, Version) and needs_pool(edition):
            check_pool_is_own(edition, EDITION_HINT)
        return None
    from nst_data.sources import open_source
    from nst_data.store.manifest import EditionManifest

    image_column = EditionManifest.from_manifest(edition.manifest).request.inputs.pool.image_column if edition else None
    return open_source(location, image_column=image_column, indexes=store.indexes)
