"""The images of a streamed edition: each read out of its shard, once that is here."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nst_data.errors import NstError
from nst_data.images import image_hash
from nst_data.self_contained.shard_window import SHARD, ShardWindow
from nst_data.sources.plain_pages import PlainPages, close_files, plain_groups
from nst_data.sources.source import Buffer, Row, Source, Wanted
from nst_data.store.manifest import is_anonymous

_IMAGE = ("image", "bytes")


@dataclass(frozen=True)
class OpenShard:
    """A shard that is here: its images, and the columns that lie beside it."""

    folder: Path
    pages: PlainPages
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)

    def column(self, name: str) -> NDArray[Any]:
        """A column, a value for each row, as it lies on disk."""
        if name not in self.columns:
            self.columns[name] = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return self.columns[name]


class StreamedImages(Source):
    """The images of a streamed edition, in its order. A shard that is not here yet is waited for."""

    def __init__(self, window: ShardWindow, rows: NDArray[np.int64]) -> None:
        """`rows` are how many each shard has."""
        super().__init__(window.edition.place)
        self.window, self.starts = window, np.concatenate([[0], np.cumsum(rows)])
        self._is_anonymous = is_anonymous(window.edition.manifest)
        self._open: dict[int, OpenShard] = {}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def shard_of(self, row: int) -> int:
        """The shard that holds a row."""
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def shard(self, number: int) -> OpenShard:
        """A shard, once it is here."""
        if number not in self._open:
            folder = self.window.wait_for(number)
            path = folder / SHARD
            with pq.ParquetFile(path) as parquet:
                groups = plain_groups(parquet, _IMAGE)
            if groups is None:
                raise NstError(f"{self.location}: its images are compressed inside parquet; `nst pull` it, and remove --stream")
            self._open[number] = OpenShard(folder, PlainPages.of([str(path)], [path.stat().st_size], [groups]))
        return self._open[number]

    def close_all_but(self, shards: Iterable[int]) -> None:
        """Let go of other shards, so that their space is free once they are deleted."""
        closing = self._open.keys() - set(shards)
        for number in closing:
            del self._open[number]
        if closing:
            close_files()

    def key(self, row: int) -> str:
        """Where the image was in the pool."""
        number = self.shard_of(row)
        with pq.ParquetFile(self.shard(number).folder / SHARD) as parquet:
            return str(parquet.read(["key"])["key"][row - int(self.starts[number])])

    def read(self, row: int) -> bytes:
        """One row out of its page."""
        number = self.shard_of(row)
        return self.shard(number).pages.read(row - int(self.starts[number]))

    def rows(self, wanted: Wanted) -> Iterator[Row]:
        """The wanted rows, one by one."""
        for row in np.asarray(wanted).tolist():
            yield Row(row, self.key(row), partial(self.read, row))

    def check(self, row: int, encoded: Buffer, hashed: str) -> None:
        """Raises NstError where an image is not the one that its own edition names."""
        if not self._is_anonymous and image_hash(encoded) != hashed:
            raise NstError(f"{self.location}: {self.key(row)!r} holds other bytes than the image that was labeled; tell its owner")

    def unreadable(self, row: int, error: Exception) -> NstError:
        """What to raise for an image that cannot be read."""
        return NstError(f"{self.location}: {self.key(row)!r} cannot be read ({error}); tell its owner")
