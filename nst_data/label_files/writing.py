"""Write rows of labels as lines of CSV, TSV and JSON, and as JSON documents."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nst_data.safe_names import escape_formula
from nst_data.store.files import atomic_write


def csv_line(values: Iterable[Any], separator: str = ",") -> bytes:
    """A row of CSV, escaped so that no spreadsheet runs a cell as a formula; None becomes an empty cell."""
    line = io.StringIO()
    cells = [escape_formula(value) if isinstance(value, str) else value for value in values]
    csv.writer(line, delimiter=separator, lineterminator="\n").writerow(cells)
    return line.getvalue().encode()


def json_line(content: Mapping[str, Any]) -> bytes:
    """One line of JSON lines."""
    return (json.dumps(content, ensure_ascii=False) + "\n").encode()


def as_json(content: object) -> bytes:
    """A JSON document."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def write_json(path: Path, content: object) -> None:
    """Write a JSON document."""
    with atomic_write(path) as file:
        file.write(as_json(content))
