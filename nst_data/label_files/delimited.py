"""Labels in CSV and TSV, from timm's inference script, `nst export` or handmade tables."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from nst_data.label_files.choosing import ColumnOptions, are_ids, key_column, label_columns
from nst_data.label_files.rows import LabelRows, LabelSpool
from nst_data.label_files.text_cells import has_list_separators, may_be_lists, parse_classes, parse_numbers
from nst_data.sources.text_tables import DELIMITERS, delimited_batches, header, translate_read_errors
from nst_data.tables.label_columns import LabelColumns


def read_delimited(location: str, options: ColumnOptions) -> tuple[LabelRows, str, LabelColumns]:
    """(rows, key column, label columns) of a file. Raises UsageError for ambiguous columns, NstError for other content."""
    separator = DELIMITERS[Path(location).suffix.lower()]
    with translate_read_errors(location, f"{'CSV' if separator == ',' else 'tab-separated text'} with a header"):
        names = header(location, separator)
        key = key_column(names, location, options)
        chosen = label_columns([name for name in names if name != key], {}, location, options)
        spooled, by_number = LabelSpool(key, chosen), are_ids(chosen.classes)
        lists = _list_columns(location, separator, chosen, by_number)
        for batch in delimited_batches(location, separator, list(dict.fromkeys([key, *chosen.all_columns]))):
            classes = [batch.column(name) for name in chosen.classes]
            numbers = [batch.column(name) for name in chosen.numbers]
            typed: dict[str, pa.Array] = {}
            if classes:
                typed |= dict(
                    zip(chosen.classes, parse_classes(classes, [name in lists for name in chosen.classes], by_number), strict=True)
                )
            if numbers:
                typed |= dict(zip(chosen.numbers, parse_numbers(numbers, [name in lists for name in chosen.numbers]), strict=True))
            typed_batch = pa.record_batch(typed)
            spooled.add(
                pc.cast(batch.column(key), pa.large_string()),
                chosen.classes_in(typed_batch) if classes else None,
                chosen.numbers_in(typed_batch) if numbers else None,
            )
    return LabelRows(location, spooled.table()), key, spooled.columns


def _list_columns(location: str, separator: str, columns: LabelColumns, by_number: bool) -> set[str]:
    """The columns whose cells are lists throughout the file: part of it may hold only a class called `(background)`.

    Class names count as lists if the numbers next to them are lists, or if some cell contains quoted or comma-separated words.
    """
    candidates, separated, are_filled = set(columns.all_columns), set[str](), set[str]()
    for batch in delimited_batches(location, separator, list(dict.fromkeys(columns.all_columns))):
        candidates = {name for name in candidates if may_be_lists(batch.column(name))}
        separated |= {name for name in candidates if has_list_separators(batch.column(name))}
        are_filled |= {name for name in candidates if batch.column(name).null_count < len(batch)}
        if not candidates:
            break
    candidates &= are_filled
    return {
        name for name in candidates if name in columns.numbers or by_number or name in separated or candidates.intersection(columns.numbers)
    }
