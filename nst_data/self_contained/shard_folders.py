"""The shards of an edition on this disk: what is known of their images, in memory-mapped files, a folder for each shard."""

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
from nst_data.store.files import fsync_tree, place_once

Prepare = Callable[[Path, int], None]
Wanted = Callable[[int], Sequence[int]]


@dataclass(frozen=True)
class ShardFolders:
    """Shards that are all here. `prepare(folder, shard)` lays out the columns of one in its folder, which appears when all is there.

    Shard s has the images from `starts[s]` on and below `starts[s + 1]`.
    """

    folder: Path
    prepare: Prepare
    starts: NDArray[np.int64]
    _open: dict[int, dict[str, NDArray[Any]]] = field(default_factory=dict, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """For a worker process that is not forked: it prepares no shards, and opens those that it reads itself."""
        return self.__dict__ | {"prepare": None, "_open": {}}

    def place(self, shard: int) -> Path:
        """The folder of a shard, where it is here."""
        return self.folder / f"{shard:05d}"

    def wait_for(self, shard: int) -> Path:
        """The folder of a shard, once it is here."""
        return self.place(shard)

    @contextmanager
    def kept(self, start: int, wanted: Wanted) -> Iterator[Callable[[int], None]]:
        """While this lasts, the shards wanted at the position that was reached are here; what is given tells that position."""
        yield lambda position: None

    def add(self, shard: int) -> None:
        """Prepare a shard that is not here; another process may be first."""
        if self.place(shard).is_dir():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".part.", dir=self.folder))
        try:
            self.prepare(part, shard)
            fsync_tree(part)
            place_once(part, self.place(shard))
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def shard_of(self, image: int) -> int:
        """The shard that holds an image."""
        return int(np.searchsorted(self.starts, image, side="right")) - 1

    def column(self, shard: int, name: str) -> NDArray[Any]:
        """A column of a shard, once that is here."""
        columns = self._open.setdefault(shard, {})
        if name not in columns:
            columns[name] = np.load(self.wait_for(shard) / f"{name}.npy", mmap_mode="r")
        return columns[name]

    def take(self, name: str, images: NDArray[np.int64]) -> NDArray[Any]:
        """The values of some images in a column, in their order."""
        shards = np.searchsorted(self.starts, images, side="right") - 1
        first = self.column(int(shards[0]), name)
        values = np.empty((len(images), *first.shape[1:]), first.dtype)
        for shard in np.unique(shards).tolist():
            here = shards == shard
            values[here] = self.column(shard, name)[images[here] - self.starts[shard]]
        return values

    def close_all_but(self, shards: Sequence[int]) -> None:
        """Let go of other shards, so that their space is free once they are deleted."""
        closing = self._open.keys() - set(shards)
        for shard in closing:
            del self._open[shard]
        if closing:
            close_files()
