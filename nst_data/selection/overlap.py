"""Images of a pool that are held-out images: those with equal bytes, and near-duplicates (section 3.1 of the paper removes both).

Near-duplicates are found in two stages: the perceptual hashes of the labels give candidates, looked up in bands; these are decoded and
compared with the held-out images themselves.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nst_data.errors import NstError
from nst_data.images import PHASH_SIZE_PX, decode, image_hash, low_frequencies, phash, phash_thumbnail
from nst_data.prefetch import map_in_threads
from nst_data.progress import Progress
from nst_data.selection.hash_index import HashIndex
from nst_data.sources import Row, Source
from nst_data.sources.changes import HASH
from nst_data.sources.unreadable import check_readable
from nst_data.tables.schema import OVERLAP_COLUMNS

# As measured in benchmarks/results/overlap.md: copies (resized to 50-150%, JPEGs of quality 50-95, brightness changed by 5%) nearly
# all lie above it, pairs of distinct 8-pixel digits, which are as alike as distinct images get, at 0.961 and below.
MIN_CORRELATION = 0.965
MAX_TINT = 16.0  # of 255 levels; a red and a green light of the same shape are further apart
MIN_CONTRAST = 2.0  # gray levels: plainer images have no outline except for artifacts of rounding and JPEG
DECODED_SIDE_PX = 4 * PHASH_SIZE_PX  # the number of rows from which a thumbnail is made
_IMAGES_AT_ONCE = 4096
_CURVATURE = np.add.outer(np.arange(8) ** 2, np.arange(8) ** 2).reshape(64)[1:]  # the factor by which a Laplacian scales each frequency


class ImageDescriptors(NamedTuple):
    """How images look, regardless of brightness and contrast. Fine detail, which resizing and JPEG change, is left out."""

    outlines: NDArray[np.float32]  # shape (images, 63), of unit length: curvature of the gray image in the frequencies that `phash` reads
    tints: NDArray[np.float32]  # shape (images, 2): mean blue and red, minus mean gray, in levels
    contrasts: NDArray[np.float32]  # shape (images,): standard deviation of gray in those frequencies, in levels

    @classmethod
    def from_thumbnails(cls, thumbnails: NDArray[np.uint8]) -> "ImageDescriptors":
        """The descriptors of thumbnails made by `phash_thumbnail`, shape (images, 32, 32, 3)."""
        coefficients = low_frequencies(thumbnails).reshape(-1, 64)
        mean_gray, waves = coefficients[:, :1] / PHASH_SIZE_PX, coefficients[:, 1:]
        curved = waves * _CURVATURE
        lengths = np.sqrt((curved**2).sum(axis=1, keepdims=True))
        return cls(
            (curved / np.maximum(lengths, 1e-9)).astype(np.float32),
            (thumbnails.mean(axis=(1, 2))[:, [2, 0]] - mean_gray).astype(np.float32),
            (np.sqrt((waves**2).sum(axis=1)) / PHASH_SIZE_PX).astype(np.float32),
        )

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> "ImageDescriptors":
        """The descriptors of some of the images."""
        return ImageDescriptors(self.outlines[rows], self.tints[rows], self.contrasts[rows])

    def matches(self, query: "ImageDescriptors") -> NDArray[np.bool_]:
        """Which of these show what the one image in `query` shows. The answer for an image does not depend on the others."""
        correlations = (self.outlines.astype(np.float64) * query.outlines).sum(axis=1)
        tinted = np.abs(self.tints - query.tints).max(axis=1)
        plain = np.minimum(self.contrasts, query.contrasts) < MIN_CONTRAST
        resembling: NDArray[np.bool_] = (correlations >= MIN_CORRELATION) & (tinted <= MAX_TINT) & ~plain
        return resembling


@dataclass(frozen=True)
class HeldOut:
    """Images that must not be trained on: the hashes of their bytes and, if near-duplicates are wanted, their descriptors."""

    image_hashes: frozenset[str]
    descriptors: ImageDescriptors
    index: HashIndex  # of the perceptual hashes, in the order of `descriptors`
    unreadable: int = 0  # images that cannot be decoded: of these, at most equal bytes are held out

    @classmethod
    def read(
        cls,
        sources: Sequence[Source],
        with_near_duplicates: bool,
        progress: Progress | None = None,
        threads: int | None = None,
        max_unreadable: float = 1.0,
        store_hashes: Callable[[Source, NDArray[np.void]], None] = lambda source, hashes: None,
    ) -> "HeldOut":
        """Read each image once; with `with_near_duplicates`, an image that cannot be decoded is held out only by its bytes.

        `store_hashes` is called with the bytes of each `image_hash` of a source, shape (rows,), zeros for images that cannot be read.

        Raises NstError if none of a source's images can be read, or if more than the share `max_unreadable` cannot.
        """
        image_hashes: set[str] = set()
        thumbnails: list[NDArray[np.uint8]] = []
        phashes, descriptors = [phash(_stack_thumbnails([]))], [ImageDescriptors.from_thumbnails(_stack_thumbnails([]))]

        def flush() -> None:
            batch = _stack_thumbnails(thumbnails)
            batch_descriptors = ImageDescriptors.from_thumbnails(batch)
            has_contrast = batch_descriptors.contrasts >= MIN_CONTRAST  # plain images would be candidates of one another but never match
            phashes.append(phash(batch)[has_contrast])
            descriptors.append(batch_descriptors.take(has_contrast))
            thumbnails.clear()

        unreadable, progress = 0, progress or Progress()
        with progress.task("excluded images", sum(map(len, sources)), "images") as task:
            for source in sources:
                for remark in source.remarks():
                    progress.say_once(remark)
                failed, rows, hashes = list[int](), source.rows(range(len(source))), np.zeros(len(source), HASH)
                for row, (hashed, thumbnail) in enumerate(
                    map_in_threads(lambda row: read_hash_and_thumbnail(row, with_near_duplicates), rows, threads)
                ):
                    task.advance(1)
                    failed += [row] if hashed is None or (with_near_duplicates and thumbnail is None) else []
                    if hashed is not None:
                        image_hashes.add(hashed)
                        hashes[row] = bytes.fromhex(hashed)
                    thumbnails.extend([thumbnail] if thumbnail is not None else [])
                    if len(thumbnails) == _IMAGES_AT_ONCE:
                        flush()
                unreadable += len(failed)
                first_key = repr(source.key(failed[0])) if failed else ""
                check_readable(source.location, len(source), len(failed), max_unreadable, first_key, "excluded images")
                store_hashes(source, hashes)
        flush()
        columns = [np.concatenate(column) for column in zip(*descriptors, strict=True)]
        return cls(frozenset(image_hashes), ImageDescriptors(*columns), HashIndex(np.concatenate(phashes)), unreadable)

    def matches(self, query: ImageDescriptors, perceptual_hash: int) -> bool:
        """Whether a held-out image shows what the one image in `query`, which has this perceptual hash, shows."""
        near = self.index.find_near(perceptual_hash)
        pieces = (near[start : start + _IMAGES_AT_ONCE] for start in range(0, len(near), _IMAGES_AT_ONCE))
        return any(bool(self.descriptors.take(piece).matches(query).any()) for piece in pieces)


@dataclass(frozen=True)
class Overlap:
    """The near-duplicates as hashes of their bytes, the number of candidates, and how many of those could not be compared."""

    image_hashes: frozenset[str] = frozenset()
    compared: int = 0
    unreadable: int = 0
    first_unreadable: str = ""  # key of the first unreadable one


def find_near_duplicates(
    labels: Iterable[pa.RecordBatch],
    held_out: HeldOut,
    locate: Callable[[pa.Table], tuple[Source, NDArray[np.int64]]],
    progress: Progress | None = None,
    threads: int | None = None,
) -> Overlap:
    """Find images of the pool that show what a held-out image shows, in other bytes.

    `labels` has `id`, `key`, `image_hash` and `phash`. `locate` returns the pool and the row numbers in it of the candidates, a part of
    that table in which no image repeats; it is not called if there are none.
    """
    candidates = _find_candidates(labels, held_out)
    if not candidates.num_rows:
        return Overlap()
    pool, rows = locate(candidates)
    rows, order = np.unique(rows, return_index=True)  # increasing; another pool may have one row for two keys
    labeled = candidates.take(pa.array(order))
    queries = zip(pool.rows(rows), labeled["image_hash"].to_pylist(), labeled["phash"].to_pylist(), strict=True)
    near_hashes, failed = set(), list[int]()
    with (progress or Progress()).task("near-duplicates", len(rows), "images") as task:
        for index, (hashed, is_near) in enumerate(
            map_in_threads(lambda labeled: (labeled[1], _is_near_duplicate(*labeled, held_out)), queries, threads)
        ):
            task.advance(1)
            near_hashes.update([hashed] if is_near else [])
            failed += [index] if is_near is None else []
    unreadable = candidates.num_rows - len(rows) + len(failed)
    return Overlap(frozenset(near_hashes), candidates.num_rows, unreadable, repr(labeled["key"][failed[0]].as_py()) if failed else "")


def _find_candidates(labels: Iterable[pa.RecordBatch], held_out: HeldOut) -> pa.Table:
    """The labels whose perceptual hash is near that of a held-out image: one per image, none for those held out by their bytes."""
    seen = set(held_out.image_hashes)
    tables = [OVERLAP_COLUMNS.empty_table()]
    for batch in labels:
        near = pa.Table.from_batches([batch]).filter(pa.array(held_out.index.any_near(batch["phash"].to_numpy())))
        is_new = []
        for hashed in near["image_hash"].to_pylist():
            is_new.append(hashed not in seen)
            seen.add(hashed)
        tables.append(near.filter(pa.array(is_new, pa.bool_())).select(OVERLAP_COLUMNS.names).cast(OVERLAP_COLUMNS))
    return pa.concat_tables(tables)


def _is_near_duplicate(row: Row, expected_hash: str, perceptual_hash: int, held_out: HeldOut) -> bool | None:
    """Whether it is a near-duplicate; None if it cannot be decoded, or if its bytes are not those that were labeled."""
    current_hash, thumbnail = read_hash_and_thumbnail(row, True)
    if thumbnail is None or current_hash != expected_hash:
        return None
    return held_out.matches(ImageDescriptors.from_thumbnails(thumbnail[None]), perceptual_hash)


def read_hash_and_thumbnail(row: Row, with_thumbnail: bool) -> tuple[str | None, NDArray[np.uint8] | None]:
    """The hash of an image's bytes, or None if it cannot be read, and its thumbnail, or None if it cannot or need not be decoded."""
    hashed = None
    with suppress(OSError, NstError):
        encoded = row.read()
        hashed = image_hash(encoded)
        if with_thumbnail:
            return hashed, phash_thumbnail(decode(encoded, DECODED_SIDE_PX))
    return hashed, None


def _stack_thumbnails(thumbnails: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.stack(thumbnails) if thumbnails else np.empty((0, PHASH_SIZE_PX, PHASH_SIZE_PX, 3), np.uint8)
