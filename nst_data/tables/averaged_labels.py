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
from nst_data.sources.source import Wanted
from nst_data.store.files import clear_abandoned, replacing, temporary
from nst_data.tables.key_column import Rows
from nst_data.tables.label_reader import LabelReader
from nst_data.tables.soft_labels import record, soft_labels

_ROWS_AT_ONCE = 2_048
_ADVICE = "Average tables with the same classes, or give their names with `class_names` FILE"


@dataclass(frozen=True)
class Member:
    """One table: its location, its labels, and the rows of its images."""

    location: str
    labels: LabelReader
    rows: Rows


class AveragedLabels:
    """The mean probabilities of several tables for the same images, as for an ensemble of teachers; rows are in pool order.

    Raises NstError for tables of different images or classes.
    """

    remarks: Sequence[str] = ()

    def __init__(self, members: Sequence[Member], pool: Source) -> None:
        self._members, first = members, members[0]
        self.class_names = first.labels.class_names
        self._places: list[NDArray[np.int64]] = []
        for member in members:
            self._places.append(match_classes(member.labels.class_names, self.class_names, member.location, advice=_ADVICE))
            _check_same_images(first, member, pool)
        self.rows = Rows(first.rows.in_pool, range(len(first.rows.in_pool)))

    @property
    def most(self) -> int:
        """The number of classes that the mean can tell from the others: at most as many as all tables name together."""
        return min(len(self.class_names), sum(member.labels.most for member in self._members))

    def default_top_k(self) -> int | None:
        """The number of classes to keep by default; None for all."""
        return self.most if self.most < len(self.class_names) else default_top_k(len(self.class_names))

    def check_top_k(self, top_k: int | None) -> None:
        """Accept any number of classes."""

    def keep(self, file: Path, top_k: int | None, progress: Progress) -> None:
        """Write the mean labels to a file that `kept` reads; meanwhile each table's labels are in a temporary file next to it."""
        clear_abandoned(file.parent)
        suffix = secrets.token_hex(4)
        paths = [temporary(file.with_name(f".{file.name}_{number}.{suffix}")) for number in range(len(self._members))]
        try:
            for path, member in zip(paths, self._members, strict=True):
                member.labels.keep_exact(path, progress)
            kept = [np.memmap(path, member.labels.exact, "r") for path, member in zip(paths, self._members, strict=True)]
            self._keep_mean(kept, file, top_k, progress)
        finally:
            for path in paths:
                path.unlink(missing_ok=True)

    def _keep_mean(self, kept: Sequence[NDArray[Any]], file: Path, top_k: int | None, progress: Progress) -> None:
        rows = len(self.rows.in_pool)
        with progress.task("average the labels", rows, "soft labels") as task, replacing(file) as out:
            for start in range(0, rows, _ROWS_AT_ONCE):
                mean = self._mean(kept, start, min(start + _ROWS_AT_ONCE, rows))
                out.write(soft_labels(mean, top_k).tobytes())
                task.advance(len(mean))

    def kept(self, file: Path, top_k: int | None) -> NDArray[np.void]:
        """The records in a file, memory-mapped; shape (rows,)."""
        return np.memmap(file, record(len(self.class_names), top_k), "r")

    def _mean(self, kept: Sequence[NDArray[Any]], start: int, stop: int) -> NDArray[np.float32]:
        total = np.zeros((stop - start, len(self.class_names)))
        for member, exact, places in zip(self._members, kept, self._places, strict=True):
            total[:, places] += member.labels.dense(exact[np.asarray(member.rows.in_table[start:stop])])
        return (total / len(self._members)).astype(np.float32)


def _check_same_images(first: Member, other: Member, pool: Source) -> None:
    missing = [_first_beyond(one.rows.in_pool, two.rows.in_pool) for one, two in ((first, other), (other, first))]
    for row, where, elsewhere in zip(missing, (other, first), (first, other), strict=True):
        if row is not None:
            raise NstError(
                f"{where.location}: has no label of {pool.key(row)!r}, as {elsewhere.location} has; average labels of the same images"
            )


def _first_beyond(rows: Wanted, others: Wanted) -> int | None:
    """The first row that is not among `others`, or None; both are sorted."""
    beyond = np.setdiff1d(np.asarray(rows), np.asarray(others), assume_unique=True)
    return int(beyond[0]) if len(beyond) else None
