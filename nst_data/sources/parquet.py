"""Parquet files with an image column."""

import glob
import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nst_data.errors import NstError, first_line
from nst_data.hub.quiet import quiet
from nst_data.parquet_footer import PARQUET_ERRORS, column_chunks
from nst_data.sources.cells import Cells, PathResolver, cell_content, holds_images, image_column, is_below, path_resolver, refuse_path
from nst_data.sources.features import Features, card_names, class_columns, feature_names
from nst_data.sources.files import check_file_size, missing_remark, read_start
from nst_data.sources.kinds import EXPECTED, claims_parquet, not_a_source_message
from nst_data.sources.labels import LabelOptions, class_values, label_column, labels_of
from nst_data.sources.listed import sizes_of
from nst_data.sources.listing import PIECE, build_listing
from nst_data.sources.plain_pages import NO_GROUPS, PlainPages, plain_groups
from nst_data.sources.source import Row, RowIndices, Source, within
from nst_data.store.file_tree import NO_SUCH_FILE, MissingFileError
from nst_data.thrift import THRIFT_ERRORS as THRIFT_DAMAGE
from nst_data.thrift import parse_struct

_BATCH_BYTES = 8 * 2**20
_BATCH_ROWS = 1024
_FOOTERS_AT_ONCE = 8
_HEADER_BYTES = 2**14  # read for the header of a page
_MAX_ROWS_PER_BYTE = 10_000  # sanity limit on rows per byte of a file; a page of equal values reaches some thousands
_LABEL_BYTES, _LABEL_BYTES_A_ROW = 2**26, 2**10  # a label column has at most the larger of the two
_BUILD_LOCK = Lock()

Stretch = tuple[int, int, Cells | NstError]  # first row, row after the last, their cells or why they cannot be read


