"""Datasets in Arrow files: saved to disk, or built by `datasets` from files of the Hub."""

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nst_data.errors import NstError, first_line
from nst_data.hub.quiet import quiet
from nst_data.sources.cells import Cells, PathResolver, cell_content, image_column, is_below, path_resolver
from nst_data.sources.features import class_columns, feature_names
from nst_data.sources.files import check_regular
from nst_data.sources.labels import LabelOptions, label_column, labels_of
from nst_data.sources.listing import build_listing
from nst_data.sources.source import Row, RowIndices, Source, in_pieces

_PIECE = 256


class ArrowDataset(Source):
    """A `datasets.Dataset`; keys are row numbers."""

    def __init__(
        self,
        location: str,
        dataset: Any,  # noqa: ANN401 - datasets ships no types
        labels: LabelOptions | None,
        column: str | None,
        resolve_path: PathResolver,
    ) -> None:
        super().__init__(location)
        if len(dataset) == 0:
            raise NstError(f"{location}: expected rows, found an empty dataset")
        schema = dataset.features.arrow_schema
        self.image_column, self._resolve_path = column or None, resolve_path
        self._column, self._pins = image_column(schema, location, column)
        self._listing = build_listing([([f"fingerprint {dataset._fingerprint}"], [len(dataset)])])
        arrow = dataset.with_format("arrow")
        if labels is not None:
            label, self.label_column = label_column(schema, location, labels.column), labels.column
            values = arrow.select_columns([label])[:].column(label)
            self.labels, self.class_names = labels_of(values, feature_names(schema, label), location, label, labels.n_names)
        self._all_columns, self._schema = arrow, schema
        self._arrow = arrow.select_columns([self._column]) if self._column else arrow

    def _paths(self) -> Iterator[str]:
        """The Arrow files, and the image files that cells refer to instead of holding bytes."""
        yield from (str(file["filename"]) for file in self._all_columns.cache_files)
        kind = self._schema.field(self._column).type if self._column else pa.null()
        if not (pa.types.is_struct(kind) and kind.get_field_index("path") >= 0):
            return
        for start in range(0, len(self), _PIECE):
            for chunk in self._arrow[start : start + _PIECE].column(0).chunks:
                if pc.struct_field(chunk, "bytes").null_count:
                    cell_paths = pc.struct_field(chunk, "path").filter(pc.struct_field(chunk, "bytes").is_null())
                    paths = (path for path in cell_paths.to_pylist() if path and is_below(path))
                    yield from (os.path.join(self.location, path) for path in paths)

    def __len__(self) -> int:
        return len(self._arrow)

    def key(self, row: int) -> str:
        """The row number as text."""
        return str(row)

    def read(self, row: int) -> bytes:
        """The encoded bytes of one row of the memory-mapped dataset."""
        return bytes(Row(row, "", cell_content(self._arrow[row : row + 1].column(0), 0, self._resolve_path)).read())

    def rows(self, needed: RowIndices) -> Iterator[Row]:
        """The needed rows, as slices of the memory-mapped dataset without copying."""
        for piece in in_pieces(needed, _PIECE):
            first, last = int(piece[0]), int(piece[-1])
            column = self._arrow[range(first, last + 1) if last - first + 1 == len(piece) else piece].column(0)
            numbers = iter(piece.tolist())
            for chunk in column.chunks:
                cells = Cells(chunk, self._resolve_path)
                for cell in range(len(chunk)):
                    row = next(numbers)
                    yield Row(row, str(row), cells[cell])

    def columns(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The named columns, as slices of the memory-mapped dataset."""
        distinct = list(dict.fromkeys(names))
        self._check_columns(distinct, self._schema, self.location)
        selected = self._all_columns.select_columns(distinct)
        for start in range(0, len(self), _PIECE):
            for batch in selected[start : start + _PIECE].select(distinct).to_batches():
                try:
                    batch.validate(full=True)  # catches text that is not UTF-8, for example
                except pa.ArrowException as error:
                    raise NstError(f"{self.location}: corrupt dataset ({first_line(error)}); recreate it") from None
                yield batch

    def column_types(self) -> pa.Schema:
        """The schema of the dataset's features."""
        return self._schema

    def class_columns(self) -> dict[str, list[str]]:
        """The class names of the dataset's ClassLabel columns."""
        return class_columns(self._schema)


def open_saved_dataset(location: str, labels: LabelOptions | None, column: str | None) -> ArrowDataset:
    """Open a folder written by `Dataset.save_to_disk`. Raises NstError if it holds several splits, or cannot be loaded."""
    from datasets import DatasetDict, load_from_disk

    for pattern in ("*.json", "*.arrow"):
        for file in [*Path(location).glob(pattern), *Path(location).glob(f"*/{pattern}")]:
            check_regular(str(file))

    try:
        with quiet("datasets"):
            dataset = load_from_disk(location)
    except IndexError:  # raised by `datasets` if there is no Arrow file
        raise NstError(f"{location}: expected rows, found an empty dataset") from None
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno and error.errno != errno.ENOENT:
            raise NstError(f"{error.filename or location}: cannot be read: {os.strerror(error.errno)}") from None
        reason = str(error).partition("\n")[0]
        raise NstError(f"{location}: expected a dataset saved by datasets, found damage ({reason}); save it again") from None
    if isinstance(dataset, DatasetDict):
        raise NstError(f"{location}: expected one split, found {', '.join(dataset)}; name one, as in {Path(location, next(iter(dataset)))}")
    return ArrowDataset(location, dataset, labels, column, path_resolver(Path(location)))
