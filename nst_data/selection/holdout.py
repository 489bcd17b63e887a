"""Hold out a share of the labeled images to test on, chosen by image content, whatever the names and the order of the files."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nst_data.arguments import with_checked_arguments
from nst_data.errors import NstError, UsageError
from nst_data.images import phash
from nst_data.prefetch import map_in_threads
from nst_data.progress import Progress, escape_unprintable, terminal_progress
from nst_data.selection.hash_index import HashIndex
from nst_data.selection.overlap import MIN_CONTRAST, ImageDescriptors, read_hash_and_thumbnail
from nst_data.sources import Source, labels_in
from nst_data.sources.subset import Subset
from nst_data.store.files import atomic_write
from nst_data.store.store import Store

_IMAGES_AT_ONCE = 4096


@with_checked_arguments
def hold_out(
    labeled: Source,
    *,
    share: float,
    seed: int = 0,
    kept: Path | str | None = None,
    writes: bool = True,
    progress: Progress | None = None,
    threads: int | None = None,
) -> tuple[Source, Source]:
    """Split labeled images in two: those to train on, and a share of each class to test on.

    Copies and near-duplicates stay together. Which images are held out depends only on their bytes, `share` and `seed`. A class with
    fewer than two distinct images is not divided: it stays labeled, and so does an image whose copies are of several classes.

    Args:
        labeled: Images with their labels.
        share: Share of the images of each class, in (0, 1); at least one is held out if a class has two.
        seed: Random seed of the split.
        kept: A folder in which the split is kept, so that the images are not read again for it the next time.
        writes: Whether a new split is kept there; otherwise an existing one is only read.
        progress: How progress is shown; by default lines on standard error.
        threads: Number of threads that read and decode; by default as many as suit this machine.

    Returns:
        (the images that stay labeled, the held-out ones).

    Raises:
        UsageError: `share` is not in (0, 1), or `seed` is negative.
        NstError: No image can be held out.
    """
    if not 0 < share < 1:
        raise UsageError(f"`share`: expected a number above 0 and below 1, such as 0.2, found {share!r}")
    if seed < 0:
        raise UsageError(f"`seed`: expected 0 or more, found {seed}")
    progress, labels, names = progress or terminal_progress(), labels_in(labeled), labeled.class_names or []
    split_id = f"{labeled.fingerprint} {labeled.stamp} {share} {seed}"
    file = Path(kept) / f"{hashlib.sha256(split_id.encode()).hexdigest()}.npy" if kept else None
    if file and file.exists():
        rows = np.load(file)
    else:
        hashes, groups = _group_near_duplicates(labeled, progress, threads)
        rows = select_holdout_rows(hashes, groups, labels, share, seed)
        with suppress(OSError):  # a read-only store
            if file and writes:
                file.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(file) as out:
                    np.lib.format.write_array(out, rows)
    if not len(rows):
        raise NstError(
            f"{labeled.location}: `holdout` {share:g} finds no image to hold out: no class has two images that differ; "
            "use other images to test on, or remove `holdout`"
        )
    progress.say(f"{labeled.location}: {len(rows):,} of {len(labeled):,} labeled images are held out as test images")
    images, n_held_out = np.bincount(labels, minlength=len(names)), np.bincount(labels[rows], minlength=len(names))
    if untested := [escape_unprintable(name) for name, total, out in zip(names, images, n_held_out, strict=True) if total and not out]:
        examples = ", ".join(untested[:5]) + ", ..." * (len(untested) > 5)
        classes = f"{len(untested):,} classes are" if len(untested) > 1 else "1 class is"
        progress.say(f"{labeled.location}: {classes} not tested, with fewer than two distinct images: {examples}")
    remaining = np.setdiff1d(np.arange(len(labeled)), rows)
    description = f"holdout {share:g}, seed {seed}"
    return Subset(labeled, remaining, f"all but {description}"), Subset(labeled, rows, description)


def holdout_folder(store: Store) -> Path:
    """The folder in which a store keeps which images are held out."""
    return store.root / "runs" / "holdout"


def select_holdout_rows(
    hashes: Sequence[str], groups: NDArray[np.int64], labels: NDArray[np.int64], share: float, seed: int
) -> NDArray[np.int64]:
    """The increasing numbers of the held-out rows.

    `hashes` has the `image_hash` of each row, empty for one that cannot be decoded, which is not held out; rows with the same number in
    `groups` show the same and stay together.
    """
    members: dict[int, list[int]] = {}
    for row in np.flatnonzero(np.array([bool(hashed) for hashed in hashes], dtype=np.bool_)).tolist():
        members.setdefault(int(groups[row]), []).append(row)
    by_class: dict[int, list[list[int]]] = {}
    for rows in members.values():
        classes = {int(labels[row]) for row in rows}
        if len(classes) == 1:
            by_class.setdefault(classes.pop(), []).append(rows)
    held_out = [row for label in sorted(by_class) for row in _sample_class(by_class[label], hashes, share, seed)]
    return np.array(sorted(held_out), dtype=np.int64)


def _sample_class(groups: list[list[int]], hashes: Sequence[str], share: float, seed: int) -> Iterator[int]:
    """Yield the rows of whole groups, drawn in a seeded order, up to the share."""

    def order(rows: list[int]) -> bytes:
        return hashlib.sha256(f"holdout {seed} {min(hashes[row] for row in rows)}".encode()).digest()

    images, shuffled_groups, n_held_out = sum(map(len, groups)), sorted(groups, key=order), 0
    limit = max(1, math.floor(share * images + 0.5))
    for rows in shuffled_groups:
        if n_held_out + len(rows) <= limit and n_held_out + len(rows) < images:
            n_held_out += len(rows)
            yield from rows
    smallest = min(shuffled_groups, key=len)
    if not n_held_out and 2 * len(smallest) <= images:  # each group is more than the share: some images are copied many times
        yield from smallest


def _group_near_duplicates(labeled: Source, progress: Progress, threads: int | None) -> tuple[list[str], NDArray[np.int64]]:
    """The `image_hash` of each row, and a number shared by rows whose images are equal or near-duplicates."""
    hashes: list[str] = []
    first_rows: dict[str, int] = {}  # image_hash to its first row
    thumbnails: list[NDArray[np.uint8]] = []
    descriptors, phashes, rows = list[ImageDescriptors](), list[NDArray[np.int64]](), list[int]()

    def flush() -> None:
        stacked = np.stack(thumbnails)
        descriptors.append(ImageDescriptors.from_thumbnails(stacked))
        phashes.append(phash(stacked))
        thumbnails.clear()

    with progress.task("hold out test images", len(labeled), "images") as task:
        results = map_in_threads(lambda row: read_hash_and_thumbnail(row, True), labeled.rows(range(len(labeled))), threads)
        for row, (hashed, thumbnail) in enumerate(results):
            task.advance(1)
            hashes.append(hashed if hashed and thumbnail is not None else "")
            if thumbnail is not None and hashes[row] not in first_rows:
                first_rows[hashes[row]] = row
                rows.append(row)
                thumbnails.append(thumbnail)
                if len(thumbnails) == _IMAGES_AT_ONCE:
                    flush()
        if thumbnails:
            flush()
    groups = np.array([first_rows.get(hashed, row) for row, hashed in enumerate(hashes)], dtype=np.int64)
    if rows:
        columns = [np.concatenate(column) for column in zip(*descriptors, strict=True)]
        roots = _connected_roots(len(rows), _near_pairs(ImageDescriptors(*columns), np.concatenate(phashes)))
        root_rows = dict(zip(rows, (rows[root] for root in roots), strict=True))
        groups = np.array([root_rows.get(first, first) for first in groups.tolist()], dtype=np.int64)
    return hashes, groups


def _near_pairs(descriptors: ImageDescriptors, phashes: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield pairs of images that show the same; plain images have nothing to compare and are left out."""
    high_contrast = np.flatnonzero(descriptors.contrasts >= MIN_CONTRAST)
    index = HashIndex(phashes[high_contrast])
    for image in high_contrast.tolist():
        near = high_contrast[index.find_near(int(phashes[image]))]
        near = near[near > image]
        for start in range(0, len(near), _IMAGES_AT_ONCE):
            piece = near[start : start + _IMAGES_AT_ONCE]
            for other in piece[descriptors.take(piece).matches(descriptors.take(slice(image, image + 1)))].tolist():
                yield image, other


def _connected_roots(n_images: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """For each image, the first of those connected with it."""
    root = list(range(n_images))

    def find(image: int) -> int:
        while root[image] != image:
            root[image] = root[root[image]]
            image = root[image]
        return image

    for left, right in pairs:
        first, second = sorted((find(left), find(right)))
        root[second] = first
    return [find(image) for image in range(n_images)]
