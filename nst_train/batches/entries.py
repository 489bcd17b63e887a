"""The entries of an edition: the image at each training position, the location of its bytes, and its target."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from nst_data.self_contained.edition import SelfContainedEdition
from nst_data.self_contained.images import EditionImages, as_self_contained, needs_pool
from nst_data.self_contained.remote import StreamedEdition
from nst_data.self_contained.shard_folders import ShardFolders
from nst_data.self_contained.shard_window import DamagedShardError
from nst_data.sources import Source, match_classes
from nst_data.store.files import atomic_write
from nst_data.store.manifest import EditionManifest, is_anonymous
from nst_data.store.store import Version
from nst_data.tables.label_tables import translate_table_errors
from nst_data.tables.shards import table_files
from nst_train.batches.columns import create_column, iterate_batches, target_columns, write_columns
from nst_train.batches.shard_order import SHARDS_PER_GROUP, ShardOrder
from nst_train.device import this_process

_N_SAMPLES = 16  # images whose bytes are compared with the labeled ones before training starts
_GROUPS_ON_DISK = 2  # of shards on disk: one in use, and one being fetched


@dataclass(frozen=True)
class PseudoLabeledImages:
    """The images and targets of an edition, shard by shard; an edition whose images are in a pool is a single shard.

    Image i is row `rows[i]` of `source`, the pool or the edition itself. `order` knows the number of entries (with copies) of each shard.
    `targets` names the columns to train on: `probs` (images, classes), or `top_labels` and `top_probs` (images, k), or `label` (images).
    """

    source: Source
    rows: NDArray[np.int64] | range
    order: ShardOrder
    shards: ShardFolders
    targets: tuple[str, ...]

    def __getstate__(self) -> dict[str, Any]:
        """Drop memory-mapped rows, which a worker process that is not forked maps again itself."""
        return self.__dict__ | {"rows": None if isinstance(self.rows, np.memmap) else self.rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.rows is None:
            self.__dict__["rows"] = self.shards.column(0, "rows")

    def __len__(self) -> int:
        return len(self.order)

    def images_at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The image at each position of an endless stream of epochs, shape (positions,); each epoch contains every entry once."""
        self.shards.close_except(self.order.window(int(positions.min()), int(positions.max()) + 1))
        shards, entries = self.order.entries_at(positions)
        images = np.empty_like(positions)
        for shard in np.unique(shards).tolist():
            mask = shards == shard
            images[mask] = self.shards.starts[shard] + np.searchsorted(self.shards.column(shard, "ends"), entries[mask], side="right")
        return images

    def read(self, index: int) -> bytes:
        """The encoded bytes of image `index`. Raises NstError if they differ from those that were labeled."""
        row = int(self.rows[index])
        encoded = self.source.read(row)
        self.source.check_content(row, encoded, self.shards.take("hashes", np.array([index])).tobytes().hex())
        return encoded

    def targets_of(self, indices: NDArray[np.int64]) -> dict[str, Tensor]:
        """The targets of some images as stored; `nst_train.training.loss` interprets them."""
        return {name: torch.from_numpy(self.shards.take(name, indices)) for name in self.targets}

    @contextmanager
    def prefetch_shards(self, steps: range, per_step: int) -> Iterator[Callable[[int], None]]:
        """Keep the shards of the current step on disk and fetch the next ones meanwhile. Yields a function to call with the current step.

        Step s uses the `per_step` positions from s * per_step on.
        """
        stop = steps.stop * per_step

        def needed_shards(start: int) -> list[int]:
            return self.order.window(start, start + per_step, _GROUPS_ON_DISK, stop) if start < stop else []

        with self.shards.keep_available(steps.start * per_step, needed_shards) as mark_reached:
            yield lambda step: mark_reached(step * per_step)


