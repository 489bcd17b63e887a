"""Training batches: labeled and pseudo-labeled images side by side, each batch a pure function of (seed, step)."""

import os
import shutil
import signal
import sys
import threading
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nst_data.errors import NstError
from nst_data.images import ImageError, decode
from nst_data.pseudo_labels import table_files
from nst_data.schema import soft_label_columns
from nst_data.sources import Source, match_classes
from nst_data.store import Version
from nst_train.interruption import STOP_SIGNALS
from nst_train.noise import Transform, seed_of, seed_transforms
from nst_train.order import draw
from nst_train.settings import TrainSettings


@dataclass(frozen=True)
class LabeledImages:
    """The readable images of a labeled source."""

    source: Source
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class PseudoLabeledImages:
    """An edition's images, found in the pool; columns lie in memory-mapped files, so memory does not grow with the edition.

    `ends[i]` is the number of training entries up to and with image i: entry e is the first image with ends > e.
    `targets` holds the columns to train on: `probs` (images, classes), or `top_labels` and `top_probs` (images, k), or `label` (images).
    """

    pool: Source
    rows: NDArray[np.int64]
    hashes: NDArray[np.uint8]
    ends: NDArray[np.int64]
    targets: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return int(self.ends[-1])

    def read(self, index: int) -> bytes:
        """The encoded bytes of image `index`. Raises NstError where the pool holds others."""
        row = int(self.rows[index])
        encoded = self.pool.read(row)
        self.pool.check(row, encoded, self.hashes[index].tobytes().hex())
        return encoded

    def targets_of(self, indices: NDArray[np.int64]) -> dict[str, Tensor]:
        """The targets of some images as they are stored; `nst_train.loss` reads them."""
        return {name: torch.from_numpy(column[indices]) for name, column in self.targets.items()}


@dataclass(frozen=True)
class TrainingBatch:
    """One step's images of this process, labeled ones first. `pseudo` are the others' targets as stored; empty without an edition."""

    images: UInt8[Tensor, "images 3 height width"]
    labels: Int[Tensor, " labeled"]
    pseudo: Mapping[str, Tensor]

    def pin_memory(self) -> "TrainingBatch":
        """Copy to pinned memory; DataLoader calls this."""
        pseudo = {name: column.pin_memory() for name, column in self.pseudo.items()}
        return TrainingBatch(self.images.pin_memory(), self.labels.pin_memory(), pseudo)


def readable(source: Source, threads: int) -> tuple[LabeledImages, list[str]]:
    """The images of a labeled source that can be decoded, and a line with the reason for each that cannot."""

    def reason(row: int) -> str | None:
        try:
            decode(source.read(row))
        except (NstError, OSError) as error:
            return f"{source.key(row)}: {error}"
        return None

    assert source.labels is not None, "training needs labels"
    with ThreadPoolExecutor(threads) as pool:
        reasons = list(pool.map(reason, range(len(source))))
    rows = np.array([row for row, why in enumerate(reasons) if why is None], dtype=np.int64)
    return LabeledImages(source, rows, source.labels[rows]), [why for why in reasons if why]


def open_edition(edition: Version, pool: Source, class_names: list[str], work: Path, hard: bool = False) -> PseudoLabeledImages:
    """Lay the edition's columns out for random access below `work`, classes in the order of `class_names`.

    `hard` takes the column `label`, the most probable class before rounding to float16, in place of the soft labels.
    """
    manifest = edition.manifest
    order = match_classes(class_names, manifest.class_names, f"{edition.ref} and the labeled set")
    same_pool = pool.fingerprint == manifest.request.inputs["pool"].digest
    targets = ("label",) if hard else soft_label_columns(pq.read_schema(table_files(edition.folder, "balanced")[0]))
    folder = work / "edition"
    if not folder.is_dir():
        fresh = work / f".edition.{os.getpid()}"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        _lay_out(edition, None if same_pool else pool, order, fresh, targets)
        fresh.rename(folder)
    rows, hashes, ends = (_mapped(folder, name) for name in ("rows", "hashes", "ends"))
    pseudo = PseudoLabeledImages(pool, rows, hashes, ends, {name: _mapped(folder, name) for name in targets})
    pseudo.read(0)  # refuses another pool before any work, and opens what is opened once before workers are forked
    return pseudo


def _lay_out(edition: Version, other_pool: Source | None, order: NDArray[np.int64], folder: Path, targets: tuple[str, ...]) -> None:
    unique = edition.manifest.counts["unique"]
    schema = pq.read_schema(table_files(edition.folder, "balanced")[0])
    shapes = {"rows": ((), np.int64), "hashes": ((16,), np.uint8), "ends": ((), np.int64)}
    shapes |= {name: _shape_and_dtype(schema.field(name).type) for name in targets}
    out = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=(unique, *shape))
        for name, (shape, dtype) in shapes.items()
    }
    done, entries = 0, 0
    for file in table_files(edition.folder, "balanced"):
        for batch in pq.ParquetFile(file).iter_batches(columns=["id", "key", "image_hash", "copies", *targets]):
            here = slice(done, done + len(batch))
            ends = entries + np.cumsum(batch["copies"].to_numpy(), dtype=np.int64)
            out["rows"][here] = batch["id"].to_numpy() if other_pool is None else other_pool.rows_of(batch["key"].to_pylist())
            out["hashes"][here] = np.frombuffer(bytes.fromhex("".join(batch["image_hash"].to_pylist())), np.uint8).reshape(-1, 16)
            out["ends"][here] = ends
            for name in targets:
                values = batch[name].flatten() if shapes[name][0] else batch[name]
                stored = values.to_numpy(zero_copy_only=False).reshape(len(batch), *shapes[name][0])
                out[name][here] = _renumbered(name, stored, order)
            done, entries = done + len(batch), int(ends[-1])
    for column in out.values():
        column.flush()


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


