"""The entries of an edition that stays on the Hub: its shards come one after the other, with all that is known of their images."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nst_data.errors import NstError
from nst_data.progress import Progress
from nst_data.self_contained.remote import DamagedShardError, StreamedEdition
from nst_data.self_contained.remote_images import StreamedImages
from nst_data.self_contained.shard_window import SHARD, ShardWindow
from nst_data.sources import match_classes
from nst_data.store.files import replacing
from nst_train.batches.entries import lay_out, mapped, target_columns
from nst_train.batches.shard_order import SHARDS_AT_ONCE, ShardOrder
from nst_train.device import this_process

_GROUPS = 2  # on disk: one that is trained on, one that is fetched meanwhile


@dataclass(frozen=True)
class StreamedEntries:
    """An edition's images and what to train on, of which only some shards are here; the same calls as of `PseudoLabeledImages`.

    Image i is row i of the edition; shard s has `entries[s]` entries, copies counted. Columns lie beside their shard.
    """

    source: StreamedImages
    entries: NDArray[np.int64]
    targets: tuple[str, ...]

    def __len__(self) -> int:
        return int(self.entries.sum())

    @property
    def rows(self) -> range:
        """The row of the source for each image."""
        return range(len(self.source))

    def at(self, positions: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """The image at each position of an endless stream of epochs, shape (positions,); each epoch holds every entry once."""
        order = ShardOrder(self.entries, seed)
        if len(positions):
            self.source.close_all_but(order.window(int(positions.min()), int(positions.max()) + 1))
        shards, entries = order.at(positions)
        images = np.empty_like(positions)
        for shard in np.unique(shards).tolist():
            here = shards == shard
            images[here] = self.source.starts[shard] + np.searchsorted(self.source.shard(shard).column("ends"), entries[here], side="right")
        return images

    def read(self, index: int) -> bytes:
        """The encoded bytes of image `index`. Raises NstError where they are others than were labeled."""
        encoded = self.source.read(index)
        shard = self.source.shard_of(index)
        hashed = self.source.shard(shard).column("hashes")[index - self.source.starts[shard]]
        self.source.check(index, encoded, hashed.tobytes().hex())
        return encoded

    def targets_of(self, indices: NDArray[np.int64]) -> dict[str, Tensor]:
        """The targets of some images as they are stored; `nst_train.training.loss` reads them."""
        shards = np.searchsorted(self.source.starts, indices, side="right") - 1
        found: dict[str, NDArray[Any]] = {}
        for shard in np.unique(shards).tolist():
            here = shards == shard
            for name in self.targets:
                column = self.source.shard(shard).column(name)
                out = found.setdefault(name, np.empty((len(indices), *column.shape[1:]), column.dtype))
                out[here] = column[indices[here] - self.source.starts[shard]]
        return {name: torch.from_numpy(values) for name, values in found.items()}

    @contextmanager
    def kept(self, steps: range, per_step: int, seed: int) -> Iterator[Callable[[int], None]]:
        """While this lasts, the shards of the step that is taken, and those that come next, are fetched; what is given tells that step.

        Step s takes the `per_step` positions from s * per_step on.
        """
        order, stop = ShardOrder(self.entries, seed), steps.stop * per_step

        def wanted(start: int) -> list[int]:
            return order.window(start, start + per_step, _GROUPS, stop) if start < stop else []

        with self.source.window.kept(steps.start * per_step, wanted) as reached:
            yield lambda step: reached(step * per_step)


def open_streamed(
    edition: StreamedEdition, class_names: list[str], work: Path, hard: bool = False, progress: Progress | None = None
) -> StreamedEntries:
    """The entries of an edition of the Hub, its shards to come below `work`, classes in the order of `class_names`.

    Raises NstError where the classes are others, the disk is too small for the shards that lie there at once, or the Hub fails.
    """
    order = match_classes(class_names, edition.manifest.class_names, f"{edition.place} and the labeled set")
    folder = work / f"stream-{os.uname().nodename}"  # each machine has its own
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = edition.bytes_of(_GROUPS * SHARDS_AT_ONCE), shutil.disk_usage(folder).free
    if needed > free + _bytes_below(folder):
        raise NstError(
            f"{edition.place}: up to {needed / 1e9:,.1f} GB of its shards lie in {folder} at once, {free / 1e9:,.1f} GB are left there"
        )
    known = work / "shards.npy"
    if not known.exists():
        with replacing(known) as file:
            np.save(file, edition.sizes(progress))
    images, entries = np.load(known).T
    process = this_process()
    others = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if process.num_processes > 1 else 1
    targets = target_columns(edition.schema, hard)
    prepare = partial(_prepare, edition, np.stack([images, entries], axis=1), order, targets)
    window = ShardWindow(edition, folder, prepare, process.local_process_index, others)
    window.begin()
    return StreamedEntries(StreamedImages(window, images), entries, targets)


def _prepare(
    edition: StreamedEdition, sizes: NDArray[np.int64], order: NDArray[np.int64], targets: tuple[str, ...], folder: Path, shard: int
) -> None:
    """Lay the columns of a shard out beside it. Raises NstError where it is another than its counts said."""
    images, entries = sizes[shard]
    try:
        lay_out([folder / SHARD], int(images), order, folder, targets)
        is_sound = mapped(folder, "ends")[-1] == entries
    except (ValueError, KeyError, IndexError):
        is_sound = False
    if not is_sound:
        raise DamagedShardError(
            f"{edition.place}: {edition.files[shard]} holds other rows than were counted when training began; it is damaged"
        )


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
