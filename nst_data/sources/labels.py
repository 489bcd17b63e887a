"""Labels and class names: read from columns or a file of names, and matched by name."""

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nst_data.errors import NstError, UsageError, format_names
from nst_data.sources.cells import is_binary
from nst_data.sources.class_texts import is_yaml, read_synonyms
from nst_data.sources.features import Features, columns_of_kind
from nst_data.sources.imagenet_names import match_imagenet_classes
from nst_data.sources.source import Source

MAX_UNNAMED_CLASSES = 100_000  # most classes that integers without names may stand for, unless there are at least twice as many rows
_MAX_NAMES_BYTES = 2**26
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")  # terminals interpret these, and editors break lines at some
_NUMBER = re.compile(r"[0-9]{1,18}")
_WHOLE_NUMBER = re.compile(r"(-?[0-9]{1,18})(?:\.0*)?")
ClassNames = str | Path | Sequence[str]  # a file with one name per line, or the names
_ADVICE = "Rename them, or give the names of integer labels with `class_names` FILE"


@dataclass(frozen=True)
class LabelOptions:
    """The user's options for labels: the column that holds them, and the number of names given for integer labels."""

    column: str | None = None
    n_names: int = 0


def labels_in(source: Source) -> NDArray[np.int64]:
    """The class of each image, shape (images,). Raises UsageError if the source was opened without its labels."""
    if source.labels is None:
        raise UsageError(f"{source.location}: was opened without its labels; open it with `labeled`: open_source(..., labeled=True)")
    return source.labels


def check_trainable(source: Source) -> None:
    """Raise NstError if a labeled source has images of only one class, UsageError if it has no labels."""
    present = np.unique(labels_in(source))
    if len(present) < 2:
        names = [(source.class_names or [])[label] for label in present]
        raise NstError(f"{source.location}: expected labels of two classes or more, found only {', '.join(map(repr, names))}")


def match_classes(
    names: Sequence[str], expected: Sequence[str], subject: str, subset: bool = False, advice: str = _ADVICE
) -> NDArray[np.int64]:
    """For each of the `names` its index among the expected ones, by name, or by number if all are numbers; shape (names,).

    ImageNet's WordNet ids and words are treated as equal (`nst_data.sources.imagenet_names`). Raises NstError with both sets of names,
    ending in `advice`, if they differ; `subset` allows missing classes.
    """
    names, expected = _without_zero_padding(names, expected)
    indices = indices_among(names, expected)
    if None in indices or (len(set(indices)) < len(expected) and not subset):
        indices = match_imagenet_classes(names, expected) or indices
    unknown = [name for name, place in zip(names, indices, strict=True) if place is None]
    present = set(indices)
    missing_names = [name for index, name in enumerate(expected) if index not in present]
    if unknown or (missing_names and not subset):
        raise NstError(
            f"{subject}: expected {len(expected)} classes ({_abbreviate(expected)}), found {_count_and_names(names)}"
            + (
                f"; unknown: {_abbreviate(unknown)}{_spelling_hint(unknown, missing_names)}"
                if unknown
                else f"; missing: {_abbreviate(missing_names)}"
            )
            + f". {advice}"
        )
    return np.array(indices, dtype=np.int64)


def indices_among(names: Sequence[str], expected: Sequence[str]) -> list[int | None]:
    """For each name its index among the expected ones, or None. Composed and decomposed accents are equal."""
    index_of = {normalize_unicode(name): index for index, name in enumerate(expected)} | {
        name: index for index, name in enumerate(expected)
    }
    return [index_of.get(name, index_of.get(normalize_unicode(name))) for name in names]


def normalize_unicode(name: str) -> str:
    """The name in Unicode form NFC, as most programs write it: macOS and some archives write an accent as a separate character."""
    return unicodedata.normalize("NFC", name)