def _mapped(folder: Path, name: str) -> NDArray[Any]:
    column: NDArray[Any] = np.load(folder / f"{name}.npy", mmap_mode="r")
    return column


class _Steps(Dataset[TrainingBatch | NstError]):
    """Item `step` is the batch of that step for one process of `processes`, or the error that the parent raises as its own."""

    def __init__(
        self,
        settings: TrainSettings,
        labeled: LabeledImages,
        pseudo: PseudoLabeledImages | None,
        transform: Transform,
        process: int,
        processes: int,
    ) -> None:
        self._settings, self._labeled, self._pseudo, self._transform = settings, labeled, pseudo, transform
        self._process, self._processes = process, processes

    def __getitem__(self, step: int) -> TrainingBatch | NstError:
        try:
            return self._batch(step)
        except NstError as error:
            return error

    def _batch(self, step: int) -> TrainingBatch:
        positions = self._positions(step, self._settings.batch_size)
        drawn = draw(positions, len(self._labeled), self._settings.seed, "labeled")
        images = [self._labeled_image(int(self._labeled.rows[index]), position) for index, position in zip(drawn, positions, strict=True)]
        targets: dict[str, Tensor] = {}
        if self._pseudo is not None:
            pseudo_images, targets = self._pseudo_batch(step, self._pseudo)
            images += pseudo_images
        return TrainingBatch(torch.from_numpy(np.stack(images)), torch.from_numpy(self._labeled.labels[drawn]), targets)

    def _positions(self, step: int, batch_size: int) -> NDArray[np.int64]:
        """This process's share of the step's positions in the endless stream."""
        share = batch_size // self._processes
        start = step * batch_size + self._process * share
        return np.arange(start, start + share, dtype=np.int64)

    def _pseudo_batch(self, step: int, pseudo: PseudoLabeledImages) -> tuple[list[NDArray[np.uint8]], dict[str, Tensor]]:
        positions = self._positions(step, self._settings.batch_size * self._settings.ratio)
        entries = draw(positions, len(pseudo), self._settings.seed, "pseudo")
        indices = np.searchsorted(pseudo.ends, entries, side="right")
        images = []
        for index, position in zip(indices, positions, strict=True):
            with _naming(pseudo.pool, int(pseudo.rows[index])):
                images.append(self._augmented(pseudo.read(int(index)), "pseudo", position))
        return images, pseudo.targets_of(indices)

    def _labeled_image(self, row: int, position: np.int64) -> NDArray[np.uint8]:
        with _naming(self._labeled.source, row):
            return self._augmented(self._labeled.source.read(row), "labeled", position)

    def _augmented(self, encoded: bytes, part: str, position: np.int64) -> NDArray[np.uint8]:
        seed_transforms(seed_of(self._settings.seed, part, "noise", int(position)))
        return np.asarray(self._transform(decode(encoded)))


@contextmanager
def _naming(source: Source, row: int) -> Iterator[None]:
    """An image that could be read when training began and cannot any more is named."""
    try:
        yield
    except (ImageError, OSError) as error:
        raise source.unreadable(row, error) from None


def training_batches(
    settings: TrainSettings,
    labeled: LabeledImages,
    pseudo: PseudoLabeledImages | None,
    transform: Transform,
    steps: range,
    workers: int,
    process: int = 0,
    processes: int = 1,
) -> Generator[TrainingBatch, None, None]:
    """The batches of `steps`, made by `workers` processes ahead of time. Their number changes nothing in what comes."""
    loader = DataLoader(
        _Steps(settings, labeled, pseudo, transform, process, processes),
        batch_size=None,
        sampler=steps,
        num_workers=min(workers, len(steps)),
        prefetch_factor=4 if workers and len(steps) else None,
        worker_init_fn=_end_quietly,
        pin_memory=torch.cuda.is_available(),
    )
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # a worker is born deaf to them, and stays so
    try:
        items = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for item in items:
        if isinstance(item, NstError):
            raise item
        yield item


def _end_quietly(worker: int) -> None:
    """When the parent is interrupted or killed, the thread that hands it tensors would print a stack trace for each of them.

    Errors in making a batch do not pass here: they travel to the parent.
    """
    sys.excepthook = lambda *_: None
    threading.Thread(target=_heed_the_parent, daemon=True).start()


def _heed_the_parent() -> None:
    """End on a SIGTERM of the parent alone: a scheduler sends it to all processes, and the parent wants to finish its step."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
