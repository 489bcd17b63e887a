"""Labels that someone else wrote, whatever their form: for all classes, or for the most probable ones."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from nst_data.errors import UsageError
from nst_data.progress import Progress
from nst_data.sources import Source
from nst_data.tables.label_columns import LabelColumns, shown
from nst_data.tables.soft_label_column import SoftLabelColumn
from nst_data.tables.top_label_columns import TopLabelColumns


class KeptLabels(Protocol):
    """Labels as a version takes them over."""

    class_names: list[str]

    def default_top_k(self) -> int | None:
        """How many classes are kept where nobody says; None for all."""

    def check_top_k(self, top_k: int | None) -> None:
        """Raises NstError for a number of classes that is not there."""

    def keep(self, file: Path, top_k: int | None, progress: Progress) -> None:
        """Write all rows into a file that `kept` reads."""

    def kept(self, file: Path, top_k: int | None) -> NDArray[np.void]:
        """The records in a file, memory-mapped; shape (rows,)."""


class LabelReader(KeptLabels, Protocol):
    """The labels of one table."""

    remarks: list[str]

    def probabilities(self) -> Iterator[NDArray[np.float32]]:
        """All rows in order, some at a time, shape (rows, classes)."""

    @property
    def most(self) -> int:
        """How many classes a row tells from the others."""

    @property
    def exact(self) -> np.dtype[np.void]:
        """The type of the records that `keep_exact` writes."""

    def keep_exact(self, file: Path, progress: Progress) -> None:
        """Write all rows as they are read, before rounding."""

    def dense(self, exact: NDArray[np.void]) -> NDArray[np.float32]:
        """The probabilities of such records for every class, shape (rows, classes)."""

    def digest(self, progress: Progress) -> str:
        """sha256 of the labels, all of which are checked on the way."""


def label_reader(
    table: Source, columns: LabelColumns, names: Sequence[str] | None, file: str | None, smoothing: float, progress: Progress
) -> LabelReader:
    """Who reads the columns. `names` are those of all classes, where the user gives them in a `file`.

    Raises NstError or UsageError for columns that hold no labels, or class names that do not go with them.
    """
    where = f"`class_names` {file}" if file is not None else table.location
    if columns.classes and columns.numbers and _are_of_all_classes(table, columns, names):
        if columns.is_named:
            raise UsageError(
                f"{table.location}: column `{columns.name}` has more numbers than column `{shown(columns.classes)}` names classes: "
                "those of all classes, in order; remove `label_column`"
            )
        columns = LabelColumns(numbers=columns.numbers, logits=columns.logits)
    if smoothing and (columns.numbers or not columns.classes):
        raise UsageError(f"`smoothing` applies to labels without a confidence, and {table.location} has column `{columns.name}`; remove it")
    if columns.classes:
        return TopLabelColumns(table, columns, names, where, smoothing, progress)
    return SoftLabelColumn(table, columns).named(names, where)


def _are_of_all_classes(table: Source, columns: LabelColumns, names: Sequence[str] | None) -> bool:
    """Whether the first row has more numbers than it names classes: one for each class there is, in order."""
    first = next(batch for batch in table.columns(columns.all) if batch.num_rows)
    classes, numbers = (pc.list_value_length(lists)[0].as_py() for lists in (columns.classes_in(first), columns.numbers_in(first)))
    return bool(numbers != classes and (classes == 1 or numbers == len(names or ())))
