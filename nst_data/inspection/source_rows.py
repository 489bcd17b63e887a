"""The images of a labeled source as rows: labels are known immediately, hashes once the images are read."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import polars as pl

from nst_data.errors import NstError
from nst_data.images import image_hash
from nst_data.inspection.row_columns import rank_texts
from nst_data.sources import Source, labels_in
from nst_data.sources.hashing import image_hashes


class SourceRows:
    """The rows of a source that was opened with its labels."""

    def __init__(self, source: Source) -> None:
        self.source, self.total_rows, self.is_sample = source, len(source), False
        self._known: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.source)

    def frame(self) -> pl.DataFrame:
        """`row` and `label`; there is no confidence."""
        labels = pl.Series(labels_in(self.source).astype(np.int32))
        return pl.DataFrame({"row": pl.arange(0, len(self), eager=True, dtype=pl.UInt32), "label": labels})

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> pl.DataFrame:
        """`key` and `image_hash` of some rows; the hash is empty if the image cannot be read."""
        data = {name: [self.source.key(row) if name == "key" else self._hash(row) for row in rows] for name in columns}
        return pl.DataFrame(data, schema=dict.fromkeys(columns, pl.String))

    @cached_property
    def key_ranks(self) -> pl.Series:
        """The rank of each row when sorted bytewise by `key`, uint32."""
        return rank_texts(pl.Series("key", [self.source.key(row) for row in range(len(self))], dtype=pl.String))

    @cached_property
    def hashes(self) -> pl.Series:
        """The `image_hash` of every row, empty if it cannot be read; this reads all images."""
        return pl.Series([hashed for _, hashed in image_hashes(self.source.rows(range(len(self))))], dtype=pl.String)

    def _hash(self, row: int) -> str:
        if row not in self._known:
            try:
                self._known[row] = image_hash(self.source.read(row))
            except (OSError, NstError):
                return ""
        return self._known[row]
