"""`nst balance`: from a generation of pseudo-labels to an edition, one training set with its counts."""

import difflib
import itertools
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nst_data import cards, engines
from nst_data.errors import NstError, UsageError
from nst_data.label_tables import damage_is_named, scan_labels
from nst_data.manifest import Input, Request, SealedFile
from nst_data.overlap import HeldOut, Overlap, near_duplicates
from nst_data.progress import Progress
from nst_data.pseudo_labels import ShardPlan, TableReader, table_files, write_parquet
from nst_data.schema import OVERLAP_COLUMNS, SELECTION_COLUMNS, balanced_schema, check_overlap_columns, soft_label_bytes, top_k_of
from nst_data.selection import REASONS, Selection, select
from nst_data.self_contained import write_self_contained
from nst_data.settings import BalanceSettings
from nst_data.sources import Source, open_source
from nst_data.store import Staging, Store, Version

SHARD_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Engine:
    """Where the selection is computed; shapes no data. `master` is Spark's."""

    name: engines.EngineName = "polars"
    master: str | None = None


def balance(
    store: Store,
    generation: Version,
    settings: BalanceSettings,
    exclude: Sequence[Source] = (),
    edition: int | None = None,
    pool: Source | None = None,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> Version:
    """Select and balance the pseudo-labels of a generation into a sealed edition.

    Images of an `exclude` source are dropped first, and their near-duplicates (section 3.1: the evaluation set's images). To compare
    those that may be some, or to write the images too, the pool is read: `pool`, by default where the generation was labeled.
    """
    manifest = generation.manifest
    _check_classes_are_known(settings, manifest.class_names)
    inputs = {"generation": Input(ref=generation.ref, digest=manifest.digest), "pool": manifest.request.inputs["pool"]}
    for index, source in enumerate(sorted(exclude, key=lambda source: source.images_fingerprint), start=1):
        inputs[f"exclude_{index}"] = Input(ref=source.location, digest=source.images_fingerprint)
    request = Request(kind="edition", settings=settings.for_request(), inputs=inputs)
    staging = store.begin(request, generation.folder.parent.name, generation.number.generation, edition)
    if isinstance(staging, Version):
        return staging
    since = time.monotonic()
    images = _Images(store, generation, pool)
    with _workspace(staging) as work:
        with staging.refusable():
            scan_labels(generation)  # checks its columns
            held_out = HeldOut.read(exclude, not settings.exact_overlap_only, progress if exclude else None)
            near = _near_duplicates(generation, held_out, images, progress) if len(held_out.index) else Overlap()
            selection = _select(generation, settings, held_out, near, work, engine or Engine())
            counts = _counts(selection, manifest.class_names, settings)
            if settings.embed_images:
                images.open("--embed-images needs them")
        counts["near_duplicates"] = {"compared": near.compared, "unreadable": near.unreadable}
        counts["teacher_parameters"] = manifest.counts["teacher_parameters"]
        counts["top_k"] = top_k_of(pq.read_schema(table_files(generation.folder, "pseudo_labels")[0]))
        files = _write(staging, generation, selection, settings, counts, images, progress)
    cards.write_edition_card(staging, manifest, counts)
    staging.add_seconds(since)
    return staging.seal(files, manifest.class_names, counts, {})


def _check_classes_are_known(settings: BalanceSettings, class_names: Sequence[str]) -> None:
    for name in (*settings.exclude_class, *settings.class_min_confidence):
        if name not in class_names:
            near = difflib.get_close_matches(name, class_names, n=1)
            known = (
                f"did you mean {near[0]!r}?"
                if near
                else f"expected one of {', '.join(class_names[:20])}{', ...' * (len(class_names) > 20)}"
            )
            raise UsageError(f"class {name!r}: the teacher knows none of this name; {known}")


@contextmanager
def _workspace(staging: Staging) -> Iterator[Path]:
    """A folder for what the selection computes on its way; of several processes each has its own."""
    folder = Path(tempfile.mkdtemp(prefix="selection.", dir=staging.work))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Images:
    """The images of a generation, opened when they are needed."""

    def __init__(self, store: Store, generation: Version, pool: Source | None) -> None:
        self._store, self._generation, self._pool = store, generation, pool

    @property
    def are_as_labeled(self) -> bool:
        """Whether a row's `id` is its place in the pool."""
        return self.open("").fingerprint == self._generation.manifest.request.inputs["pool"].digest

    def open(self, why: str) -> Source:
        """Raises NstError with `why` where the pool is not there."""
        labeled = self._generation.manifest.request.inputs["pool"]
        if self._pool is None:
            try:
                self._pool = open_source(labeled.ref, image_column=labeled.image_column, indexes=self._store.indexes)
            except NstError as error:
                raise NstError(f"{error}. {why}; --pool says where the images of {self._generation.ref} are now") from None
        return self._pool


def _near_duplicates(generation: Version, held_out: HeldOut, images: _Images, progress: Progress | None) -> Overlap:
    """Raises NstError where there are candidates and no pool to compare them in."""

    def locate(candidates: pa.Table) -> tuple[Source, NDArray[np.int64]]:
        pool = images.open(
            f"{candidates.num_rows:,} images of {generation.ref} may be near-duplicates of excluded ones and cannot be compared "
            "(--exact-overlap-only keeps them)"
        )
        return pool, candidates["id"].to_numpy() if images.are_as_labeled else pool.rows_of(candidates["key"].to_pylist())

    labels = TableReader(generation.folder, "pseudo_labels")
    check_overlap_columns(labels.schema)
    return near_duplicates(labels.batches(OVERLAP_COLUMNS.names), held_out, locate, progress)


def _select(generation: Version, settings: BalanceSettings, held_out: HeldOut, near: Overlap, work: Path, engine: Engine) -> Selection:
    files = table_files(generation.folder, "pseudo_labels")
    left_out = {"held_out": held_out.image_hashes, "near_held_out": near.image_hashes}
    with damage_is_named(generation.ref):
        labels = engines.scan(files, SELECTION_COLUMNS, engine.name, engine.master)
        return select(labels, settings, generation.manifest.class_names, left_out, work, generation.ref)


def _counts(selection: Selection, class_names: Sequence[str], settings: BalanceSettings) -> dict[str, Any]:
    """What happened to all rows. Raises NstError where none is left."""
    labeled = selection.labeled
    chosen = {label: (images, copies) for label, images, copies in selection.chosen.select("label", "images", "copies").iter_rows()}
    by_reason = dict(selection.dropped.group_by("reason").agg(pl.col("rows").sum()).iter_rows())
    dropped = {reason: by_reason.get(reason, 0) for reason in REASONS}
    unique = sum(images for images, _ in chosen.values())
    if not unique:
        reasons = ", ".join(f"{rows:,} {reason}" for reason, rows in dropped.items() if rows)
        raise NstError(
            f"no image is left of {sum(labeled.values()):,} ({reasons or 'nothing was labeled'}); expected some above the threshold of "
            "confidence; lower --min-confidence, train a better teacher or, where nothing was labeled, see errors/"
        )
    return {
        "labeled": sum(labeled.values()),
        "dropped": dropped,
        "kept": unique + dropped["over_quota"],
        "unique": unique,
        "copies": sum(copies for _, copies in chosen.values()),
        "quota": selection.quota,
        "classes_without_images": [
            name for index, name in enumerate(class_names) if index not in chosen and name not in settings.exclude_class
        ],
        "per_class": {
            name: dict(zip(("labeled", "unique", "copies"), (labeled.get(index, 0), *chosen.get(index, (0, 0))), strict=True))
            for index, name in enumerate(class_names)
        },
    }


def _write(
    staging: Staging,
    generation: Version,
    selection: Selection,
    settings: BalanceSettings,
    counts: dict[str, Any],
    images: _Images,
    progress: Progress | None,
) -> dict[str, SealedFile]:
    """Carry the selected rows over, shard by shard: soft labels never stand in memory whole."""
    class_names = generation.manifest.class_names
    schema = balanced_schema(class_names, counts["top_k"])
    tables = _rows_in_order(generation.folder, selection.files, schema)
    if settings.embed_images:
        with_images = balanced_schema(class_names, counts["top_k"], with_images=True)
        pool, is_same = images.open(""), images.are_as_labeled
        return write_self_contained(
            staging, tables, counts["unique"], pool, is_same, with_images, settings.shard_mb, settings.seed, progress
        )
    plan = ShardPlan(counts["unique"], min(1_000_000, SHARD_BYTES // soft_label_bytes(schema)), "balanced")
    files = {}
    for shard in range(len(plan)):
        start, stop = plan.bounds(shard)
        part, tables = _take(tables, stop - start)
        files[plan.file(shard)] = write_parquet(staging.build / plan.file(shard), part, schema)
    return files


def _rows_in_order(generation: Path, selected: Sequence[Path], schema: pa.Schema) -> Iterator[pa.Table]:
    """The selected rows with their soft labels, `duplicates` and `copies`. Both tables are in pool order, and read side by side."""
    added = ("duplicates", "copies")
    carried = [name for name in schema.names if name not in added]
    rest = _Selected(selected)
    for batch in TableReader(generation, "pseudo_labels").batches(carried):
        rows = rest.up_to(batch["id"][-1].as_py())
        places = np.searchsorted(batch["id"].to_numpy(), rows["id"].to_numpy())
        table = pa.Table.from_batches([batch]).take(places)
        for name in added:
            table = table.append_column(name, rows[name])
        yield table.select(schema.names).cast(schema)


class _Selected:
    """The selected rows, taken by increasing `id`."""

    def __init__(self, files: Sequence[Path]) -> None:
        columns = ["id", "duplicates", "copies"]
        self._batches = (pa.Table.from_batches([batch]) for file in files for batch in pq.ParquetFile(file).iter_batches(columns=columns))
        self._left = pa.schema([("id", pa.int64()), ("duplicates", pa.int32()), ("copies", pa.int32())]).empty_table()

    def up_to(self, row: int) -> pa.Table:
        """All that are left with an `id` up to this."""
        parts = [self._left]
        while not parts[-1].num_rows or parts[-1]["id"][-1].as_py() <= row:
            following = next(self._batches, None)
            if following is None:
                break
            parts.append(following)
        table = pa.concat_tables([part.select(self._left.column_names).cast(self._left.schema) for part in parts])
        count = int(np.searchsorted(table["id"].to_numpy(), row, side="right"))
        self._left = table.slice(count)
        return table.slice(0, count)


def _take(tables: Iterator[pa.Table], rows: int) -> tuple[list[pa.Table], Iterator[pa.Table]]:
    """The first `rows` rows of a stream of tables, and the rest of the stream."""
    taken = []
    for table in tables:
        if table.num_rows >= rows:
            taken.append(table.slice(0, rows))
            return taken, itertools.chain([table.slice(rows)], tables)
        taken.append(table)
        rows -= table.num_rows
    return taken, tables
