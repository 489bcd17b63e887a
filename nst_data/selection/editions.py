"""`nst balance`: from a generation of pseudo-labels to an edition, one training set with its counts."""

import difflib
import itertools
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nst_data.arguments import with_checked_arguments
from nst_data.cards import cards
from nst_data.errors import NstError, UsageError
from nst_data.prefetch import cpus_of_this_process, map_batches_in_threads
from nst_data.progress import Progress, terminal_progress
from nst_data.reuse import reuse
from nst_data.selection.answered_rows import AnsweredRows
from nst_data.selection.overlap import HeldOut, Overlap, find_near_duplicates
from nst_data.selection.selected_rows import ADDED_COLUMNS, label_batches, rows_in_order
from nst_data.selection.selection import REASONS, UNANSWERED, Selection, select
from nst_data.self_contained.writing import has_chunks, shard_counts, write_self_contained
from nst_data.settings import BalanceSettings, ReadableSettings
from nst_data.sources import Source
from nst_data.sources.changes import ReadRecord
from nst_data.sources.labeled_pool import open_labeled_pool, pool_entry
from nst_data.sources.unreadable import check_readable
from nst_data.store.counts import ClassCounts, EditionCounts, NearDuplicates, describe_reason
from nst_data.store.files import clear_abandoned, temporary_path
from nst_data.store.inputs import EditionInputs, Input
from nst_data.store.manifest import EditionRequest, GenerationManifest, SealedFile
from nst_data.store.store import Number, Staging, Store, Version
from nst_data.store.version import check_not_anonymous
from nst_data.tables import engines
from nst_data.tables.label_tables import scan_labels, translate_table_errors
from nst_data.tables.review_table import REASONS as OF_REVIEW
from nst_data.tables.review_table import hashes_by_reason
from nst_data.tables.schema import (
    OVERLAP_COLUMNS,
    SELECTION_COLUMNS,
    balanced_schema,
    check_columns,
    pseudo_labels_schema,
    soft_label_bytes,
    top_k_of,
)
from nst_data.tables.shards import ShardPlan, table_files, write_parquet
from nst_data.tables.spark import Runner, SparkRunner

SHARD_BYTES = 256 * 2**20
_MAX_WRITERS = 3  # each holds a shard in memory
_OVERLAP_ADVICE = "choose a pool with images that are not excluded, or exclude fewer"
_ADVICE = {
    "held_out": _OVERLAP_ADVICE,
    "near_held_out": _OVERLAP_ADVICE,
    **dict.fromkeys(OF_REVIEW.values(), "label more images than people have answered about"),
    "excluded_class": "exclude fewer classes with `exclude_class`",
    "not_sampled": "raise `fraction`",
    "low_confidence": "lower `min_confidence`, or train a better teacher",
    "outside_range": "widen `confidence_range`",
    "over_quota": "raise `per_class`",
    UNANSWERED: "the teacher's output was not finite; relabel with another teacher or `precision` fp32",
}


@dataclass(frozen=True)
class Engine:
    """Where the selection is computed; this does not affect the data. `master` is Spark's."""

    name: engines.EngineName = "polars"
    master: str | None = None

    def __post_init__(self) -> None:
        """Raise UsageError for an unknown engine."""
        if self.name not in (names := get_args(engines.EngineName)):
            raise UsageError(f"`engine`: expected {' or '.join(map(repr, names))}, found {self.name!r}")


