"""Labels in CSV and TSV, from timm's inference script, `nst export` or handmade tables."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from nst_data.label_files.choosing import Asked, are_ids, key_column, label_columns
from nst_data.label_files.rows import LabelRows, Spooled
from nst_data.label_files.text_cells import classes_of, has_words_apart, may_be_lists, numbers_of
from nst_data.sources.text_tables import DELIMITERS, delimited, header, readable
from nst_data.tables.label_columns import LabelColumns


def read_delimited(location: str, asked: Asked) -> tuple[LabelRows, str, LabelColumns]:
    """(rows, key column, label columns) of a file. Raises UsageError for ambiguous columns, NstError for other content."""
    separator = DELIMITERS[Path(location).suffix.lower()]
    with readable(location, f"{'CSV' if separator == ',' else 'tab-separated text'} with a header"):
        names = header(location, separator)
        key = key_column(names, location, asked)
        chosen = label_columns([name for name in names if name != key], {}, location, asked)
        spooled, by_number = Spooled(key, chosen), are_ids(chosen.classes)
        lists = _lists_in(location, separator, chosen, by_number)
        for batch in delimited(location, separator, list(dict.fromkeys([key, *chosen.all]))):
            classes = [batch.column(name) for name in chosen.classes]
            numbers = [batch.column(name) for name in chosen.numbers]
            typed: dict[str, pa.Array] = {}
            if classes:
                typed |= dict(zip(chosen.classes, classes_of(classes, [name in lists for name in chosen.classes], by_number), strict=True))
            if numbers:
                typed |= dict(zip(chosen.numbers, numbers_of(numbers, [name in lists for name in chosen.numbers]), strict=True))
            typed_batch = pa.record_batch(typed)
            spooled.add(
                pc.cast(batch.column(key), pa.large_string()),
                chosen.classes_in(typed_batch) if classes else None,
                chosen.numbers_in(typed_batch) if numbers else None,
            )
    return LabelRows(location, spooled.table()), key, spooled.columns


def _lists_in(location: str, separator: str, chosen: LabelColumns, by_number: bool) -> set[str]:
    """The columns whose cells are lists throughout the file: part of it may hold only a class called `(background)`.

    Class names count as lists if the numbers next to them are lists, or if some cell contains quoted or comma-separated words.
    """
    candidates, apart, are_filled = set(chosen.all), set[str](), set[str]()
    for batch in delimited(location, separator, list(dict.fromkeys(chosen.all))):
        candidates = {name for name in candidates if may_be_lists(batch.column(name))}
        apart |= {name for name in candidates if has_words_apart(batch.column(name))}
        are_filled |= {name for name in candidates if batch.column(name).null_count < len(batch)}
        if not candidates:
            break
    candidates &= are_filled
    return {name for name in candidates if name in chosen.numbers or by_number or name in apart or candidates.intersection(chosen.numbers)}
