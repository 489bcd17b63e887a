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
from nst_data.sources.class_words import likely_slips, no_class
from nst_data.sources.labels import MOST_UNNAMED, check_class_names, class_numbers, whole_floats, whole_numbers
from nst_data.store.files import replacing
from nst_data.tables.label_columns import LabelColumns, shown
from nst_data.tables.soft_label_column import SUM_TOLERANCE, softmax
from nst_data.tables.soft_labels import record, soft_labels, top_soft_labels

_ADVICE = "Give all class names with `class_names` FILE, or name the column with class ids with `label_column`"


class TopLabelColumns:
    """Some classes in each row of a table, by name or number, with their probabilities, logits or nothing.

    Attributes:
        class_names: Names of all classes: those given, those that the table knows or, for classes by name, those that occur.
        most: The largest number of classes that a row names.
        remarks: What users should know about how the labels are read.

    A row with fewer than `most` classes is filled up with others: what is left to 1 is spread evenly over the classes that the row does
    not name. With `smoothing` S, a class without a number has the probability 1 - S + S / classes, else 1. A softmax is over the logits of
    one row.

    Raises NstError or UsageError if the columns hold anything else. The result for a row does not depend on the rows around it.
    """

    def __init__(
        self, table: Source, columns: LabelColumns, names: Sequence[str] | None, where: str, smoothing: float, progress: Progress
    ) -> None:
        self._table, self._columns, self._smoothing, self.name = table, columns, smoothing, columns.name
        self.remarks: list[str] = []
        words: set[str] = set()
        self.most, self._by_number = 0, False
        with progress.task(f"read `{shown(columns.classes)}`", len(table), "labels") as task:
            for batch in table.columns(columns.classes):
                lists = self._classes_in(batch)
                self.most = max(self.most, pc.max(pc.list_value_length(lists)).as_py() or 0)
                self._by_number = pa.types.is_integer(lists.type.value_type)
                if not self._by_number:
                    words |= self._words(lists)
                task.advance(len(batch))
        self.class_names, self._places = self._named(words, list(names) if names is not None else None, where)
        self._say(given=names is not None)

    def __len__(self) -> int:
        return len(self._table)

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    def default_top_k(self) -> int | None:
        """The number of classes to keep by default: as many as a row names at most; None for all."""
        return self.most if self.most < self.classes else default_top_k(self.classes)

    def check_top_k(self, top_k: int | None) -> None:
        """Raise NstError if `top_k` is more classes than a row names at most."""
        if top_k is not None and top_k > self.most:
            raise NstError(
                f"{self._table.location}: column `{self.name}` names {self.most} classes of an image, and {top_k} are asked for; "
                "choose another `top_k`"
            )

    def largest(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float32]]]:
        """Yield all rows in order, in batches: classes, the most probable first, and their probabilities, both of shape (rows, most)."""
        start = 0
        for batch in self._table.columns(self._columns.all):
            yield self._checked(batch, start)
            start += len(batch)

    def probabilities(self) -> Iterator[NDArray[np.float32]]:
        """Yield all rows in order, in batches of probabilities of every class, shape (rows, classes)."""
        return (self._spread(classes, probs) for classes, probs in self.largest())

    @property
    def exact(self) -> np.dtype[np.void]:
        """The dtype of the records that `keep_exact` writes."""
        return np.dtype([("classes", "<i4", (self.most,)), ("probs", "<f4", (self.most,))])

    def keep_exact(self, file: Path, progress: Progress) -> None:
        """Write all rows as they are read, before rounding."""
        with progress.task(f"read `{self.name}`", len(self), "soft labels") as task, replacing(file) as out:
            for classes, probs in self.largest():
                records = np.empty(len(probs), self.exact)
                records["classes"], records["probs"] = classes, probs
                out.write(records.tobytes())
                task.advance(len(probs))

    def dense(self, exact: NDArray[np.void]) -> NDArray[np.float32]:
        """The probabilities of every class from the records of `keep_exact`, shape (rows, classes)."""
        return self._spread(exact["classes"], exact["probs"])

    def _spread(self, classes: NDArray[np.int32], probs: NDArray[np.float32]) -> NDArray[np.float32]:
        """The probabilities of every class: what is left to 1 is spread evenly over the other classes."""
        rest = (1 - probs.sum(axis=1, dtype=np.float64, keepdims=True)).clip(0) / max(1, self.classes - self.most)
        dense = np.broadcast_to(rest, (len(probs), self.classes)).astype(np.float32)
        np.put_along_axis(dense, classes.astype(np.int64), probs, axis=1)
        return dense

    def digest(self, progress: Progress) -> str:
        """The sha256 of classes and probabilities; all rows are checked in the process."""
        sha256 = hashlib.sha256(f"{self.classes}\ntop {self.most}\n".encode())
        with progress.task(f"check `{self.name}`", len(self), "soft labels") as task:
            for classes, probs in self.largest():
                sha256.update(classes.tobytes())
                sha256.update(probs.tobytes())
                task.advance(len(probs))
        return sha256.hexdigest()

    def keep(self, file: Path, top_k: int | None, progress: Progress) -> None:
        """Write all rows to a file that `kept` reads."""
        with progress.task(f"read `{self.name}`", len(self), "soft labels") as task, replacing(file) as out:
            if self.most == self.classes or top_k is None:
                for dense in self.probabilities():
                    out.write(soft_labels(dense, top_k).tobytes())
                    task.advance(len(dense))
                return
            for classes, probs in self.largest():
                out.write(top_soft_labels(classes, probs, self.classes, top_k).tobytes())
                task.advance(len(probs))

    def kept(self, file: Path, top_k: int | None) -> NDArray[np.void]:
        """The records in a file, memory-mapped; shape (rows,)."""
        return np.memmap(file, record(self.classes, top_k), "r")

    def _classes_in(self, batch: pa.RecordBatch) -> pa.Array:
        """The classes of each row, as lists; floats without a fraction become integers."""
        lists = self._columns.classes_in(batch)
        if not pa.types.is_floating(lists.type.value_type):
            return lists
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        flat = pa.chunked_array([lists.flatten()])
        value_type, column = lists.type.value_type, shown(self._columns.classes)
        numbers = whole_floats(flat, f"{self._table.location}: column `{column}` is {value_type}").combine_chunks()
        return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), numbers)

    def _words(self, lists: pa.Array) -> set[str]:
        value_type = lists.type.value_type
        if not (pa.types.is_string(value_type) or pa.types.is_large_string(value_type) or pa.types.is_null(value_type)):
            raise NstError(
                f"{self._table.location}: column `{shown(self._columns.classes)}` is {value_type}, expected class names or integers"
            )
        words = {word for word in pc.unique(lists.flatten()).to_pylist() if word is not None}
        if len(words) > MOST_UNNAMED:
            raise NstError(
                f"{self._table.location}: column `{shown(self._columns.classes)}` has over {MOST_UNNAMED:,} classes; name another column"
            )
        return words

    def _named(self, words: set[str], given: list[str] | None, where: str) -> tuple[list[str], dict[str, int]]:
        """(class names, index among them of each word in the table)."""
        location, column = self._table.location, shown(self._columns.classes)
        names = given or self._table.class_columns().get(column)
        sorted_words = sorted(words)
        numbers = whole_numbers(sorted_words, f"{location}: column `{column}`")
        if names is None and (self._by_number or numbers is not None):
            raise UsageError(f"{location}: column `{column}` has class numbers; give their names with `class_names` FILE")
        if names is None and (suspect := no_class(sorted_words, self._columns.is_named)):
            word, advice = suspect
            raise NstError(f"{location}: {self._at(self._first_with(word), column)} has the label {word!r}, {advice}")
        names = sorted_words if names is None else names
        check_class_names(names, where, None, "two or more")
        if self._by_number:
            return names, {}
        if numbers is not None and class_numbers(names) is None:
            too_large = [number for number in numbers if number >= len(names)]
            if too_large:
                raise NstError(f"{location}: column `{column}` has the class number {min(too_large)}, expected 0 to {len(names) - 1}")
            return names, dict(zip(sorted_words, numbers, strict=True))
        plain = sorted_words if numbers is None or class_numbers(sorted_words) is not None else [str(number) for number in numbers]
        indices = match_classes(plain, names, f"{location}: column `{column}`", subset=True, advice=_ADVICE)
        return names, dict(zip(sorted_words, indices.tolist(), strict=True))

    def _first_with(self, word: str) -> int:
        """The first row that names a class by this word."""
        start = 0
        for batch in self._table.columns(self._columns.classes):
            lists = self._classes_in(batch)
            if len(rows := pc.list_parent_indices(lists).filter(pc.equal(lists.flatten(), word))):
                return start + int(rows[0].as_py())
            start += len(batch)
        raise AssertionError(f"{word!r} was there before")

    def _say(self, given: bool) -> None:
        if not given and self._table.class_columns().get(shown(self._columns.classes)) is None:
            self.remarks.append(f"the {self.classes:,} classes are those that occur in it; `class_names` FILE gives others")
            self.remarks += likely_slips(self.class_names)
        if not self._columns.numbers:
            self.remarks.append(f"labels without a confidence: hard, smoothing {self._smoothing:g}")
        elif self._columns.logits and self.most < self.classes:
            self.remarks.append(f"softmax over the {self.most:,} logits of each image; the other classes get nothing")

    def _checked(self, batch: pa.RecordBatch, start: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Classes and probabilities of a batch, the most probable first; ties go to the class with the lower number."""
        lists = self._classes_in(batch)
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        class_column = shown(self._columns.classes)
        self._refuse(lengths == 0, start, "names no class; expected one, or the most probable ones", class_column)
        flat = lists.flatten()
        rows = np.repeat(np.arange(len(batch)), lengths)
        self._refuse_at(rows, flat.is_null().to_numpy(zero_copy_only=False), start, "lacks a class", class_column)
        positions = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        classes, values = np.full((len(batch), self.most), -1), np.zeros((len(batch), self.most))
        classes[rows, positions] = self._numbers_of(flat, rows, start)
        sorted_classes = np.sort(classes, axis=1)
        self._refuse(
            ((sorted_classes[:, 1:] == sorted_classes[:, :-1]) & (sorted_classes[:, 1:] >= 0)).any(axis=1),
            start,
            "names a class twice",
            class_column,
        )
        values[rows, positions] = self._values(batch, lengths, rows, start)
        if not self._columns.numbers:
            values[rows, positions] = 1 - self._smoothing + self._smoothing / self.classes
        elif self._columns.logits:
            values[classes < 0] = -np.inf
            values = softmax(values)
        self._check_probabilities(values, classes, lengths, start)
        sums = values.sum(axis=1, keepdims=True)
        values = values / np.where((lengths == self.classes)[:, None], sums, np.maximum(sums, 1))
        self._fill_up(classes, values)
        order = np.lexsort((classes, -values.astype(np.float32)), axis=1)
        return (
            np.take_along_axis(classes, order, axis=1).astype(np.int32),
            np.take_along_axis(values, order, axis=1).astype(np.float32) + np.float32(0),  # no negative zero
        )

    def _numbers_of(self, flat: pa.Array, rows: NDArray[np.int64], start: int) -> NDArray[np.int64]:
        """The classes of all rows as numbers, shape (classes of all rows,)."""
        if not self._by_number:
            encoded = flat.dictionary_encode()
            code_numbers = np.array([self._places[word] for word in encoded.dictionary.to_pylist()], np.int64)
            classes: NDArray[np.int64] = code_numbers[encoded.indices.to_numpy(zero_copy_only=False)] if len(code_numbers) else code_numbers
            return classes
        numbers: NDArray[np.int64] = flat.to_numpy(zero_copy_only=False).astype(np.int64)
        invalid = (numbers < 0) | (numbers >= self.classes)
        if invalid.any():
            first = int(invalid.argmax())
            raise NstError(
                f"{self._table.location}: {self._at(start + int(rows[first]), shown(self._columns.classes))} is {numbers[first]}, "
                f"expected 0 to {self.classes - 1}"
            )
        return numbers

    def _values(self, batch: pa.RecordBatch, lengths: NDArray[np.int64], rows: NDArray[np.int64], start: int) -> NDArray[np.float64]:
        """The numbers that belong to the classes, shape (classes of all rows,)."""
        if not self._columns.numbers:
            self._refuse(lengths > 1, start, "names several classes without a number each; expected one class")
            return np.ones(len(rows))
        lists = self._columns.numbers_in(batch)
        value_type = lists.type.value_type
        if not (pa.types.is_integer(value_type) or pa.types.is_floating(value_type)):
            raise NstError(f"{self._table.location}: column `{self.name}` is {value_type}, expected numbers")
        counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        self._refuse(counts != lengths, start, "has not one number for each class that is named")
        flat = lists.flatten()
        self._refuse_at(rows, flat.is_null().to_numpy(zero_copy_only=False), start, "lacks a number")
        numbers: NDArray[np.float64] = flat.to_numpy(zero_copy_only=False).astype(np.float64)
        self._refuse_at(rows, ~np.isfinite(numbers), start, "is not finite")
        return numbers

    def _check_probabilities(self, values: NDArray[np.float64], classes: NDArray[np.int64], lengths: NDArray[np.int64], start: int) -> None:
        expected, sums = "expected probabilities; if these are logits, add `logits`", values.sum(axis=1)
        self._refuse(np.asarray((values < 0).any(axis=1)), start, f"holds a negative number, {expected}")
        too_large: NDArray[np.bool_] = sums > 1 + SUM_TOLERANCE
        self._refuse(too_large, start, f"adds up to {sums[too_large.argmax()]:.4g}, more than 1; {expected}")
        smallest = np.where(classes < 0, np.inf, values).min(axis=1)
        share = (1 - sums) / np.maximum(1, self.classes - lengths)
        implausible: NDArray[np.bool_] = np.where(
            lengths < self.classes, smallest < share - SUM_TOLERANCE, np.abs(sums - 1) > SUM_TOLERANCE
        )
        first = int(implausible.argmax())
        problem = f"leaves {1 - sums[first]:.4g} to {self.classes - lengths[first]:,} other classes, more to each than to one that is named"
        self._refuse(implausible, start, f"adds up to {sums[first]:.4g}: {problem}; expected the most probable classes")

    def _fill_up(self, classes: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Fill up rows that name fewer classes than others with the first classes they do not name, each with an even share of the rest."""
        for row in np.flatnonzero((classes < 0).any(axis=1)).tolist():
            missing = classes[row] < 0
            unnamed = np.setdiff1d(np.arange(min(self.classes, 2 * self.most)), classes[row])[: missing.sum()]
            share = max(0.0, 1 - values[row].sum()) / (self.classes - int((~missing).sum()))
            classes[row, missing], values[row, missing] = unnamed, share

    def _refuse_at(self, rows: NDArray[np.int64], odd: NDArray[np.bool_], start: int, what: str, column: str | None = None) -> None:
        if odd.any():
            raise NstError(f"{self._table.location}: {self._at(start + int(rows[odd.argmax()]), column)} {what}")

    def _refuse(self, odd: NDArray[np.bool_], start: int, what: str, column: str | None = None) -> None:
        if odd.any():
            raise NstError(f"{self._table.location}: {self._at(start + int(odd.argmax()), column)} {what}")

    def _at(self, row: int, column: str | None = None) -> str:
        return f"column `{column or self.name}` of row {self._table.key(row)!r}"