@with_checked_arguments
def balance(
    store: Store,
    version: Version | str,
    settings: BalanceSettings | None = None,
    *,
    exclude: Sequence[Source] = (),
    reviews: Version | str | None = None,
    pool: Source | None = None,
    edition: int | None = None,
    engine: Engine | None = None,
    max_unreadable: float = ReadableSettings().max_unreadable,
    progress: Progress | None = None,
) -> Version:
    """Select and balance the pseudo-labels of a generation into an edition: a training set (section 3.1 of the paper).

    The same call later returns the finished edition.

    Args:
        store: The store of both versions.
        version: A generation made by `label` or `adopt`, or its `name@gen-N`.
        settings: Which images are selected, and how often each occurs in the training set.
        exclude: Sources whose images are dropped, with their near-duplicates: images that a student is evaluated on.
        reviews: People's answers, `name@review-N`: images that they excluded are dropped, and so are those to which they gave a class,
            which `train` uses as labeled ones.
        pool: The labeled images, if they are no longer where they were labeled. They are read to compare candidate near-duplicates, and to
            embed them (`embed_images`).
        edition: Use this edition number, from 1, instead of the next free one.
        engine: What computes the selection: Polars or Spark, with the same result. A Spark session that runs in this process is used;
            otherwise one is started, and stopped after the selection.
        max_unreadable: Largest tolerated share of unreadable images, in [0, 1].
        progress: How progress is shown; by default lines on standard error.

    Returns:
        The sealed edition. Its table `balanced` has a row for each image, and `copies` says how often it is trained on; `manifest.counts`
        has the dropped images by reason.

    Raises:
        UsageError: The settings name a class that the teacher does not know, the pool cannot be opened, or images are to be excluded from
            anonymous labels.
        NstError: No image is left, too many of those that must be compared cannot be read, or Spark fails.
    """
    engine, max_unreadable = engine or Engine(), ReadableSettings(max_unreadable=max_unreadable).max_unreadable
    if engine.name == "spark" and store.address:
        raise UsageError(
            f"`engine` spark: {store.location} is on object storage, where Spark requires hadoop-aws and its own credentials; "
            "leave out `engine`, or balance in a store on a file system that Spark's workers share"
        )
    generation, settings = store.open(version, "generation"), settings or BalanceSettings()
    reviews = None if reviews is None else store.open(reviews, "review")
    progress, roles = progress or terminal_progress(), _sources_by_role(exclude)
    check_known_classes(settings, generation.manifest.class_names)
    if exclude or reviews:
        check_not_anonymous(generation, "balance")
    request = balance_request(generation, settings, exclude, pool, reviews)

    def check(sealed: Version) -> None:
        for role, source in roles.items():
            reading, remedy = ReadRecord(sealed.folder, role), f"`store.remove({sealed.ref!r})` and balance again"
            reading.check_unchanged(source, reading.stored_hashes(), f"{sealed.ref} was made", remedy, progress)

    number = None if edition is None else Number(generation.number.generation, edition)
    reuse_text = reuse(store, request, generation.name, number, progress, check)
    staging = store.find_or_stage(request, generation.name, generation.number.generation, edition)
    if isinstance(staging, Version):
        check(staging)
        progress.say(f"{staging.ref} {reuse_text}: same generation, images and settings")
        return staging
    for role, source in roles.items():
        ReadRecord(staging.build, role).record_stamps(source)
    images = _Images(store, generation, pool)
    return staging.run_as_worker(
        lambda: _build_edition(staging, generation, settings, exclude, reviews, images, progress, engine, max_unreadable)
    )


def balance_request(
    generation: Version,
    settings: BalanceSettings,
    exclude: Sequence[Source] = (),
    pool: Source | None = None,
    reviews: Version | None = None,
) -> EditionRequest:
    """The request that `balance` makes to the store."""
    entry = GenerationManifest.from_manifest(generation.manifest).request.inputs.pool
    excluded = excluded_inputs(exclude)
    answered = {"reviews": reviews.lineage} if reviews else {}
    inputs = EditionInputs(generation=generation.lineage, pool=pool_entry(entry, pool), **excluded, **answered)
    return EditionRequest(settings=settings.for_request(), inputs=inputs)


def excluded_inputs(exclude: Sequence[Source]) -> dict[str, Input]:
    """The entries for held-out sources in a request, by role."""
    return {role: Input(ref=source.location, digest=source.images_fingerprint) for role, source in _sources_by_role(exclude).items()}


