"""Images listed in a text table, one per row: CSV, TSV or JSON lines with paths and classes, or COCO's JSON."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from nst_data.errors import NstError, UsageError, format_names
from nst_data.sources.cells import is_below
from nst_data.sources.class_words import class_name_warnings, find_non_class
from nst_data.sources.folder import ImageFiles
from nst_data.sources.labels import LabelOptions, describe_rows, label_column, labels_of, parse_class_numbers
from nst_data.sources.listed import sizes_of
from nst_data.sources.listing import PIECE, Listing, build_listing
from nst_data.sources.text_tables import DELIMITERS, JSON_LINES_SUFFIXES, delimited_batches, header, json_lines, translate_read_errors

SUFFIXES = frozenset((*DELIMITERS, *JSON_LINES_SUFFIXES, ".json"))
METADATA_FILES = ("metadata.csv", "metadata.jsonl")  # next to the images of a Hugging Face `imagefolder`
_PATH_COLUMNS = ("file_name", "filename", "path", "file", "filepath", "file_path", "image", "image_path", "key")
_CLASS_COLUMNS = ("label", "labels", "class", "class_name", "category", "target")
_FILE, _CLASS = "file_name", "label"


@dataclass(frozen=True)
class TextTable:
    """The cells of a table as text, and the column with the image paths."""

    frame: pl.DataFrame
    path_column: str

    @classmethod
    def read(cls, location: str, column: str | None, file: str | None = None) -> Self:
        """Read the table at a location, or a local copy `file` of it. Raises NstError if it is not a table or a row has no path."""
        frame = _read_table(location, file or location)
        if not len(frame):
            raise NstError(f"{location}: expected a row for each image, found none")
        name = path_column(frame.columns, location, column)
        table = cls(frame, name)
        if empty := int((table.paths.is_null() | (table.paths.str.strip_chars() == "")).sum()):
            raise NstError(f"{location}: column `{name}` has {empty:,} row{'s' * (empty > 1)} without a path; drop them")
        return table

    @property
    def paths(self) -> pl.Series:
        """The image paths, shape (rows,)."""
        return self.frame[self.path_column]


class ImageTable(ImageFiles):
    """The images that a table lists, in row order, by absolute paths or relative to its folder, with their classes if `labels` is given.

    Classes are text, or integers from 0. In COCO's JSON the class of an image is the category of its annotations.
    `only_in_folder` is for a table found in a folder, not named by the user: paths that lead out of the folder are refused.
    """

    def __init__(
        self, location: str, table: TextTable, labels: LabelOptions | None, column: str | None, only_in_folder: bool = False
    ) -> None:
        super().__init__(location)
        if only_in_folder:
            _check_below(table.paths, location, table.path_column)
        self.image_column = column
        self._is_coco = location.lower().endswith(".json")  # COCO lists its classes
        self._listing = self._build_listing(table.paths)
        if labels is not None:
            self._read_labels(table.frame.drop(table.path_column), labels)

    def _build_listing(self, paths: pl.Series) -> Listing:
        """The paths as written in the table, with file sizes."""
        self._top = os.path.dirname(self.location)
        rows = (paths.slice(start, PIECE).to_list() for start in range(0, len(paths), PIECE))
        return build_listing((names, sizes_of(self._top, names)) for names in rows)

    def remarks(self) -> list[str]:
        """Adds likely mistakes among the classes, and where missing images were expected."""
        warnings = [] if self._is_coco else class_name_warnings(self.class_names or ())
        return [*super().remarks(), *(f"{self.location}: {line}" for line in warnings), *self._missing_remarks()]

    def _read_labels(self, frame: pl.DataFrame, options: LabelOptions) -> None:
        table = frame.to_arrow()
        candidates = [name for name in frame.columns if name.lower() in _CLASS_COLUMNS]
        if options.column is None and len(candidates) > 1:
            raise UsageError(
                f"{self.location}: expected one column of classes, found {format_names(candidates)}; name one with `label_column`"
            )
        name = candidates[0] if options.column is None and candidates else label_column(table.schema, self.location, options.column)
        self.label_column = options.column
        texts = pc.utf8_trim_whitespace(table[name])
        unique_texts = [] if texts.null_count else pc.unique(texts).to_pylist()
        if not self._is_coco and (fault := find_non_class(unique_texts, options.column is not None)):
            text, advice = fault
            rows = describe_rows(pc.indices_nonzero(pc.equal(texts, text)))
            raise NstError(f"{self.location}: column `{name}` has the label {text!r} in {rows}, {advice}")
        numbers = parse_class_numbers(unique_texts, f"{self.location}: column `{name}`") or []
        if numbers:
            for (number, spelling), (next_number, other_spelling) in pairwise(sorted(zip(numbers, unique_texts, strict=True))):
                if number == next_number:
                    raise NstError(
                        f"{self.location}: column `{name}` has several spellings of one class: {spelling!r}, {other_spelling!r}; use one"
                    )
            indices = pc.index_in(texts, pa.array(unique_texts, texts.type)).combine_chunks()
            texts = pa.chunked_array([pa.array(numbers, pa.int64()).take(indices)])
        self.labels, self.class_names = labels_of(texts, None, self.location, name, options.n_names if numbers else 0)


def metadata_in(folder: str) -> str | None:
    """The metadata file of a Hugging Face `imagefolder`, or None if the folder has none. Raises UsageError if it has several."""
    name = single_metadata(folder, [name for name in METADATA_FILES if os.path.isfile(os.path.join(folder, name))])
    return os.path.join(folder, name) if name else None


def single_metadata(folder: str, names: list[str]) -> str | None:
    """The only name in `names`, or None if it is empty. Raises UsageError if there are several."""
    if len(names) > 1:
        raise UsageError(f"{folder}: expected one metadata file, found {' and '.join(METADATA_FILES)}; remove one, or give the right one")
    return names[0] if names else None


def path_column(columns: list[str], location: str, requested: str | None, option: str = "image_column") -> str:
    """The column with image paths: the one named by the user with `option`, or else the only one with a conventional name.

    Raises UsageError if the choice is ambiguous.
    """
    candidates = (
        [name for name in columns if name.lower() in _PATH_COLUMNS]
        if requested is None
        else [name for name in columns if name == requested]
    )
    if _FILE in candidates:
        return _FILE
    if len(candidates) == 1:
        return candidates[0]
    available = format_names(columns)
    if requested is not None:
        raise UsageError(f"`{option}` {requested}: no such column in {location}; columns: {available}")
    if candidates:
        raise UsageError(f"{location}: expected one column of paths, found {format_names(candidates)}; name one with `{option}`")
    raise UsageError(f"{location}: expected a column of paths, such as `file_name` or `path`, found {available}; name it with `{option}`")


def _check_below(paths: pl.Series, location: str, column: str) -> None:
    """Raise NstError if a path leads out of the table's folder."""
    may_lead_out = paths.str.contains(r"^/|\.\.|\x00|://").arg_true()  # a fast filter: only these few need a closer look
    outside = np.array([row for row in may_lead_out if "://" in paths[row] or not is_below(paths[row])], np.int64)
    if len(outside):
        raise NstError(
            f"{location}: column `{column}` has {paths[int(outside[0])]!r} in {describe_rows(outside)}, "
            "which leads out of its folder; correct it or, if you trust the table, name it instead of the folder"
        )


