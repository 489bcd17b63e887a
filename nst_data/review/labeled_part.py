"""Applying a review to the labeled images of a training run: labels that people gave, and images that they excluded."""

import glob
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from nst_data.errors import NstError, UsageError
from nst_data.images import phash
from nst_data.prefetch import map_in_threads
from nst_data.progress import Progress
from nst_data.selection.overlap import HeldOut, ImageDescriptors, read_hash_and_thumbnail
from nst_data.sources import Source, labels_in, match_classes
from nst_data.sources.corrected import AddedImages, CorrectedSource
from nst_data.sources.hashing import image_hashes
from nst_data.store.files import atomic_write
from nst_data.store.manifest import EditionManifest, is_anonymous
from nst_data.store.parent import parent_of
from nst_data.store.store import Store, Version
from nst_data.tables.label_tables import translate_table_errors
from nst_data.tables.review_table import ANSWERED, read_review
from nst_data.tables.shards import table_files


def check_edition_review(edition: Version, reviews: Version | None, progress: Progress) -> None:
    """Raises UsageError if an edition was drawn with a different review or without one, or if it is anonymous."""
    inputs = EditionManifest.from_manifest(edition.manifest).request.inputs
    entry, drawn_from = inputs.reviews, inputs.generation.ref if inputs.generation else "NAME@gen-N"
    if reviews is None:
        if entry is not None:
            progress.say(f"{edition.ref} was drawn with {entry.ref}, and labels that people gave there are not trained on; add `reviews`")
        return
    if entry is None or entry.digest != reviews.manifest.digest:
        drawn = f"with {entry.ref}" if entry else "without any review"
        content_note = ", of other content" if entry and entry.ref == reviews.ref else ""
        raise UsageError(
            f"{edition.ref} was drawn {drawn}{content_note}, so images that {reviews.ref} answers about may be among its pseudo-labels; "
            f"draw one with `balance(store, {drawn_from!r}, reviews={reviews.ref!r})`"
        )
    if is_anonymous(edition.manifest):
        raise UsageError(f"{edition.ref} was published without hashes, by which a review knows its images; train on it without `reviews`")


@dataclass(frozen=True)
class LabeledPart:
    """The `source` of labeled images to train on, and how many of its labels came from the review."""

    source: Source
    reviewed: int

    @classmethod
    def from_review(
        cls,
        labeled: Source,
        reviews: Version,
        edition: Version | None,
        store: Store,
        open_pool: Callable[[], Source],
        work_folder: Path,
        excluded_sources: Sequence[Source],
        progress: Progress,
    ) -> Self:
        """Combine labeled images with the answers of a review, using each image once.

        Answers about images in `labeled` change or exclude them. The others are about images of the pool; with an `edition`, only images in
        its table of answered images, which contains no held-out ones, are added. Images of the `excluded_sources` and their near-duplicates
        are left out. The hashes of `labeled` are cached in `work_folder`.

        Raises NstError if a class is missing from those of `labeled`, or if images are missing from the pool.
        """
        names = labeled.class_names or []
        class_indices = match_classes(reviews.manifest.class_names, names, reviews.ref, subset=True)
        answers = {
            image_hash: None if label is None else int(class_indices[label])
            for image_hash, label in read_review(reviews).select("image_hash", "label").iter_rows()
        }
        hashes = _load_hashes(labeled, work_folder / "labeled_hashes.npy", progress)
        labels, left_out, corrected, matched = labels_in(labeled).copy(), list[int](), 0, set[str]()
        for row, image_hash in enumerate(hashes):
            if image_hash not in answers:
                continue
            matched.add(image_hash)
            label = answers[image_hash]
            if label is None:
                left_out.append(row)
            else:
                corrected += int(labels[row] != label)
                labels[row] = label
        pool_images, pool_answers = (
            None,
            _answered_pool_images(reviews, edition, store, names, class_indices).filter(~pl.col("image_hash").is_in(list(matched))),
        )
        excluded_sources = excluded_sources if pool_answers.height else ()
        held_out = HeldOut.read(excluded_sources, with_near_duplicates=True, progress=progress if excluded_sources else None)
        answered, pool_answers = pool_answers.height, pool_answers.filter(~pl.col("image_hash").is_in(list(held_out.image_hashes)))
        if pool_answers.height:
            source = open_pool()
            rows = _find_rows(source, pool_answers, reviews, progress)
            keep = ~_are_near_duplicates(source, rows, held_out)
            rows, pool_answers = rows[keep], pool_answers.filter(pl.Series(keep))
            pool_images = AddedImages(source, rows, pool_answers["label"].to_numpy(), pool_answers["image_hash"].to_list())
        if answered > pool_answers.height:
            progress.say(
                f"{reviews.ref}: {answered - pool_answers.height:,} images of the pool are left out: they are excluded or validation "
                "images, "
                "or near-duplicates of these"
            )
        reviewed = sum(answers[image_hash] is not None for image_hash in hashes if image_hash in matched) + pool_answers.height
        progress.say(
            f"{reviews.ref}: {pool_answers.height:,} images of the pool join the {len(labeled):,} labeled ones, of which "
            f"{corrected:,} get another label and {len(left_out):,} are left out"
        )
        return cls(CorrectedSource(labeled, labels, left_out, pool_images), reviewed)


