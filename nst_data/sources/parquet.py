"""Parquet files with an image column."""

import glob
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nst_data.errors import NstError
from nst_data.sources.cells import ByPath, Cells, below, cell_of, holds_images, image_column, is_below, nowhere
from nst_data.sources.files import check_size
from nst_data.sources.labels import class_columns, feature_names, label_column, labels_of
from nst_data.sources.listing import listed
from nst_data.sources.plain_pages import PlainPages, plain_groups
from nst_data.sources.source import Row, Source, Wanted, within

_BATCH_BYTES = 8 * 2**20
_BATCH_ROWS = 1024
_BUILDING = Lock()

Stretch = tuple[int, int, Cells | NstError]  # first row, row after the last, what they hold


class ParquetFiles(Source):
    """Parquet files with an image column: binary, or the `datasets` struct of bytes and path.

    `names` are the files' in keys and in the listing; rows are in the order of the files. Cells may name image files beside
    their own parquet file, where `images_beside`. `features` are what `datasets` reads of the columns in a card.
    """

    features: Mapping[str, Any] | None = None

    _footers_at_once = 8
    _alone: Callable[[int], bytes] | None = None  # how one row is read; found out when the first one is
    _group: tuple[int, int, list[Stretch]] = (0, 0, [])  # the row group that was last read for a single row

    def __init__(self, location: str, files: Sequence[str], names: Sequence[str], column: str | None, images_beside: bool = True) -> None:
        super().__init__(location)
        self._files, self._names, self.image_column, self._images_beside = files, names, column or None, images_beside
        self._sizes: list[int] = []
        self._starts = [0]
        with ThreadPoolExecutor(self._footers_at_once) as pool:
            for name, (size, rows, schema) in zip(names, pool.map(self._footer, files), strict=True):
                if not self._sizes:
                    self._schema = schema
                    self._column, self._pins = image_column(schema, location, column)
                if self._column and (self._column not in schema.names or not holds_images(schema.field(self._column).type)):
                    raise NstError(
                        f"{location}: {name} has no images in `{self._column}`, expected that column of {names[0]} in every file"
                    )
                self._sizes.append(size)
                self._starts.append(self._starts[-1] + rows)
        if len(self) == 0:
            raise NstError(f"{location}: expected rows, found parquet files without any")
        self._listing = listed([(list(names), self._sizes)])

    def __len__(self) -> int:
        return self._starts[-1]

    def key(self, row: int) -> str:
        """file:row."""
        file = self._file_of(row)
        return f"{self._names[file]}:{row - self._starts[file]}"

    def read(self, row: int) -> bytes:
        """One row out of its page, where images lie in the files as they are; a parquet row group would be decoded whole.

        Of files that are compressed `datasets` makes a memory-mapped Arrow copy, once.
        """
        if self._alone is None:
            with _BUILDING:
                self._alone = self._alone or self._plain() or self._arrow_cache() or self._read_from_group
        return self._alone(row)

    def copy_of_images(self) -> str:
        """The Arrow copy of files that are compressed."""
        self._alone = self._alone or self._plain()
        size = sum(self._sizes) / 2**20
        return "" if self._alone else f"a copy of its {size:,.0f} MB in {_hf_datasets_cache()}, as its images are compressed inside parquet"

    def rows(self, wanted: Wanted) -> Iterator[Row]:
        """Rows in order of the files, row group by row group; those of a damaged one say so when they are read."""
        for file, (first, last) in enumerate(zip(self._starts[:-1], self._starts[1:], strict=True)):
            for start, stop, cells in self._stretches(file, within(wanted, first, last)):
                for row in np.asarray(within(wanted, start, stop)).tolist():
                    yield Row(row, f"{self._names[file]}:{row - first}", cells[row - start] if isinstance(cells, Cells) else cells)

    def columns(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Row group by row group, whatever their size."""
        wanted = list(dict.fromkeys(names))
        for file in self._files:
            with self._readable(file), self._opened(file) as parquet:
                self._check_there(wanted, parquet.schema_arrow, file)
                for group in range(parquet.num_row_groups):
                    rows = self._batch_rows(parquet, group, wanted)
                    yield from (batch.select(wanted) for batch in parquet.iter_batches(rows, row_groups=[group], columns=wanted))

    def class_columns(self) -> dict[str, list[str]]:
        """As the first file names them, or the card."""
        return class_columns(self._schema, self.features)

    def read_labels(self, features: Mapping[str, Any] | None = None) -> None:
        """Read the label column. `features` of `datasets` name the classes where the files do not."""
        column = label_column(self._schema.names, self.location)
        names = feature_names(self._schema, column)
        tables = []
        for file in self._files:
            with self._readable(file), self._opened(file) as parquet:
                if feature_names(parquet.schema_arrow, column) != names:
                    raise NstError(
                        f"{file}: its class names differ from those of {self._files[0]}; expected one set of classes in all files"
                    )
                tables.append(parquet.read([column]))
        if names is None:
            names = getattr((features or {}).get(column), "names", None)
        labels = pa.concat_tables(tables, promote_options="permissive").column(column)
        self.labels, self.class_names = labels_of(labels, names, self.location, column)

    def rows_of_files(self, files: NDArray[np.int64]) -> NDArray[np.int64]:
        """From the footers; each image beside the parquet files is a row."""
        own, beside = files[files < len(self._files)], files[files >= len(self._files)] - len(self._files)
        rows = [np.empty(0, np.int64), *(np.arange(*self._starts[file : file + 2]) for file in own.tolist())]
        if len(beside):
            rows.append(np.concatenate([np.arange(start, start + len(paths)) for start, paths in self._named_files()])[beside])
        return np.unique(np.concatenate(rows))

    def _paths(self) -> Iterator[str]:
        yield from self._files
        for start, paths in self._named_files():
            folder = Path(self._files[self._file_of(start)]).parent
            yield from (str(folder / path) if path and is_below(path) else "" for path in paths)

    def _named_files(self) -> Iterator[tuple[int, list[str | None]]]:
        """First row and paths of each row group in which cells name files in place of holding bytes."""
        kind = self._schema.field(self._column).type if self._column else pa.null()
        if not (self._images_beside and pa.types.is_struct(kind) and kind.get_field_index("path") >= 0):
            return
        column = f"{self._column}.bytes"
        for file, start in zip(self._files, self._starts, strict=False):
            with self._readable(file), self._opened(file) as parquet:
                for group in range(parquet.num_row_groups):
                    footer = parquet.metadata.row_group(group)
                    chunks = (footer.column(index) for index in range(footer.num_columns))
                    known = next((chunk.statistics for chunk in chunks if chunk.path_in_schema == column), None)
                    if known is None or not known.has_null_count or known.null_count:
                        named = parquet.read_row_group(group, columns=[f"{self._column}.path"]).column(0)
                        yield start, pc.struct_field(named, "path").to_pylist()
                    start += footer.num_rows

    def _file_of(self, row: int) -> int:
        return bisect_right(self._starts, row) - 1

    def _by_path(self, file: int) -> ByPath:
        return below(Path(self._files[file]).parent) if self._images_beside else nowhere

    def _size(self, file: str) -> int:
        return os.stat(file).st_size

    @contextmanager
    def _opened(self, file: str) -> Iterator[pq.ParquetFile]:
        with pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False, page_checksum_verification=True) as parquet:
            yield parquet

    @contextmanager
    def _readable(self, file: str) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            self._stop_unless_damage(error)
            raise NstError(f"{file}: expected a parquet file, found damage ({_first_line(error)}); make it again") from None

    def _footer(self, file: str) -> tuple[int, int, pa.Schema]:
        with self._readable(file), self._opened(file) as parquet:
            return self._size(file), parquet.metadata.num_rows, parquet.schema_arrow

    def _stretches(self, file: int, wanted: Wanted) -> Iterator[Stretch]:
        if not len(wanted):
            return
        start = self._starts[file]
        try:
            check_size(self._size(self._files[file]), self._sizes[file])
            with self._opened(self._files[file]) as parquet:
                for group in range(parquet.num_row_groups):
                    stop = start + parquet.metadata.row_group(group).num_rows
                    if len(within(wanted, start, stop)):
                        yield from self._group_stretches(file, parquet, group, start, stop)
                    start = stop
        except (pa.ArrowException, OSError, NstError) as error:
            self._stop_unless_damage(error)
            yield start, self._starts[file + 1], NstError(f"{self._names[file]}: {_first_line(error)}")

    def _group_stretches(self, file: int, parquet: pq.ParquetFile, group: int, start: int, stop: int) -> Iterator[Stretch]:
        try:
            for batch in parquet.iter_batches(self._batch_rows(parquet, group, [self._column]), row_groups=[group], columns=[self._column]):
                yield start, min(start + len(batch), stop), Cells(batch.column(0), self._by_path(file))
                start += len(batch)
            reason = "its pages end early"
        except (pa.ArrowException, OSError) as error:
            self._stop_unless_damage(error)
            reason = _first_line(error)
        if start < stop:
            yield start, stop, NstError(f"row group {group} of {self._names[file]} is damaged ({reason})")

    def _batch_rows(self, parquet: pq.ParquetFile, group: int, names: Sequence[str]) -> int:
        """Few enough rows that a batch is some megabytes, whatever the row group."""
        footer = parquet.metadata.row_group(group)
        columns = [footer.column(index) for index in range(footer.num_columns)]
        tops = tuple(f"{name}." for name in names)
        size = sum(column.total_uncompressed_size for column in columns if f"{column.path_in_schema}.".startswith(tops))
        return int(np.clip(_BATCH_BYTES * footer.num_rows // max(size, 1), 1, _BATCH_ROWS))

    def _stop_unless_damage(self, error: Exception) -> None:
        """Raise what does not lie in the file's own bytes."""

    def _plain(self) -> Callable[[int], bytes] | None:
        kind = self._schema.field(self._column).type
        column = [self._column, *(["bytes"] if pa.types.is_struct(kind) else [])]
        groups = []
        for file in self._files:
            with self._readable(file), self._opened(file) as parquet:
                found = plain_groups(parquet, column)
            if found is None:
                return None
            groups.append(found)
        return PlainPages.of(self._files, self._sizes, groups).read

    def _arrow_cache(self) -> Callable[[int], bytes] | None:
        from datasets import Dataset, disable_progress_bars
        from datasets.exceptions import DatasetGenerationError

        disable_progress_bars()
        try:
            dataset = Dataset.from_parquet([glob.escape(file) for file in self._files], columns=[self._column])
        except DatasetGenerationError:  # of damage; the row groups that are whole can still be read
            return None
        return partial(self._read_from_copy, dataset.with_format("arrow"))

    def _read_from_copy(self, arrow: Any, row: int) -> bytes:  # noqa: ANN401
        column = arrow[row : row + 1].column(0)
        return bytes(Row(row, "", cell_of(column, 0, self._by_path(self._file_of(row)))).read())

    def _read_from_group(self, row: int) -> bytes:
        start, stop, stretches = self._group
        if not start <= row < stop:
            stretches = list(self._stretches(self._file_of(row), range(row, row + 1)))
            self._group = stretches[0][0], stretches[-1][1], stretches
        first, _, cells = next(stretch for stretch in stretches if stretch[0] <= row < stretch[1])
        return bytes(Row(row, "", cells[row - first] if isinstance(cells, Cells) else cells).read())


def _hf_datasets_cache() -> str:
    from datasets import config

    return str(config.HF_DATASETS_CACHE)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
