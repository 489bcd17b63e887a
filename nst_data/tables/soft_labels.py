"""From probabilities to the soft labels that a table stores, and back."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_MAX_UINT32 = np.uint64(2**32 - 1)


def soft_labels(probs: NDArray[np.float32], top_k: int | None) -> NDArray[np.void]:
    """Records of `label`, `confidence` and the soft label: `probs`, or the `top_k` largest as `top_labels` and `top_probs`.

    `probs` has shape (rows, classes). Label and confidence are taken before rounding to float16; ties go to the first class.
    """
    records = np.empty(len(probs), record_dtype(probs.shape[1], top_k))
    records["label"], records["confidence"] = probs.argmax(axis=1), probs.max(axis=1)
    if top_k is None:
        records["probs"] = _half(probs)
        return records
    sort_keys = probs.view(np.uint32).astype(np.uint64) << np.uint64(32) | _MAX_UINT32 - np.arange(probs.shape[1], dtype=np.uint64)
    largest = np.sort(np.partition(sort_keys, probs.shape[1] - top_k, axis=1)[:, -top_k:], axis=1)[:, ::-1]
    records["top_labels"] = _MAX_UINT32 - (largest & _MAX_UINT32)
    records["top_probs"] = _half((largest >> np.uint64(32)).astype(np.uint32).view(np.float32))
    return records


def top_soft_labels(classes: NDArray[np.int32], probs: NDArray[np.float32], n_classes: int, top_k: int) -> NDArray[np.void]:
    """The same from just the most probable of `n_classes` classes, in descending order, both of shape (rows, `top_k` or more)."""
    records = np.empty(len(probs), record_dtype(n_classes, top_k))
    records["label"], records["confidence"] = classes[:, 0], probs[:, 0]
    records["top_labels"], records["top_probs"] = classes[:, :top_k], _half(np.ascontiguousarray(probs[:, :top_k]))
    return records


def dense_probs(batch: pa.RecordBatch, n_classes: int) -> NDArray[np.float32]:
    """The soft labels in rows of a table, shape (rows, classes); the rest of a top-k label is spread evenly over the other classes."""
    if "probs" in batch.schema.names:
        return _matrix(batch["probs"]).astype(np.float32)
    top = _matrix(batch["top_probs"]).astype(np.float32)
    remainder = (1 - top.sum(axis=1, keepdims=True)).clip(0) / max(1, n_classes - top.shape[1])
    probs = np.repeat(remainder, n_classes, axis=1)
    np.put_along_axis(probs, _matrix(batch["top_labels"]).astype(np.int64), top, axis=1)
    return probs


def _matrix(column: pa.Array) -> NDArray[Any]:
    """A column of lists of one size as an array of shape (rows, size)."""
    values: NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), -1)


def _half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """Round to float16 as NumPy does, at four times its speed."""
    rounded: NDArray[np.float16] = pa.array(values.ravel()).cast(pa.float16()).to_numpy()
    return rounded.reshape(values.shape)


def as_columns(records: NDArray[np.void]) -> dict[str, Any]:
    """Records of `soft_labels` as table columns."""
    columns = {name: np.ascontiguousarray(records[name]) for name in records.dtype.names or ()}
    return {name: _lists(values) if values.ndim == 2 else values for name, values in columns.items()}


def _lists(values: NDArray[Any]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def record_dtype(n_classes: int, top_k: int | None) -> np.dtype[np.void]:
    """The dtype of the records that `soft_labels` returns."""
    soft: list[Any] = (
        [("probs", "<f2", (n_classes,))] if top_k is None else [("top_labels", "<i4", (top_k,)), ("top_probs", "<f2", (top_k,))]
    )
    return np.dtype([("label", "<i4"), ("confidence", "<f4"), *soft])