def _sources_by_role(exclude: Sequence[Source]) -> dict[str, Source]:
    """The held-out sources by their role among the inputs, whatever the order in which they are given."""
    ordered = sorted(exclude, key=lambda source: source.images_fingerprint)
    return {f"exclude_{index}": source for index, source in enumerate(ordered, start=1)}


def check_known_classes(settings: BalanceSettings, class_names: Sequence[str]) -> None:
    """Raise UsageError for settings that name a class which the teacher does not know."""
    known_names = set(class_names)
    for option, names in (("`exclude_class`", settings.exclude_class), ("`class_min_confidence`", settings.class_min_confidence)):
        for name in names:
            if name not in known_names:
                matches = difflib.get_close_matches(name, class_names, n=1)
                hint = f"did you mean {matches[0]!r}?" if matches else f"expected one of {', '.join(class_names[:20])}"
                hint += ", ..." * (not matches and len(class_names) > 20)
                raise UsageError(f"{option}: the teacher has no class {name!r}; {hint}")


def _build_edition(
    staging: Staging,
    generation: Version,
    settings: BalanceSettings,
    exclude: Sequence[Source],
    reviews: Version | None,
    images: "_Images",
    progress: Progress,
    engine: Engine,
    max_unreadable: float,
) -> Version:
    started, class_names = time.monotonic(), generation.manifest.class_names
    with staging.discard_on_error(has_chunks), _workspace(staging) as work, _engine_context(engine, progress) as runner:
        top_k = _check_table(generation)
        with translate_table_errors(generation.ref):
            tables = table_files(generation.folder, "pseudo_labels")
            labels = runner.result(lambda: engines.scan(tables, SELECTION_COLUMNS, engine.name, engine.master))
        if settings.embed_images:
            images.open("`embed_images` writes the images too")
        with_near_duplicates, shown_progress = not settings.exact_overlap_only, progress if exclude else None

        def store_hashes(source: Source, hashes: NDArray[np.void]) -> None:
            role = next(role for role, excluded in _sources_by_role(exclude).items() if excluded is source)
            ReadRecord(staging.build, role).store_hashes(hashes)

        held_out = HeldOut.read(exclude, with_near_duplicates, shown_progress, None, max_unreadable, store_hashes)
        overlap = _find_near_duplicates(generation, held_out, images, progress) if len(held_out.index) else Overlap()
        check_readable(
            f"{generation.ref}: its pool",
            overlap.compared,
            overlap.unreadable,
            max_unreadable,
            overlap.first_unreadable,
            "candidate duplicates of excluded images",
        )
        excluded_hashes = {"held_out": held_out.image_hashes, "near_held_out": overlap.image_hashes}
        answered = AnsweredRows.from_review(generation, reviews, excluded_hashes) if reviews else None
        excluded_hashes |= hashes_by_reason(reviews) if reviews else {}
        with translate_table_errors(generation.ref):
            selection = runner.result(lambda: select(labels, settings, class_names, excluded_hashes, work, generation.ref))
        runner.close()  # what follows may take hours, in which a cluster can do other work
        counts = _edition_counts(selection, generation, settings, overlap, held_out.unreadable, top_k, answered)
        files = _write_selected(staging, generation, selection, settings, counts, images, progress)
        shards = {"shards": shard_counts([staging.build / name for name in files])} if settings.embed_images else {}
        if answered and len(answered):
            files |= answered.write(staging, images.open("") if settings.embed_images else None, images.ids_are_pool_rows)
    counts = EditionCounts(**counts.model_dump(), **shards)
    staging.add_seconds(started)
    manifest = staging.build_manifest(files, class_names, counts)
    cards.write_dataset_card(staging, manifest)
    return staging.seal(manifest)


def _engine_context(engine: Engine, progress: Progress) -> Runner:
    return SparkRunner(progress) if engine.name == "spark" else Runner()


