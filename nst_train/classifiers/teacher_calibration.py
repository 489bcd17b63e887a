"""Fitting a teacher's temperature on labeled images that it was not trained on."""

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nst_data.errors import NstError
from nst_data.sources import Source, labels_in, match_classes
from nst_data.sources.unreadable import check_readable
from nst_train.classifiers.calibration import calibrate
from nst_train.classifiers.inference import Computation, has_valid_output, plain_batches, predict
from nst_train.classifiers.teachers import Teacher


def calibrate_teacher(
    teacher: Teacher,
    computation: Computation,
    source: Source,
    threads: int | None = None,
    max_unreadable: float = 1.0,
    hashes: NDArray[np.void] | None = None,
) -> dict[str, Any]:
    """Fit a temperature on the readable images of a labeled source for which the teacher's output is finite.

    Returns the `Calibration` as JSON values, with the counts `unreadable` and `no_answer` of other images, if there are any. Each readable
    image's `image_hash` is written to `hashes`, of shape (rows,), as bytes. Raises NstError if no image is left, or if a share of more than
    `max_unreadable` cannot be read.
    """
    source_labels = labels_in(source)
    columns = match_classes(source.class_names or [], teacher.class_names, source.location, subset=True)
    log_probs, labels, n_read, first = [], [], 0, ""
    batches = plain_batches(source, computation.batch_size)
    for batch, prediction in predict(teacher, computation, batches, hashes=hashes is not None, threads=threads):
        rows = np.array([batch.rows[position].id for position in prediction.images.readable], np.int64)
        if hashes is not None:
            hashes[rows] = np.frombuffer(bytes.fromhex("".join(prediction.images.hashes)), hashes.dtype)
        batch_log_probs, truth = prediction.log_probs.float(), torch.from_numpy(columns[source_labels[rows]])
        is_answered = has_valid_output(batch_log_probs)
        log_probs.append(batch_log_probs[is_answered])
        labels.append(truth[is_answered])
        n_read += len(rows)
        for index, reason in prediction.images.reasons[: not first]:
            first = f"{batch.rows[index].key!r}: {reason}"
    lost = {"unreadable": len(source) - n_read, "no_answer": n_read - sum(map(len, labels))}
    if not n_read:
        raise NstError(f"{source.location}: none of its {len(source)} images could be read; give other `calibration` images")
    if lost["no_answer"] == n_read:
        raise NstError(f"{source.location}: the teacher's output is not finite for any of its {n_read} images; use another teacher")
    check_readable(source.location, len(source), lost["unreadable"], max_unreadable, first)
    fitted = dataclasses.asdict(calibrate(torch.cat(log_probs), torch.cat(labels)))
    return fitted | {name: images for name, images in lost.items() if images}
