"""Parse JSON cells into classes and numbers: single values, lists, labels with scores, or a number per class name."""

import base64
import io
import zlib
from collections.abc import Collection
from typing import Any

import numpy as np

_LABELS, _SCORES, _LOGITS = ("label", "class", "class_name"), ("score", "confidence", "prob", "probability"), "logits"
_MAX_LOGIT_BYTES = 2**24
_NO_LABEL: tuple[None, None] = None, None

Cell = tuple[list[Any] | None, list[Any] | None]  # classes, numbers


def object_contents(value: Any) -> Collection[str] | None:  # noqa: ANN401 - any JSON value
    """What a cell contains besides class names, of `numbers` and `logits`; None if it is no object with classes or list of these."""
    if isinstance(value, list):
        return object_contents(value[0]) if value and isinstance(value[0], dict) else None
    if not isinstance(value, dict) or not value:
        return None
    if _first_field(value, _LABELS) is not None:
        scores = {"numbers"} if _first_field(value, _SCORES) is not None else set()
        return scores | ({"logits"} if value.get(_LOGITS) is not None else set())
    return {"numbers"} if all(isinstance(item, int | float) and not isinstance(item, bool) for item in value.values()) else None


def parse_cell(value: Any, logits: bool) -> Cell:  # noqa: ANN401
    """Classes and numbers of a cell that `object_contents` recognizes; with `logits`, all logits and no classes.

    Raises ValueError for any other cell.
    """
    if value is None:
        return _NO_LABEL
    if isinstance(value, dict):
        label = _first_field(value, _LABELS)
        if label is None and value and not logits:
            return _NO_LABEL if _lacks_label(value) else (list(value), list(value.values()))
        if logits:
            return None, None if value.get(_LOGITS) is None else _parse_logits(value[_LOGITS])
        score = _first_field(value, _SCORES)
        return None if label is None else [label], None if score is None else [score]
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        cells = [parse_cell(item, logits) for item in value]
        return [label for labels, _ in cells for label in labels or []], [score for _, scores in cells for score in scores or []]
    raise ValueError(f"expected a label with its score, or a list of them, found {str(value)[:40]!r}")


def as_list(value: Any) -> list[Any] | None:  # noqa: ANN401
    """The value as a list; lists and None are returned unchanged."""
    return value if isinstance(value, list) or value is None else [value]


def _lacks_label(value: dict[str, Any]) -> bool:
    """Whether an object without a label is a prediction that lacks one, rather than a number per class name."""
    return "_cls" in value or any(name in value for name in _LABELS) or set(value) <= {*_SCORES, _LOGITS}


def _first_field(value: dict[str, Any], names: tuple[str, ...]) -> Any:  # noqa: ANN401
    return next((value[name] for name in names if value.get(name) is not None), None)


def _parse_logits(value: Any) -> list[float]:  # noqa: ANN401
    """Numbers in a list, or in an array as FiftyOne writes it: a compressed .npy file in base64. Raises ValueError for anything else."""
    if isinstance(value, list):
        return value
    text = value.get("$binary") if isinstance(value, dict) else value
    text = str(text.get("base64") if isinstance(text, dict) else text)
    try:
        packed = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), _MAX_LOGIT_BYTES)
        return [float(number) for number in np.load(io.BytesIO(packed), allow_pickle=False).ravel()]
    except Exception:  # hostile bytes raise anything: NumPy opens archives, parses Python and allocates what a header claims
        raise ValueError("expected logits as a list, or as an array that FiftyOne wrote") from None