class ParquetFiles(Source):
    """Parquet files with an image column: binary, or the `datasets` struct of bytes and path.

    `names` are the names of the files in keys and in the listing; rows are in the order of the files. With `allow_paths`, cells may
    refer to image files next to their parquet file. `features` are the column features that `datasets` reads from a card. Columns are
    determined from the first file that has rows; the schemas of files without rows do not matter.
    """

    _read_single: Callable[[int], bytes] | None = None  # reads a single row; chosen on the first such read
    _expected_formats = EXPECTED  # ends the error for a file that is not parquet
    _slow_reason = ""  # why single reads are slow
    _cached_group: tuple[int, int, list[Stretch]] = (0, 0, [])  # the row group last read for a single row

    def __init__(
        self,
        location: str,
        files: Sequence[str],
        names: Sequence[str],
        column: str | None,
        allow_paths: bool = True,
        features: Features | None = None,
    ) -> None:
        super().__init__(location)
        self._files, self._names, self.image_column, self._allow_paths = files, names, column or None, allow_paths
        self._features = features
        self._sizes: list[int] = []
        self._starts = [0]
        first = ""
        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
            for name, (size, rows, schema) in zip(names, pool.map(self._footer, files), strict=True):
                if rows and not first:
                    first, self._schema = name, schema
                    self._column, self._pins = image_column(schema, location, column, features)
                if rows and self._column and not _has_images(schema, self._column):
                    raise NstError(f"{location}: {name}: column `{self._column}` holds no images; every file needs it, as in {first}")
                self._sizes.append(size)
                self._starts.append(self._starts[-1] + rows)
        if len(self) == 0:
            raise NstError(f"{location}: expected rows, found parquet files without any")
        self._listing = build_listing([(list(names), self._sizes)])

    def __len__(self) -> int:
        return self._starts[-1]

    def key(self, row: int) -> str:
        """The key `file:row`, with the row number within the file."""
        file = self._file_of(row)
        return f"{self._names[file]}:{row - self._starts[file]}"

    def read(self, row: int) -> bytes:
        """One row, read directly from its page if images are stored plainly, as a parquet reader would decode the whole row group.

        For other files, such as compressed ones, `datasets` makes a memory-mapped Arrow copy once.
        """
        if self._read_single is None:
            with _BUILD_LOCK:
                self._read_single = self._read_single or self._plain_page_reader() or self._arrow_copy_reader() or self._read_from_group
        return self._read_single(row)

    def describe_slow_reads(self) -> str:
        """Reads are slow if `datasets` could not make an Arrow copy."""
        return self._slow_reason

    def describe_copy(self) -> str:
        """The Arrow copy that compressed files need."""
        self._read_single = self._read_single or self._plain_page_reader()
        size = sum(self._sizes) / 2**20
        return (
            ""
            if self._read_single
            else f"a copy of its {size:,.0f} MB in {_hf_datasets_cache()}, as its images are compressed inside parquet"
        )

    def rows(self, needed: RowIndices) -> Iterator[Row]:
        """The needed rows in file order, by row group; rows of a damaged row group report the damage when they are read."""
        for file, (first, last) in enumerate(zip(self._starts[:-1], self._starts[1:], strict=True)):
            for start, stop, cells in self._stretches(file, within(needed, first, last)):
                for row in np.asarray(within(needed, start, stop)).tolist():
                    yield Row(row, f"{self._names[file]}:{row - first}", cells[row - start] if isinstance(cells, Cells) else cells)

    def columns(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The named columns, row group by row group, in batches of limited size."""
        distinct = list(dict.fromkeys(names))
        for file in self._files_with_rows():
            with self._translate_errors(file), self._open_file(file) as parquet:
                self._check_columns(distinct, parquet.schema_arrow, file)
                for group in range(parquet.num_row_groups):
                    rows, missing = self._rows_per_batch(parquet, group, distinct), parquet.metadata.row_group(group).num_rows
                    for batch in parquet.iter_batches(rows, row_groups=[group], columns=distinct):
                        batch.validate(full=True)  # catches text that is not UTF-8, for example
                        missing -= len(batch)
                        yield batch.select(distinct)
                    if missing:
                        raise pa.ArrowInvalid(f"the pages of row group {group} end early")

    def column_types(self) -> pa.Schema:
        """The schema of the first file that has rows."""
        return self._schema

    def class_columns(self) -> dict[str, list[str]]:
        """Class names by column, from the files or else the card. Raises NstError if a file has other classes than the first."""
        return self._class_columns

    @cached_property
    def _class_columns(self) -> dict[str, list[str]]:
        columns = [name for name in self._schema.names if feature_names(self._schema, name)]
        for file in self._files_with_rows() if columns else ():
            with self._translate_errors(file), self._open_file(file) as parquet:
                for name in columns:
                    self._check_same_classes(file, parquet.schema_arrow, name)
        return class_columns(self._schema, self._features)

    def _check_same_classes(self, file: str, schema: pa.Schema, column: str) -> None:
        if feature_names(schema, column) != feature_names(self._schema, column):
            first = self._files_with_rows()[0]
            raise NstError(f"{file}: its class names differ from those of {first}; expected one set of classes in all files")

    def read_labels(self, options: LabelOptions) -> None:
        """Read the label column. Raises NstError if a file has other classes or another type of labels than the first."""
        column = label_column(self._schema, self.location, options.column, self._features)
        names, files = feature_names(self._schema, column), self._files_with_rows()
        pieces: list[pa.ChunkedArray] = []
        for file in files:
            with self._translate_errors(file), self._open_file(file) as parquet:
                if parquet.schema_arrow.names.count(column) != 1:
                    raise NstError(f"{file}: no column `{column}`; every file needs it, as in {files[0]}")
                self._check_same_classes(file, parquet.schema_arrow, column)
                self._check_label_bytes(file, parquet, column)
                table = parquet.read([column])
                table.validate(full=True)
                if len(table) != parquet.metadata.num_rows:
                    raise NstError(
                        f"{file}: has {len(table):,} labels for {parquet.metadata.num_rows:,} rows; the file is corrupt; recreate it"
                    )
                values = class_values(table.column(column), file, column)
            if pieces and values.type != pieces[0].type:
                kind, expected = table.schema.field(column).type, "text" if pa.types.is_large_string(pieces[0].type) else "numbers"
                raise NstError(
                    f"{file}: column `{column}` is {kind}, expected {expected} as in {files[0]}; use the same types in all files"
                )
            pieces.append(values)
        labels = pa.chunked_array([chunk for piece in pieces for chunk in piece.chunks], type=pieces[0].type)
        self.label_column = options.column
        self.labels, self.class_names = labels_of(
            labels, names or card_names(self._features, column), self.location, column, options.n_names
        )

    def _check_label_bytes(self, file: str, parquet: pq.ParquetFile, column: str) -> None:
        """Raise NstError for a column too large to hold class labels, before all of it is read into memory."""
        chunks = (chunk for group in column_chunks(parquet.metadata, [column]) for chunk in group)
        size, limit = sum(chunk.total_uncompressed_size for chunk in chunks), _LABEL_BYTES_A_ROW * parquet.metadata.num_rows
        if size > max(_LABEL_BYTES, limit):
            detail = f"{size / 2**20:,.0f} MB in {parquet.metadata.num_rows:,} rows"
            raise NstError(f"{file}: column `{column}` is too large for class labels ({detail})")

    def _files_with_rows(self) -> list[str]:
        return [file for file, start, stop in zip(self._files, self._starts[:-1], self._starts[1:], strict=True) if start < stop]

    def rows_of_files(self, files: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows stored in the given files, by the footers; separate image files count after the parquet files, with one row each."""
        parquet_files, image_files = files[files < len(self._files)], files[files >= len(self._files)] - len(self._files)
        rows = [np.empty(0, np.int64), *(np.arange(*self._starts[file : file + 2]) for file in parquet_files.tolist())]
        if len(image_files):
            rows.append(np.concatenate([np.arange(start, start + len(paths)) for start, paths, _ in self._referenced_files()])[image_files])
        return np.unique(np.concatenate(rows))

    def empty_files(self, n_rows: int) -> tuple[int, str]:
        """The number of empty or missing image files that cells refer to, and the key of the first."""
        missing, _ = self._missing_files
        count = bisect_left(missing, n_rows)
        return count, self.key(int(missing[0])) if count else ""

    def remarks(self) -> list[str]:
        """Adds where missing image files were expected."""
        missing, first = self._missing_files
        return [*super().remarks(), *([missing_remark(self.location, len(missing), first)] if len(missing) else [])]

    @cached_property
    def _missing_files(self) -> tuple[NDArray[np.int64], str]:
        """Rows whose image files are empty or missing, shape (rows,), and the path of the first; only in row groups without any bytes."""
        missing, first = [np.empty(0, np.int64)], ""
        for start, paths, are_all in self._referenced_files():
            if are_all:
                rows = [row for row, (path, size) in enumerate(zip(paths, sizes_of("", paths), strict=True)) if path and not size]
                first = first or (paths[rows[0]] if rows else "")
                missing.append(np.array(rows, np.int64) + start)
        return np.concatenate(missing), first

    def _paths(self) -> Iterator[str]:
        yield from self._files
        for _, paths, _ in self._referenced_files():
            yield from paths

    def _referenced_files(self) -> Iterator[tuple[int, list[str], bool]]:
        """(first row, paths, whether all cells do so) of each row group whose cells refer to files instead of holding bytes.

        The path is empty for a cell that does not refer to a file below the folder of its parquet file.
        """
        kind = self._schema.field(self._column).type if self._column else pa.null()
        if not (self._allow_paths and pa.types.is_struct(kind) and kind.get_field_index("path") >= 0):
            return
        column = f"{self._column}.bytes"
        for file, start in zip(self._files, self._starts, strict=False):
            folder = Path(file).parent
            with self._translate_errors(file), self._open_file(file) as parquet:
                for group, chunks in enumerate(column_chunks(parquet.metadata, [column])):
                    statistics = next((chunk.statistics for chunk in chunks if chunk.physical_type == "BYTE_ARRAY"), None)
                    rows = parquet.metadata.row_group(group).num_rows
                    if statistics is None or not statistics.has_null_count or statistics.null_count:
                        cells = parquet.read_row_group(group, columns=[f"{self._column}.path"]).column(self._column)
                        cell_paths = pc.struct_field(cells, "path").to_pylist()
                        paths = [str(folder / path) if path and is_below(path) else "" for path in cell_paths]
                        yield start, paths, bool(statistics and statistics.has_null_count and statistics.null_count == rows)
                    start += rows

    def _keys(self) -> Iterator[pa.Array]:
        for name, start, stop in zip(self._names, self._starts[:-1], self._starts[1:], strict=True):
            for first in range(0, stop - start, PIECE):
                rows = pa.array(np.arange(first, min(first + PIECE, stop - start))).cast(pa.large_string())
                yield pc.binary_join_element_wise(pa.scalar(f"{name}:", pa.large_string()), rows, pa.scalar("", pa.large_string()))

    def _file_of(self, row: int) -> int:
        return bisect_right(self._starts, row) - 1

    def _path_resolver(self, file: int) -> PathResolver:
        return path_resolver(Path(self._files[file]).parent) if self._allow_paths else refuse_path

    def _first_bytes(self, file: str) -> bytes:
        return read_start(file, 4)

    def _size(self, file: str) -> int:
        return os.stat(file).st_size

    @contextmanager
    def _open_file(self, file: str) -> Iterator[pq.ParquetFile]:
        with pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False, page_checksum_verification=True) as parquet:
            yield parquet

    @contextmanager
    def _translate_errors(self, file: str) -> Iterator[None]:
        try:
            yield
        except PARQUET_ERRORS as error:
            self._raise_unless_damage(error)
            if isinstance(error, OSError) and error.errno:
                raise NstError(f"{file}: cannot be read: {reason_without_path(error)}") from None
            if not claims_parquet(file, self._first_bytes(file)):
                raise NstError(not_a_source_message(file, self._expected_formats)) from None
            raise NstError(f"{file}: corrupt parquet file ({first_line(error)}); recreate it") from None

    def _footer(self, file: str) -> tuple[int, int, pa.Schema]:
        """(bytes, rows, schema) of a file. Raises NstError if it is damaged, or claims more rows than it can hold."""
        with self._translate_errors(file), self._open_file(file) as parquet:
            size, footer = self._size(file), parquet.metadata
            groups = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
            if sum(groups) != footer.num_rows or min(groups, default=0) < 0 or footer.num_rows > _MAX_ROWS_PER_BYTE * size:
                claims = f"claims {footer.num_rows:,} rows, row groups {sum(groups):,}, in {size:,} bytes"
                raise NstError(f"{file}: corrupt parquet file ({claims}); recreate it")
            return size, footer.num_rows, parquet.schema_arrow

    def _stretches(self, file: int, needed: RowIndices) -> Iterator[Stretch]:
        if not len(needed):
            return
        start = self._starts[file]
        try:
            check_file_size(self._size(self._files[file]), self._sizes[file])
            with self._open_file(self._files[file]) as parquet:
                for group in range(parquet.num_row_groups):
                    stop = start + parquet.metadata.row_group(group).num_rows
                    if len(within(needed, start, stop)):
                        yield from self._group_stretches(file, parquet, group, start, stop)
                    start = stop
        except (*PARQUET_ERRORS, NstError) as error:
            self._raise_unless_damage(error)
            yield start, self._starts[file + 1], NstError(f"{self._names[file]}: {reason_without_path(error)}")

    def _group_stretches(self, file: int, parquet: pq.ParquetFile, group: int, start: int, stop: int) -> Iterator[Stretch]:
        try:
            rows = self._rows_per_batch(parquet, group, [self._column], self._files[file])
            for batch in parquet.iter_batches(rows, row_groups=[group], columns=[self._column]):
                yield start, min(start + len(batch), stop), Cells(batch.column(self._column), self._path_resolver(file))
                start += len(batch)
            reason = "its pages end early"
        except PARQUET_ERRORS as error:
            self._raise_unless_damage(error)
            reason = reason_without_path(error)
        if start < stop:
            yield start, stop, NstError(f"row group {group} of {self._names[file]} is damaged ({reason})")

    def _rows_per_batch(self, parquet: pq.ParquetFile, group: int, names: Sequence[str], file: str | None = None) -> int:
        """Number of rows for batches of a few megabytes from a row group; given `file`, also if many rows share one large image."""
        (chunks,) = column_chunks(parquet.metadata, names, [group])
        a_row = sum(chunk.total_uncompressed_size for chunk in chunks) / max(parquet.metadata.row_group(group).num_rows, 1)
        if file is not None and not any(pa.types.is_dictionary(parquet.schema_arrow.field(name).type) for name in names):
            a_row = max([a_row, *(self._shared_bytes(file, chunk) for chunk in chunks if chunk.has_dictionary_page)])
        return int(np.clip(_BATCH_BYTES // max(a_row, 1), 1, _BATCH_ROWS))

    def _shared_bytes(self, file: str, chunk: pq.ColumnChunkMetaData) -> float:
        """Average bytes per value in the dictionary of a column, any of which may be shared by many rows; 0 if unknown."""
        with suppress(OSError, *THRIFT_DAMAGE):
            header, _ = parse_struct(self._page_header_bytes(file, chunk.dictionary_page_offset), 0)
            return float(header[2] / max(header[7][1], 1))
        return 0

    def _page_header_bytes(self, file: str, offset: int) -> bytes:
        """The first bytes of a page, enough for its header."""
        with open(file, "rb", buffering=0) as opened:
            return os.pread(opened.fileno(), _HEADER_BYTES, offset)

    def _raise_unless_damage(self, error: Exception) -> None:
        """Re-raise an error that is not due to damage of the file itself."""

    def _plain_page_reader(self) -> Callable[[int], bytes] | None:
        groups = []
        for file, start, stop in zip(self._files, self._starts[:-1], self._starts[1:], strict=True):
            if start == stop:
                groups.append(NO_GROUPS)
                continue
            with self._translate_errors(file), self._open_file(file) as parquet:
                kind = parquet.schema_arrow.field(self._column).type
                file_groups = plain_groups(parquet, [self._column, *(["bytes"] if pa.types.is_struct(kind) else [])])
            if file_groups is None:
                return None
            groups.append(file_groups)
        return PlainPages.from_files(self._files, self._sizes, groups).read

    def _arrow_copy_reader(self) -> Callable[[int], bytes] | None:
        """A reader of the Arrow copy; None if `datasets` cannot make one, as for damaged files, whose intact row groups remain readable."""
        from datasets import Features
        from datasets.exceptions import DatasetGenerationError

        try:
            try:
                dataset = self._make_arrow_copy()
            except DatasetGenerationError:
                raise
            except (ValueError, TypeError, NotImplementedError, RecursionError):  # `datasets` does not support some other column's type
                dataset = self._make_arrow_copy(features=Features.from_arrow_schema(pa.schema([self._schema.field(self._column)])))
        except (DatasetGenerationError, ValueError, TypeError, NotImplementedError, FileNotFoundError) as error:
            # `datasets` does not find files whose path contains `::`
            cause = error.__cause__ or error
            if isinstance(cause, OSError) and cause.errno:
                raise cause from None  # a full disk or missing permission
            self._slow_reason = f"each read decodes a whole row group, because `datasets` could not make a copy ({first_line(cause)})"
            return None
        return partial(self._read_from_copy, dataset.with_format("arrow"))

    def _make_arrow_copy(self, **features: Any) -> Any:  # noqa: ANN401 - datasets ships no types
        from datasets import Dataset

        files = self._files_with_rows()
        # `datasets` takes its batch size from the first row group, which may have no rows
        batches = {"batch_size": _BATCH_ROWS} if any(map(self._begins_without_rows, files)) else {}
        with quiet("datasets"):
            return Dataset.from_parquet([glob.escape(file) for file in files], columns=[self._column], **batches, **features)

    def _begins_without_rows(self, file: str) -> bool:
        with self._translate_errors(file), self._open_file(file) as parquet:
            return bool(parquet.metadata.row_group(0).num_rows == 0)

    def _read_from_copy(self, arrow: Any, row: int) -> bytes:  # noqa: ANN401
        column = arrow[row : row + 1].column(self._column)
        return bytes(Row(row, "", cell_content(column, 0, self._path_resolver(self._file_of(row)))).read())

    def _read_from_group(self, row: int) -> bytes:
        start, stop, stretches = self._cached_group
        if not start <= row < stop:
            stretches = list(self._stretches(self._file_of(row), range(row, row + 1)))
            self._cached_group = stretches[0][0], stretches[-1][1], stretches
        first, _, cells = next(stretch for stretch in stretches if stretch[0] <= row < stretch[1])
        return bytes(Row(row, "", cells[row - first] if isinstance(cells, Cells) else cells).read())


def reason_without_path(error: Exception) -> str:
    """Why rows cannot be read, without the path that file errors include: reasons go to the table `errors`, which is published."""
    if isinstance(error, MissingFileError):
        return NO_SUCH_FILE
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else first_line(error)


def _has_images(schema: pa.Schema, column: str) -> bool:
    return schema.names.count(column) == 1 and holds_images(schema.field(column).type)


def _hf_datasets_cache() -> str:
    from datasets import config

    return str(config.HF_DATASETS_CACHE)