def _read_table(location: str, file: str) -> pl.DataFrame:
    """All columns as text. Raises NstError if the file is not such a table."""
    suffix = Path(location).suffix.lower()
    kind = {".csv": "CSV with a header", ".tsv": "tab-separated text with a header", ".json": "COCO's JSON"}.get(suffix, "JSON lines")
    with translate_read_errors(location, f"{kind}, one row per image"):
        if suffix in DELIMITERS:
            separator = DELIMITERS[suffix]
            schema = pa.schema([(name, pa.string()) for name in header(file, separator)])
            frame = pl.from_arrow(pa.Table.from_batches(delimited_batches(file, separator), schema))
            assert isinstance(frame, pl.DataFrame)
            return frame
        return read_coco(file, location) if suffix == ".json" else _read_json_lines(file)


def _read_json_lines(file: str) -> pl.DataFrame:
    rows = [row for _, row in json_lines(file)]
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    plain = {name: values for name, values in columns.items() if not any(isinstance(value, list | dict) for value in values)}
    return pl.DataFrame({name: [_text(value) for value in values] for name, values in plain.items()})


def _text(value: str | float | None) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def read_coco(file: str, location: str) -> pl.DataFrame:
    """The `file_name` of each image and, if there are annotations, its category. Raises NstError if an image has several categories."""
    with open(file, encoding="utf-8-sig") as text:
        content = json.load(text)
    try:
        files = _index_by_id(content["images"], "file_name", f"{location}: two images")
        categories = _index_by_id(content.get("categories", []), "name", f"{location}: two categories")
        classes: dict[Any, str] = {}
        for annotation in content.get("annotations", []):
            image, category = annotation["image_id"], categories[annotation["category_id"]]
            if classes.setdefault(image, category) != category:
                raise NstError(
                    f"{location}: {files.get(image, image)!r} has annotations of several categories ({classes[image]}, {category}); "
                    "expected one class per image"
                )
    except (KeyError, TypeError, AttributeError):
        raise ValueError("no `images` with `id` and `file_name`, and `annotations` with `image_id` and `category_id`") from None
    columns = {_FILE: list(files.values())}
    if content.get("annotations"):
        columns[_CLASS] = [classes.get(image) for image in files]  # type: ignore[misc]
    return pl.DataFrame(columns, schema_overrides=dict.fromkeys(columns, pl.String))


def _index_by_id(entries: Sequence[Mapping[str, Any]], field: str, subject: str) -> dict[Any, str]:
    """The text of `field` in each entry, by the entry's `id`. Raises NstError, beginning with `subject`, if an id has different texts."""
    texts_by_id: dict[Any, str] = {}
    for entry in entries:
        text = str(entry[field])
        if (earlier := texts_by_id.setdefault(entry["id"], text)) != text:
            raise NstError(f"{subject} have the `id` {entry['id']}: {earlier!r} and {text!r}; give each its own")
    return texts_by_id
