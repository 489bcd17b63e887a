"""`nst balance`."""

import math
from typing import TYPE_CHECKING, Annotated

import typer

from nst_data.settings import BalanceSettings, ReadableSettings

from .messages import cli_progress
from .options import ImageColumnOption, JsonOption, StoreOption, labeled_option, open_store, open_version, print_json, with_settings
from .tables import describe_empty_classes

if TYPE_CHECKING:
    from nst_data.store.counts import ClassCounts, EditionCounts

_MANY_COPIES = 100  # of one image: results from the paper's quota on a small pool, and is hardly ever intended


@with_settings(settings=BalanceSettings, run=ReadableSettings)
def balance(
    ref: Annotated[str, typer.Argument(metavar="CORPUS@gen-N", help="The generation to select from; CORPUS alone means its newest.")],
    settings: BalanceSettings,
    run: ReadableSettings,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="SOURCE", help="Leave out this source's images and their near-duplicates. Repeatable.")
    ] = None,
    reviews: Annotated[
        str | None,
        typer.Option(
            metavar="CORPUS@review-N",
            help="Leave out reviewed images; nst train --reviews uses those with a class as labeled.",
        ),
    ] = None,
    pool: Annotated[str | None, typer.Option(metavar="SOURCE", help="The generation's images, if they have moved since labeling.")] = None,
    edition: Annotated[int | None, typer.Option(min=1, metavar="N", help="Edition number; by default the next free one.")] = None,
    engine: Annotated[str, typer.Option(metavar="polars|spark", help="Engine of the selection; both give the same result.")] = "polars",
    master: Annotated[
        str | None, typer.Option(metavar="URL", help="Spark master: local[4], spark://HOST:PORT, yarn; by default Spark's own setting.")
    ] = None,
    image_column: ImageColumnOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Turn pseudo-labels into a training set: filter by confidence, keep the most confident of each class, copy images of small classes."""
    from nst_data.errors import UsageError
    from nst_data.selection.editions import Engine
    from nst_data.selection.editions import balance as balance_generation
    from nst_data.sources import open_source
    from nst_data.store.manifest import EditionManifest, GenerationManifest

    opened_store = open_store(store)
    generation = open_version(opened_store, ref, "generation")
    if not exclude and settings.exact_overlap_only:
        raise UsageError("--exact-overlap-only requires --exclude SOURCE")
    if image_column and not exclude:
        raise UsageError("--image-column applies to --exclude SOURCE; add it, or remove --image-column")
    if pool and not exclude and not settings.embed_images:
        raise UsageError("--pool applies to --exclude SOURCE and --embed-images; add one of them, or remove --pool")
    if engine not in ("polars", "spark"):
        raise UsageError(f"--engine {engine}: expected polars or spark")
    if master and engine != "spark":
        raise UsageError("--master requires --engine spark")
    held_out = [open_source(source, image_column=image_column) for source in exclude or []]
    inputs = GenerationManifest.from_manifest(generation.manifest).request.inputs
    images = open_source(pool, image_column=inputs.pool.image_column, indexes=opened_store.indexes) if pool else None
    chosen = Engine("spark" if engine == "spark" else "polars", master)
    progress, allowed = cli_progress(), run.max_unreadable
    version = balance_generation(
        opened_store,
        generation,
        settings,
        exclude=held_out,
        reviews=open_version(opened_store, reviews, "review") if reviews else None,
        edition=edition,
        pool=images,
        progress=progress,
        engine=chosen,
        max_unreadable=allowed,
    )
    counts = EditionManifest.from_manifest(version.manifest).counts
    if json:
        print_json({"ref": version.ref, "folder": version.location, "digest": version.manifest.digest, "counts": counts.model_dump()})
        return
    print(f"{version.ref}: {counts.copies:,} entries from {counts.unique:,} of {counts.labeled:,} images")
    _print_counts(counts, settings)
    option = f" --reviews {reviews}" if reviews else ""
    first = "the same command with --per-class auto, or " if _max_copies(counts, settings) > _MANY_COPIES else ""
    print(
        f"  {version.location}\n  next: {first}nst train{labeled_option(inputs)} --pseudo {version.ref}{option} --model MODEL --name NAME"
    )


def _included_classes(counts: "EditionCounts", settings: BalanceSettings) -> "list[ClassCounts]":
    return [of_class for name, of_class in counts.per_class.items() if name not in settings.exclude_class]


def _max_copies(counts: "EditionCounts", settings: BalanceSettings) -> int:
    """How often the most repeated image occurs in the edition; 0 without a quota."""
    return (
        max(math.ceil(of_class.copies / of_class.unique) for of_class in _included_classes(counts, settings) if of_class.unique)
        if counts.quota
        else 0
    )


def _print_counts(counts: "EditionCounts", settings: BalanceSettings) -> None:
    from nst_data.store.counts import describe_reason

    dropped = [f"{rows:,} {describe_reason(reason)}" for reason, rows in counts.dropped.items() if rows]
    print("  dropped: " + (", ".join(dropped) or "none"))
    if quota := counts.quota:
        per_class, max_copies = _included_classes(counts, settings), _max_copies(counts, settings)
        n_fewer = sum(class_counts.copies < quota for class_counts in per_class)
        about = "" if settings.method == "exact" else "about "  # copies are rounded at random
        note = f"; fewer in {n_fewer:,} of {len(per_class):,} classes" if n_fewer and not about else ""
        print(
            f"  {about}{quota:,} {'entries' if quota > 1 else 'entry'} per class, an image up to {max_copies:,} "
            f"time{'s' * (max_copies > 1)}{note}"
        )
        if max_copies > _MANY_COPIES:
            print(f"  warning: {max_copies:,} copies of one image; --per-class auto makes as many entries as the median class has images")
    if counts.near_duplicates and counts.near_duplicates.unreadable:
        print(f"  warning: {counts.near_duplicates.unreadable:,} candidate near-duplicates could not be read in the pool, and were kept")
    if counts.held_out_unreadable:
        print(f"  warning: {counts.held_out_unreadable:,} excluded images could not be read; this edition may contain copies of them")
    if empty := counts.classes_without_images:
        print(f"  {describe_empty_classes(empty)}")
