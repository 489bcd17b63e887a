"""Pseudo-labels that were made elsewhere, as a generation: their soft labels checked, joined to images that are read once, sealed."""

import hashlib
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nst_data.cards import cards
from nst_data.errors import NstError, UsageError
from nst_data.images import check_shape, decode, image_hash, phash, phash_thumbnail
from nst_data.prefetch import each_in_threads
from nst_data.progress import Progress
from nst_data.selection.overlap import DECODED_SIDE_PX
from nst_data.settings import AdoptSettings, ReadableSettings, default_top_k
from nst_data.sources import Row, Source
from nst_data.sources.changes import Reading, hashes_in
from nst_data.sources.labels import names_in
from nst_data.sources.source import Wanted
from nst_data.sources.unreadable import are_too_many, check_readable
from nst_data.store.manifest import Input, Request, json_digest
from nst_data.store.store import Staging, Store, Version
from nst_data.tables.schema import pseudo_labels_schema, soft_label_bytes
from nst_data.tables.shards import ShardPlan, Shards, ShardWriter
from nst_data.tables.soft_label_column import SoftLabelColumn, as_columns

_IMAGES_AT_ONCE = 512
_ROW_BYTES = 100  # key, hashes and numbers


def adopt(
    store: Store,
    corpus: str,
    table: Source,
    settings: AdoptSettings,
    pool: Source | None = None,
    class_names_file: str | None = None,
    teacher: str | None = None,
    generation: int | None = None,
    progress: Progress | None = None,
    max_unreadable: float = ReadableSettings().max_unreadable,
) -> Version:
    """Seal the soft labels of a table as a generation of `corpus`.

    `table` holds the images too and is the pool, or its column `settings.key` names those of `pool`, whose other images stay unlabeled.
    `teacher` says what made the labels. All soft labels are checked before any work, and kept in a copy while the images are read, once
    each; what was done by a run that was killed is not done again. Each row ends in `pseudo_labels` or, with the reason, in `errors`.
    Memory: 24 bytes a row with keys, else constant. Raises NstError or UsageError for what cannot be taken as it is, and where
    more images than the share `max_unreadable`, or all, cannot be read: rerun, it reads those again.
    """
    progress = progress or Progress()
    column = SoftLabelColumn(table, settings.probs)
    names = _class_names(table, column, class_names_file)
    top_k = settings.top_k if settings.top_k is not None else default_top_k(column.classes)
    schema = pseudo_labels_schema(names, top_k)
    keys = _Keys(table, settings.key) if settings.key else None
    rows = keys.found_in(pool) if keys and pool else Rows(range(len(table)), range(len(table)))
    for line in (pool or table).remarks():
        progress.say(line)
    labels = column.digest(progress)
    inputs = {
        "pool": (pool or table).lineage,
        "adopted": table.lineage.model_copy(update={"digest": json_digest([labels, keys and keys.digest()])}),
        **({"class_names": Input(ref=str(Path(class_names_file).absolute()), digest=json_digest(names))} if class_names_file else {}),
        **({"teacher": _named_teacher(teacher)} if teacher is not None else {}),
    }
    staging = store.begin(Request(kind="generation", settings=settings.for_request(), inputs=inputs), corpus, generation)
    _check_unchanged(staging, pool or table, progress)
    if isinstance(staging, Version):
        progress.say(f"{staging.ref} already exists: same labels, images and settings")
        return staging
    plan = ShardPlan(len(table), settings.rows_per_shard)
    adoption = _Adoption(staging, pool or table, rows, column, names, schema, top_k, plan, progress, max_unreadable)
    return staging.shared(adoption.make)


def _check_unchanged(staged: Version | Staging, pool: Source, progress: Progress) -> None:
    """Raises NstError where images that were adopted hold other bytes by now, at the same names and sizes."""
    is_sealed = isinstance(staged, Version)
    folder = staged.folder if isinstance(staged, Version) else staged.build
    made = staged.manifest.created if isinstance(staged, Version) else None
    remedy = f"`nst remove {staged.ref}` and adopt again"
    Reading(folder, "pool").check(pool, hashes_in(folder), f"{staged.ref} was {'made' if is_sealed else 'begun'}", remedy, progress, made)
    if not is_sealed:
        Reading(folder, "pool").begin(pool)


