"""A self-contained edition, in a store or on the Hub: its shards, and how many images and entries each holds."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nst_data.errors import NstError
from nst_data.progress import Progress
from nst_data.self_contained.shard_folders import ShardFolders
from nst_data.store.manifest import Manifest
from nst_data.store.version import Version
from nst_data.tables.label_tables import damage_is_named

_TABLE = "balanced/"
_AT_ONCE = 8


@dataclass(frozen=True)
class SelfContainedEdition(ABC):
    """An edition that holds its images in shuffled shards."""

    manifest: Manifest
    schema: pa.Schema

    @property
    @abstractmethod
    def place(self) -> str:
        """What errors call it."""

    @property
    @abstractmethod
    def remedy(self) -> str:
        """What to do where an image is damaged."""

    @abstractmethod
    def shards(self, work: Path, prepare: Callable[[Path, int], None], most: int, process: int, processes: int) -> ShardFolders:
        """Its shards, prepared below `work`: all, or so many at most. `process` is this one's number of `processes` on the machine.

        Raises NstError where the disk is too small for them.
        """

    @abstractmethod
    def file(self, shard: int, folder: Path) -> Path:
        """The file of a shard that is here; `folder` is the shard's."""

    def bring(self, shard: int, folder: Path) -> Path:
        """The file of a shard, which is brought to `folder` where it is not on this disk. Raises NstError where that fails."""
        return self.file(shard, folder)

    @abstractmethod
    def _opened(self, name: str) -> AbstractContextManager[pq.ParquetFile]:
        """A shard, wherever it is."""

    @cached_property
    def files(self) -> list[str]:
        """Its shards, in order, as paths in the version."""
        return sorted(name for name in self.manifest.files if name.startswith(_TABLE) and name.endswith(".parquet"))

    def sizes(self, progress: Progress | None = None) -> NDArray[np.int64]:
        """Images and entries (copies counted) of each shard, shape (shards, 2), int64.

        The manifest has them, or one column of each shard is read. Raises NstError where they are not what the manifest counts in all.
        """
        counts = self.manifest.counts
        sizes = None if "shards" in counts else self._sizes_read(progress or Progress())
        try:
            if sizes is None:
                sizes = np.array([counts["shards"][name] for name in ("images", "entries")], np.int64).T
            is_sound = sizes.shape == (len(self.files), 2) and sizes.min() >= 0
            is_sound &= sizes.sum(axis=0).tolist() == [counts["unique"], counts["copies"]]
        except (TypeError, ValueError, KeyError, OverflowError):
            is_sound = False
        if sizes is None or not is_sound:
            raise NstError(f"{self.place}: its shards do not hold as many images and entries as its manifest says; it is damaged")
        return sizes

    def _sizes_read(self, progress: Progress) -> NDArray[np.int64]:
        found = []
        with progress.task(f"count {self.place}", len(self.files), "shards") as task, ThreadPoolExecutor(_AT_ONCE) as pool:
            for size in pool.map(self._size_of, self.files):
                found.append(size)
                task.advance(1)
        return np.array(found, np.int64)

    def _size_of(self, name: str) -> tuple[int, int]:
        with self._opened(name) as parquet:
            copies = parquet.read(["copies"], use_threads=False)["copies"]
            return len(copies), int(pc.sum(copies, min_count=0).as_py())


@dataclass(frozen=True)
class StoredEdition(SelfContainedEdition):
    """An edition of a store: all its shards are on this disk."""

    version: Version

    @property
    def place(self) -> str:
        """name@version."""
        return self.version.ref

    @property
    def remedy(self) -> str:
        """The command that looks at the whole version."""
        return f"`nst verify {self.place}` shows all that changed"

    def shards(self, work: Path, prepare: Callable[[Path, int], None], most: int, process: int, processes: int) -> ShardFolders:
        """All of them."""
        shards = ShardFolders(work / "shards", prepare)
        with damage_is_named(self.place):
            for shard in range(len(self.files)):
                if not shards.place(shard).is_dir():
                    shards.add(shard)
        return shards

    def file(self, shard: int, folder: Path) -> Path:
        """Where it was sealed."""
        return self.version.folder / self.files[shard]

    @contextmanager
    def _opened(self, name: str) -> Iterator[pq.ParquetFile]:
        with damage_is_named(self.place), pq.ParquetFile(self.version.folder / name) as parquet:
            yield parquet
