"""The interface of all image sources, and a single row of one.

Row order is part of the format: files are sorted bytewise by relative path (a list keeps the order of its lines), rows within a file keep
their order.
"""

import hashlib
import json
import math
import os
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nst_data.errors import NstError, UsageError
from nst_data.images import image_hash
from nst_data.sources.hashing import image_hashes
from nst_data.sources.keys import match_keys
from nst_data.sources.listing import PIECE, Listing, build_listing
from nst_data.sources.skipped import describe_skipped
from nst_data.sources.stamps import digest_of, hash64
from nst_data.store.indexes import Indexes
from nst_data.store.inputs import Input

Buffer = bytes | memoryview
Content = Buffer | NstError | Callable[[], Buffer]  # the image, the reason why it cannot be read, or a function that reads it
RowIndices = range | NDArray[np.int64]
_LEAST_SAMPLE, _EXPECTED = 64, 20  # minimum size of a sample of the pool; number of labeled images expected in it


@dataclass(frozen=True, slots=True)
class Row:
    """One image of a source, not read yet. `id` is its row number in the source, `key` says where it is stored."""

    id: int
    key: str
    _content: Content

    def read(self) -> Buffer:
        """The encoded bytes. Raises OSError or NstError with the reason if the image cannot be read."""
        if isinstance(self._content, NstError):
            raise NstError(str(self._content))  # a fresh instance: rows may share one error, and several threads may raise it
        return self._content() if callable(self._content) else self._content


