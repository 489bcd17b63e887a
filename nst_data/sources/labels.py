"""Labels and class names: from columns, from a file of names, and matched by name."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nst_data.errors import NstError, UsageError
from nst_data.imagenet_names import places_of
from nst_data.sources.source import Source

_ADVICE = "Rename them, or give the names of integer labels with --class-names FILE"


def check_trainable(source: Source) -> None:
    """Raises NstError for a labeled source with images of one class alone."""
    assert source.labels is not None, "opened with its labels"
    present = np.unique(source.labels)
    if len(present) < 2:
        names = [(source.class_names or [])[label] for label in present]
        raise NstError(f"{source.location}: expected labels of two classes or more, found only {', '.join(map(repr, names))}")


def match_classes(
    found: Sequence[str], expected: Sequence[str], what: str, subset: bool = False, advice: str = _ADVICE
) -> NDArray[np.int64]:
    """For each found class its index among the expected ones, by name; shape (found,).

    ImageNet's WordNet ids and its words are the same names (`nst_data.imagenet_names`). Another set of names is an error that shows
    both and ends in `advice`; `subset` allows classes that are missing.
    """
    where = {name: index for index, name in enumerate(expected)}
    places = [where.get(name) for name in found]
    if None in places or (len(set(places)) < len(where) and not subset):
        places = places_of(found, expected) or places
    unknown = [name for name, place in zip(found, places, strict=True) if place is None]
    taken = set(places)
    lacking = [name for index, name in enumerate(expected) if index not in taken]
    if unknown or (lacking and not subset):
        raise NstError(
            f"{what}: expected the classes {_abridged(expected)}, found {_abridged(found)}"
            + (f"; not expected: {_abridged(unknown)}" if unknown else f"; missing: {_abridged(lacking)}")
            + f". {advice}"
        )
    return np.array(places, dtype=np.int64)


def _abridged(names: Sequence[str]) -> str:
    shown = ", ".join(names[:10])
    return f"{len(names)} ({shown}{', ...' if len(names) > 10 else ''})"


def label_column(names: list[str], location: str) -> str:
    """The column with the classes. Raises NstError where there is none."""
    for name in ("label", "labels"):
        if name in names:
            return name
    raise NstError(f"{location}: expected a column `label`, found {', '.join(names)}; rename the column that holds the classes")


def feature_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Class names that `datasets` wrote into the schema."""
    text = (schema.metadata or {}).get(b"huggingface")
    try:
        feature = json.loads(text)["info"]["features"][column] if text else {}
        return feature["names"] if feature.get("_type") == "ClassLabel" else None
    except (ValueError, LookupError, TypeError, AttributeError):  # anybody may have written there
        return None


def class_columns(schema: pa.Schema, features: Mapping[str, Any] | None = None) -> dict[str, list[str]]:
    """The class names of each column that has some; `features` of `datasets` name them where the schema does not."""
    known = features or {}
    found = {name: feature_names(schema, name) or getattr(known.get(name), "names", None) for name in schema.names}
    return {
        name: names for name, names in found.items() if isinstance(names, list) and names and all(isinstance(one, str) for one in names)
    }


def labels_of(column: pa.ChunkedArray, names: list[str] | None, location: str, name: str) -> tuple[NDArray[np.int64], list[str]]:
    """(labels, class names) of a column of integers, whose `names` may be known, or of strings. Raises NstError for any other."""
    if column.null_count:
        raise NstError(f"{location}: column `{name}` has {column.null_count} rows without a label; a labeled set has one for every image")
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return encode(column.to_pylist())
    if not pa.types.is_integer(column.type):
        raise NstError(f"{location}: column `{name}` is {column.type}, expected integers or strings")
    labels = column.to_numpy().astype(np.int64)
    classes = len(names) if names else int(labels.max()) + 1
    if labels.min() < 0 or labels.max() >= classes:
        raise NstError(f"{location}: column `{name}` holds {labels.min()} to {labels.max()}, expected 0 to {classes - 1}")
    return labels, names or [str(index) for index in range(classes)]


def encode(values: list[str]) -> tuple[NDArray[np.int64], list[str]]:
    """(labels, class names): the names in sorted order, and each value's place there."""
    names = sorted(set(values))
    where = {name: index for index, name in enumerate(names)}
    return np.fromiter((where[value] for value in values), dtype=np.int64, count=len(values)), names


def renamed(class_names: Sequence[str], location: str, file: str) -> list[str]:
    """Class names from a file with one a line, in place of a source's numbers. Raises UsageError where they do not fit."""
    names = names_in(file)
    if list(class_names) != [str(index) for index in range(len(class_names))]:
        raise UsageError(f"--class-names {file}: {location} has class names of its own ({_abridged(class_names)})")
    if not class_names or len(names) < len(class_names) or len(set(names)) != len(names):
        raise UsageError(f"--class-names {file}: expected {len(class_names)} or more different names, one a line, found {len(set(names))}")
    return names


def names_in(file: str) -> list[str]:
    """The class names in a file with one a line. Raises UsageError where it cannot be read."""
    try:
        return [line.strip() for line in Path(file).read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not in UTF-8"
        raise UsageError(f"--class-names {file}: {reason}; expected a text file with one class name a line") from None