@contextmanager
def _workspace(staging: Staging) -> Iterator[Path]:
    """A folder for intermediate results of the selection, a separate one for each process."""
    clear_abandoned(staging.work)
    folder = temporary_path(staging.work / "selection")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_table(generation: Version) -> int | None:
    """Check that all labels of a generation are there; return how many classes each soft label names, None for all. Raises NstError."""
    files = {f"pseudo_labels/{file.name}": file for file in table_files(generation.folder, "pseudo_labels")}
    sealed = {name for name in generation.manifest.files if name.startswith("pseudo_labels/")}
    if mismatched := sorted(files.keys() ^ sealed):
        problem = "is missing" if mismatched[0] in sealed else "was not there when the version was sealed"
        raise NstError(f"{generation.ref}: {mismatched[0]} {problem}; `store.open({generation.ref!r}).verify()` shows all that changed")
    (first_name, first_file), *_ = files.items()
    with translate_table_errors(f"{generation.ref}: {first_name}"):
        top_k = top_k_of(pq.read_schema(first_file))
    expected = pseudo_labels_schema(generation.manifest.class_names, top_k)
    for name, file in files.items():
        with translate_table_errors(f"{generation.ref}: {name}"):
            check_columns(file, expected, f"{generation.ref}: {name}")
    return top_k


class _Images:
    """The images of a generation, opened when they are needed."""

    def __init__(self, store: Store, generation: Version, pool: Source | None) -> None:
        self._store, self._generation, self._pool = store, generation, pool

    @property
    def ids_are_pool_rows(self) -> bool:
        """Whether a row's `id` is its row number in the pool."""
        return self.open("").fingerprint == GenerationManifest.from_manifest(self._generation.manifest).request.inputs.pool.digest

    def open(self, reason: str) -> Source:
        """Open the pool. Raises NstError with `reason` if it is not there."""
        if self._pool is None:
            self._pool = open_labeled_pool(
                self._generation, self._store.indexes, f"was made from it, and {reason}; pass its current location with `pool`"
            )
        return self._pool


def _find_near_duplicates(generation: Version, held_out: HeldOut, images: _Images, progress: Progress) -> Overlap:
    """Find near-duplicates. Raises NstError if there are candidates but no pool with their images."""

    def locate(candidates: pa.Table) -> tuple[Source, NDArray[np.int64]]:
        reason = f"{candidates.num_rows:,} images that may be near-duplicates of excluded ones must be compared"
        pool = images.open(f"{reason} (`exact_overlap_only` keeps them)")
        return pool, candidates["id"].to_numpy() if images.ids_are_pool_rows else pool.rows_of(candidates["key"].to_pylist())

    return find_near_duplicates(label_batches(generation, OVERLAP_COLUMNS.names), held_out, locate, progress)