def _without_zero_padding(names: Sequence[str], expected: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Both lists without zero padding, if all names are numbers."""
    numbers = class_numbers(names), class_numbers(expected)
    if numbers[0] is None or numbers[1] is None or any(len(set(values)) != len(values) for values in numbers if values):
        return names, expected
    return [str(number) for number in numbers[0]], [str(number) for number in numbers[1]]


def _count_and_names(names: Sequence[str]) -> str:
    return f"{len(names)} ({_abbreviate(names)})"


def _abbreviate(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) <= 10 else [*names[:3], "..."])


def _spelling_hint(unknown: Sequence[str], lacking: Sequence[str]) -> str:
    """A hint that suggests a missing class with a similar spelling for the first unknown one."""
    plain = {name.casefold(): name for name in reversed(lacking)}
    matches = difflib.get_close_matches(unknown[0].casefold(), plain, n=1)
    return f" (did you mean {plain[matches[0]]}?)" if matches else ""


def label_column(schema: pa.Schema, location: str, requested: str | None = None, features: Features | None = None) -> str:
    """The column with the classes: the one asked for, `label`, `labels`, or the only ClassLabel of `datasets`.

    Raises UsageError if there is none or the one asked for does not exist, NstError if several columns have its name.
    """
    available = format_names(schema.names)
    if requested is not None and requested not in schema.names and requested.strip() in schema.names:  # blanks in a CSV header are stripped
        requested = requested.strip()
    declared = columns_of_kind("ClassLabel", schema, features)
    candidates = declared or [field.name for field in schema if _may_hold_classes(field.type)]
    column = requested or next((name for name in ("label", "labels") if name in schema.names), declared[0] if len(declared) == 1 else None)
    if column is None:
        example = f", e.g. {format_names(candidates)}" if candidates else ""
        raise UsageError(f"{location}: expected a column `label`, found {available}; choose the label column with `label_column`{example}")
    if requested is not None and requested not in schema.names:
        raise UsageError(f"`label_column` {requested}: no such column in {location}; columns: {available}")
    if schema.names.count(column) > 1:
        raise NstError(f"{location}: expected one column `{column}`, found {schema.names.count(column)}; rename the others")
    return column


def _may_hold_classes(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_integer(kind) or pa.types.is_boolean(kind) or _is_text(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def class_values(column: pa.ChunkedArray, location: str, name: str) -> pa.ChunkedArray:
    """A label column as int64 or large_string, from integers, whole floats, booleans (0 and 1), text or bytes, dictionary-encoded or not.

    Raises NstError for rows without a label, and for columns of other types.
    """
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        chunks = [chunk.storage for chunk in column.chunks]
        return class_values(pa.chunked_array(chunks, kind.storage_type), location, name)
    if pa.types.is_dictionary(kind):
        return class_values(column.cast(kind.value_type), location, name)
    if pa.types.is_floating(kind):
        column = _without_nan(column)
    if column.null_count:
        rows = describe_rows(pc.indices_nonzero(column.is_null()))
        raise NstError(f"{location}: column `{name}` has no label in {rows}; every image needs a label")
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid:  # 2^63 or larger
            raise _too_many_classes_error(
                pc.max(column).as_py(), len(column), MAX_UNNAMED_CLASSES, f"{location}: column `{name}`"
            ) from None
    if pa.types.is_floating(kind):
        return floats_to_integers(column, f"{location}: column `{name}` is {kind}")
    if not (_is_text(kind) or is_binary(kind)):
        raise NstError(f"{location}: column `{name}` is {kind}, expected integers or strings")
    try:
        texts = column.cast(pa.large_string())
    except pa.ArrowInvalid:
        raise NstError(f"{location}: column `{name}` is {kind}, not UTF-8 text; expected integers or strings") from None
    if len(blank := pc.indices_nonzero(pc.equal(pc.utf8_trim_whitespace(texts), ""))):
        raise NstError(f"{location}: column `{name}` has an empty label in {describe_rows(blank)}; every image needs a label")
    return texts


def describe_rows(rows: pa.Array | NDArray[np.int64]) -> str:
    """A phrase with the number of rows, and the first of them."""
    first = f"row {int(rows[0]):,} (counted from 0)"
    return first if len(rows) == 1 else f"{len(rows):,} rows, the first is {first}"


def _without_nan(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column as float64 with NaN replaced by null: pandas writes integers with missing values as floats."""
    column = column.cast(pa.float64())
    return pc.if_else(pc.is_nan(column), pa.scalar(None, pa.float64()), column)


def floats_to_integers(column: pa.ChunkedArray, subject: str) -> pa.ChunkedArray:
    """Class numbers stored as floats, as int64, with null for NaN. Raises NstError for one with a fraction."""
    column = _without_nan(column)
    invalid = column.filter(pc.invert(pc.and_(pc.equal(pc.floor(column), column), pc.less(pc.abs(column), 2.0**53))))
    if len(invalid):
        raise NstError(f"{subject} with the value {invalid[0].as_py():g}, expected whole numbers or strings")
    return column.cast(pa.int64())


def labels_of(
    column: pa.ChunkedArray, names: list[str] | None, location: str, name: str, n_names: int = 0
) -> tuple[NDArray[np.int64], list[str]]:
    """(labels, class names) of a column of integers, whose `names` may be known, or of strings. Raises NstError for other columns.

    `n_names` is the number of names that the user gives for integers.
    """
    values = class_values(column, location, name)
    subject = f"{location}: column `{name}`"
    if pa.types.is_large_string(values.type):
        texts = values.to_pylist()
        numbers = parse_class_numbers(unique_texts := sorted(set(texts)), subject)
        if numbers is None or class_numbers(unique_texts) is not None:  # plain digits in a text column are names
            return encode_names(texts)
        number_of = dict(zip(unique_texts, numbers, strict=True))
        return labels_from_numbers([number_of[text] for text in texts], names, subject, n_names)
    return labels_from_numbers(values.to_numpy(), names, subject, n_names)


def labels_from_numbers(
    numbers: Sequence[int] | NDArray[np.int64], names: list[str] | None, subject: str, n_names: int = 0
) -> tuple[NDArray[np.int64], list[str]]:
    """(labels, class names) of class numbers. Raises NstError if they are out of range, before anything of that size is allocated."""
    if not len(numbers):
        raise NstError(f"{subject} has no rows, expected a label for each image")
    is_array = isinstance(numbers, np.ndarray)
    smallest, largest = (int(np.min(numbers)), int(np.max(numbers))) if is_array else (min(numbers), max(numbers))
    if names and len(set(names)) != len(names):
        duplicate = next(name for name in names if names.count(name) > 1)
        raise NstError(f"{subject}: duplicate class name {duplicate!r}; expected distinct names")
    if largest < 0:
        raise NstError(f"{subject}: all values ({smallest:,} to {largest:,}) are negative; classes start at 0")
    if smallest < 0 or (names and largest >= len(names)):
        last = len(names) - 1 if names else largest
        rows = describe_rows(np.flatnonzero([not 0 <= number <= last for number in numbers]))
        raise NstError(f"{subject} has values {smallest} to {largest}, expected 0 to {last}: others in {rows}; drop rows without a class")
    limit = max(MAX_UNNAMED_CLASSES, len(numbers) // 2, n_names)
    if not names and largest >= limit:
        raise _too_many_classes_error(largest, len(numbers), limit, subject)
    return np.asarray(numbers, dtype=np.int64), names or [str(index) for index in range(largest + 1)]


def _too_many_classes_error(largest: int, n_rows: int, limit: int, subject: str) -> NstError:
    largest_text = f"{largest:,}" if largest < 10**30 else "a number of " + f"{len(str(largest)):,} digits"
    return NstError(
        f"{subject} has class numbers up to {largest_text} in {n_rows:,} rows and no class names; the limit is {limit:,}: "
        "renumber from 0 or pass `class_names` FILE"
    )


def encode_names(values: list[str]) -> tuple[NDArray[np.int64], list[str]]:
    """(labels, class names): the sorted distinct names, and the index of each value. Composed and decomposed spellings are one name."""
    spelled = set(values)
    forms = Counter(map(normalize_unicode, spelled))
    name_of = {name: normalize_unicode(name) if forms[normalize_unicode(name)] > 1 else name for name in spelled}
    names = sorted(set(name_of.values()))
    index_of = {name: index for index, name in enumerate(names)}
    label_of = {name: index_of[name_of[name]] for name in spelled}
    return np.fromiter((label_of[value] for value in values), dtype=np.int64, count=len(values)), names


def class_numbers(class_names: Sequence[str]) -> list[int] | None:
    """The class names as numbers, or None unless all are numbers."""
    return [int(name) for name in class_names] if all(map(_NUMBER.fullmatch, class_names)) else None


def parse_class_numbers(texts: Sequence[str], subject: str) -> list[int] | None:
    """Distinct texts as class numbers, written as `1` or, as in a table of floats, `1.0`; None if some are names.

    Raises NstError for a negative number, which means that an image has no class.
    """
    matches = [_WHOLE_NUMBER.fullmatch(text) for text in texts]
    numbers = [int(match[1]) for match in matches if match]
    if negative := [match[0] for match in matches if match and int(match[1]) < 0]:
        raise NstError(f"{subject} has the label {negative[0]}, expected a class name or number from 0; drop rows without a class")
    return numbers if len(numbers) == len(texts) else None


def rename_classes(
    labels: NDArray[np.int64], class_names: Sequence[str], location: str, names: list[str], file: str
) -> tuple[NDArray[np.int64], list[str]]:
    """(labels, class names) after replacing a source's class numbers by the names in a file: class K is line K, from 0.

    Raises UsageError if they do not fit.
    """
    numbers = class_numbers(class_names)
    if numbers is None:
        raise UsageError(f"`class_names` {file}: {location} has class names of its own ({_count_and_names(class_names)})")
    if len(set(numbers)) != len(numbers):
        duplicates = [name for name, number in zip(class_names, numbers, strict=True) if numbers.count(number) > 1]
        raise UsageError(
            f"`class_names` {file}: {location} has several spellings of one class: {', '.join(map(repr, duplicates[:3]))}; use one"
        )
    n_classes = max(numbers, default=0) + 1
    if not numbers or len(names) < n_classes or len(set(names)) != len(names):
        counted = f" ({location} has class {n_classes - 1:,}; classes start at 0)" if len(names) < n_classes else ""
        raise UsageError(
            f"`class_names` {file}: expected at least {n_classes:,} distinct names, one per line, found {len(set(names)):,}{counted}"
        )
    return np.array(numbers, dtype=np.int64)[labels], names


def check_class_names(names: Sequence[str], origin: str, count: int | None, description: str) -> None:
    """Raise UsageError if names are not distinct or their number is wrong, NstError for blank names or control characters."""
    distinct = len(set(names))
    if len(names) != distinct or len(names) < 2 or (count is not None and len(names) != count):
        expected = f"{count} different names, {description}" if count is not None else f"{description} different names"
        raise UsageError(f"{origin}: expected {expected}, found {distinct}")
    if invalid := [name for name in names if not name.strip() or not name.isprintable()]:
        raise NstError(
            f"{origin}: the class name {invalid[0]!r} is empty or holds control characters; give other names with `class_names` FILE"
        )


def names_origin(class_names: ClassNames) -> str:
    """How messages refer to class names: by their file if they come from one."""
    return str(class_names) if isinstance(class_names, str | Path) else "(a list)"


def read_class_names(class_names: ClassNames) -> list[str]:
    """Class names from a sequence, a file with one per line, or a YAML file with synonyms, which are ignored here.

    Raises UsageError if a file cannot be read, or has a blank line before the last name.
    """
    if not isinstance(class_names, str | Path):
        return list(class_names)
    file = str(class_names)
    if is_yaml(file):
        return list(read_synonyms(file))
    expected = "expected a text file with one class name per line"
    try:
        with open(file, "rb") as lines:
            content = lines.read(_MAX_NAMES_BYTES + 1)
        text = content.decode("utf-8-sig") if len(content) <= _MAX_NAMES_BYTES else None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not in UTF-8"
        raise UsageError(f"`class_names` {file}: {reason}; {expected}") from None
    if text is None:
        raise UsageError(f"`class_names` {file}: more than {_MAX_NAMES_BYTES // 2**20} MB; {expected}")
    if text.lstrip()[:1] in ("[", "{"):
        raise UsageError(f"`class_names` {file}: begins with {text.lstrip()[0]!r}, as JSON does; {expected}")
    names = [line.strip() for line in text.rstrip().split("\n")]
    if len(names) > 1 and "" in names:
        blank = names.index("")
        raise UsageError(f"`class_names` {file}: line {blank + 1} is empty; expected a name for class {blank}")
    if invalid_line := next((number for number, name in enumerate(names, 1) if _CONTROL.search(name)), 0):
        raise UsageError(
            f"`class_names` {file}: line {invalid_line} is {names[invalid_line - 1][:40]!r}; expected a name without control characters"
        )
    return names if names[0] else []
