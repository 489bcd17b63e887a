"""The mean of several tables of labels, with classes matched by name and images in pool order."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nst_data.errors import NstError
from nst_data.progress import Progress
from nst_data.settings import default_top_k
from nst_data.sources import Source, match_classes
from nst_data.sources.source import RowIndices
from nst_data.store.files import atomic_write, clear_abandoned, temporary_path
from nst_data.tables.key_column import MatchedRows
from nst_data.tables.label_reader import LabelReader
from nst_data.tables.soft_labels import record_dtype, soft_labels

_ROWS_AT_ONCE = 2_048
_ADVICE = "Average tables with the same classes, or give their names with `class_names` FILE"


@dataclass(frozen=True)
class AveragedTable:
    """One table: its location, its labels, and the rows of its images."""

    location: str
    labels: LabelReader
    rows: MatchedRows


class AveragedLabels:
    """The mean probabilities of several tables for the same images, as for an ensemble of teachers; rows are in pool order.

    Raises NstError for tables of different images or classes.
    """

    remarks: Sequence[str] = ()

    def __init__(self, members: Sequence[AveragedTable], pool: Source) -> None:
        self._members, first = members, members[0]
        self.class_names = first.labels.class_names
        self._class_indices: list[NDArray[np.int64]] = []
        for member in members:
            self._class_indices.append(match_classes(member.labels.class_names, self.class_names, member.location, advice=_ADVICE))
            _check_same_images(first, member, pool)
        self.rows = MatchedRows(first.rows.in_pool, range(len(first.rows.in_pool)))

    @property
    def max_classes(self) -> int:
        """The number of classes that the mean can tell from the others: at most as many as all tables name together."""
        return min(len(self.class_names), sum(member.labels.max_classes for member in self._members))

    def default_top_k(self) -> int | None:
        """The number of classes to keep by default; None for all."""
        return self.max_classes if self.max_classes < len(self.class_names) else default_top_k(len(self.class_names))

    def check_top_k(self, top_k: int | None) -> None:
        """Accept any number of classes."""

    def save(self, file: Path, top_k: int | None, progress: Progress) -> None:
        """Write the mean labels to a file that `load` reads; meanwhile each table's labels are in a temporary file next to it."""
        clear_abandoned(file.parent)
        suffix = secrets.token_hex(4)
        paths = [temporary_path(file.with_name(f".{file.name}_{number}.{suffix}")) for number in range(len(self._members))]
        try:
            for path, member in zip(paths, self._members, strict=True):
                member.labels.save_exact(path, progress)
            exact_labels = [np.memmap(path, member.labels.exact_dtype, "r") for path, member in zip(paths, self._members, strict=True)]
            self._save_mean(exact_labels, file, top_k, progress)
        finally:
            for path in paths:
                path.unlink(missing_ok=True)

    def _save_mean(self, tables: Sequence[NDArray[Any]], file: Path, top_k: int | None, progress: Progress) -> None:
        n_rows = len(self.rows.in_pool)
        with progress.task("average the labels", n_rows, "soft labels") as task, atomic_write(file) as out:
            for start in range(0, n_rows, _ROWS_AT_ONCE):
                mean = self._mean(tables, start, min(start + _ROWS_AT_ONCE, n_rows))
                out.write(soft_labels(mean, top_k).tobytes())
                task.advance(len(mean))

    def load(self, file: Path, top_k: int | None) -> NDArray[np.void]:
        """The records in a file, memory-mapped; shape (rows,)."""
        return np.memmap(file, record_dtype(len(self.class_names), top_k), "r")

    def _mean(self, tables: Sequence[NDArray[Any]], start: int, stop: int) -> NDArray[np.float32]:
        total = np.zeros((stop - start, len(self.class_names)))
        for member, exact, indices in zip(self._members, tables, self._class_indices, strict=True):
            total[:, indices] += member.labels.dense_probs(exact[np.asarray(member.rows.in_table[start:stop])])
        return (total / len(self._members)).astype(np.float32)


def _check_same_images(first: AveragedTable, other: AveragedTable, pool: Source) -> None:
    missing = [_first_not_in(left.rows.in_pool, right.rows.in_pool) for left, right in ((first, other), (other, first))]
    for row, lacking, holder in zip(missing, (other, first), (first, other), strict=True):
        if row is not None:
            raise NstError(
                f"{lacking.location}: has no label of {pool.key(row)!r}, as {holder.location} has; average labels of the same images"
            )


def _first_not_in(rows: RowIndices, other_rows: RowIndices) -> int | None:
    """The first row that is not among `other_rows`, or None; both are sorted."""
    extra_rows = np.setdiff1d(np.asarray(rows), np.asarray(other_rows), assume_unique=True)
    return int(extra_rows[0]) if len(extra_rows) else None
