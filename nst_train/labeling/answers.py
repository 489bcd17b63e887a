"""What a teacher answered, as rows of a table of labels, and as errors where there is no answer."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from nst_data.sources import Row
from nst_data.tables.shards import NO_ANSWER
from nst_train.classifiers.inference import Images, Prediction, has_answer

Errors = list[dict[str, Any]]


def answers(rows: Sequence[Row], prediction: Prediction, top_k: int | None) -> tuple[pa.Table, Errors]:
    """Rows of a pool with their labels: `id`, `key`, `image_hash`, `label`, `confidence`, the soft label and `phash`; and the others."""
    images, log_probs = prediction.images, prediction.log_probs
    is_answered = has_answer(log_probs)
    reasons = images.reasons
    if not is_answered.all():
        images, log_probs = _of(images, is_answered.numpy()), log_probs[is_answered]
        reasons = sorted([*reasons, *((at, NO_ANSWER) for at in set(prediction.images.readable) - set(images.readable))])
    labeled = [rows[position] for position in images.readable]
    columns = {
        "id": np.array([row.id for row in labeled], np.int64),
        "key": pa.array([row.key for row in labeled], pa.string()),
        "image_hash": pa.array(images.hashes, pa.string()),
        "phash": images.phashes,
        **soft_labels(log_probs, top_k),
    }
    return pa.table(columns), [{"id": rows[at].id, "key": rows[at].key, "reason": reason} for at, reason in reasons]


def _of(images: Images, which: NDArray[np.bool_]) -> Images:
    """Some of the readable images of a batch, shape (readable,)."""
    readable = [place for place, kept in zip(images.readable, which, strict=True) if kept]
    hashes = [one for one, kept in zip(images.hashes, which, strict=True) if kept]
    return replace(images, readable=readable, hashes=hashes, phashes=images.phashes[which])


def soft_labels(log_probs: Float[Tensor, "images classes"], top_k: int | None) -> dict[str, Any]:
    """Columns `label`, `confidence` and the soft label: `probs`, or the `top_k` largest as `top_labels` and `top_probs`.

    Label and confidence are those before rounding to float16.
    """
    probs = log_probs.float().exp()
    if top_k is None:
        confidence, label = probs.max(dim=1)
        return {"label": label.numpy(), "confidence": confidence.numpy(), "probs": _lists(probs.half(), probs.shape[1])}
    top_probs, top_labels = probs.topk(top_k, dim=1)
    return {
        "label": top_labels[:, 0].contiguous().numpy(),
        "confidence": top_probs[:, 0].contiguous().numpy(),
        "top_labels": _lists(top_labels.int(), top_k),
        "top_probs": _lists(top_probs.half(), top_k),
    }


def _lists(values: Tensor, length: int) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.numpy().ravel()), length)
