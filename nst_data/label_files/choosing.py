"""Choose the key and label columns of a table: those that the user names, or else those with names used by other tools."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from nst_data.errors import NstError, UsageError, names_shown
from nst_data.sources.image_table import path_column
from nst_data.tables.label_columns import LOGITS, LabelColumns, shown

_PROBS = ("probs", "prob", "probabilities", "probability", "top_probs", "scores", "score", "soft_labels", "soft_label")
_CONFIDENCE, _LOGITS = ("confidence",), (LOGITS, "logit")
_TOP_CLASSES = ("top_labels",)
_CLASSES = ("label", "labels", "class", "classes", "class_name", "category", "prediction", "predictions", "predicted", "choice")
_PLAIN = ("cls",)
_IDS = ("index", "indices", "class_id", "label_id")
KEY, LABEL, NUMBERS = "filename", "label", "probs"  # column names for formats that have none
KNOWN_COLUMNS = frozenset((*_PROBS, *_CONFIDENCE, *_LOGITS, *_TOP_CLASSES, *_CLASSES, *_IDS, *_PLAIN))


@dataclass(frozen=True)
class Asked:
    """The user's options for the columns of a table."""

    probs: str | None = None
    label_column: str | None = None
    key: str | None = None
    logits: bool = False
    class_names: Sequence[str] | None = None


def key_column(columns: Sequence[str], location: str, asked: Asked) -> str:
    """The column with the image key of each row. Raises UsageError if it is missing or ambiguous."""
    return path_column(list(columns), location, asked.key, "key")


def label_columns(columns: Sequence[str], with_both: Mapping[str, Collection[str]], location: str, asked: Asked) -> LabelColumns:
    """The columns with classes and numbers. Raises UsageError if they are ambiguous, NstError if there are none.

    `with_both` maps the columns whose cells are objects that name classes to what these contain besides: `numbers`, `logits`, or nothing.
    """
    if asked.label_column is None and asked.probs is None and len(with_both) > 1:
        raise UsageError(f"{location}: expected one column of labels, found {', '.join(with_both)}; name one with `label_column`")
    column = asked.label_column or asked.probs or next(iter(with_both), None)
    if column is not None and column in with_both and asked.probs in (None, column):
        return _of_both(column, with_both[column], location, asked)
    if asked.class_names and asked.probs is None and len(asked.class_names) > 1 and set(asked.class_names) <= set(columns):
        return LabelColumns(numbers=tuple(asked.class_names), logits=asked.logits)
    numbers, classes = _numbers(columns, location, asked), _classes(columns, location, asked)
    if not (numbers or classes):
        present = names_shown(columns)
        raise NstError(
            f"{location}: expected a column of labels, such as `probs` or `label`, found {present}; name it with `probs` or `label_column`"
        )
    if asked.logits and not numbers:
        raise UsageError(f"{location}: expected a column of logits, found {names_shown(columns)}; name it with `probs`, or remove `logits`")
    return LabelColumns(classes, numbers, asked.logits, is_named=asked.label_column is not None)


def are_ids(columns: Sequence[str]) -> bool:
    """Whether the columns, by their name, hold class numbers."""
    return bool(columns) and columns[0].removesuffix("_0") in _IDS


def _of_both(column: str, beside: Collection[str], location: str, asked: Asked) -> LabelColumns:
    if asked.logits:
        if LOGITS not in beside:
            raise UsageError(f"{location}: column `{column}` has no logits; remove `logits`")
        return LabelColumns((), (column,), logits=True)
    return LabelColumns((column,), (column,) if "numbers" in beside else ())


def _numbers(columns: Sequence[str], location: str, asked: Asked) -> tuple[str, ...]:
    if asked.probs is not None:
        return _group(columns, asked.probs) or _lacking(columns, asked.probs, location)
    if asked.logits:
        logits = _one_of(columns, _LOGITS, location, "logits", "probs")
        return logits or _one_of(columns, _PROBS, location, "logits", "probs")
    group = _one_of(columns, _PROBS, location, "probabilities", "probs") or _one_of(columns, _CONFIDENCE, location, "confidences", "probs")
    if not group and (logits := _one_of(columns, _LOGITS, location, "logits", "probs")):
        raise UsageError(
            f"{location}: column `{shown(logits)}` has logits by its name; add `logits`, or name a column of probabilities with `probs`"
        )
    return group


def _classes(columns: Sequence[str], location: str, asked: Asked) -> tuple[str, ...]:
    if asked.label_column is not None:
        group = _group(columns, asked.label_column) or _group(columns, asked.label_column.strip())  # names in headers are stripped
        return group or _lacking(columns, asked.label_column, location)
    for names in (_TOP_CLASSES, _CLASSES, _IDS, _PLAIN):
        if group := _one_of(columns, names, location, "classes", "label_column"):
            return group
    return ()


def _one_of(columns: Sequence[str], names: Sequence[str], location: str, what: str, option: str) -> tuple[str, ...]:
    """The only group of columns with one of these names; empty if there is none. Raises UsageError if there are several."""
    groups = [group for name in names if (group := _group(columns, name))]
    if len(groups) > 1:
        raise UsageError(f"{location}: expected one column of {what}, found {', '.join(map(shown, groups))}; name one with `{option}`")
    return groups[0] if groups else ()


def _group(columns: Sequence[str], name: str) -> tuple[str, ...]:
    """The column with this name, or the columns numbered from 0, such as `prob_0`, `prob_1`."""
    if name in columns:
        return (name,)
    available: set[str] = set(columns)
    numbered: list[str] = []
    while f"{name}_{len(numbered)}" in available:
        numbered.append(f"{name}_{len(numbered)}")
    return tuple(numbered)


def _lacking(columns: Sequence[str], name: str, location: str) -> tuple[str, ...]:
    raise UsageError(f"{location}: expected one column `{name}`, found {names_shown(columns)}")
