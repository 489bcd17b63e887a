"""`nst balance`: from a generation of pseudo-labels to an edition, one training set with its counts."""

import itertools
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nst_data import cards
from nst_data.balance import REASONS, add_copies, judge
from nst_data.errors import NstError
from nst_data.manifest import Input, Request, SealedFile
from nst_data.overlap import HeldOut, Overlap, near_duplicates
from nst_data.progress import Progress
from nst_data.pseudo_labels import ShardPlan, TableReader, table_files, write_parquet
from nst_data.schema import (
    OVERLAP_COLUMNS,
    SELECTION_COLUMNS,
    balanced_schema,
    check_labels,
    check_overlap_columns,
    soft_label_bytes,
    top_k_of,
)
from nst_data.settings import BalanceSettings
from nst_data.sources import Source, open_source
from nst_data.store import Staging, Store, Version

SHARD_BYTES = 256 * 2**20


def balance(
    store: Store,
    generation: Version,
    settings: BalanceSettings,
    exclude: Sequence[Source] = (),
    edition: int | None = None,
    pool: Source | None = None,
    progress: Progress | None = None,
) -> Version:
    """Select and balance the pseudo-labels of a generation into a sealed edition.

    Images of an `exclude` source are dropped first, and their near-duplicates (section 3.1: the evaluation set's images). To compare
    those that may be some, the pool is read: `pool`, by default where the generation was labeled.
    """
    manifest = generation.manifest
    inputs = {"generation": Input(ref=generation.ref, digest=manifest.digest), "pool": manifest.request.inputs["pool"]}
    for index, source in enumerate(sorted(exclude, key=lambda source: source.images_fingerprint), start=1):
        inputs[f"exclude_{index}"] = Input(ref=source.location, digest=source.images_fingerprint)
    request = Request(kind="edition", settings=settings.for_request(), inputs=inputs)
    staging = store.begin(request, generation.folder.parent.name, generation.number.generation, edition)
    if isinstance(staging, Version):
        return staging
    since = time.monotonic()
    with staging.refusable():
        check_labels(_scan(generation.folder))
        held_out = HeldOut.read(exclude, not settings.exact_overlap_only, progress if exclude else None)
        near = _near_duplicates(store, generation, held_out, pool, progress) if len(held_out.index) else Overlap()
        selected, counts = _select(generation.folder, manifest.class_names, settings, held_out.image_hashes, near.image_hashes)
    counts["near_duplicates"] = {"compared": near.compared, "unreadable": near.unreadable}
    counts["teacher_parameters"] = manifest.counts["teacher_parameters"]
    counts["top_k"] = top_k_of(pq.read_schema(table_files(generation.folder, "pseudo_labels")[0]))
    files = _write(staging, generation.folder, selected, balanced_schema(manifest.class_names, counts["top_k"]))
    cards.write_edition_card(staging, manifest, counts)
    staging.add_seconds(since)
    return staging.seal(files, manifest.class_names, counts, {})


def _near_duplicates(store: Store, generation: Version, held_out: HeldOut, pool: Source | None, progress: Progress | None) -> Overlap:
    """Raises NstError where there are candidates and no pool to compare them in."""
    labeled = generation.manifest.request.inputs["pool"]

    def locate(candidates: pa.Table) -> tuple[Source, NDArray[np.int64]]:
        images = pool
        if images is None:
            try:
                images = open_source(labeled.ref, image_column=labeled.image_column, indexes=store.indexes)
            except NstError as error:
                raise NstError(
                    f"{error}. {candidates.num_rows:,} images of {generation.ref} may be near-duplicates of excluded ones and cannot be "
                    "compared; --pool says where they are now, --exact-overlap-only keeps them"
                ) from None
        is_same = images.fingerprint == labeled.digest
        return images, candidates["id"].to_numpy() if is_same else images.rows_of(candidates["key"].to_pylist())

    labels = TableReader(generation.folder, "pseudo_labels")
    check_overlap_columns(labels.schema)
    return near_duplicates(labels.batches(OVERLAP_COLUMNS.names), held_out, locate, progress)