def open_edition(
    edition: Version | StreamedEdition,
    pool: Source | None,
    class_names: list[str],
    work: Path,
    hard: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> PseudoLabeledImages:
    """Lay out an edition's columns in `work`, with classes in the order of `class_names`; `seed` determines the order of its entries.

    A self-contained edition takes no `pool`; the shards of a streamed one are laid out as they arrive. In a pool other than the one that
    was labeled, images are found by key or, if the keys differ, by hash. `hard` uses the column `label`, the most probable class before
    rounding to float16, instead of the soft labels. Raises NstError if the classes differ, the pool lacks images or has different ones,
    the disk is too small for the shards needed at once, or the Hub fails.
    """
    progress = progress or Progress()
    shards = as_self_contained(edition)
    order = match_classes(class_names, edition.manifest.class_names, f"{shards.location} and the labeled set")
    if not needs_pool(edition):
        return _open_self_contained(shards, order, work, hard, seed, progress)
    assert pool is not None, "an edition's images come from a pool"
    return _open_with_pool(edition, pool, order, work, hard, seed, progress)


def _open_self_contained(
    edition: SelfContainedEdition, class_order: NDArray[np.int64], work: Path, hard: bool, seed: int, progress: Progress
) -> PseudoLabeledImages:
    """The entries of a self-contained edition."""
    sizes_file = work / "shards.npy"
    if not sizes_file.exists():
        work.mkdir(parents=True, exist_ok=True)
        with atomic_write(sizes_file) as file:
            np.save(file, edition.shard_sizes(progress))
    sizes, targets = np.load(sizes_file), target_columns(edition.schema, hard)

    def prepare(folder: Path, shard: int) -> None:
        file, (images, entries) = edition.fetch_shard(shard, folder), sizes[shard]
        try:
            write_columns([file], int(images), class_order, folder, targets)
            is_sound = np.load(folder / "ends.npy", mmap_mode="r")[-1:].sum() == entries
        except (ValueError, KeyError, IndexError):
            is_sound = False
        if not is_sound:
            raise DamagedShardError(
                f"{edition.location}: {edition.files[shard]} does not hold the rows that were counted; {edition.remedy}"
            )

    process = this_process()
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if process.num_processes > 1 else 1
    starts = np.concatenate([[0], np.cumsum(sizes[:, 0])])
    shards = edition.shards(work, prepare, starts, _GROUPS_ON_DISK * SHARDS_PER_GROUP, process.local_process_index, local_processes)
    return PseudoLabeledImages(EditionImages(edition, shards), range(starts[-1]), ShardOrder(sizes[:, 1], seed), shards, targets)


def _open_with_pool(
    edition: Version, pool: Source, class_order: NDArray[np.int64], work: Path, hard: bool, seed: int, progress: Progress
) -> PseudoLabeledImages:
    """The entries of an edition whose images are in a pool."""
    if is_anonymous(edition.manifest):
        raise NstError(
            f"{edition.ref} was published without keys and hashes: its images cannot be found in a pool; "
            "ask its owner for an edition with images (`balance(..., BalanceSettings(embed_images=True))`)"
        )
    images = EditionManifest.from_manifest(edition.manifest).counts.unique
    with translate_table_errors(edition.ref):
        files = table_files(edition.folder, "balanced")
        targets = target_columns(pq.read_schema(files[0]), hard)

        def prepare(folder: Path, shard: int) -> None:
            rows = create_column(images, folder, "rows")
            _find_rows(edition, pool, rows, progress)
            rows.flush()
            write_columns(files, images, class_order, folder, targets)

        shards = ShardFolders(work / f"edition-{pool.fingerprint[:16]}", prepare, np.array([0, images]))
        shards.add(0)
    entry_order = ShardOrder(np.array(shards.column(0, "ends")[-1:]), seed, seed_tag="order")
    pseudo = PseudoLabeledImages(pool, shards.column(0, "rows"), entry_order, shards, targets)
    for index in np.linspace(0, images - 1, _N_SAMPLES, dtype=np.int64):
        pseudo.read(int(index))  # rejects a wrong pool early, and opens files that are opened once before workers are forked
    return pseudo


def _find_rows(edition: Version, pool: Source, rows: NDArray[np.int64], progress: Progress) -> None:
    """Fill in the row of each image: its `id` in the labeled pool, or its match in another one. Raises NstError if the pool lacks some."""
    files = table_files(edition.folder, "balanced")

    def column(name: str) -> Iterator[pa.Array]:
        return (batch[name] for _, batch in iterate_batches(files, [name]))

    if pool.fingerprint == EditionManifest.from_manifest(edition.manifest).request.inputs.pool.digest:
        for span, batch in iterate_batches(files, ["id"]):
            rows[span] = batch["id"].to_numpy()
        return
    try:
        pool.find_all(lambda: column("key"), rows)
    except NstError:
        pass
    else:
        if _matches_sample(column("image_hash"), pool, rows):
            return
    pool.check_shares_images(lambda: column("image_hash"), len(rows))
    progress.say(f"{pool.location}: has different keys than {edition.ref}; its {len(pool):,} images are read once to match them by hash")
    pool.find_by_hash(lambda: column("image_hash"), lambda: column("key"), rows)


def _matches_sample(hashes: Iterator[pa.Array], pool: Source, rows: NDArray[np.int64]) -> bool:
    """Whether a sample of the images that were found by key have the bytes that were labeled."""
    sampled, start = np.unique(np.linspace(0, len(rows) - 1, _N_SAMPLES, dtype=np.int64)), 0
    for batch in hashes:
        for position in sampled[(sampled >= start) & (sampled < start + len(batch))].tolist():
            if image_hash(pool.read(int(rows[position]))) != batch[position - start].as_py():
                return False
        start += len(batch)
    return True
