"""The most probable classes of each image, in columns that someone else wrote: checked, sorted, and kept as fixed-size records."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nst_data.errors import NstError, UsageError
from nst_data.progress import Progress
from nst_data.settings import default_top_k
from nst_data.sources import Source, match_classes
from nst_data.sources.class_words import class_name_warnings, find_non_class
from nst_data.sources.labels import MAX_UNNAMED_CLASSES, check_class_names, class_numbers, floats_to_integers, parse_class_numbers
from nst_data.store.files import atomic_write
from nst_data.tables.label_columns import LabelColumns, format_columns
from nst_data.tables.soft_label_column import SUM_TOLERANCE, softmax
from nst_data.tables.soft_labels import record_dtype, soft_labels, top_soft_labels

_ADVICE = "Give all class names with `class_names` FILE, or name the column with class ids with `label_column`"


class TopLabelColumns:
    """Some classes in each row of a table, by name or number, with their probabilities, logits or nothing.

    Attributes:
        class_names: Names of all classes: those given, those that the table knows or, for classes by name, those that occur.
        max_classes: The largest number of classes that a row names.
        remarks: What users should know about how the labels are read.

    A row with fewer than `max_classes` classes is filled up with others: what is left to 1 is spread evenly over the classes that the row
    does not name. With `smoothing` S, a class without a number has the probability 1 - S + S / classes, else 1. A softmax is over the
    logits of one row.

    Raises NstError or UsageError if the columns hold anything else. The result for a row does not depend on the rows around it.
    """

    def __init__(
        self, table: Source, columns: LabelColumns, names: Sequence[str] | None, origin: str, smoothing: float, progress: Progress
    ) -> None:
        self._table, self._columns, self._smoothing, self.name = table, columns, smoothing, columns.name
        self.remarks: list[str] = []
        texts: set[str] = set()
        self.max_classes, self._by_number = 0, False
        with progress.task(f"read `{format_columns(columns.classes)}`", len(table), "labels") as task:
            for batch in table.columns(columns.classes):
                lists = self._classes_in(batch)
                self.max_classes = max(self.max_classes, pc.max(pc.list_value_length(lists)).as_py() or 0)
                self._by_number = pa.types.is_integer(lists.type.value_type)
                if not self._by_number:
                    texts |= self._class_texts(lists)
                task.advance(len(batch))
        self.class_names, self._index_by_text = self._resolve_classes(texts, list(names) if names is not None else None, origin)
        self._add_remarks(has_given_names=names is not None)

    def __len__(self) -> int:
        return len(self._table)

    @property
    def n_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    def default_top_k(self) -> int | None:
        """The number of classes to keep by default: as many as a row names at most; None for all."""
        return self.max_classes if self.max_classes < self.n_classes else default_top_k(self.n_classes)

    def check_top_k(self, top_k: int | None) -> None:
        """Raise NstError if `top_k` is more classes than a row names at most."""
        if top_k is not None and top_k > self.max_classes:
            raise NstError(
                f"{self._table.location}: column `{self.name}` names {self.max_classes} classes of an image, and {top_k} are asked for; "
                "choose another `top_k`"
            )

    def top_batches(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float32]]]:
        """Yield batches of all rows, in order: classes, most probable first, and their probabilities, both of shape (rows, max_classes)."""
        start = 0
        for batch in self._table.columns(self._columns.all_columns):
            yield self._read_batch(batch, start)
            start += len(batch)

    def probabilities(self) -> Iterator[NDArray[np.float32]]:
        """Yield all rows in order, in batches of probabilities of every class, shape (rows, classes)."""
        return (self._spread_rest(classes, probs) for classes, probs in self.top_batches())

    @property
    def exact_dtype(self) -> np.dtype[np.void]:
        """The dtype of the records that `save_exact` writes."""
        return np.dtype([("classes", "<i4", (self.max_classes,)), ("probs", "<f4", (self.max_classes,))])

    def save_exact(self, file: Path, progress: Progress) -> None:
        """Write all rows as they are read, before rounding."""
        with progress.task(f"read `{self.name}`", len(self), "soft labels") as task, atomic_write(file) as out:
            for classes, probs in self.top_batches():
                records = np.empty(len(probs), self.exact_dtype)
                records["classes"], records["probs"] = classes, probs
                out.write(records.tobytes())
                task.advance(len(probs))

    def dense_probs(self, records: NDArray[np.void]) -> NDArray[np.float32]:
        """The probabilities of every class from the records of `save_exact`, shape (rows, classes)."""
        return self._spread_rest(records["classes"], records["probs"])

    def _spread_rest(self, classes: NDArray[np.int32], probs: NDArray[np.float32]) -> NDArray[np.float32]:
        """The probabilities of every class: what is left to 1 is spread evenly over the other classes."""
        remainder = (1 - probs.sum(axis=1, dtype=np.float64, keepdims=True)).clip(0) / max(1, self.n_classes - self.max_classes)
        dense = np.broadcast_to(remainder, (len(probs), self.n_classes)).astype(np.float32)
        np.put_along_axis(dense, classes.astype(np.int64), probs, axis=1)
        return dense

    def digest(self, progress: Progress) -> str:
        """The sha256 of classes and probabilities; all rows are checked in the process."""
        sha256 = hashlib.sha256(f"{self.n_classes}\ntop {self.max_classes}\n".encode())
        with progress.task(f"check `{self.name}`", len(self), "soft labels") as task:
            for classes, probs in self.top_batches():
                sha256.update(classes.tobytes())
                sha256.update(probs.tobytes())
                task.advance(len(probs))
        return sha256.hexdigest()

    def save(self, file: Path, top_k: int | None, progress: Progress) -> None:
        """Write all rows to a file that `load` reads."""
        with progress.task(f"read `{self.name}`", len(self), "soft labels") as task, atomic_write(file) as out:
            if self.max_classes == self.n_classes or top_k is None:
                for dense in self.probabilities():
                    out.write(soft_labels(dense, top_k).tobytes())
                    task.advance(len(dense))
                return
            for classes, probs in self.top_batches():
                out.write(top_soft_labels(classes, probs, self.n_classes, top_k).tobytes())
                task.advance(len(probs))

    def load(self, file: Path, top_k: int | None) -> NDArray[np.void]:
        """The records in a file, memory-mapped; shape (rows,)."""
        return np.memmap(file, record_dtype(self.n_classes, top_k), "r")

    def _classes_in(self, batch: pa.RecordBatch) -> pa.Array:
        """The classes of each row, as lists; floats without a fraction become integers."""
        lists = self._columns.classes_in(batch)
        if not pa.types.is_floating(lists.type.value_type):
            return lists
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        flat = pa.chunked_array([lists.flatten()])
        value_type, column = lists.type.value_type, format_columns(self._columns.classes)
        numbers = floats_to_integers(flat, f"{self._table.location}: column `{column}` is {value_type}").combine_chunks()
        return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), numbers)

    def _class_texts(self, lists: pa.Array) -> set[str]:
        value_type = lists.type.value_type
        if not (pa.types.is_string(value_type) or pa.types.is_large_string(value_type) or pa.types.is_null(value_type)):
            raise NstError(
                f"{self._table.location}: column `{format_columns(self._columns.classes)}` is {value_type}, expected class names or "
                "integers"
            )
        texts = {text for text in pc.unique(lists.flatten()).to_pylist() if text is not None}
        if len(texts) > MAX_UNNAMED_CLASSES:
            raise NstError(
                f"{self._table.location}: column `{format_columns(self._columns.classes)}` has over {MAX_UNNAMED_CLASSES:,} classes; "
                "name another column"
            )
        return texts

    def _resolve_classes(self, texts: set[str], class_names: list[str] | None, origin: str) -> tuple[list[str], dict[str, int]]:
        """(class names, index among them of each text in the table)."""
        location, column = self._table.location, format_columns(self._columns.classes)
        names = class_names or self._table.class_columns().get(column)
        sorted_texts = sorted(texts)
        numbers = parse_class_numbers(sorted_texts, f"{location}: column `{column}`")
        if names is None and (self._by_number or numbers is not None):
            raise UsageError(f"{location}: column `{column}` has class numbers; give their names with `class_names` FILE")
        if names is None and (suspect := find_non_class(sorted_texts, self._columns.is_requested)):
            text, advice = suspect
            raise NstError(f"{location}: {self._cell_location(self._first_row_with(text), column)} has the label {text!r}, {advice}")
        names = sorted_texts if names is None else names
        check_class_names(names, origin, None, "two or more")
        if self._by_number:
            return names, {}
        if numbers is not None and class_numbers(names) is None:
            too_large = [number for number in numbers if number >= len(names)]
            if too_large:
                raise NstError(f"{location}: column `{column}` has the class number {min(too_large)}, expected 0 to {len(names) - 1}")
            return names, dict(zip(sorted_texts, numbers, strict=True))
        plain = sorted_texts if numbers is None or class_numbers(sorted_texts) is not None else [str(number) for number in numbers]
        indices = match_classes(plain, names, f"{location}: column `{column}`", subset=True, advice=_ADVICE)
        return names, dict(zip(sorted_texts, indices.tolist(), strict=True))

    def _first_row_with(self, text: str) -> int:
        """The first row that names a class by this text."""
        start = 0
        for batch in self._table.columns(self._columns.classes):
            lists = self._classes_in(batch)
            if len(rows := pc.list_parent_indices(lists).filter(pc.equal(lists.flatten(), text))):
                return start + int(rows[0].as_py())
            start += len(batch)
        raise AssertionError(f"{text!r} was there before")

    def _add_remarks(self, has_given_names: bool) -> None:
        if not has_given_names and self._table.class_columns().get(format_columns(self._columns.classes)) is None:
            self.remarks.append(f"the {self.n_classes:,} classes are those that occur in it; `class_names` FILE gives others")
            self.remarks += class_name_warnings(self.class_names)
        if not self._columns.numbers:
            self.remarks.append(f"labels without a confidence: hard, smoothing {self._smoothing:g}")
        elif self._columns.logits and self.max_classes < self.n_classes:
            self.remarks.append(f"softmax over the {self.max_classes:,} logits of each image; the other classes get nothing")

    def _read_batch(self, batch: pa.RecordBatch, start: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Classes and probabilities of a batch, the most probable first; ties go to the class with the lower number."""
        lists = self._classes_in(batch)
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        class_column = format_columns(self._columns.classes)
        self._reject_rows(lengths == 0, start, "names no class; expected one, or the most probable ones", class_column)
        flat = lists.flatten()
        rows = np.repeat(np.arange(len(batch)), lengths)
        self._reject_values(rows, flat.is_null().to_numpy(zero_copy_only=False), start, "lacks a class", class_column)
        positions = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        classes, values = np.full((len(batch), self.max_classes), -1), np.zeros((len(batch), self.max_classes))
        classes[rows, positions] = self._class_indices(flat, rows, start)
        sorted_classes = np.sort(classes, axis=1)
        self._reject_rows(
            ((sorted_classes[:, 1:] == sorted_classes[:, :-1]) & (sorted_classes[:, 1:] >= 0)).any(axis=1),
            start,
            "names a class twice",
            class_column,
        )
        values[rows, positions] = self._read_numbers(batch, lengths, rows, start)
        if not self._columns.numbers:
            values[rows, positions] = 1 - self._smoothing + self._smoothing / self.n_classes
        elif self._columns.logits:
            values[classes < 0] = -np.inf
            values = softmax(values)
        self._check_probabilities(values, classes, lengths, start)
        sums = values.sum(axis=1, keepdims=True)
        values = values / np.where((lengths == self.n_classes)[:, None], sums, np.maximum(sums, 1))
        self._fill_up(classes, values)
        order = np.lexsort((classes, -values.astype(np.float32)), axis=1)
        return (
            np.take_along_axis(classes, order, axis=1).astype(np.int32),
            np.take_along_axis(values, order, axis=1).astype(np.float32) + np.float32(0),  # no negative zero
        )

    def _class_indices(self, flat: pa.Array, rows: NDArray[np.int64], start: int) -> NDArray[np.int64]:
        """The classes of all rows as numbers, shape (classes of all rows,)."""
        if not self._by_number:
            encoded = flat.dictionary_encode()
            code_numbers = np.array([self._index_by_text[text] for text in encoded.dictionary.to_pylist()], np.int64)
            classes: NDArray[np.int64] = code_numbers[encoded.indices.to_numpy(zero_copy_only=False)] if len(code_numbers) else code_numbers
            return classes
        numbers: NDArray[np.int64] = flat.to_numpy(zero_copy_only=False).astype(np.int64)
        invalid = (numbers < 0) | (numbers >= self.n_classes)
        if invalid.any():
            first = int(invalid.argmax())
            raise NstError(
                f"{self._table.location}: {self._cell_location(start + int(rows[first]), format_columns(self._columns.classes))} is "
                f"{numbers[first]}, "
                f"expected 0 to {self.n_classes - 1}"
            )
        return numbers

    def _read_numbers(self, batch: pa.RecordBatch, lengths: NDArray[np.int64], rows: NDArray[np.int64], start: int) -> NDArray[np.float64]:
        """The numbers that belong to the classes, shape (classes of all rows,)."""
        if not self._columns.numbers:
            self._reject_rows(lengths > 1, start, "names several classes without a number each; expected one class")
            return np.ones(len(rows))
        lists = self._columns.numbers_in(batch)
        value_type = lists.type.value_type
        if not (pa.types.is_integer(value_type) or pa.types.is_floating(value_type)):
            raise NstError(f"{self._table.location}: column `{self.name}` is {value_type}, expected numbers")
        counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        self._reject_rows(counts != lengths, start, "has not one number for each class that is named")
        flat = lists.flatten()
        self._reject_values(rows, flat.is_null().to_numpy(zero_copy_only=False), start, "lacks a number")
        numbers: NDArray[np.float64] = flat.to_numpy(zero_copy_only=False).astype(np.float64)
        self._reject_values(rows, ~np.isfinite(numbers), start, "is not finite")
        return numbers

    def _check_probabilities(self, values: NDArray[np.float64], classes: NDArray[np.int64], lengths: NDArray[np.int64], start: int) -> None:
        expected, sums = "expected probabilities; if these are logits, add `logits`", values.sum(axis=1)
        self._reject_rows(np.asarray((values < 0).any(axis=1)), start, f"holds a negative number, {expected}")
        too_large: NDArray[np.bool_] = sums > 1 + SUM_TOLERANCE
        self._reject_rows(too_large, start, f"adds up to {sums[too_large.argmax()]:.4g}, more than 1; {expected}")
        smallest = np.where(classes < 0, np.inf, values).min(axis=1)
        share = (1 - sums) / np.maximum(1, self.n_classes - lengths)
        implausible: NDArray[np.bool_] = np.where(
            lengths < self.n_classes, smallest < share - SUM_TOLERANCE, np.abs(sums - 1) > SUM_TOLERANCE
        )
        first = int(implausible.argmax())
        problem = (
            f"leaves {1 - sums[first]:.4g} to {self.n_classes - lengths[first]:,} other classes, more to each than to one that is named"
        )
        self._reject_rows(implausible, start, f"adds up to {sums[first]:.4g}: {problem}; expected the most probable classes")

    def _fill_up(self, classes: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Fill up rows that name fewer classes than others with the first classes they do not name, each with an even share of the rest."""
        for row in np.flatnonzero((classes < 0).any(axis=1)).tolist():
            missing = classes[row] < 0
            unnamed = np.setdiff1d(np.arange(min(self.n_classes, 2 * self.max_classes)), classes[row])[: missing.sum()]
            share = max(0.0, 1 - values[row].sum()) / (self.n_classes - int((~missing).sum()))
            classes[row, missing], values[row, missing] = unnamed, share

    def _reject_values(
        self, rows: NDArray[np.int64], is_invalid: NDArray[np.bool_], start: int, problem: str, column: str | None = None
    ) -> None:
        if is_invalid.any():
            raise NstError(f"{self._table.location}: {self._cell_location(start + int(rows[is_invalid.argmax()]), column)} {problem}")

    def _reject_rows(self, is_invalid: NDArray[np.bool_], start: int, problem: str, column: str | None = None) -> None:
        if is_invalid.any():
            raise NstError(f"{self._table.location}: {self._cell_location(start + int(is_invalid.argmax()), column)} {problem}")

    def _cell_location(self, row: int, column: str | None = None) -> str:
        return f"column `{column or self.name}` of row {self._table.key(row)!r}"
