"""A self-contained edition: its shards, and the number of images and entries in each."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nst_data.errors import NstError
from nst_data.progress import Progress
from nst_data.self_contained.shard_folders import Prepare, ShardFolders
from nst_data.store.manifest import EditionManifest
from nst_data.tables.label_tables import translate_table_errors

_TABLE = "balanced/"


@dataclass(frozen=True)
class SelfContainedEdition:
    """An edition that includes its images, in shuffled shards, all of them on local disk below `root`.

    `location` identifies it in error messages, and `remedy` is their advice if an image is damaged.
    """

    location: str
    remedy: str
    root: str
    manifest: EditionManifest
    schema: pa.Schema
    _count_threads: ClassVar[int] = 2  # footers are large if images are small, since a row group has at most 100 of them

    @cached_property
    def files(self) -> list[str]:
        """The edition's shards, in order, as paths relative to `root`."""
        return sorted(name for name in self.manifest.files if name.startswith(_TABLE) and name.endswith(".parquet"))

    def shards(
        self, work: Path, prepare: Prepare, starts: NDArray[np.int64], max_shards: int, process: int, processes: int
    ) -> ShardFolders:
        """Prepare the edition's shards below `work`: all of them or, if they must be downloaded, at most `max_shards` at a time.

        `process` is the index of this process among the `processes` on the machine. Raises NstError if the disk is too small.
        """
        shards = ShardFolders(work / "shards", prepare, starts)
        with translate_table_errors(self.location):
            for shard in range(len(self.files)):
                shards.add(shard)
        return shards

    def shard_path(self, shard: int, folder: Path) -> Path:
        """The file of a shard that is available locally; `folder` is the shard's folder."""
        return Path(self.root, self.files[shard])

    def fetch_shard(self, shard: int, folder: Path) -> Path:
        """Return the file of a shard, downloading it to `folder` if it is not on local disk. Raises NstError if that fails."""
        return self.shard_path(shard, folder)

    def shard_sizes(self, progress: Progress | None = None) -> NDArray[np.int64]:
        """Images and entries (images including copies) of each shard, shape (shards, 2), int64.

        Taken from the manifest, or from one column of each shard. Raises NstError if they do not add up to the manifest's totals.
        """
        counts = self.manifest.counts
        images, entries = (counts.shards.images, counts.shards.entries) if counts.shards else self._read_sizes(progress or Progress())
        totals = (len(images), len(entries), sum(images), sum(entries))
        if totals != (len(self.files), len(self.files), counts.unique, counts.copies):
            raise NstError(f"{self.location}: its shards do not hold as many images and entries as its manifest says; it is damaged")
        return np.array([images, entries], np.int64).T

    def _read_sizes(self, progress: Progress) -> tuple[list[int], list[int]]:
        sizes = []
        with progress.task(f"count {self.location}", len(self.files), "shards") as task, ThreadPoolExecutor(self._count_threads) as pool:
            for size in pool.map(self._shard_size, self.files):
                sizes.append(size)
                task.advance(1)
        return [images for images, _ in sizes], [entries for _, entries in sizes]

    def _shard_size(self, name: str) -> tuple[int, int]:
        with self._open_shard(name) as parquet:
            copies = parquet.read(["copies"], use_threads=False)["copies"]
            return len(copies), int(pc.sum(copies, min_count=0).as_py())

    @contextmanager
    def _open_shard(self, name: str) -> Iterator[pq.ParquetFile]:
        with translate_table_errors(self.location), pq.ParquetFile(Path(self.root, name)) as parquet:
            yield parquet
