"""Labels from a text file as a table of keys, classes and numbers, spooled so that each pass over them is cheap."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from nst_data.errors import NstError
from nst_data.label_files.label_studio import ADDRESS, path_of
from nst_data.sources import Row, Source
from nst_data.sources.listing import Spool, build_listing
from nst_data.sources.source import RowIndices
from nst_data.tables.label_columns import LabelColumns, format_columns

_BATCH_ROWS = 4_096


class LabelRows(Source):
    """A table of labels without images; keys count rows from 0, as in `labels.csv:0`."""

    def __init__(self, location: str, table: pa.Table, class_names: Sequence[str] | None = None, unlabeled: int = 0) -> None:
        super().__init__(location)
        if not len(table):
            raise NstError(f"{location}: expected a label for each image, found {'no label' if unlabeled else 'no row'}")
        self._table, self._class_names, self.unlabeled = table, list(class_names or ()), unlabeled
        path = Path(location)
        self._name, self._listing = path.name, build_listing([([path.name], [path.stat().st_size if path.is_file() else 0])])

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def key(self, row: int) -> str:
        """The key `file:row`."""
        return f"{self._name}:{row}"

    def read(self, row: int) -> bytes:
        """Always raises NstError, as there are no images."""
        raise NstError(f"{self.location}: lists image paths but contains no images")

    def rows(self, needed: RowIndices) -> Iterator[Row]:
        """Always raises NstError, as there are no images."""
        raise NstError(f"{self.location}: lists image paths but contains no images")

    def columns(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The named columns, as slices of the spooled table."""
        distinct = list(dict.fromkeys(names))
        self._check_columns(distinct, self._table.schema, self.location)
        return iter(self._table.select(distinct).to_batches(_BATCH_ROWS))

    def class_columns(self) -> dict[str, list[str]]:
        """The class names that the file lists, for every column."""
        return dict.fromkeys(self._table.column_names, self._class_names) if self._class_names else {}


class LabelSpool:
    """Collects keys, classes and numbers in pieces; `columns` are the label columns of the resulting table."""

    def __init__(self, key: str, columns: LabelColumns) -> None:
        self._key = key
        self._classes = format_columns(columns.classes) if columns.classes else None
        numbers = format_columns(columns.numbers) if columns.numbers else None
        self._numbers = f"{numbers}.{'logits' if columns.logits else 'score'}" if numbers and numbers == self._classes else numbers
        names = [name for name in (self._classes, self._numbers) if name]
        classes, numbers_of = ((name,) if name else () for name in (self._classes, self._numbers))
        self.columns = replace(columns, classes=classes, numbers=numbers_of)
        self._names = [self._key, *names]
        self._spool: Spool | None = None

    def add(self, keys: pa.Array, classes: pa.Array | None, numbers: pa.Array | None) -> None:
        """Add rows: keys as text, and classes and numbers if these columns exist."""
        arrays = [_without_addresses(keys), *(array for array in (classes, numbers) if array is not None)]
        if self._spool is None:
            self._spool = Spool(pa.schema([(name, array.type) for name, array in zip(self._names, arrays, strict=True)]))
        self._spool.append(arrays)

    def table(self) -> pa.Table:
        """All rows as one table."""
        return self._spool.table() if self._spool is not None else pa.table({name: [] for name in self._names})


def _without_addresses(keys: pa.Array) -> pa.Array:
    """The keys with addresses replaced by their paths."""
    if not pc.any(pc.match_substring_regex(keys, f"^(?:{ADDRESS.pattern})")).as_py():
        return keys
    return pa.array([key and path_of(key) for key in keys.to_pylist()], keys.type)
