"""The label columns of a table that someone else wrote, and their contents: lists of classes and of numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nst_data.errors import NstError

_CLASS_FIELDS, _NUMBER_FIELDS, LOGITS = ("label", "class", "class_name"), ("score", "confidence", "prob", "probability"), "logits"


@dataclass(frozen=True)
class LabelColumns:
    """The columns with the classes of each image and those with their numbers: probabilities or, with `logits`, logits.

    Several columns of a kind hold one class or number each. Without `classes`, the numbers are for all classes, in order; without
    `numbers`, there are only classes. A column of both, a `label` with its `score` or a list of such pairs, is in both tuples.
    """

    classes: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    logits: bool = False
    is_requested: bool = False  # whether the user named the column with the classes

    @property
    def all_columns(self) -> list[str]:
        """The columns, each once."""
        return list(dict.fromkeys([*self.classes, *self.numbers]))

    @property
    def name(self) -> str:
        """The name of the labels in messages."""
        return format_columns(self.numbers or self.classes)

    def classes_in(self, batch: pa.RecordBatch) -> pa.Array:
        """The classes of each row, as lists."""
        return _lists(batch, self.classes, _CLASS_FIELDS)

    def numbers_in(self, batch: pa.RecordBatch) -> pa.Array:
        """The numbers of each row, as lists."""
        return _lists(batch, self.numbers, (LOGITS,) if self.logits else _NUMBER_FIELDS)


def format_columns(columns: Sequence[str]) -> str:
    """One or more column names in short."""
    return columns[0] if len(columns) == 1 else f"{columns[0]}...{columns[-1]}"


def holds_label_objects(kind: pa.DataType) -> bool:
    """Whether each cell of a column names classes and may give them numbers: structs with a `label`, or lists of such structs."""
    value_type = kind.value_type if _is_list(kind) else kind
    return bool(pa.types.is_struct(value_type) and _field(value_type, _CLASS_FIELDS) is not None)


def has_numbers(kind: pa.DataType, logits: bool) -> bool:
    """Whether a column that satisfies `holds_label_objects` has numbers at all."""
    value_type = kind.value_type if _is_list(kind) else kind
    return _field(value_type, (LOGITS,) if logits else _NUMBER_FIELDS) is not None


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _field(kind: pa.StructType, names: Sequence[str]) -> str | None:
    return next((name for name in names if kind.get_field_index(name) >= 0), None)


def _lists(batch: pa.RecordBatch, columns: Sequence[str], fields: Sequence[str]) -> pa.Array:
    """One list per row: that of a list column, or the single values of one or more columns side by side."""
    arrays = [_extract_field(batch.column(name), fields) for name in columns]
    if _is_list(arrays[0].type) and len(arrays) == 1:
        return arrays[0]
    rows, width = batch.num_rows, len(arrays)
    values = arrays[0]
    if width > 1:
        if len({array.type for array in arrays}) > 1:
            types = {str(array.type) for array in arrays if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type))}
            if types:
                raise NstError(
                    f"columns {format_columns(columns)}: expected one type in all of them, found {', '.join(sorted(types))} and another"
                )
            arrays = [array.cast(pa.float64()) for array in arrays]  # such as an integer column of zeros among floats
        values = pa.concat_arrays(arrays).take(pa.array(np.arange(rows * width).reshape(width, rows).T.ravel()))
    return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1) * width, pa.int32()), values)


def _extract_field(column: pa.Array, fields: Sequence[str]) -> pa.Array:
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_struct(column.type) and (name := _field(column.type, fields)):
        return pc.struct_field(column, name)
    if _is_list(column.type) and pa.types.is_struct(column.type.value_type) and (name := _field(column.type.value_type, fields)):
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        return pa.ListArray.from_arrays(offsets, pc.struct_field(column.flatten(), name))
    return column
