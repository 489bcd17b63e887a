"""The entries of an edition: which image stands at each position of the training, where its bytes are, and what it is trained on."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from nst_data.errors import NstError
from nst_data.images import image_hash
from nst_data.progress import Progress
from nst_data.self_contained.images import EmbeddedImages, holds_images
from nst_data.sources import Source, match_classes
from nst_data.store.files import place_once
from nst_data.store.manifest import is_anonymous
from nst_data.store.store import Version
from nst_data.tables.label_tables import damage_is_named
from nst_data.tables.schema import soft_label_columns
from nst_data.tables.shards import table_files
from nst_train.batches.order import draw, draw_along

_AT_ONCE = 8192  # rows in memory while they are laid out
_SAMPLES = 16  # images that are compared with the labeled ones before training begins


@dataclass(frozen=True)
class PseudoLabeledImages:
    """An edition's images and what to train on; columns lie in memory-mapped files, so memory does not grow with the edition.

    `source` is the pool, or the edition itself where it holds its images; image i is its row `rows[i]`.
    `ends[i]` is the number of entries up to and with image i: entry e is of the first image with ends > e. Where `is_along` it counts the
    copies beside the first of each image, which comes in the order of the files.
    `targets` holds the columns to train on: `probs` (images, classes), or `top_labels` and `top_probs` (images, k), or `label` (images).
    """

    source: Source
    is_along: bool
    rows: NDArray[np.int64]
    hashes: NDArray[np.uint8]
    ends: NDArray[np.int64]
    targets: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return int(self.ends[-1]) + (len(self.rows) if self.is_along else 0)

    def at(self, positions: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """The image at each position of an endless stream of epochs, shape (positions,); each epoch holds every entry once."""
        if not self.is_along:
            return np.searchsorted(self.ends, draw(positions, len(self), seed, "pseudo"), side="right")
        drawn, is_copy = draw_along(positions, len(self.rows), int(self.ends[-1]), seed, "pseudo")
        drawn[is_copy] = np.searchsorted(self.ends, drawn[is_copy], side="right")
        return drawn

    def read(self, index: int) -> bytes:
        """The encoded bytes of image `index`. Raises NstError where they are others than were labeled."""
        row = int(self.rows[index])
        encoded = self.source.read(row)
        self.source.check(row, encoded, self.hashes[index].tobytes().hex())
        return encoded

    def targets_of(self, indices: NDArray[np.int64]) -> dict[str, Tensor]:
        """The targets of some images as they are stored; `nst_train.training.loss` reads them."""
        return {name: torch.from_numpy(column[indices]) for name, column in self.targets.items()}


def open_edition(
    edition: Version, pool: Source | None, class_names: list[str], work: Path, hard: bool = False, progress: Progress | None = None
) -> PseudoLabeledImages:
    """Lay the edition's columns out for random access below `work`, classes in the order of `class_names`.

    A self-contained edition takes no `pool`. In another pool than was labeled images are found by key or, where those differ, by hash.
    `hard` takes the column `label`, the most probable class before rounding to float16, in place of the soft labels. Raises NstError where
    the classes are others, or the pool lacks images or holds others.
    """
    manifest = edition.manifest
    order = match_classes(class_names, manifest.class_names, f"{edition.ref} and the labeled set")
    with damage_is_named(edition.ref):
        is_along = holds_images(edition)
        if not is_along:
            _check_not_anonymous(edition)
        source = EmbeddedImages(edition) if is_along else pool
        assert source is not None, "an edition's images come from a pool"
        targets = target_columns(pq.read_schema(table_files(edition.folder, "balanced")[0]), hard)
        folder = work / f"edition-{source.fingerprint[:16]}"
        if not folder.is_dir():
            fresh = work / f".{folder.name}.{os.getpid()}"
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            _lay_out_rows(edition, source, fresh, progress or Progress())
            lay_out(table_files(edition.folder, "balanced"), edition.manifest.counts["unique"], order, fresh, targets, is_along)
            place_once(fresh, folder)
            shutil.rmtree(fresh, ignore_errors=True)  # another machine's process was first
    rows, hashes, ends = (mapped(folder, name) for name in ("rows", "hashes", "ends"))
    pseudo = PseudoLabeledImages(source, is_along, rows, hashes, ends, {name: mapped(folder, name) for name in targets})
    for index in np.linspace(0, len(rows) - 1, _SAMPLES, dtype=np.int64):
        pseudo.read(int(index))  # refuses another pool before any work, and opens what is opened once before workers are forked
    return pseudo


def _check_not_anonymous(edition: Version) -> None:
    if is_anonymous(edition.manifest):
        raise NstError(
            f"{edition.ref} was published without keys and hashes: nobody can find its images in a pool; "
            "ask its owner for an edition with images (`nst balance --embed-images`)"
        )


def _lay_out_rows(edition: Version, source: Source, folder: Path, progress: Progress) -> None:
    """The row of the source for each image: its place in the edition itself, its `id` in the pool that was labeled, else found there."""
    rows = _column(edition.manifest.counts["unique"], folder, "rows", (), np.int64)
    if isinstance(source, EmbeddedImages):
        for start in range(0, len(rows), _AT_ONCE):
            rows[start : start + _AT_ONCE] = np.arange(start, min(start + _AT_ONCE, len(rows)))
    elif source.fingerprint == edition.manifest.request.inputs["pool"].digest:
        for here, batch in _batches(edition, ["id"]):
            rows[here] = batch["id"].to_numpy()
    else:
        _find(edition, source, rows, progress)
    rows.flush()


def _find(edition: Version, pool: Source, rows: NDArray[np.int64], progress: Progress) -> None:
    """The row of each image in another pool. Raises NstError where it lacks some."""

    def column(name: str) -> Iterator[pa.Array]:
        return (batch[name] for _, batch in _batches(edition, [name]))

    try:
        pool.find_all(lambda: column("key"), rows)
    except NstError:
        pass
    else:
        if _are_the_same(edition, pool, rows):
            return
    pool.check_holds_some(lambda: column("image_hash"), len(rows))
    progress.say(
        f"{pool.location}: has other keys than {edition.ref}; its {len(pool):,} images are read once to find those by their hashes"
    )
    pool.find_by_hash(lambda: column("image_hash"), lambda: column("key"), rows)


def _are_the_same(edition: Version, pool: Source, rows: NDArray[np.int64]) -> bool:
    """Whether some images that were found by key have the bytes that were labeled."""
    wanted, done = set(np.linspace(0, len(rows) - 1, _SAMPLES, dtype=np.int64).tolist()), 0
    for _, batch in _batches(edition, ["image_hash"]):
        for position in range(done, done + len(batch)):
            if position in wanted and image_hash(pool.read(int(rows[position]))) != batch["image_hash"][position - done].as_py():
                return False
        done += len(batch)
    return True


def lay_out(
    files: Sequence[Path], images: int, order: NDArray[np.int64], folder: Path, targets: tuple[str, ...], is_along: bool = False
) -> None:
    """All other columns of some files with so many images, as `hashes`, `ends` and the targets, for `mapped` below `folder`."""
    schema, entries = pq.read_schema(files[0]), 0
    hashes, ends = (_column(images, folder, name, *kind) for name, kind in (("hashes", ((16,), np.uint8)), ("ends", ((), np.int64))))
    shapes = {name: _shape_and_dtype(schema.field(name).type) for name in targets}
    out = {name: _column(images, folder, name, *shapes[name]) for name in targets}
    for here, batch in _batches_of(files, ["image_hash", "copies", *targets]):
        copies = batch["copies"].to_numpy().astype(np.int64) - is_along
        ends[here] = entries + np.cumsum(copies)
        entries += int(copies.sum())
        hashes[here] = np.frombuffer(bytes.fromhex("".join(batch["image_hash"].to_pylist())), np.uint8).reshape(-1, 16)
        for name in targets:
            values = batch[name].flatten() if shapes[name][0] else batch[name]
            stored = values.to_numpy(zero_copy_only=False).reshape(len(batch), *shapes[name][0])
            out[name][here] = _renumbered(name, stored, order)
    for column in (hashes, ends, *out.values()):
        column.flush()


def target_columns(schema: pa.Schema, hard: bool) -> tuple[str, ...]:
    """The columns to train on: the soft labels, or the label alone."""
    return ("label",) if hard else soft_label_columns(schema)


def _batches(edition: Version, columns: list[str]) -> Iterator[tuple[slice, pa.RecordBatch]]:
    """Some columns of the edition, piece by piece, and where each piece belongs."""
    return _batches_of(table_files(edition.folder, "balanced"), columns)


def _batches_of(files: Sequence[Path], columns: list[str]) -> Iterator[tuple[slice, pa.RecordBatch]]:
    done = 0
    for file in files:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(_AT_ONCE, columns=columns):
                yield slice(done, done + len(batch)), batch
                done += len(batch)


def _column(images: int, folder: Path, name: str, shape: tuple[int, ...], dtype: Any) -> np.memmap[Any, Any]:  # noqa: ANN401
    """A file with a place for each image, to be filled."""
    return np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=(images, *shape))


def _shape_and_dtype(column: pa.DataType) -> tuple[tuple[int, ...], Any]:
    """Of one row of a column: a list of fixed length, or a number."""
    if isinstance(column, pa.FixedSizeListType):
        return (column.list_size,), column.value_type.to_pandas_dtype()
    return (), column.to_pandas_dtype()


def _renumbered(name: str, rows: NDArray[Any], order: NDArray[np.int64]) -> NDArray[Any]:
    """Rows of a target's column, where class order[i] of the edition becomes class i."""
    if name in ("label", "top_labels"):
        rows = np.argsort(order)[rows]
    return rows[:, order] if name == "probs" else rows


def mapped(folder: Path, name: str) -> NDArray[Any]:
    """A column that was laid out, as it lies on disk."""
    column: NDArray[Any] = np.load(folder / f"{name}.npy", mmap_mode="r")
    return column
