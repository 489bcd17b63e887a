"""Numbers from tables as JSON values: probabilities, and the most probable classes of a soft label."""

from typing import Any

import numpy as np

TOP_CLASSES = 5


def top_classes(values: Any, class_names: list[str]) -> list[dict[str, Any]]:  # noqa: ANN401 - either kind of soft label
    """The five most probable classes of a soft label: (probs,), or (top_labels, top_probs)."""
    if len(values) == 1:
        probs = np.asarray(values[0], np.float64)
        labels = np.argsort(-probs, kind="stable")[:TOP_CLASSES].tolist()
        return [{"class": class_names[label], "probability": json_number(probs[label])} for label in labels]
    pairs = list(zip(values[0], values[1], strict=True))[:TOP_CLASSES]
    return [{"class": class_names[label], "probability": json_number(probability)} for label, probability in pairs]


def json_number(value: Any) -> float | None:  # noqa: ANN401 - a number of any library
    """A number rounded to six digits, or None if it is not finite, which JSON cannot express."""
    return None if value is None or not np.isfinite(value) else round(float(value), 6)
