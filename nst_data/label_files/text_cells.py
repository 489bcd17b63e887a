"""Parse CSV and TSV cells into classes and numbers: single values, or lists as written by NumPy, Python or JSON."""

import ast
from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

_BRACKETS = "[]() \n\t"
_WORDS = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s,\[\]()'"]+"""


def parse_numbers(columns: Sequence[pa.Array], are_lists: Sequence[bool]) -> list[pa.Array]:
    """The columns as floats or lists of floats. Raises pa.ArrowInvalid for other text."""
    return [_list_of_numbers(column) if is_list else _float(column) for column, is_list in zip(columns, are_lists, strict=True)]


def parse_classes(columns: Sequence[pa.Array], are_lists: Sequence[bool], by_number: bool) -> list[pa.Array]:
    """The columns as text, numbers if `by_number`, or lists of these. Raises pa.ArrowInvalid for a cell that should be a number."""
    texts = [
        _list_of_words(column) if is_list else pc.utf8_trim_whitespace(column) for column, is_list in zip(columns, are_lists, strict=True)
    ]
    if not by_number:
        return texts
    return [_integers(column) for column in texts]


def _integers(column: pa.Array) -> pa.Array:
    """Text as integers, including whole numbers written as floats (`1.0`)."""
    if pa.types.is_list(column.type):
        return pa.ListArray.from_arrays(_offsets(column), _integers(column.flatten()), mask=column.is_null())
    return pc.replace_substring_regex(column, r"^(-?[0-9]+)\.0*$", r"\1").cast(pa.int64())


def may_be_lists(column: pa.Array) -> bool:
    """Whether every non-empty cell is enclosed in brackets."""
    cells = pc.utf8_trim_whitespace(column.drop_null())
    are_lists = pc.or_(
        pc.and_(pc.starts_with(cells, "["), pc.ends_with(cells, "]")), pc.and_(pc.starts_with(cells, "("), pc.ends_with(cells, ")"))
    )
    return pc.all(are_lists).as_py() is not False  # None if all are empty


def has_list_separators(column: pa.Array) -> bool:
    """Whether some cell has quoted or comma-separated words, which single classes such as `[unknown]` or `(men's shoes)` lack."""
    return bool(pc.any(pc.match_substring_regex(column, r"""[\[(\s]['"]|,""")).as_py())


def _float(column: pa.Array) -> pa.Array:
    return pc.utf8_trim_whitespace(column).cast(pa.float64())


def _list_of_numbers(column: pa.Array) -> pa.Array:
    plain = pc.utf8_trim(pc.replace_substring(column, ",", " "), characters=_BRACKETS)
    lists = pc.utf8_split_whitespace(plain)
    return pa.ListArray.from_arrays(_offsets(lists), lists.flatten().cast(pa.float64()), mask=lists.is_null())


def _list_of_words(column: pa.Array) -> pa.Array:
    """Lists of words; quoted words are parsed as Python or JSON strings."""
    series = pl.from_arrow(column)
    assert isinstance(series, pl.Series)
    lists = series.str.extract_all(_WORDS).to_arrow().cast(pa.list_(pa.string()))
    coded = lists.flatten().dictionary_encode()
    words = pa.array([_unquoted(word) for word in coded.dictionary.to_pylist()], pa.string())
    return pa.ListArray.from_arrays(_offsets(lists), words.take(coded.indices), mask=lists.is_null())


def _offsets(lists: pa.Array) -> pa.Array:
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())


def _unquoted(word: str) -> str:
    if word[0] not in "'\"":
        return word
    try:
        return str(ast.literal_eval(word))
    except (ValueError, SyntaxError):
        return word[1:-1]
