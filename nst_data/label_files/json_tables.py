"""Turn labels in JSON into a table."""

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, Protocol

import pyarrow as pa

from nst_data.errors import NstError
from nst_data.label_files.choosing import KNOWN_COLUMNS, LABEL, ColumnOptions, key_column, label_columns
from nst_data.label_files.json_cells import as_list, object_contents, parse_cell
from nst_data.label_files.json_rows import JsonRows
from nst_data.label_files.rows import LabelRows, LabelSpool
from nst_data.sources.text_tables import translate_read_errors
from nst_data.tables.label_columns import LabelColumns

_LOOKED_AT, _PIECE = 1_000, 16_384
_CONVERSION_ERRORS = (pa.ArrowException, OverflowError, UnicodeEncodeError)  # integers above 64 bits, and lone UTF-16 surrogates
Row = dict[str, Any]


class Rows(Protocol):
    """Images as rows of named values; the properties are known once all rows have been read."""

    @property
    def class_names(self) -> list[str] | None:
        """The classes that the file lists, in the order of class numbers, or None."""

    @property
    def may_lack_labels(self) -> bool:
        """Whether images without a label are acceptable."""

    def __iter__(self) -> Iterator[Row]: ...


def read_json(location: str, options: ColumnOptions) -> tuple[LabelRows, str, LabelColumns]:
    """(rows, key column, label columns) of a file. Raises UsageError for ambiguous columns, NstError for other content."""
    with translate_read_errors(location, "labels of images as JSON, in lines or in a form that is known"):
        return build_table(location, JsonRows(location), options)


def build_table(location: str, source: Rows, options: ColumnOptions) -> tuple[LabelRows, str, LabelColumns]:
    """Like `read_json`, for rows from any origin."""
    rows = iter(source)
    first = list(islice(rows, _LOOKED_AT))
    names = list(dict.fromkeys(name for row in first for name in row))
    if not names:
        raise NstError(f"{location}: expected a label for each image, found none")
    key = key_column(names, location, options)
    other_names = [name for name in names if name != key]
    chosen = label_columns(other_names, _find_object_columns(first, other_names), location, options)
    table = _Table(location, source, key, chosen)
    for piece in _pieces(chain(first, rows)):
        table.add(piece)
    return LabelRows(location, table.spooled.table(), source.class_names, table.unlabeled), key, table.spooled.columns


def _find_object_columns(rows: list[Row], names: list[str]) -> dict[str, set[str]]:
    """The columns whose cells are objects that name classes, with everything that any cell contains besides."""
    contents: dict[str, set[str]] = {}
    for row in rows:
        for name in names:
            content = object_contents(row.get(name))
            if content is not None and (name in KNOWN_COLUMNS or not _is_unlabeled_object(row[name])):
                contents.setdefault(name, set()).update(content)
    return contents


def _is_unlabeled_object(value: Any) -> bool:  # noqa: ANN401 - any JSON value
    """Whether a cell is an object without a label, such as a width and a height, whose keys need not be classes."""
    return isinstance(value, dict) and not any(name in value for name in (LABEL, "class", "class_name"))


def _pieces(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while piece := list(islice(rows, _PIECE)):
        yield piece


class _Table:
    """Collects JSON rows into a table; `unlabeled` counts rows without a label, if these are acceptable."""

    def __init__(self, location: str, source: Rows, key: str, columns: LabelColumns) -> None:
        self._location, self._source, self._key, self._columns = location, source, key, columns
        self.spooled, self.unlabeled, self._number = LabelSpool(key, columns), 0, 0
        self._kind: pa.DataType | None = None

    def add(self, rows: list[Row]) -> None:
        """Add rows. Raises NstError that names the offending row."""
        keys: list[str] = []
        classes: list[list[Any] | None] = []
        numbers: list[list[Any] | None] = []
        for row in rows:
            try:
                labels, values = self._parse_row(row)
            except ValueError as error:
                raise NstError(f"{self._row_location(self._number)}: {error}") from None
            self._number += 1
            if self._source.may_lack_labels and not labels and not values:
                self.unlabeled += 1
                continue
            keys.append(self._key_of(row))
            classes.append(labels)
            numbers.append(values)
        if keys:
            self.spooled.add(
                pa.array(keys, pa.large_string()),
                self._build_array(classes, self._class_type(classes)) if self._columns.classes else None,
                self._build_array(numbers, pa.float64()) if self._columns.numbers else None,
            )

    def _row_location(self, row: int) -> str:
        return f"{self._location}: row {row}"

    def _key_of(self, row: Row) -> str:
        key = row.get(self._key)
        if not isinstance(key, str | int) or isinstance(key, bool) or key == "":
            raise NstError(
                f"{self._row_location(self._number - 1)}: column `{self._key}` is {key!r}, expected the key of an image in the pool"
            )
        return str(key)

    def _parse_row(self, row: Row) -> tuple[list[Any] | None, list[Any] | None]:
        chosen = self._columns
        columns = set(chosen.classes) & set(chosen.numbers)
        if columns or (not chosen.classes and isinstance(row.get(chosen.numbers[0]), dict)):
            return parse_cell(row.get(chosen.numbers[0]), chosen.logits)
        if len(chosen.classes) == 1 and not chosen.numbers and isinstance(row.get(chosen.classes[0]), dict | list):
            labels, scores = parse_cell(row.get(chosen.classes[0]), logits=False)
            if scores:
                raise ValueError(
                    f"has a score, the first {min(_LOOKED_AT, self._number):,} rows have none; expected one in each or in none"
                )
            return labels, None
        return self._column_values(row, chosen.classes), self._column_values(row, chosen.numbers)

    def _column_values(self, row: Row, names: tuple[str, ...]) -> list[Any] | None:
        return as_list(row.get(names[0])) if len(names) == 1 else [row.get(name) for name in names]

    def _class_type(self, classes: list[list[Any] | None]) -> pa.DataType:
        if self._kind is None:
            first = next((label for labels in classes for label in labels or ()), None)
            self._kind = pa.int64() if isinstance(first, int | float) and not isinstance(first, bool) else pa.string()
        return self._kind

    def _build_array(self, lists: list[list[Any] | None], kind: pa.DataType) -> pa.Array:
        try:
            return pa.array(lists, pa.list_(kind))
        except _CONVERSION_ERRORS:
            misfit = next(values for values in lists if not _fits(values, kind))
        expected = "numbers" if pa.types.is_floating(kind) else "class numbers" if pa.types.is_integer(kind) else "class names"
        raise NstError(f"{self._location}: expected {expected} as in the first row, found {str(misfit)[:60]}")


def _fits(values: list[Any] | None, kind: pa.DataType) -> bool:
    try:
        pa.array([values], pa.list_(kind))
    except _CONVERSION_ERRORS:
        return False
    return True
