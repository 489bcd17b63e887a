"""`nst label`."""

from typing import TYPE_CHECKING, Annotated

import typer

from nst_data.progress import escape_unprintable
from nst_train.settings import LabelRunSettings, LabelSettings

from .messages import cli_progress
from .options import (
    MODEL_HELP,
    ImageColumnOption,
    JsonOption,
    LabelColumnOption,
    PromptsOption,
    StoreOption,
    StreamOption,
    ZeroShotNamesOption,
    labeled_option,
    open_labeled_images,
    open_models,
    open_store,
    open_version,
    print_json,
    with_settings,
)
from .tables import describe_empty_classes

if TYPE_CHECKING:
    from nst_data.sources import Source
    from nst_data.store.store import Store, Version

_MAX_NAMED = 3  # images without a label to name


@with_settings(settings=LabelSettings, run=LabelRunSettings)
def label(
    settings: LabelSettings,
    run: LabelRunSettings,
    pool: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            help="The pool: a folder of images, tar or parquet files, a .txt or .csv list, a saved dataset, owner/name on the Hub, or an "
            "address such as s3://BUCKET/FOLDER. "
            "With --like and --extend, by default the pool that was labeled.",
            show_default=False,
        ),
    ] = None,
    teacher: Annotated[
        list[str] | None, typer.Option(metavar="MODEL", help=MODEL_HELP + " Repeat for an ensemble (mean probability).")
    ] = None,
    corpus: Annotated[str | None, typer.Option(metavar="NAME", help="Corpus to add a generation to.")] = None,
    calibration: Annotated[
        str | None,
        typer.Option("--calibrate", metavar="SOURCE", help="Fit the temperature on labeled images that the teacher was not trained on."),
    ] = None,
    class_names: ZeroShotNamesOption = None,
    prompts: PromptsOption = None,
    label_column: LabelColumnOption = None,
    extend: Annotated[
        str | None,
        typer.Option(metavar="CORPUS@gen-N", help="Reuse the labels of this generation; label only images added to the pool since."),
    ] = None,
    like: Annotated[
        str | None, typer.Option(metavar="CORPUS@gen-N.K", help="Relabel the images of this edition, keeping its rows and copies.")
    ] = None,
    generation: Annotated[int | None, typer.Option(min=1, metavar="N", help="Generation number; by default the next free one.")] = None,
    image_column: ImageColumnOption = None,
    stream: StreamOption = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Label every image of a pool with an un-noised teacher. Resumes where it stopped when rerun."""

    opened_store = open_store(store)
    _check_usage(pool, teacher, corpus, calibration, class_names or prompts, label_column, extend, like, generation, settings)
    earlier = open_version(opened_store, extend, "generation") if extend else open_version(opened_store, like, "edition") if like else None
    images = _open_pool(pool, earlier, image_column, stream, opened_store)
    progress = cli_progress()
    from nst_train.labeling.label import extend as extend_generation
    from nst_train.labeling.label import label as label_pool
    from nst_train.labeling.label import label_like

    teachers = open_models(opened_store, teacher or [], class_names, prompts, allow_unused=calibration is not None)
    if extend and earlier:
        version = extend_generation(opened_store, earlier, images, run=run, progress=progress)
    elif earlier:
        version = label_like(opened_store, earlier, teachers, images, settings, generation=generation, run=run, progress=progress)
    else:
        assert corpus, "checked"
        labeled = open_labeled_images(calibration, class_names, teachers, label_column=label_column) if calibration else None
        version = label_pool(
            opened_store, corpus, teachers, images, settings, generation=generation, run=run, progress=progress, calibration=labeled
        )
    _print_result(version, json)


def _check_usage(
    source: str | None,
    teacher: list[str] | None,
    corpus: str | None,
    calibrate: str | None,
    text_options: str | None,
    label_column: str | None,
    extend: str | None,
    like: str | None,
    generation: int | None,
    settings: LabelSettings,
) -> None:
    """Raises UsageError for options that are missing or do not go together."""
    from nst_data.errors import UsageError

    if extend and like:
        raise UsageError("--extend and --like exclude each other; give one of them")
    if extend and (teacher or corpus or calibrate or text_options or generation or settings != LabelSettings()):
        raise UsageError(f"--extend {extend} uses that version's corpus, teacher and settings; give only SOURCE and execution options")
    if like and (corpus or calibrate):
        raise UsageError(f"--like {like}: remove --corpus, which it implies, and --calibrate; --temperature T is allowed")
    required = [("SOURCE", source or like), ("--teacher MODEL", teacher), ("--corpus NAME", corpus or like)]
    if not extend and (missing := [name for name, value in required if not value]):
        raise UsageError(f"nst label SOURCE --teacher MODEL --corpus NAME: {missing[0]} is missing")
    if label_column and not calibrate:
        raise UsageError("--label-column applies to --calibrate SOURCE; the pool itself has no labels")


def _open_pool(source: str | None, earlier: "Version | None", image_column: str | None, stream: bool, store: "Store") -> "Source":
    """Open the pool that the user names, or else the one that was labeled before."""
    from nst_data.sources import open_source
    from nst_data.sources.labeled_pool import open_labeled_pool

    if source:
        return open_source(source, image_column=image_column, stream=stream, indexes=store.indexes)
    assert earlier, "checked"
    hint = "was made from it; give its current location as `pool`"
    return open_labeled_pool(earlier, store.indexes, hint, image_column, stream, as_labeled=False)


def _unlabeled_lines(version: "Version") -> list[str]:
    """A line for each of the first images without a label, and where to find the others; reads local files only."""
    from nst_data.tables.label_tables import read_errors

    errors = read_errors(version.local_folder, version.ref)
    lines = [
        f"no label: {escape_unprintable(key)}: {escape_unprintable(reason)}"
        for key, reason in errors.select("key", "reason").head(_MAX_NAMED).iter_rows()
    ]
    return [*lines, *([f"{len(errors) - _MAX_NAMED:,} more in {version.local_folder / 'errors'}"] if len(errors) > _MAX_NAMED else [])]


def print_unlabeled(version: "Version") -> None:
    """Print how many images of a generation have no label, and why the first of them have none; nothing if all have one."""
    from nst_data.store.manifest import GenerationManifest

    if GenerationManifest.from_manifest(version.manifest).counts.errors:
        _print_labeled(version)


def _print_labeled(version: "Version") -> None:
    from nst_data.store.manifest import GenerationManifest

    counts = GenerationManifest.from_manifest(version.manifest).counts
    failures = f"{counts.errors - counts.no_answer:,} could not be read"
    failures += f", {counts.no_answer:,} got non-finite outputs from the teacher" if counts.no_answer else ""
    print(f"{version.ref}: {counts.labeled:,} of {counts.pool:,} images labeled, {failures}")
    for line in _unlabeled_lines(version) if counts.errors else []:
        print(f"  {line}")


def _print_result(version: "Version", json: bool) -> None:
    from nst_data.store.counts import EditionCounts
    from nst_data.store.manifest import GenerationManifest

    counts = version.manifest.counts
    if json:
        print_json({"ref": version.ref, "folder": version.location, "digest": version.manifest.digest, "counts": counts.model_dump()})
        return
    if isinstance(counts, EditionCounts):
        print(f"{version.ref}: {counts.unique:,} images labeled again, {counts.copies:,} entries")
        labeled = labeled_option(version.manifest.request.inputs)
        print(f"  {version.location}\n  next: nst train{labeled} --pseudo {version.ref} --model MODEL --name NAME")
        return
    counts = GenerationManifest.from_manifest(version.manifest).counts
    _print_labeled(version)
    if calibration := counts.calibration:
        before, after = calibration.ece_before, calibration.ece_after
        if calibration.at_edge:
            print("  warning: no temperature fits: on these images the teacher's outputs are uninformative, or all correct")
        if calibration.unreadable:
            print(f"  {calibration.unreadable:,} calibration images could not be read")
        if calibration.no_answer:
            print(f"  {calibration.no_answer:,} calibration images were skipped: the teacher's output for them is not finite")
        print(f"  temperature {calibration.temperature:.3f}: expected calibration error {100 * before:.1f}%, {100 * after:.1f}% with it")
    if empty := [name for name, images in counts.per_class.items() if not images]:
        print(f"  {describe_empty_classes(empty)}")
    print(f"  {version.location}\n  next: nst balance {version.ref} --per-class auto")
