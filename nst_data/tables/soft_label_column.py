"""Soft labels in a column that someone else wrote: checked, normalized, and kept as records of one size."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nst_data.errors import NstError
from nst_data.progress import Progress
from nst_data.sources import Source
from nst_data.store.files import replacing

SUM_TOLERANCE = 0.01  # float16 leaves some thousandths; what is further off is no distribution
_ADVICE = "turn logits into probabilities (softmax) first"
_LAST = np.uint64(2**32 - 1)


class SoftLabelColumn:
    """A list of numbers in each row of a table: the probabilities of `classes` classes, the same number in every row.

    Raises NstError or UsageError for a column that holds anything else. What is made of a row does not depend on those around it.
    """

    def __init__(self, table: Source, name: str) -> None:
        self._table, self.name = table, name
        first = next(batch.column(0) for batch in table.columns([name]) if batch.num_rows)
        self._check_kind(first.type)
        self.classes = len(first[0]) if first[0].is_valid else 0
        if self.classes < 2:
            raise NstError(
                f"{table.location}: {self._at(0)} has {self.classes} number{'s' * (self.classes != 1)}, expected one for each class"
            )

    def __len__(self) -> int:
        return len(self._table)

    def probabilities(self) -> Iterator[NDArray[np.float32]]:
        """All rows in order, some at a time, each divided by its sum in float64; shape (rows, classes)."""
        start = 0
        for batch in self._table.columns([self.name]):
            values = self._numbers(batch.column(0), start)
            with np.errstate(invalid="ignore", over="ignore"):
                sums = values.sum(axis=1)
            odd = ~(np.isfinite(values).all(axis=1) & (values >= 0).all(axis=1) & (np.abs(sums - 1) <= SUM_TOLERANCE))
            if odd.any():
                raise self._no_distribution(values[odd.argmax()], start + int(odd.argmax()))
            yield (values / sums[:, None]).astype(np.float32) + np.float32(0)  # no negative zero
            start += len(values)

    def digest(self, progress: Progress) -> str:
        """sha256 of the probabilities, all rows of which are checked on the way."""
        sha256 = hashlib.sha256(f"{self.classes}\n".encode())
        with progress.task(f"check `{self.name}`", len(self), "soft labels") as task:
            for probs in self.probabilities():
                sha256.update(probs.tobytes())
                task.advance(len(probs))
        return sha256.hexdigest()

    def keep(self, file: Path, top_k: int | None, progress: Progress) -> None:
        """Write all rows, as `soft_labels` makes them, into a file that `kept` reads."""
        with progress.task(f"read `{self.name}`", len(self), "soft labels") as task, replacing(file) as out:
            for probs in self.probabilities():
                out.write(soft_labels(probs, top_k).tobytes())
                task.advance(len(probs))

    def kept(self, file: Path, top_k: int | None) -> NDArray[np.void]:
        """The records in a file, memory-mapped: what was read of it stays in memory as long as the array; shape (rows,)."""
        return np.memmap(file, _record(self.classes, top_k), "r")

    def _numbers(self, column: pa.Array, start: int) -> NDArray[np.float64]:
        self._check_kind(column.type)
        if column.null_count:
            row = start + _first(column.is_null())
            raise NstError(f"{self._table.location}: {self._at(row)} is empty; expected one number for each class in every row")
        lengths = pc.list_value_length(column)
        wrong = pc.not_equal(lengths, self.classes)
        if pc.any(wrong).as_py():
            row = _first(wrong)
            found = f"{self._at(start + row)} has {lengths[row].as_py()} numbers, the first row {self.classes}"
            raise NstError(f"{self._table.location}: {found}; expected one for each class in every row")
        flat = column.flatten()
        if flat.null_count:
            row = _first(flat.is_null()) // self.classes
            raise NstError(f"{self._table.location}: {self._at(start + row)} lacks a number; expected one for each class in every row")
        numbers: NDArray[np.float64] = flat.to_numpy(zero_copy_only=False).astype(np.float64).reshape(-1, self.classes)
        return numbers

    def _check_kind(self, kind: pa.DataType) -> None:
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if not is_list or not (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)):
            raise NstError(f"{self._table.location}: column `{self.name}` is {kind}, expected lists of numbers, one for each class")

    def _no_distribution(self, values: NDArray[np.float64], row: int) -> NstError:
        odd = values[~np.isfinite(values) | (values < 0)]
        found = f"holds {odd[0]:.4g}" if len(odd) else f"adds up to {values.sum():.4g}"
        expected = f"expected probabilities that add up to 1 (within {SUM_TOLERANCE}); {_ADVICE}"
        return NstError(f"{self._table.location}: {self._at(row)} {found}, {expected}")

    def _at(self, row: int) -> str:
        return f"`{self.name}` of row {self._table.key(row)!r}"


def soft_labels(probs: NDArray[np.float32], top_k: int | None) -> NDArray[np.void]:
    """Records of `label`, `confidence` and the soft label: `probs`, or the `top_k` largest as `top_labels` and `top_probs`.

    `probs` has shape (rows, classes). Label and confidence are those before rounding to float16; of equal classes the first counts more.
    """
    made = np.empty(len(probs), _record(probs.shape[1], top_k))
    made["label"], made["confidence"] = probs.argmax(axis=1), probs.max(axis=1)
    if top_k is None:
        made["probs"] = _half(probs)
        return made
    order = probs.view(np.uint32).astype(np.uint64) << np.uint64(32) | _LAST - np.arange(probs.shape[1], dtype=np.uint64)
    largest = np.sort(np.partition(order, probs.shape[1] - top_k, axis=1)[:, -top_k:], axis=1)[:, ::-1]
    made["top_labels"] = _LAST - (largest & _LAST)
    made["top_probs"] = _half((largest >> np.uint64(32)).astype(np.uint32).view(np.float32))
    return made


def _half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """Rounded as NumPy rounds, at four times its speed."""
    rounded: NDArray[np.float16] = pa.array(values.ravel()).cast(pa.float16()).to_numpy()
    return rounded.reshape(values.shape)


def as_columns(made: NDArray[np.void]) -> dict[str, Any]:
    """Records of `soft_labels` as columns of a table."""
    columns = {name: np.ascontiguousarray(made[name]) for name in made.dtype.names or ()}
    return {name: _lists(values) if values.ndim == 2 else values for name, values in columns.items()}


def _lists(values: NDArray[Any]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _record(classes: int, top_k: int | None) -> np.dtype[np.void]:
    soft: list[Any] = [("probs", "<f2", (classes,))] if top_k is None else [("top_labels", "<i4", (top_k,)), ("top_probs", "<f2", (top_k,))]
    return np.dtype([("label", "<i4"), ("confidence", "<f4"), *soft])


def _first(flags: pa.Array) -> int:
    """The place of the first true one."""
    return int(flags.to_numpy(zero_copy_only=False).argmax())
