"""Shards of an edition on local disk: one folder per shard, with image metadata in memory-mapped files."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nst_data.sources.plain_pages import close_files
from nst_data.store.files import fsync_tree, move_unless_exists

Prepare = Callable[[Path, int], None]
NeededShards = Callable[[int], Sequence[int]]


@dataclass(frozen=True)
class ShardFolders:
    """Shards that are all local. `prepare(folder, shard)` writes a shard's columns to its folder, which appears once it is complete.

    Shard s has the images from `starts[s]` up to but excluding `starts[s + 1]`.
    """

    folder: Path
    prepare: Prepare
    starts: NDArray[np.int64]
    _open: dict[int, dict[str, NDArray[Any]]] = field(default_factory=dict, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """State for spawned workers, which prepare no shards and open the ones they read themselves."""
        return self.__dict__ | {"prepare": None, "_open": {}}

    def shard_folder(self, shard: int) -> Path:
        """The folder of a shard, once it is available."""
        return self.folder / f"{shard:05d}"

    def wait_for(self, shard: int) -> Path:
        """Wait until a shard is available and return its folder."""
        return self.shard_folder(shard)

    @contextmanager
    def keep_available(self, start: int, needed: NeededShards) -> Iterator[Callable[[int], None]]:
        """Keep the shards needed at the current position available in this context; call the yielded function to report the position."""
        yield lambda position: None

    def add(self, shard: int) -> None:
        """Prepare a shard unless it is available; another process may finish it first."""
        if self.shard_folder(shard).is_dir():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        temp_folder = Path(tempfile.mkdtemp(prefix=".part.", dir=self.folder))
        try:
            self.prepare(temp_folder, shard)
            fsync_tree(temp_folder)
            move_unless_exists(temp_folder, self.shard_folder(shard))
        finally:
            shutil.rmtree(temp_folder, ignore_errors=True)

    def shard_of(self, image: int) -> int:
        """The shard that contains an image."""
        return int(np.searchsorted(self.starts, image, side="right")) - 1

    def column(self, shard: int, name: str) -> NDArray[Any]:
        """A column of a shard, after waiting for the shard."""
        columns = self._open.setdefault(shard, {})
        if name not in columns:
            columns[name] = np.load(self.wait_for(shard) / f"{name}.npy", mmap_mode="r")
        return columns[name]

    def take(self, name: str, images: NDArray[np.int64]) -> NDArray[Any]:
        """The values of a column for the given images, in their order."""
        shards = np.searchsorted(self.starts, images, side="right") - 1
        first = self.column(int(shards[0]), name)
        values = np.empty((len(images), *first.shape[1:]), first.dtype)
        for shard in np.unique(shards).tolist():
            is_in_shard = shards == shard
            values[is_in_shard] = self.column(shard, name)[images[is_in_shard] - self.starts[shard]]
        return values

    def close_except(self, shards: Sequence[int]) -> None:
        """Close all other shards, so that their disk space is released once they are deleted."""
        closing = self._open.keys() - set(shards)
        for shard in closing:
            del self._open[shard]
        if closing:
            close_files()
