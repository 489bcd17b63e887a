"""Soft labels in a column that someone else wrote: checked, normalized, and kept as fixed-size records."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nst_data.errors import NstError, UsageError
from nst_data.progress import Progress
from nst_data.settings import default_top_k
from nst_data.sources import Source
from nst_data.sources.labels import check_class_names
from nst_data.store.files import atomic_write
from nst_data.tables.label_columns import LabelColumns
from nst_data.tables.soft_labels import record_dtype, soft_labels

SUM_TOLERANCE = 0.01  # float16 rounding explains a few thousandths; anything further off is no distribution
_ADVICE = "if these are logits, add `logits`"


class SoftLabelColumn:
    """The numbers in each row of a table: probabilities or logits of `n_classes` classes, the same number in every row.

    Raises NstError or UsageError if the columns hold anything else. The result for a row does not depend on the rows around it.
    """

    def __init__(self, table: Source, columns: LabelColumns) -> None:
        self._table, self._columns, self.name = table, columns, columns.name
        self.remarks: list[str] = []
        self.class_names: list[str] = []
        first = next(columns.numbers_in(batch) for batch in table.columns(columns.numbers) if batch.num_rows)
        self._check_kind(first.type)
        self.n_classes = len(first[0]) if first[0].is_valid else 0
        if self.n_classes < 2:
            raise NstError(
                f"{table.location}: {self._cell_location(0)} has {self.n_classes} number{'s' * (self.n_classes != 1)}, expected one for "
                "each "
                "class"
            )

    def __len__(self) -> int:
        return len(self._table)

    def set_class_names(self, names: Sequence[str] | None, origin: str) -> Self:
        """Set the class names: those given or the table's own. Raises UsageError or NstError if they do not fit."""
        self.class_names = list(names) if names is not None else self._own_names()
        check_class_names(self.class_names, origin, self.n_classes, f"one for each number of column `{self.name}`")
        return self

    def _own_names(self) -> list[str]:
        """The class names of a column of the table that has the right number. Raises UsageError if there is none, or several."""
        candidates = list({tuple(names): names for names in self._table.class_columns().values() if len(names) == self.n_classes}.values())
        if len(candidates) == 1:
            return candidates[0]
        subject = "several columns have" if candidates else "no column has"
        raise UsageError(
            f"{self._table.location}: column `{self.name}` has {self.n_classes} classes, and {subject} as many class names; "
            "provide them with `class_names` FILE"
        )

    @property
    def max_classes(self) -> int:
        """The number of classes that a row tells from the others: all."""
        return self.n_classes

    @property
    def exact_dtype(self) -> np.dtype[np.void]:
        """The dtype of the records that `save_exact` writes."""
        return np.dtype([("probs", "<f4", (self.n_classes,))])

    def save_exact(self, file: Path, progress: Progress) -> None:
        """Write all rows as they are read, before rounding."""
        with progress.task(f"read `{self.name}`", len(self), "soft labels") as task, atomic_write(file) as out:
            for probs in self.probabilities():
                out.write(probs.tobytes())
                task.advance(len(probs))

    def dense_probs(self, records: NDArray[np.void]) -> NDArray[np.float32]:
        """The probabilities in the records of `save_exact`, shape (rows, classes)."""
        probs: NDArray[np.float32] = records["probs"]
        return probs

    def check_top_k(self, top_k: int | None) -> None:
        """Accept any number of classes."""

    def default_top_k(self) -> int | None:
        """The number of classes to keep by default; None for all."""
        return default_top_k(self.n_classes)

    def probabilities(self) -> Iterator[NDArray[np.float32]]:
        """Yield all rows in order, each divided by its sum in float64, in batches of shape (rows, classes)."""
        start = 0
        for batch in self._table.columns(self._columns.numbers):
            values = self._read_numbers(self._columns.numbers_in(batch), start)
            if self._columns.logits:
                invalid = ~np.isfinite(values).all(axis=1)
                if invalid.any():
                    raise self._distribution_error(values[invalid.argmax()], start + int(invalid.argmax()))
                values = softmax(values)
            with np.errstate(invalid="ignore", over="ignore"):
                sums = values.sum(axis=1)
            invalid = ~(np.isfinite(values).all(axis=1) & (values >= 0).all(axis=1) & (np.abs(sums - 1) <= SUM_TOLERANCE))
            if invalid.any():
                raise self._distribution_error(values[invalid.argmax()], start + int(invalid.argmax()))
            yield (values / sums[:, None]).astype(np.float32) + np.float32(0)  # no negative zero
            start += len(values)

    def digest(self, progress: Progress) -> str:
        """The sha256 of the probabilities; all rows are checked in the process."""
        sha256 = hashlib.sha256(f"{self.n_classes}\n".encode())
        with progress.task(f"check `{self.name}`", len(self), "soft labels") as task:
            for probs in self.probabilities():
                sha256.update(probs.tobytes())
                task.advance(len(probs))
        return sha256.hexdigest()

    def save(self, file: Path, top_k: int | None, progress: Progress) -> None:
        """Write all rows, as `soft_labels` returns them, to a file that `load` reads."""
        with progress.task(f"read `{self.name}`", len(self), "soft labels") as task, atomic_write(file) as out:
            for probs in self.probabilities():
                out.write(soft_labels(probs, top_k).tobytes())
                task.advance(len(probs))

    def load(self, file: Path, top_k: int | None) -> NDArray[np.void]:
        """The records in a file, memory-mapped, shape (rows,); what was read of it stays in memory as long as the array."""
        return np.memmap(file, record_dtype(self.n_classes, top_k), "r")

    def _read_numbers(self, column: pa.Array, start: int) -> NDArray[np.float64]:
        self._check_kind(column.type)
        if column.null_count:
            row = start + _first_true(column.is_null())
            raise NstError(f"{self._table.location}: {self._cell_location(row)} is empty; expected one number for each class in every row")
        lengths = pc.list_value_length(column)
        wrong = pc.not_equal(lengths, self.n_classes)
        if pc.any(wrong).as_py():
            row = _first_true(wrong)
            problem = f"{self._cell_location(start + row)} has {lengths[row].as_py()} numbers, the first row {self.n_classes}"
            raise NstError(f"{self._table.location}: {problem}; expected one for each class in every row")
        flat = column.flatten()
        if flat.null_count:
            row = _first_true(flat.is_null()) // self.n_classes
            raise NstError(
                f"{self._table.location}: {self._cell_location(start + row)} lacks a number; expected one for each class in every row"
            )
        numbers: NDArray[np.float64] = flat.to_numpy(zero_copy_only=False).astype(np.float64).reshape(-1, self.n_classes)
        return numbers

    def _check_kind(self, kind: pa.DataType) -> None:
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if not is_list or not (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)):
            raise NstError(f"{self._table.location}: column `{self.name}` is {kind}, expected lists of numbers, one for each class")

    def _distribution_error(self, values: NDArray[np.float64], row: int) -> NstError:
        invalid = values[~np.isfinite(values) | (values < 0)]
        problem = f"holds {invalid[0]:.4g}" if len(invalid) else f"adds up to {values.sum():.4g}"
        if self._columns.logits:
            return NstError(
                f"{self._table.location}: {self._cell_location(row)} holds {values[~np.isfinite(values)][0]}, expected finite logits"
            )
        expected = f"expected probabilities that add up to 1 (within {SUM_TOLERANCE}); {_ADVICE}"
        return NstError(f"{self._table.location}: {self._cell_location(row)} {problem}, {expected}")

    def _cell_location(self, row: int) -> str:
        return f"column `{self.name}` of row {self._table.key(row)!r}"


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities from logits, both of shape (rows, classes)."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probs: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probs


def _first_true(flags: pa.Array) -> int:
    """The position of the first true value."""
    return int(flags.to_numpy(zero_copy_only=False).argmax())