@dataclass(frozen=True)
class Rows:
    """Where the labeled images are, in pool order: row numbers of the pool, which increase, and those of the table."""

    in_pool: Wanted
    in_table: Wanted


class _Keys:
    """The column of a table that names an image of a pool in each row."""

    def __init__(self, table: Source, name: str) -> None:
        self._table, self._name = table, name

    def pieces(self) -> Iterator[pa.Array]:
        """All keys in order, some at a time. Raises NstError for what is no key."""
        start = 0
        for batch in self._table.columns([self._name]):
            keys = batch.column(0)
            kind = keys.type.value_type if pa.types.is_dictionary(keys.type) else keys.type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
                raise NstError(f"{self._table.location}: column `{self._name}` is {keys.type}, expected texts: keys of images in the pool")
            if keys.null_count:
                row = self._table.key(start + int(keys.is_null().to_numpy(zero_copy_only=False).argmax()))
                raise NstError(f"{self._table.location}: `{self._name}` of row {row!r} is empty, expected the key of an image in the pool")
            yield keys.cast(pa.large_string())
            start += len(keys)

    def digest(self) -> str:
        """sha256 of all keys."""
        sha256 = hashlib.sha256()
        for piece in self.pieces():
            sha256.update("".join(f"{key}\0" for key in piece.to_pylist()).encode())
        return sha256.hexdigest()

    def found_in(self, pool: Source) -> Rows:
        """The rows in pool order. Raises NstError for images that the pool lacks, and for one that stands twice in the table."""
        found = np.empty(len(self._table), np.int64)
        pool.find_all(self.pieces, found)
        order = np.argsort(found, kind="stable")
        ordered = found[order]
        twice = np.flatnonzero(ordered[1:] == ordered[:-1])
        if len(twice):
            first, second = (self._table.key(int(row)) for row in order[twice[0] : twice[0] + 2])
            key = pool.key(int(ordered[twice[0]]))
            raise NstError(f"{self._table.location}: rows {first!r} and {second!r} both name the image {key!r}; expected one row for each")
        return Rows(ordered, order)


def _class_names(table: Source, column: SoftLabelColumn, file: str | None) -> list[str]:
    """From a file or from a column of the table that has as many. Raises UsageError where there are none, NstError for names of no use."""
    named = list({tuple(names): names for names in table.class_columns().values() if len(names) == column.classes}.values())
    if file is None and len(named) != 1:
        found = "several columns have" if named else "no column has"
        raise UsageError(
            f"{table.location}: `{column.name}` has {column.classes} classes, and {found} as many class names; "
            "provide them with --class-names FILE"
        )
    names = names_in(file) if file is not None else named[0]
    where = f"--class-names {file}" if file is not None else table.location
    if len(names) != column.classes or len(set(names)) != len(names):
        raise UsageError(
            f"{where}: expected {column.classes} different names, one for each number of `{column.name}`, found {len(set(names))}"
        )
    if odd := [name for name in names if not name.strip() or not name.isprintable()]:
        raise NstError(f"{where}: the class name {odd[0]!r} is empty or holds control characters; give other names with --class-names FILE")
    return names


def _named_teacher(text: str) -> Input:
    if not text.strip() or not text.isprintable():
        raise UsageError(f"--teacher {text!r}: expected a name in one line, such as hf-hub:OWNER/NAME")
    return Input(ref=text, digest=json_digest(text))


@dataclass(frozen=True)
class _Looked:
    """What was found out about an image, whose bytes need not be kept; `reason` says why there is nothing."""

    id: int
    key: str
    image_hash: str = ""
    thumbnail: NDArray[np.uint8] | None = None
    reason: str | None = None


def _looked_at(row: Row) -> _Looked:
    try:
        encoded = row.read()
        image = decode(encoded, DECODED_SIDE_PX)
        check_shape(image.width, image.height)
        return _Looked(row.id, row.key, image_hash(encoded), phash_thumbnail(image))
    except (NstError, OSError) as error:
        return _Looked(row.id, row.key, reason=error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error))


