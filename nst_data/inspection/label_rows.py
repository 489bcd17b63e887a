"""Random access to the rows of a sealed label table: whole columns at once, single rows in place, and a sample of large tables."""

import threading
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nst_data.store.manifest import EditionManifest, GenerationManifest
from nst_data.store.version import Version
from nst_data.tables.label_tables import scan_labels, translate_table_errors
from nst_data.tables.schema import soft_label_columns, top_k_of
from nst_data.tables.shards import table_files

SAMPLE_ROWS = 10_000_000
_MAX_FOOTERS = 100  # the footers of up to this many files are read, to sample by row group instead of by file
_MAX_OPEN_FILES = 32


class _Piece(NamedTuple):
    """Row groups of one file that are consecutive in the view."""

    file: Path
    groups: list[int]
    rows: list[int]  # per row group


class LabelRows:
    """The rows of a generation or an edition, in order; if there are more than `max_rows`, an even sample of its files or row groups.

    `total_rows` counts all rows, including those outside the sample. Row numbers are positions among the rows that were taken.
    """

    def __init__(self, version: Version, max_rows: int = SAMPLE_ROWS) -> None:
        self.version = version
        self.schema = scan_labels(version).collect_schema()
        manifest = version.manifest
        self.total_rows = (
            manifest.counts.unique if isinstance(manifest, EditionManifest) else GenerationManifest.from_manifest(manifest).counts.labeled
        )
        self._lock = threading.Lock()
        self._opened = lru_cache(_MAX_OPEN_FILES)(pq.ParquetFile)
        with translate_table_errors(version.ref):
            self._pieces = list(self._select_pieces(table_files(version.folder, self.table), max_rows))
        sizes = [rows for piece in self._pieces for rows in piece.rows]
        self._groups = [(piece.file, group) for piece in self._pieces for group in piece.groups]
        self._starts: NDArray[np.int64] = np.cumsum([0, *sizes])

    @property
    def table(self) -> str:
        """The folder of the table's files."""
        return "balanced" if isinstance(self.version.manifest, EditionManifest) else "pseudo_labels"

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def is_sample(self) -> bool:
        """Whether only part of the rows is taken."""
        return len(self) < self.total_rows

    @cached_property
    def top_k(self) -> int | None:
        """The number of classes stored per soft label; None if all are."""
        return top_k_of(self._arrow_schema)

    @cached_property
    def soft_columns(self) -> tuple[str, ...]:
        """The columns that hold the soft labels."""
        return soft_label_columns(self._arrow_schema)

    def read(self, columns: Sequence[str]) -> pl.DataFrame:
        """Read some columns of all rows."""
        with translate_table_errors(self.version.ref):
            empty = self._arrow_schema.empty_table().select(list(columns))
            tables = [pq.ParquetFile(piece.file).read_row_groups(piece.groups, columns=list(columns)) for piece in self._pieces]
            return pl.DataFrame(pa.concat_tables([empty, *tables]))

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Read some columns of all rows, batch by batch."""
        with translate_table_errors(self.version.ref):
            for piece in self._pieces:
                yield from pq.ParquetFile(piece.file).iter_batches(row_groups=piece.groups, columns=list(columns))

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> pl.DataFrame:
        """Read some columns of the rows at the given positions, in the given order."""
        row_numbers = np.asarray(rows, np.int64)
        places = np.searchsorted(self._starts, row_numbers, side="right") - 1
        tables, order = [], []
        with translate_table_errors(self.version.ref), self._lock:
            for place in np.unique(places).tolist():
                file, group = self._groups[place]
                positions = np.flatnonzero(places == place)
                tables.append(
                    self._opened(file).read_row_group(group, columns=list(columns)).take(row_numbers[positions] - self._starts[place])
                )
                order.append(positions)
        empty = self._arrow_schema.empty_table().select(list(columns))
        table: pl.DataFrame = pl.DataFrame(pa.concat_tables([empty, *tables]))
        return table.select(pl.all().gather(np.argsort(np.concatenate([np.empty(0, np.int64), *order]), kind="stable")))

    @cached_property
    def _arrow_schema(self) -> pa.Schema:
        with translate_table_errors(self.version.ref):
            return pq.read_schema(table_files(self.version.folder, self.table)[0])

    def _select_pieces(self, files: list[Path], max_rows: int) -> Iterator[_Piece]:
        if self.total_rows > max_rows and len(files) > _MAX_FOOTERS:  # spread over the whole pool, which is sorted by name
            files = [files[place] for place in _evenly_spaced(len(files), max(1, max_rows * len(files) // self.total_rows))]
            yield from map(_full_piece, files)
            return
        pieces = [_full_piece(file) for file in files]
        if self.total_rows <= max_rows:
            yield from pieces
            return
        groups = [(piece.file, group, rows) for piece in pieces for group, rows in zip(piece.groups, piece.rows, strict=True)]
        for place in _evenly_spaced(len(groups), max(1, max_rows * len(groups) // self.total_rows)):
            file, group, rows = groups[place]
            yield _Piece(file, [group], [rows])


def _full_piece(file: Path) -> _Piece:
    footer = pq.read_metadata(file)
    return _Piece(file, list(range(footer.num_row_groups)), [footer.row_group(group).num_rows for group in range(footer.num_row_groups)])


def _evenly_spaced(count: int, number: int) -> list[int]:
    """`number` evenly spaced integers below `count`."""
    return [(2 * place + 1) * count // (2 * number) for place in range(number)]