def _edition_counts(
    selection: Selection,
    generation: Version,
    settings: BalanceSettings,
    overlap: Overlap,
    held_out_unreadable: int,
    top_k: int | None,
    answered: AnsweredRows | None,
) -> EditionCounts:
    """Count what happened to all rows. Raises NstError if none is left."""
    labeled, manifest = selection.labeled_counts, GenerationManifest.from_manifest(generation.manifest)
    class_names = manifest.class_names
    chosen = {
        label: (images, copies) for label, images, copies in selection.selected_counts.select("label", "images", "copies").iter_rows()
    }
    by_reason = dict(selection.dropped_counts.group_by("reason").agg(pl.col("rows").sum()).iter_rows())
    considered = (*REASONS, *(OF_REVIEW.values() if answered is not None else ()), *({UNANSWERED} & by_reason.keys()))
    dropped = {reason: by_reason.get(reason, 0) for reason in considered}
    unique = sum(images for images, _ in chosen.values())
    if not labeled:
        raise NstError(f"{generation.ref}: expected labels, found none: no image was labeled; its table errors says why")
    if not unique:
        reasons = ", ".join(f"{rows:,} {describe_reason(reason)}" for reason, rows in dropped.items() if rows)
        advice = "; ".join(dict.fromkeys(_ADVICE[reason] for reason, rows in dropped.items() if rows and reason in _ADVICE))
        if dropped["low_confidence"] == sum(labeled.values()):
            highest = scan_labels(generation).select(pl.col("confidence").max()).collect().item()
            advice += f"; the highest confidence is {highest:.7g}"
        raise NstError(f"{generation.ref}: 0 images are left of {sum(labeled.values()):,} ({reasons}); {advice}")
    per_class = {}
    for index, name in enumerate(class_names):
        images, copies = chosen.get(index, (0, 0))
        per_class[name] = ClassCounts(labeled=labeled.get(index, 0), unique=images, copies=copies)
    return EditionCounts(
        labeled=sum(labeled.values()),
        dropped=dropped,
        kept=unique + dropped["over_quota"],
        unique=unique,
        copies=sum(copies for _, copies in chosen.values()),
        quota=selection.quota,
        classes_without_images=[name for name, row in per_class.items() if not row.unique and name not in settings.exclude_class],
        per_class=per_class,
        near_duplicates=NearDuplicates(compared=overlap.compared, unreadable=overlap.unreadable),
        held_out_unreadable=held_out_unreadable,
        answered=len(answered) if answered else 0,
        teacher_parameters=manifest.counts.teacher_parameters,
        top_k=top_k,
    )


def _write_selected(
    staging: Staging,
    generation: Version,
    selection: Selection,
    settings: BalanceSettings,
    counts: EditionCounts,
    images: _Images,
    progress: Progress,
) -> dict[str, SealedFile]:
    """Write the selected rows shard by shard, so that the soft labels are never all in memory."""
    class_names = generation.manifest.class_names
    schema = balanced_schema(class_names, counts.top_k)
    tables = rows_in_order(generation, selection.files, schema)
    if settings.embed_images:
        for _ in label_batches(generation, [name for name in schema.names if name not in ADDED_COLUMNS]):
            pass  # reject an invalid table now, not after hours of reading images
        with_images = balanced_schema(class_names, counts.top_k, with_images=True)
        pool, ids_are_pool_rows = images.open(""), images.ids_are_pool_rows
        return write_self_contained(
            staging, tables, counts.unique, pool, ids_are_pool_rows, with_images, settings.shard_mb, settings.seed, progress
        )
    plan = ShardPlan(counts.unique, min(1_000_000, SHARD_BYTES // soft_label_bytes(schema)), "balanced")

    def write(shard: tuple[str, list[pa.Table]]) -> SealedFile:
        return write_parquet(staging.build / shard[0], shard[1], schema, staging.work)

    threads = min(_MAX_WRITERS, cpus_of_this_process())
    return {name: sealed for (name, _), sealed in map_batches_in_threads(write, _shard_tables(plan, tables), threads)}


def _shard_tables(plan: ShardPlan, tables: Iterator[pa.Table]) -> Iterator[tuple[str, list[pa.Table]]]:
    """Yield each shard's path and rows."""
    for shard in range(len(plan)):
        shard_tables, tables = _split_stream(tables, plan.size(shard))
        yield plan.file(shard), shard_tables
    for _ in tables:
        pass  # rows after the last selected one are checked like the rest


def _split_stream(tables: Iterator[pa.Table], n_rows: int) -> tuple[list[pa.Table], Iterator[pa.Table]]:
    """The first `n_rows` rows of a stream of tables, and the rest of the stream."""
    first_tables = []
    for table in tables:
        if table.num_rows >= n_rows:
            first_tables.append(table.slice(0, n_rows))
            return first_tables, itertools.chain([table.slice(n_rows)], tables)
        first_tables.append(table)
        n_rows -= table.num_rows
    return first_tables, tables
