"""A teacher's predictions as rows of a label table, and as errors for images without one."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nst_data.sources import Row
from nst_data.tables.shards import NO_PREDICTION
from nst_data.tables.soft_labels import as_columns, soft_labels
from nst_train.classifiers.inference import Prediction, has_valid_output
from nst_train.classifiers.loading import LoadedImages
from nst_train.labeling.plan import Errors


def labels_and_errors(rows: Sequence[Row], prediction: Prediction, top_k: int | None) -> tuple[pa.Table, Errors]:
    """Labeled rows (`id`, `key`, `image_hash`, `label`, `confidence`, the soft label and `phash`), and errors for the remaining rows."""
    images, log_probs = prediction.images, prediction.log_probs
    is_answered = has_valid_output(log_probs)
    reasons = images.reasons
    if not is_answered.all():
        images, log_probs = _select_images(images, is_answered.numpy()), log_probs[is_answered]
        reasons = sorted([*reasons, *((index, NO_PREDICTION) for index in set(prediction.images.readable) - set(images.readable))])
    labeled = [rows[position] for position in images.readable]
    columns = {
        "id": np.array([row.id for row in labeled], np.int64),
        "key": pa.array([row.key for row in labeled], pa.string()),
        "image_hash": pa.array(images.hashes, pa.string()),
        "phash": images.phashes,
        **as_columns(soft_labels(log_probs.float().exp().numpy(), top_k)),
    }
    return pa.table(columns), [{"id": rows[index].id, "key": rows[index].key, "reason": reason} for index, reason in reasons]


def _select_images(images: LoadedImages, mask: NDArray[np.bool_]) -> LoadedImages:
    """The selected readable images of a batch; `mask` has shape (readable,)."""
    readable = [position for position, is_selected in zip(images.readable, mask, strict=True) if is_selected]
    hashes = [image_hash for image_hash, is_selected in zip(images.hashes, mask, strict=True) if is_selected]
    return replace(images, readable=readable, hashes=hashes, phashes=images.phashes[mask])
