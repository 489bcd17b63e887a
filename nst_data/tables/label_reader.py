"""Labels that someone else wrote, in whatever form: for all classes, or for the most probable ones."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from nst_data.errors import UsageError
from nst_data.progress import Progress
from nst_data.sources import Source
from nst_data.tables.label_columns import LabelColumns, format_columns
from nst_data.tables.soft_label_column import SoftLabelColumn
from nst_data.tables.top_label_columns import TopLabelColumns


class AdoptableLabels(Protocol):
    """Labels in the form in which a version takes them over."""

    class_names: list[str]

    def default_top_k(self) -> int | None:
        """The number of classes to keep by default; None for all."""

    def check_top_k(self, top_k: int | None) -> None:
        """Raise NstError if the labels do not have this number of classes."""

    def save(self, file: Path, top_k: int | None, progress: Progress) -> None:
        """Write all rows to a file that `load` reads."""

    def load(self, file: Path, top_k: int | None) -> NDArray[np.void]:
        """The records in a file, memory-mapped; shape (rows,)."""


class LabelReader(AdoptableLabels, Protocol):
    """The labels of one table."""

    remarks: list[str]

    def probabilities(self) -> Iterator[NDArray[np.float32]]:
        """Yield all rows in order, in batches of shape (rows, classes)."""

    @property
    def max_classes(self) -> int:
        """The largest number of classes that a row tells from the others."""

    @property
    def exact_dtype(self) -> np.dtype[np.void]:
        """The dtype of the records that `save_exact` writes."""

    def save_exact(self, file: Path, progress: Progress) -> None:
        """Write all rows as they are read, before rounding."""

    def dense_probs(self, records: NDArray[np.void]) -> NDArray[np.float32]:
        """The probabilities of every class from the records of `save_exact`, shape (rows, classes)."""

    def digest(self, progress: Progress) -> str:
        """The sha256 of the labels; all of them are checked in the process."""


def create_label_reader(
    table: Source, columns: LabelColumns, names: Sequence[str] | None, file: str | None, smoothing: float, progress: Progress
) -> LabelReader:
    """The reader for these columns. `names` are those of all classes, if the user gives them in a `file`.

    Raises NstError or UsageError if the columns hold no labels, or if the class names do not match them.
    """
    origin = f"`class_names` {file}" if file is not None else table.location
    if columns.classes and columns.numbers and _covers_all_classes(table, columns, names):
        if columns.is_requested:
            raise UsageError(
                f"{table.location}: column `{columns.name}` has more numbers than column `{format_columns(columns.classes)}` names "
                "classes: "
                "those of all classes, in order; remove `label_column`"
            )
        columns = LabelColumns(numbers=columns.numbers, logits=columns.logits)
    if smoothing and (columns.numbers or not columns.classes):
        raise UsageError(f"`smoothing` applies to labels without a confidence, and {table.location} has column `{columns.name}`; remove it")
    if columns.classes:
        return TopLabelColumns(table, columns, names, origin, smoothing, progress)
    return SoftLabelColumn(table, columns).set_class_names(names, origin)


def _covers_all_classes(table: Source, columns: LabelColumns, names: Sequence[str] | None) -> bool:
    """Whether the first row has a number for each class there is, in order, rather than for the classes that it names."""
    first = next(batch for batch in table.columns(columns.all_columns) if batch.num_rows)
    classes, numbers = (pc.list_value_length(lists)[0].as_py() for lists in (columns.classes_in(first), columns.numbers_in(first)))
    return bool(numbers != classes and (classes == 1 or numbers == len(names or ())))
