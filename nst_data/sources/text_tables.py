"""Read text tables incrementally: CSV and TSV with a header, JSON lines, and values within a JSON document."""

import codecs
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import takewhile
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from nst_data.errors import NstError, first_line
from nst_data.safe_names import QUOTED_FORMULA, unescape_formula

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
_BLOCK_BYTES = 2**22
_DECODER = json.JSONDecoder()


@contextmanager
def translate_read_errors(location: str, expected: str) -> Iterator[None]:
    """Turn errors of reading a table into NstError that says what was expected."""
    try:
        yield
    except NstError:
        raise
    except OSError as error:
        raise NstError(f"{location}: cannot be read: {os.strerror(error.errno) if error.errno else first_line(error)}") from None
    except (pa.ArrowException, ValueError, RecursionError) as error:  # undecodable text and malformed JSON raise ValueError
        raise NstError(f"{location}: expected {expected}; reading it failed ({first_line(error)})") from None


def header(location: str, separator: str) -> list[str]:
    """The column names of CSV or TSV, stripped of blanks. Raises ValueError for duplicate names."""
    return list(_columns(location, separator))


def _columns(location: str, separator: str) -> dict[str, bool]:
    """Column names, and whether each was surrounded by blanks, as in `path, label`; blanks are kept if names differ only by them."""
    _check_separator(location, separator)
    read_options = pa_csv.ReadOptions(block_size=_BLOCK_BYTES, skip_rows=_empty_lines_before(location))
    with pa_csv.open_csv(location, read_options, _parse_options(separator)) as reader:
        names = [unescape_formula(name) for name in reader.schema.names]
    if invalid := [name for name in names if "\0" in name]:
        raise ValueError(f"the header has {invalid[0]!r}, which is no text")
    duplicates = [name for name, count in Counter(names).items() if count > 1]
    if duplicates:
        raise ValueError(f"the header has {duplicates[0]!r} several times")
    plain = [name.strip() for name in names]
    if len(set(plain)) < len(plain):
        return dict.fromkeys(names, False)
    return {name: name != written for name, written in zip(plain, names, strict=True)}


def _check_separator(location: str, separator: str) -> None:
    """Raise ValueError if the header shows another separator or UTF-16: commas within cells would be misread as separators."""
    with open(location, "rb") as file:
        line = file.readline(_BLOCK_BYTES)
        while line in (b"\n", b"\r\n", codecs.BOM_UTF8 + b"\n", codecs.BOM_UTF8 + b"\r\n"):
            line = file.readline(_BLOCK_BYTES)
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("it is in UTF-16; save it in UTF-8")
    header = line.decode("utf-8-sig", "replace").strip("\r\n")
    if separator not in header and (other := next((candidate for candidate in ";\t|," if candidate in header), None)):
        kind = "commas" if separator == "," else "tabs"
        raise ValueError(f"the header {header!r} is separated by {other!r}; expected {kind}")


def _empty_lines_before(location: str) -> int:
    """The number of empty lines before the header."""
    with open(location, encoding="utf-8-sig", errors="replace") as lines:
        return sum(1 for _ in takewhile(lambda line: line == "\n", iter(partial(lines.readline, _BLOCK_BYTES), "")))


def delimited_batches(location: str, separator: str, needed: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The needed columns of CSV or TSV as text, all by default, a few megabytes at a time; an empty cell is null.

    Cells that were quoted for spreadsheets by `safe_names.escape_formula` are unquoted. If a column's name was surrounded by blanks, its
    cells are stripped too.
    """
    names = _columns(location, separator)
    # `skip_rows_after_names` would count empty lines before the header
    skipped = {"skip_rows": _empty_lines_before(location), "skip_rows_after_names": 1}
    read_options = pa_csv.ReadOptions(block_size=_BLOCK_BYTES, column_names=list(names), **skipped)
    text_options = pa_csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        include_columns=list(names if needed is None else needed),
        strings_can_be_null=True,
        null_values=[""],
    )
    with pa_csv.open_csv(location, read_options, _parse_options(separator), text_options) as reader:
        for batch in reader:
            columns = [
                pc.utf8_trim_whitespace(column) if names[name] else column
                for name, column in zip(batch.schema.names, batch.columns, strict=True)
            ]
            columns = [pc.replace_substring_regex(column, QUOTED_FORMULA, r"\1") for column in columns]
            yield pa.record_batch(columns, names=batch.schema.names)


def _parse_options(separator: str) -> pa_csv.ParseOptions:
    return pa_csv.ParseOptions(delimiter=separator, newlines_in_values=True)


def json_lines(location: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number (from 1) and JSON object of each non-blank line. Raises ValueError for anything else."""
    with open(location, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from None
                if not isinstance(row, dict):
                    raise ValueError(f"line {number}: expected a JSON object, found {type(row).__name__}")
                yield number, row


class JsonText:
    """A JSON document of any size: outer objects and lists are traversed step by step, inner values are parsed one at a time.

    `object_keys` and `elements` leave each value to the caller, who reads it with `value` or traverses it. Raises ValueError for invalid
    JSON.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file, self._text, self._position, self._is_exhausted = file, "", 0, False

    def peek(self) -> str:
        """The next non-space character; empty at the end."""
        while True:
            while self._position < len(self._text):
                if not self._text[self._position].isspace():
                    return self._text[self._position]
                self._position += 1
            if not self._read_more():
                return ""

    def value(self) -> Any:  # noqa: ANN401 - any JSON value
        """Read the value at the current position."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._position)
            except ValueError:
                if not self._read_more():
                    raise
                continue
            if end < len(self._text) or not self._read_more():  # a number may continue
                self._position = end
                return value

    def object_keys(self) -> Iterator[str]:
        """The keys of the object at the current position."""
        for _ in self._items("{", "}"):
            key = self.value()
            if not isinstance(key, str):
                raise ValueError(f"expected a text as key, found {key!r}")
            self._consume(":")
            yield key

    def elements(self) -> Iterator[None]:
        """Yield once before each element of the list at the current position."""
        return self._items("[", "]")

    def check_end(self) -> None:
        """Raise ValueError if anything follows."""
        if self.peek():
            raise ValueError(f"found {self.peek()!r} after the end of the document")

    def _items(self, opening: str, closing: str) -> Iterator[None]:
        self._consume(opening)
        if self.peek() == closing:
            self._consume(closing)
            return
        while True:
            yield
            if self.peek() == closing:
                self._consume(closing)
                return
            self._consume(",")

    def _consume(self, character: str) -> None:
        if self.peek() != character:
            raise ValueError(f"expected {character!r}, found {self.peek()!r}")
        self._position += 1

    def _read_more(self) -> bool:
        """Read at least as much text as is left, and drop what was consumed. Returns False at the end of the file."""
        if self._is_exhausted:
            return False
        piece = self._file.read(max(_BLOCK_BYTES // 4, len(self._text) - self._position))
        self._text, self._position, self._is_exhausted = self._text[self._position :] + piece, 0, not piece
        return not self._is_exhausted
