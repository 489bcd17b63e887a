"""Turning labels made elsewhere into a generation: checked, joined with images that are each read once, and sealed."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nst_data.arguments import with_checked_arguments
from nst_data.errors import NstError, UsageError
from nst_data.images import check_shape, decode, image_hash, phash, phash_thumbnail
from nst_data.label_files.choosing import ColumnOptions
from nst_data.label_files.opening import LabelTable, is_label_file, labels_of_source, open_labels
from nst_data.labeled_version import LabeledVersion, check_unchanged
from nst_data.prefetch import map_in_threads
from nst_data.progress import Progress, Task, terminal_progress
from nst_data.selection.overlap import DECODED_SIDE_PX
from nst_data.settings import ROWS_PER_SHARD, AdoptSettings, ReadableSettings
from nst_data.sources import Row, Source, open_source
from nst_data.sources.labels import ClassNames, names_origin, read_class_names
from nst_data.store.counts import GenerationCounts, LabelCounts
from nst_data.store.files import format_size, space_warning
from nst_data.store.inputs import GenerationInputs, Input
from nst_data.store.manifest import GenerationRequest, json_digest
from nst_data.store.store import Store, Version
from nst_data.tables.averaged_labels import AveragedLabels, AveragedTable
from nst_data.tables.key_column import KeyColumn, MatchedRows
from nst_data.tables.label_reader import AdoptableLabels, LabelReader, create_label_reader
from nst_data.tables.schema import pseudo_labels_schema, soft_label_bytes
from nst_data.tables.shards import ShardPlan, Shards, ShardWriter
from nst_data.tables.soft_labels import as_columns

_BATCH_SIZE = 512
_ROW_BYTES = 100  # key, hashes and numbers of a row


@with_checked_arguments
def adopt(
    store: Store,
    corpus: str,
    table: Source | str | Path | Sequence[Source | str | Path],
    *,
    probs: str | None = None,
    label_column: str | None = None,
    logits: bool = False,
    smoothing: float = 0.0,
    key: str | None = None,
    pool: Source | None = None,
    class_names: ClassNames | None = None,
    teacher: str | None = None,
    top_k: int | None = None,
    rows_per_shard: int = ROWS_PER_SHARD,
    generation: int | None = None,
    max_unreadable: float = ReadableSettings().max_unreadable,
    progress: Progress | None = None,
) -> Version:
    """Seal labels that were made elsewhere as a generation of `corpus`.

    All labels are checked before any work starts, and copied to a temporary file while the images are read, once each. After an
    interruption, completed work is not repeated. Memory: 24 bytes per row with keys, otherwise constant.

    Args:
        store: Where the generation is kept.
        corpus: The name that gets a new generation.
        table: The labels, as a source or a location: a CSV, TSV, JSON or JSON lines file, parquet files, a folder saved by `datasets`,
            `owner/name` on the Hub, class folders, or tar files. Without `pool` it must include the images. If several are given together
            with `pool`, their mean is taken, with classes matched by name.
        probs: The table's column of probabilities: a list for all classes, in order, or numbers that go with the classes in
            `label_column`; `prob` also stands for `prob_0`, `prob_1`, ... By default a column named `probs`, `prob`, `score`, `confidence`
            or similar.
        label_column: The table's column of classes, by name or number: one class, or a list of the most probable; or a field of labels with
            their scores. By default a column named `label`, `class`, `index` or similar.
        logits: The numbers are logits; apply softmax.
        smoothing: For labels without a confidence: the share of the probability that is spread evenly over all classes, in [0, 1).
        key: The table's column that identifies the image of each row: by the key, path or file name of one image of `pool`, or by its
            `image_hash`. Images of `pool` that are not listed stay unlabeled. By default a column named `filename`, `path`, `image` or
            similar.
        pool: The source of the images that the table refers to.
        class_names: The class names in the order of their numbers, or a file with one per line; by default the table's own, or those that
            occur.
        teacher: The model that made the labels, such as `hf-hub:OWNER/NAME`.
        top_k: Keep this many of the largest probabilities; by default all that a row lists, or 100 if it lists one for each of more than
            1,000 classes.
        rows_per_shard: Rows per parquet shard; progress is saved after each shard.
        generation: Use this generation number, from 1, instead of the next free one.
        max_unreadable: Largest tolerated share of unreadable images, in [0, 1].
        progress: How progress is shown; by default lines on standard error.

    Returns:
        The sealed generation. Each row is in its table `pseudo_labels` or, with the reason, in `errors`.

    Raises:
        UsageError: The arguments contradict each other, or class names are missing.
        NstError: Soft labels, keys or images are invalid; unreadable images are read again when the call is repeated.
    """
    max_unreadable = ReadableSettings(max_unreadable=max_unreadable).max_unreadable
    settings = AdoptSettings(
        probs=probs, label_column=label_column, logits=logits, smoothing=smoothing, key=key, top_k=top_k, rows_per_shard=rows_per_shard
    )
    progress = progress or terminal_progress()
    if key and pool is None:
        raise UsageError("`key` refers to images; add `pool` SOURCE, or remove it if the table holds the images")
    custom_names = read_class_names(class_names) if class_names is not None else None
    request = ColumnOptions(probs, label_column, key, logits, custom_names)
    tables = [_open_table(store, member, pool, request) for member in _as_table_list(table, pool)]
    images = pool or tables[0].images
    file = None if class_names is None else names_origin(class_names)
    members = [_match_to_images(member, images, custom_names, file, smoothing, progress) for member in tables]
    for line in [*images.remarks(), *(remark for member in members for remark in member.remarks)]:
        progress.say(line)
    averaged = (
        AveragedLabels([AveragedTable(member.location, member.reader, member.rows) for member in members], images)
        if len(members) > 1
        else None
    )
    labels, rows = (averaged, averaged.rows) if averaged else (members[0].reader, members[0].rows)
    names = labels.class_names
    top_k = top_k if top_k is not None else labels.default_top_k()
    labels.check_top_k(top_k)
    schema = pseudo_labels_schema(names, top_k)
    inputs = GenerationInputs(
        pool=images.lineage,
        **{
            f"adopted_{number}" if number > 1 else "adopted": member.lineage_entry(progress)
            for number, member in enumerate(members, start=1)
        },
        **({"class_names": Input(ref=_class_names_ref(class_names), digest=json_digest(names))} if class_names else {}),
        **({"teacher": _teacher_input(teacher)} if teacher is not None else {}),
    )
    staged = store.find_or_stage(GenerationRequest(settings=settings.for_request(), inputs=inputs), corpus, generation)
    check = partial(check_unchanged, staged, {"pool": images}, f"`store.remove({staged.ref!r})` and adopt again", progress)
    if isinstance(staged, Version):
        check()
        progress.say(f"{staged.ref} already exists: same labels, images and settings")
        return staged

    def build_version() -> Version:
        check()
        since, plan = time.monotonic(), ShardPlan(len(rows.in_pool), rows_per_shard)
        shards = Shards(staged.build, staged.work, plan, staged.remote_run)
        version = LabeledVersion(staged, shards, images, names, "adopt", {}, progress, max_unreadable)
        adoption = _Adoption(version, rows, labels, schema, top_k)
        adoption.prepare()
        return version.label_and_seal(adoption, since)

    return staged.run_as_worker(build_version)


@dataclass(frozen=True)
class _MatchedTable:
    """A table of labels that has been opened, and the image of each of its rows."""

    table: LabelTable
    reader: LabelReader
    keys: KeyColumn | None
    rows: MatchedRows

    @property
    def location(self) -> str:
        """Where the table is."""
        return self.table.source.location

    @property
    def remarks(self) -> list[str]:
        """What the user should know about the table."""
        return [
            f"{self.location}: {line}" for line in (*self.table.remarks, *self.reader.remarks, *(self.keys.remarks if self.keys else ()))
        ]

    def lineage_entry(self, progress: Progress) -> Input:
        """The table as a lineage entry, identified by its validated labels and its keys."""
        digest = json_digest([self.reader.digest(progress), self.keys and self.keys.digest()])
        return self.table.source.lineage.model_copy(update={"digest": digest})


def _match_to_images(
    table: LabelTable, images: Source, names: Sequence[str] | None, file: str | None, smoothing: float, progress: Progress
) -> _MatchedTable:
    reader = create_label_reader(table.source, table.columns, names, file, smoothing, progress)
    keys = KeyColumn(table.source, table.key) if table.key else None
    return _MatchedTable(table, reader, keys, keys.match_rows(images) if keys else MatchedRows(range(len(images)), range(len(images))))


def _as_table_list(table: Source | str | Path | Sequence[Source | str | Path], pool: Source | None) -> list[Source | str]:
    """The tables, in order. Raises UsageError if there are several but no pool."""
    tables = [table] if isinstance(table, Source | str | Path) else list(table)
    if not tables:
        raise UsageError("`table`: expected labels as a source or where they are, or several of these, found none")
    if len(tables) > 1 and pool is None:
        raise UsageError("several tables of labels are averaged for the images of `pool` SOURCE; add it")
    return [str(entry) if isinstance(entry, Path) else entry for entry in tables]


def _open_table(store: Store, table: Source | str, pool: Source | None, options: ColumnOptions) -> LabelTable:
    """Open a table of labels. Raises UsageError if it contains no images and there is no pool."""
    if pool is not None:
        return open_labels(table, options) if isinstance(table, str) else labels_of_source(table, options, with_key=True)
    if isinstance(table, str):
        if is_label_file(table):
            raise UsageError(f"{table}: lists image paths but contains no images; pass them with `pool` SOURCE")
        table = open_source(table, indexes=store.indexes)
    return labels_of_source(table, options, with_key=False)


def _class_names_ref(class_names: ClassNames) -> str:
    """The location of a class names file, or a placeholder for it if the names were given as a list."""
    return str(Path(class_names).absolute()) if isinstance(class_names, str | Path) else "CLASS_NAMES"


def _teacher_input(name: str) -> Input:
    if not name.strip() or not name.isprintable():
        raise UsageError(f"`teacher` {name!r}: expected a name in one line, such as hf-hub:OWNER/NAME")
    return Input(ref=name, digest=json_digest(name))


@dataclass(frozen=True)
class _ImageRecord:
    """What is recorded about an image, without its bytes; if it could not be read, `reason` says why."""

    id: int
    key: str
    image_hash: str = ""
    thumbnail: NDArray[np.uint8] | None = None
    reason: str | None = None


def _inspect_image(row: Row) -> _ImageRecord:
    try:
        encoded = row.read()
        image = decode(encoded, DECODED_SIDE_PX)
        check_shape(image.width, image.height)
        return _ImageRecord(row.id, row.key, image_hash(encoded), phash_thumbnail(image))
    except (NstError, OSError) as error:
        return _ImageRecord(row.id, row.key, reason=error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error))


@dataclass(frozen=True)
class _Adoption:
    """Fills a version with the labels of one or several tables."""

    version: LabeledVersion
    rows: MatchedRows
    labels: AdoptableLabels
    schema: pa.Schema
    top_k: int | None

    def prepare(self) -> None:
        """Report the amount of work, and copy the soft labels to a file."""
        self._report_size()
        if not self._soft_labels_path.exists():
            self.labels.save(self._soft_labels_path, self.top_k, self.version.progress)

    def fill(self, task: Task, since: float) -> None:
        """Write the missing shards."""
        for shard in self.version.shards.take():
            for images in self._write_shard(shard):
                task.advance(images)
            since = self.version.staging.add_seconds(since)

    def read_again(self) -> None:
        """Mark shards with too many unreadable images to be written again."""
        for shard, unreadable in self.version.shards.unread_images():
            if self.version.has_too_many_unreadable(shard, len(unreadable)):
                self.version.shards.reopen(shard)

    def counts(self, counts: LabelCounts) -> GenerationCounts:
        """Add the number of pool images without labels."""
        images = len(self.version.pool)
        values = counts.model_dump() | {"pool": images, "unlabeled": images - self.version.shards.plan.rows}
        return GenerationCounts(**values, top_k=self.top_k, teacher_parameters=0)

    @property
    def _soft_labels_path(self) -> Path:
        return self.version.staging.work / "soft_labels"

    def _write_shard(self, shard: int) -> Iterator[int]:
        """Write a shard, yielding the number of images after each piece."""
        labels = self.labels.load(self._soft_labels_path, self.top_k)  # mapped again for each shard
        shards = self.version.shards
        start, stop = shards.plan.bounds(shard)
        writer = ShardWriter(shards, shard, self.schema)
        results = map_in_threads(_inspect_image, self.version.pool.rows(self.rows.in_pool[start:stop]))
        try:
            while images := list(islice(results, _BATCH_SIZE)):
                table_rows = np.asarray(self.rows.in_table[start : start + len(images)])
                writer.add(*_rows_and_errors(images, labels[table_rows]))
                shards.refresh_claim(shard)
                start += len(images)
                yield len(images)
            writer.finish()
        except BaseException:
            writer.abandon()
            raise

    def _report_size(self) -> None:
        staging, rows = self.version.staging, self.version.shards.plan.rows
        soft_bytes = rows * soft_label_bytes(self.schema)
        needed, images = 2 * soft_bytes + rows * _ROW_BYTES, f"{rows:,} of {len(self.version.pool):,} images"
        self.version.progress.say(
            f"{staging.ref}: {images}, {format_size(needed)} on disk, {format_size(soft_bytes)} of it until it is done"
            f"{space_warning(staging.folder, needed)}"
        )


def _rows_and_errors(images: Sequence[_ImageRecord], labels: NDArray[np.void]) -> tuple[pa.Table, list[dict[str, Any]]]:
    """The rows of readable images, and the errors of the others."""
    indices = [index for index, image in enumerate(images) if image.reason is None]
    readable = [images[index] for index in indices]
    thumbnails = [image.thumbnail for image in readable if image.thumbnail is not None]
    columns = {
        "id": np.array([image.id for image in readable], np.int64),
        "key": pa.array([image.key for image in readable], pa.string()),
        "image_hash": pa.array([image.image_hash for image in readable], pa.string()),
        "phash": phash(np.stack(thumbnails) if thumbnails else np.empty((0, 32, 32, 3), np.uint8)),
        **as_columns(labels[indices]),
    }
    errors = [{"id": image.id, "key": image.key, "reason": image.reason} for image in images if image.reason is not None]
    return pa.table(columns), errors