class Source(ABC):
    """Images in a fixed order, with labels if `labels` is not None.

    `labels` holds a class index per row, shape (rows,), int64; `class_names[index]` is its name.
    `location` is an absolute path or, for the Hub, the reference with its commit, which is also the `revision`.
    `image_column` and `label_column` are the columns that the user named, None if they were detected. `skipped` counts by suffix the files
    next to the images that may be images too but are not read, `not_utf8` is one of them whose name is not UTF-8, `empty_classes` names
    class folders without images. `left_out` are labeled rows that must not be trained on.
    """

    labels: NDArray[np.int64] | None = None
    class_names: list[str] | None = None
    revision: str | None = None
    license: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    skipped: Mapping[str, int] = MappingProxyType({})
    not_utf8: str = ""
    empty_classes: Sequence[str] = ()
    left_out: Sequence[int] = ()
    _listing: Listing
    _pins: tuple[str, ...] = ()  # what identifies the images in addition to the listing

    def __init__(self, location: str) -> None:
        self.location = location

    def __repr__(self) -> str:
        classes = f", {len(self.class_names):,} classes" if self.class_names else ""
        return f"<{type(self).__name__} {self.location}: {len(self):,} images{classes}>"

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def key(self, row: int) -> str:
        """The location of row `row` within the source."""

    @abstractmethod
    def read(self, row: int) -> bytes:
        """The encoded bytes of one row, at the cost of reading one image. Safe to call from any thread, and after a fork."""

    def describe_copy(self) -> str:
        """A phrase for the user about what must be copied before single rows can be read; empty if nothing is copied."""
        return ""

    def describe_slow_reads(self) -> str:
        """A phrase for the user about why reading single rows is slow, known once one has been read; empty if it is not slow."""
        return ""

    @abstractmethod
    def rows(self, needed: RowIndices) -> Iterator[Row]:
        """The needed rows (increasing row numbers), read sequentially."""

    def columns(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The named non-image columns, all rows in order, in batches of a few megabytes. Raises NstError if a column does not exist."""
        raise NstError(f"{self.location}: contains image files, which have no columns; expected a table with {', '.join(map(repr, names))}")

    def column_types(self) -> pa.Schema:
        """The schema, including the non-image columns. Raises NstError if the source has no columns."""
        raise NstError(f"{self.location}: contains image files, which have no columns; expected a table of labels")

    def empty_files(self, n_rows: int) -> tuple[int, str]:
        """How many of the first `n_rows` rows are empty or missing files according to the listing, and the key of the first of them."""
        return 0, ""

    def class_columns(self) -> dict[str, list[str]]:
        """Class names by column, for the columns that define them."""
        return {}

    def remarks(self) -> list[str]:
        """Lines for the user about what is left out of the source."""
        return [f"{self.location}: {describe_skipped(self.skipped, self.not_utf8)}"] if self.skipped else []

    def listing(self) -> pa.Table:
        """What identifies the images, in columns `name` and `bytes`: files and sizes, or one row with a dataset's fingerprint or commit."""
        return self._listing.table

    def store_listing(self, indexes: Indexes) -> None:  # noqa: B027 - most sources have nothing to keep
        """Store the listing if listing takes requests, so that `open_source` can reuse it, given this `fingerprint` as `digest`."""

    def pin(self, revision: str) -> None:
        """Identify the images by a commit of the Hub, which `location` names, instead of by names and sizes."""
        self.revision = revision
        self._listing = build_listing([([self.location], [0])])

    @cached_property
    def images_fingerprint(self) -> str:
        """Equal for the same names and sizes, wherever the source is stored."""
        if not self._pins:
            return self._listing.fingerprint
        return hashlib.sha256(json.dumps([self._listing.fingerprint, *self._pins]).encode()).hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the images, and of the labels if the source was opened with them."""
        if self.labels is None:
            return self.images_fingerprint
        digest = hashlib.sha256(self.images_fingerprint.encode())
        digest.update(json.dumps(self.class_names).encode())
        digest.update(np.ascontiguousarray(self.labels).tobytes())
        return digest.hexdigest()

    def stamps(self) -> NDArray[np.uint64]:
        """A stamp per image file, shape (files,): a hash of its times and size (at an address, of its etag), or 0 if it does not exist.

        Unlike a fingerprint, stamps reveal changed content of the same size. Empty if a commit pins the images.
        """
        return np.empty(0, np.uint64) if self.revision else self._stamps()

    def _stamps(self) -> NDArray[np.uint64]:
        return np.fromiter(map(stamp_of, self._paths()), dtype=np.uint64)

    @cached_property
    def stamp(self) -> str:
        """Digest of `stamps`; empty if there are none."""
        return digest_of(self.stamps())

    @cached_property
    def modified(self) -> str:
        """What earlier versions of nst stored instead of `stamp`: a digest of modification times, which copying programs may restore."""
        stamps = np.fromiter(map(_modified_ns, self.files()), dtype=np.int64)
        return hashlib.sha256(stamps.tobytes()).hexdigest() if len(stamps) else ""

    def files(self) -> Iterable[str]:
        """The local files that hold the images, in order; none if a commit pins them."""
        return () if self.revision else self._paths()

    @property
    def rows_per_file(self) -> int | None:
        """1 if each row is a separate file, in the order of `files`; otherwise None."""
        return None

    def rows_of_files(self, files: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows stored in the given `files` (increasing file numbers); all rows if that is unknown and any file is given."""
        return np.arange(len(self) if len(files) else 0)

    def _paths(self) -> Iterable[str]:
        """The local files that hold the images, in order."""
        return ()

    @property
    def lineage(self) -> Input:
        """The entry for this source in the manifest of anything made from it."""
        columns = {"image_column": self.image_column, "label_column": self.label_column}
        skipped = dict(self.skipped) or None
        return Input(ref=self.location, digest=self.fingerprint, revision=self.revision, license=self.license, skipped=skipped, **columns)

    def rows_of(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """The row of each key (the first if several rows share it), shape (keys,). Raises NstError for a key that this source lacks."""
        row_of = self._rows_by_key(set(keys))
        missing = [key for key in keys if key not in row_of]
        if missing:
            raise self._missing_error(len(missing), len(keys), missing[0])
        return np.fromiter((row_of[key] for key in keys), dtype=np.int64, count=len(keys))

    def find_all(self, keys: Callable[[], Iterable[pa.Array]], rows: NDArray[np.int64]) -> None:
        """Like `rows_of`, for any number of keys given in pieces: fills `rows`, with memory use independent of the number of keys."""
        match_keys(keys(), self._keys(), rows)
        self._check_found(keys, rows)

    def try_find_all(
        self, keys: Callable[[], Iterable[pa.Array]], rows: NDArray[np.int64], normalize: Callable[[pa.Array], pa.Array] | None = None
    ) -> bool:
        """Like `find_all`, comparing keys mapped by `normalize` on both sides.

        Returns whether each key identifies exactly one image here.
        """
        if normalize is None:
            match_keys(keys(), self._keys(), rows)
            return bool((rows >= 0).all())
        match_keys(map(normalize, keys()), map(normalize, self._keys()), rows)
        if (rows < 0).any():
            return False
        key_indices = np.empty(len(self), np.int64)
        match_keys(map(normalize, self._keys()), map(normalize, keys()), key_indices)
        return int((key_indices >= 0).sum()) == len(np.unique(rows))

    def check_shares_images(self, hashes: Callable[[], Iterable[pa.Array]], n_images: int) -> None:
        """Raise NstError if this is not the pool that was labeled: no image of a sample has one of the `n_images` many `image_hash`es.

        In a copy of the pool, whatever its names, about twenty images of the sample match; missing images are left to `find_by_hash`.
        """
        size = min(len(self), max(_LEAST_SAMPLE, math.ceil(_EXPECTED * len(self) / n_images)))
        if size > len(self) // 2:  # then reading the whole source is more conclusive
            return
        sampled_rows = np.sort(np.random.default_rng(0).choice(len(self), size, replace=False, shuffle=False))
        sample_hashes = pa.array([hashed for _, hashed in image_hashes(self.rows(sampled_rows))], type=pa.large_string())
        if not any(pc.any(pc.is_in(piece.cast(pa.large_string()), sample_hashes)).as_py() for piece in hashes()):
            raise NstError(
                f"{self.location}: is not the pool that was labeled: none of {size:,} sampled images is among the {n_images:,} expected; "
                "pass the right one with `pool`"
            )

    def find_by_hash(
        self, hashes: Callable[[], Iterable[pa.Array]], keys: Callable[[], Iterable[pa.Array]], rows: NDArray[np.int64]
    ) -> None:
        """Like `find_all`, by `image_hash`: locates the images in another copy of a pool. Each image of this source is read once."""
        match_keys(hashes(), self._image_hashes(), rows)
        self._check_found(keys, rows)

    def _check_found(self, keys: Callable[[], Iterable[pa.Array]], rows: NDArray[np.int64]) -> None:
        missing, first, n_checked = 0, "", 0
        for piece in keys():
            absent = np.flatnonzero(rows[n_checked : n_checked + len(piece)] < 0)
            if not missing and len(absent):
                first = piece[int(absent[0])].as_py()
            missing, n_checked = missing + len(absent), n_checked + len(piece)
        if missing:
            raise self._missing_error(missing, n_checked, first)

    def _missing_error(self, n_missing: int, n_images: int, first_key: str) -> NstError:
        return NstError(
            f"{self.location}: lacks {n_missing:,} of {n_images:,} images, the first is {first_key!r}; pass the pool that was labeled, "
            "with `pool`"
        )

    def check_content(self, row: int, encoded: Buffer, expected_hash: str) -> None:
        """Raise NstError if the bytes of a row are not those that were labeled, whose `image_hash` is `expected_hash`."""
        if image_hash(encoded) != expected_hash:
            raise NstError(
                f"{self.location}: {self.key(row)!r} has different content than the labeled image; "
                "pass the pool that was labeled, with `pool`, or label this one"
            )

    def _check_columns(self, names: Sequence[str], schema: pa.Schema, location: str) -> None:
        """Raise UsageError unless the schema has each of the columns exactly once."""
        for name in names:
            if schema.names.count(name) != 1:
                columns = ", ".join(f"`{field.name}` ({field.type})" for field in schema) or "no column"
                raise UsageError(f"{location}: expected one column `{name}`, found {columns}")

    def unreadable_error(self, row: int, error: Exception) -> NstError:
        """The error to raise for an image that could be read before but no longer can."""
        return NstError(f"{self.location}: {self.key(row)!r} can no longer be read ({error}); restore it and run the same command again")

    def _keys(self) -> Iterator[pa.Array]:
        """All keys in order, in pieces."""
        for start in range(0, len(self), PIECE):
            yield pa.array([self.key(row) for row in range(start, min(start + PIECE, len(self)))], type=pa.large_string())

    def _image_hashes(self) -> Iterator[pa.Array]:
        """The `image_hash` of every image in order, in pieces; empty for an image that cannot be read."""
        hashes = (hashed for _, hashed in image_hashes(self.rows(range(len(self)))))
        while piece := list(islice(hashes, PIECE)):
            yield pa.array(piece, type=pa.large_string())

    def _rows_by_key(self, keys: set[str]) -> dict[str, int]:
        row_of: dict[str, int] = {}
        for row in range(len(self)):
            key = self.key(row)
            if key in keys:
                row_of.setdefault(key, row)
        return row_of


def stamp_of(path: str) -> int:
    """A hash of a file's times and size; 0 if the file does not exist."""
    try:
        stat = os.stat(path)
    except OSError:  # reported when its rows are read
        return 0
    return hash64(f"{stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_size}")


def _modified_ns(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:  # as above
        return 0


def within(needed: RowIndices, start: int, stop: int) -> RowIndices:
    """The needed rows in the half-open range from `start` to `stop`."""
    return needed[bisect_left(needed, start) : bisect_left(needed, stop)]


def in_pieces(needed: RowIndices, size: int) -> Iterator[NDArray[np.int64]]:
    """The needed rows in pieces of at most `size`."""
    for start in range(0, len(needed), size):
        yield np.asarray(needed[start : start + size], dtype=np.int64)


def rows_of_table(table: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """A few rows of a long table, given by increasing row numbers."""
    first, last = int(rows[0]), int(rows[-1])
    span = table.slice(first, last - first + 1)  # `take` on the whole chunked column would scan all of it
    return span if span.num_rows == len(rows) else span.take(pa.array(rows - first))