def _scan(folder: Path) -> pl.LazyFrame:
    return pl.scan_parquet(folder / "pseudo_labels" / "*.parquet")


def _select(
    folder: Path, class_names: Sequence[str], settings: BalanceSettings, held_out: Collection[str], near: Collection[str]
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The selected rows (id, duplicates, copies) in pool order, and what happened to all rows."""
    judged = judge(_scan(folder).select(list(SELECTION_COLUMNS)), settings, held_out, near)
    selection = add_copies(judged.filter(pl.col("reason").is_null()), settings).sort("id")
    by_class, selected = pl.collect_all([judged.group_by("label", "reason").len(), selection])
    if selected.is_empty():
        raise NstError(
            f"{folder}: no image is left of {by_class['len'].sum()} ({_reasons(by_class)}); expected some with confidence above "
            f"{settings.min_confidence}; lower --min-confidence, train a better teacher or, where nothing was labeled, see errors/"
        )
    return selected.select("id", "duplicates", "copies"), _counts(by_class, selected, class_names)


def _counts(by_class: pl.DataFrame, selected: pl.DataFrame, class_names: Sequence[str]) -> dict[str, Any]:
    labeled, unique, entries = (dict(frame.sort("label").iter_rows()) for frame in _per_class(by_class, selected))
    names = list(enumerate(class_names))
    dropped = {reason: _dropped(by_class, reason) for reason in REASONS}
    return {
        "labeled": sum(labeled.values()),
        "dropped": dropped,
        "kept": sum(labeled.values()) - sum(dropped.values()) + dropped["over_quota"],
        "unique": selected.height,
        "copies": int(selected["copies"].sum()),
        "classes_without_images": [name for index, name in names if index not in unique],
        "per_class": {
            name: {"labeled": labeled.get(index, 0), "unique": unique.get(index, 0), "copies": entries.get(index, 0)}
            for index, name in names
        },
    }


def _per_class(by_class: pl.DataFrame, selected: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    return (
        by_class.group_by("label").agg(pl.col("len").sum()),
        selected.group_by("label").len(),
        selected.group_by("label").agg(pl.col("copies").cast(pl.Int64).sum()),
    )


def _dropped(by_class: pl.DataFrame, reason: str) -> int:
    return int(by_class.filter(pl.col("reason") == reason)["len"].sum())


def _reasons(by_class: pl.DataFrame) -> str:
    return ", ".join(f"{_dropped(by_class, reason)} {reason}" for reason in REASONS)


def _write(staging: Staging, generation: Path, selected: pl.DataFrame, schema: pa.Schema) -> dict[str, SealedFile]:
    """Carry the selected rows over, shard by shard: soft labels never stand in memory whole."""
    plan = ShardPlan(selected.height, min(1_000_000, SHARD_BYTES // soft_label_bytes(schema)), "balanced")
    tables = _rows_in_order(generation, selected.to_arrow(), schema)
    files = {}
    for shard in range(len(plan)):
        start, stop = plan.bounds(shard)
        part, tables = _take(tables, stop - start)
        files[plan.file(shard)] = write_parquet(staging.build / plan.file(shard), part, schema)
    return files


def _rows_in_order(generation: Path, selected: pa.Table, schema: pa.Schema) -> Iterator[pa.Table]:
    carried = [name for name in schema.names if name not in ("duplicates", "copies")]
    done = 0
    for file in table_files(generation, "pseudo_labels"):
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(columns=carried):
                table = pa.Table.from_batches([batch])
                mask = pa.compute.is_in(table["id"], value_set=selected["id"].combine_chunks())
                table = table.filter(mask)
                rows = selected.slice(done, table.num_rows)
                done += table.num_rows
                for name in ("duplicates", "copies"):
                    table = table.append_column(name, rows[name])
                yield table.select(schema.names).cast(schema)
    assert done == selected.num_rows, "every selected row is carried over"


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
