"""Open labels given as a file, a folder, tar shards or a table, as columns."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from nst_data.errors import NstError, UsageError
from nst_data.label_files.choosing import KEY, KNOWN_COLUMNS, LABEL, ColumnOptions, key_column, label_columns
from nst_data.label_files.delimited import read_delimited
from nst_data.label_files.json_cells import object_contents as holds_both_of_json
from nst_data.label_files.json_tables import build_table, read_json
from nst_data.label_files.rows import LabelRows, LabelSpool
from nst_data.sources import Source, open_source, open_table
from nst_data.sources.addressed import AddressedImages
from nst_data.sources.addresses import local_path
from nst_data.sources.folder import ImageFolder
from nst_data.sources.image_table import SUFFIXES as TEXT
from nst_data.sources.tar import TarFiles
from nst_data.sources.text_tables import DELIMITERS
from nst_data.tables.label_columns import LabelColumns, has_numbers, holds_label_objects

_PICKLED = frozenset((".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".npy", ".npz"))
_EXPECTED = (
    "expected labels: a .csv, .tsv, .json, .jsonl or .parquet file, class folders, tar files, a folder saved by datasets "
    "or owner/name on the Hub"
)
_BATCH_ROWS = 65_536


@dataclass(frozen=True)
class TarRows:
    """Rows from the `.json` members next to images in tar files."""

    source: TarFiles
    class_names: None = None
    may_lack_labels: bool = True

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return ({**document, KEY: self.source.key(row)} for row, document in self.source.documents())

    def has_labels(self, options: ColumnOptions) -> bool:
        """Whether the first row has columns of labels; if not, labels may be in `.cls` members."""
        first = next(iter(self), {})
        return any(
            name in KNOWN_COLUMNS | {options.probs, options.label_column} or holds_both_of_json(value) for name, value in first.items()
        )


@dataclass(frozen=True)
class LabelTable:
    """Labels of images: a table and its label columns. Column `key` holds the key of each image; if None, rows are those of `images`."""

    source: Source
    columns: LabelColumns
    key: str | None
    images: Source

    @property
    def remarks(self) -> list[str]:
        """Lines for the user about labels that are left out."""
        n_unlabeled = self.source.unlabeled if isinstance(self.source, LabelRows) else 0
        return [f"{n_unlabeled:,} images in it have no label and are left out"] if n_unlabeled else []


def is_label_file(location: str) -> bool:
    """Whether labels are in a file format that holds no images. Raises UsageError for pickled and NumPy files, which are not read."""
    suffix = Path(location).suffix.lower()
    if suffix in _PICKLED and not Path(location).is_dir():
        reason = "a file of torch or NumPy, which may hold code and is not read"
        raise UsageError(f"{location}: {reason}; docs/labels-from-elsewhere.md shows how to convert it")
    return suffix in TEXT and not Path(location).is_dir()


def open_labels(location: str, options: ColumnOptions) -> LabelTable:
    """Open labels that refer to the images of a pool by key. Raises NstError or UsageError if there are no labels."""
    location = local_path(location)
    suffix, path = Path(location).suffix.lower(), Path(location).absolute()
    if is_label_file(location):
        if not path.is_file():
            raise NstError(f"{location}: no such file; {_EXPECTED}")
        rows, key, columns = read_delimited(str(path), options) if suffix in DELIMITERS else read_json(str(path), options)
        return LabelTable(rows, columns, key, rows)
    if path.is_file() and suffix not in (".parquet", ".tar"):
        raise UsageError(f"{location}: {_EXPECTED}")
    return labels_of_source(open_table(location), options, with_key=True)


def labels_of_source(source: Source, options: ColumnOptions, with_key: bool) -> LabelTable:
    """The labels in the columns of a table or, for class folders and tar files, those of the images.

    With `with_key`, they label images elsewhere, referred to by key. Raises NstError or UsageError if there are no labels.
    """
    if isinstance(source, TarFiles) and (documents := TarRows(source)).has_labels(options):
        rows, _, columns = build_table(source.location, documents, replace(options, key=KEY))
        return LabelTable(rows, columns, KEY, source)
    if isinstance(source, ImageFolder | TarFiles):
        if column := options.probs or options.label_column:
            source.columns([column])
        return _labels_of_images(source, with_key)
    kinds = {field.name: field.type for field in source.column_types()}
    key = (
        key_column([name for name, kind in kinds.items() if _may_be_key(kind) or name == options.key], source.location, options)
        if with_key
        else None
    )
    with_both = {name: _number_kinds(kind) for name, kind in kinds.items() if holds_label_objects(kind)}
    return LabelTable(source, label_columns([name for name in kinds if name != key], with_both, source.location, options), key, source)


def _may_be_key(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind))


def _number_kinds(kind: pa.DataType) -> set[str]:
    return {field for field, logits in (("numbers", False), ("logits", True)) if has_numbers(kind, logits)}


def _labels_of_images(source: Source, with_key: bool) -> LabelTable:
    """One class per image of a labeled source; keys are those of the images in it."""
    labeled = source if source.labels is not None else _reopen(source, labeled=True)
    assert labeled.labels is not None, "asked for"
    names, spooled = pa.array(labeled.class_names, pa.string()), LabelSpool(KEY, LabelColumns((LABEL,)))
    is_folder = isinstance(source, ImageFolder)
    for start in range(0, len(labeled), _BATCH_ROWS):
        numbers = labeled.labels[start : start + _BATCH_ROWS]
        keys = [labeled.key(row) for row in range(start, start + len(numbers))]
        spooled.add(
            pa.array(keys, pa.large_string()),
            pa.ListArray.from_arrays(pa.array(range(len(numbers) + 1), pa.int32()), names.take(pa.array(numbers))),
            None,
        )
    rows = LabelRows(labeled.location, spooled.table(), labeled.class_names if is_folder else None)
    images = source if source.labels is None else _reopen(source, labeled=False)
    return LabelTable(rows, spooled.columns, KEY if with_key else None, images)


def _reopen(source: Source, labeled: bool) -> Source:
    return source.reopen(labeled) if isinstance(source, AddressedImages) else open_source(source.location, labeled=labeled)