def _load_hashes(labeled: Source, cache_file: Path, progress: Progress) -> list[str]:
    if cache_file.exists():
        return [str(value) for value in np.load(cache_file)]
    hashes = []
    with progress.task(f"find reviewed images in {labeled.location}", len(labeled), "images") as task:
        for _, image_hash in image_hashes(labeled.rows(range(len(labeled)))):
            hashes.append(image_hash)
            task.advance(1)
    with atomic_write(cache_file) as file:
        np.lib.format.write_array(file, np.array(hashes, dtype="U32"))
    return hashes


def _answered_pool_images(
    reviews: Version, edition: Version | None, store: Store, names: list[str], class_indices: NDArray[np.int64]
) -> pl.DataFrame:
    """`image_hash`, `key` and `label` of the images that people gave a class, sorted by hash so that the order is deterministic."""
    if edition is None:
        rows, order = read_review(reviews).drop_nulls("label"), class_indices
    else:
        drawn = _drawn_edition(edition, store)
        order = match_classes(drawn.manifest.class_names, names, drawn.ref)
        if not EditionManifest.from_manifest(drawn.manifest).counts.answered:
            return pl.DataFrame(schema={"image_hash": pl.String, "key": pl.String, "label": pl.Int64})
        with translate_table_errors(drawn.ref):
            rows = pl.concat(
                pl.read_parquet(file, columns=["image_hash", "key", "label"], glob=False) for file in table_files(drawn.folder, ANSWERED)
            )
    return rows.select("image_hash", "key", label=pl.Series(order)[rows["label"]]).sort("image_hash")


def answered_images_pattern(edition: Version, store: Store) -> str:
    """Pattern for the parquet files of a self-contained edition that hold the images people gave a class."""
    return str(Path(glob.escape(str(_drawn_edition(edition, store).folder / ANSWERED)), "*.parquet"))


def _drawn_edition(edition: Version, store: Store) -> Version:
    """The edition originally drawn from a generation, if this one relabels its rows. Raises NstError if it is not in the store."""
    while entry := EditionManifest.from_manifest(edition.manifest).request.inputs.like:
        parent = parent_of(edition, store)
        if parent is None:
            raise NstError(f"{edition.ref} was labeled again from {entry.ref}, which has the images that people answered; pull that too")
        edition = parent
    return edition


def _are_near_duplicates(pool: Source, rows: NDArray[np.int64], held_out: HeldOut) -> NDArray[np.bool_]:
    """Whether each of the given pool rows shows the same picture as a held-out image."""
    if not len(held_out.index):
        return np.zeros(len(rows), np.bool_)
    places, inverse = np.unique(rows, return_inverse=True)
    thumbnails = (thumbnail for _, thumbnail in map_in_threads(lambda row: read_hash_and_thumbnail(row, True), pool.rows(places)))
    is_near = [
        thumbnail is not None and held_out.matches(ImageDescriptors.from_thumbnails(thumbnail[None]), int(phash(thumbnail[None])[0]))
        for thumbnail in thumbnails
    ]
    return np.array(is_near, np.bool_)[inverse]


def _find_rows(pool: Source, images: pl.DataFrame, reviews: Version, progress: Progress) -> NDArray[np.int64]:
    """The row of each image, by key or, in another copy of the pool, by hash. Raises NstError if images are missing from the pool."""
    keys, hashes = [pa.array(images["key"].to_list(), pa.large_string())], [pa.array(images["image_hash"].to_list(), pa.large_string())]
    rows = np.empty(images.height, np.int64)
    try:
        pool.find_all(lambda: keys, rows)
    except NstError:
        pass
    else:
        unique_rows = np.unique(rows)
        by_row = dict(zip(unique_rows.tolist(), (image_hash for _, image_hash in image_hashes(pool.rows(unique_rows))), strict=True))
        if all(by_row[row] in ("", image_hash) for row, image_hash in zip(rows.tolist(), images["image_hash"], strict=True)):
            return rows  # an unreadable image has no hash, and is counted as unreadable later
    pool.check_shares_images(lambda: hashes, len(rows))
    progress.say(f"{pool.location}: has different keys than {reviews.ref}; its {len(pool):,} images are read once to match them by hash")
    pool.find_by_hash(lambda: hashes, lambda: keys, rows)
    return rows