@dataclass
class _Adoption:
    """A generation under way."""

    staging: Staging
    pool: Source
    rows: Rows
    column: SoftLabelColumn
    class_names: list[str]
    schema: pa.Schema
    top_k: int | None
    plan: ShardPlan
    progress: Progress
    max_unreadable: float

    def make(self) -> Version:
        """Make the shards that are missing, and seal."""
        since = time.monotonic()
        self._say_size()
        if not self._kept.exists():
            self.column.keep(self._kept, self.top_k, self.progress)
        shards = Shards(self.staging.build, self.staging.work, self.plan)
        for shard, errors in shards.unread():
            if are_too_many(self.plan.size(shard), len(errors), self.max_unreadable):
                shards.reopen(shard)
        done = self.plan.rows - sum(self.plan.size(shard) for shard in shards.missing())
        with self.progress.task(f"adopt {self.staging.ref}", self.plan.rows, "images", done) as task:
            for shard in shards.take():
                for images in self._written(shards, shard):
                    task.advance(images)
                since = self.staging.add_seconds(since)
        files, counts = shards.finish(self.class_names)
        what = f"{self.staging.ref}: {self.pool.location}"
        check_readable(what, self.plan.rows, counts["errors"], self.max_unreadable, shards.first_unread())
        counts |= {"pool": len(self.pool), "unlabeled": len(self.pool) - self.plan.rows, "top_k": self.top_k, "teacher_parameters": 0}
        cards.write_dataset_card(self.staging, self.class_names, counts)
        return self.staging.seal(files, self.class_names, counts, {})

    @property
    def _kept(self) -> Path:
        return self.staging.work / "soft_labels"

    def _written(self, shards: Shards, shard: int) -> Iterator[int]:
        """Write a shard; gives after each piece how many images it had."""
        labels = self.column.kept(self._kept, self.top_k)  # mapped anew for each shard
        start, stop = self.plan.bounds(shard)
        writer = ShardWriter(shards, shard, self.schema)
        looked = each_in_threads(_looked_at, self.pool.rows(self.rows.in_pool[start:stop]))
        try:
            while images := list(islice(looked, _IMAGES_AT_ONCE)):
                which = np.asarray(self.rows.in_table[start : start + len(images)])
                writer.add(*_table(images, labels[which]))
                shards.show_life(shard)
                start += len(images)
                yield len(images)
            writer.finish()
        except BaseException:
            writer.abandon()
            raise

    def _say_size(self) -> None:
        soft = self.plan.rows * soft_label_bytes(self.schema)
        needed, free = 2 * soft + self.plan.rows * _ROW_BYTES, shutil.disk_usage(self.staging.folder).free
        warning = f", only {free / 2**20:,.0f} MB are free" if needed > free else ""
        kept = f"{soft / 2**20:,.0f} MB of it" if soft > 2**20 else "half of it"
        self.progress.say(
            f"{self.staging.ref}: {self.plan.rows:,} of {len(self.pool):,} images, about {max(1, needed / 2**20):,.0f} MB on disk, "
            f"{kept} until it is done{warning}"
        )


def _table(images: Sequence[_Looked], labels: NDArray[np.void]) -> tuple[pa.Table, list[dict[str, Any]]]:
    """The rows of images that could be read, and the errors of the others."""
    good = [place for place, one in enumerate(images) if one.reason is None]
    readable = [images[place] for place in good]
    thumbnails = [one.thumbnail for one in readable if one.thumbnail is not None]
    columns = {
        "id": np.array([one.id for one in readable], np.int64),
        "key": pa.array([one.key for one in readable], pa.string()),
        "image_hash": pa.array([one.image_hash for one in readable], pa.string()),
        "phash": phash(np.stack(thumbnails) if thumbnails else np.empty((0, 32, 32, 3), np.uint8)),
        **as_columns(labels[good]),
    }
    errors = [{"id": one.id, "key": one.key, "reason": one.reason} for one in images if one.reason is not None]
    return pa.table(columns), errors
