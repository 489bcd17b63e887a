"""Choose the key and label columns of a table: those that the user names, or else those with names used by other tools."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from nst_data.errors import NstError, UsageError, format_names
from nst_data.sources.image_table import path_column
from nst_data.tables.label_columns import LOGITS, LabelColumns, format_columns

_PROBS = ("probs", "prob", "probabilities", "probability", "top_probs", "scores", "score", "soft_labels", "soft_label")
_CONFIDENCE, _LOGITS = ("confidence",), (LOGITS, "logit")
_TOP_CLASSES = ("top_labels",)
_CLASSES = ("label", "labels", "class", "classes", "class_name", "category", "prediction", "predictions", "predicted", "choice")
_PLAIN = ("cls",)
_IDS = ("index", "indices", "class_id", "label_id")
KEY, LABEL, NUMBERS = "filename", "label", "probs"  # column names for formats that have none
KNOWN_COLUMNS = frozenset((*_PROBS, *_CONFIDENCE, *_LOGITS, *_TOP_CLASSES, *_CLASSES, *_IDS, *_PLAIN))


@dataclass(frozen=True)
class ColumnOptions:
    """The user's options for the columns of a table."""

    probs: str | None = None
    label_column: str | None = None
    key: str | None = None
    logits: bool = False
    class_names: Sequence[str] | None = None


def key_column(columns: Sequence[str], location: str, options: ColumnOptions) -> str:
    """The column with the image key of each row. Raises UsageError if it is missing or ambiguous."""
    return path_column(list(columns), location, options.key, "key")


def label_columns(
    columns: Sequence[str], object_columns: Mapping[str, Collection[str]], location: str, options: ColumnOptions
) -> LabelColumns:
    """The columns with classes and numbers. Raises UsageError if they are ambiguous, NstError if there are none.

    `object_columns` maps the columns whose cells are objects that name classes to what these contain besides: `numbers`, `logits`, or
    nothing.
    """
    if options.label_column is None and options.probs is None and len(object_columns) > 1:
        raise UsageError(f"{location}: expected one column of labels, found {', '.join(object_columns)}; name one with `label_column`")
    column = options.label_column or options.probs or next(iter(object_columns), None)
    if column is not None and column in object_columns and options.probs in (None, column):
        return _object_label_columns(column, object_columns[column], location, options)
    if options.class_names and options.probs is None and len(options.class_names) > 1 and set(options.class_names) <= set(columns):
        return LabelColumns(numbers=tuple(options.class_names), logits=options.logits)
    numbers, classes = _number_columns(columns, location, options), _class_columns(columns, location, options)
    if not (numbers or classes):
        present = format_names(columns)
        raise NstError(
            f"{location}: expected a column of labels, such as `probs` or `label`, found {present}; name it with `probs` or `label_column`"
        )
    if options.logits and not numbers:
        raise UsageError(
            f"{location}: expected a column of logits, found {format_names(columns)}; name it with `probs`, or remove `logits`"
        )
    return LabelColumns(classes, numbers, options.logits, is_requested=options.label_column is not None)


def are_ids(columns: Sequence[str]) -> bool:
    """Whether the columns, by their name, hold class numbers."""
    return bool(columns) and columns[0].removesuffix("_0") in _IDS


def _object_label_columns(column: str, contents: Collection[str], location: str, options: ColumnOptions) -> LabelColumns:
    if options.logits:
        if LOGITS not in contents:
            raise UsageError(f"{location}: column `{column}` has no logits; remove `logits`")
        return LabelColumns((), (column,), logits=True)
    return LabelColumns((column,), (column,) if "numbers" in contents else ())


def _number_columns(columns: Sequence[str], location: str, options: ColumnOptions) -> tuple[str, ...]:
    if options.probs is not None:
        return _column_group(columns, options.probs) or _raise_missing(columns, options.probs, location)
    if options.logits:
        logits = _single_group(columns, _LOGITS, location, "logits", "probs")
        return logits or _single_group(columns, _PROBS, location, "logits", "probs")
    group = _single_group(columns, _PROBS, location, "probabilities", "probs") or _single_group(
        columns, _CONFIDENCE, location, "confidences", "probs"
    )
    if not group and (logits := _single_group(columns, _LOGITS, location, "logits", "probs")):
        raise UsageError(
            f"{location}: column `{format_columns(logits)}` has logits by its name; add `logits`, or name a column of probabilities with "
            "`probs`"
        )
    return group


def _class_columns(columns: Sequence[str], location: str, options: ColumnOptions) -> tuple[str, ...]:
    if options.label_column is not None:
        group = _column_group(columns, options.label_column) or _column_group(
            columns, options.label_column.strip()
        )  # names in headers are stripped
        return group or _raise_missing(columns, options.label_column, location)
    for names in (_TOP_CLASSES, _CLASSES, _IDS, _PLAIN):
        if group := _single_group(columns, names, location, "classes", "label_column"):
            return group
    return ()


def _single_group(columns: Sequence[str], names: Sequence[str], location: str, noun: str, option: str) -> tuple[str, ...]:
    """The only group of columns with one of these names; empty if there is none. Raises UsageError if there are several."""
    groups = [group for name in names if (group := _column_group(columns, name))]
    if len(groups) > 1:
        raise UsageError(
            f"{location}: expected one column of {noun}, found {', '.join(map(format_columns, groups))}; name one with `{option}`"
        )
    return groups[0] if groups else ()


def _column_group(columns: Sequence[str], name: str) -> tuple[str, ...]:
    """The column with this name, or the columns numbered from 0, such as `prob_0`, `prob_1`."""
    if name in columns:
        return (name,)
    available: set[str] = set(columns)
    numbered: list[str] = []
    while f"{name}_{len(numbered)}" in available:
        numbered.append(f"{name}_{len(numbered)}")
    return tuple(numbered)


def _raise_missing(columns: Sequence[str], name: str, location: str) -> tuple[str, ...]:
    raise UsageError(f"{location}: expected one column `{name}`, found {format_names(columns)}")
