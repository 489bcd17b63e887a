"""Labels in JSON lines, or in a JSON document in one of the layouts that tools write; each image becomes a row of named values."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nst_data.errors import NstError, short_repr
from nst_data.label_files import label_studio
from nst_data.label_files.choosing import KEY, KNOWN_COLUMNS, LABEL, NUMBERS
from nst_data.label_files.json_cells import object_contents
from nst_data.sources.image_table import read_coco
from nst_data.sources.text_tables import JSON_LINES_SUFFIXES, JsonText, json_lines

_COCO_SECTIONS = ("info", "licenses", "annotations", "categories")

Row = dict[str, Any]
_FIRST_LINE_BYTES = 2**20


class JsonRows:
    """The rows of a JSON file, and attributes that are known once the rows have been read.

    Attributes:
        class_names: The classes that the file lists, in the order of its class numbers.
        may_lack_labels: Whether images without a label are acceptable, as in formats for labeling that is still in progress.

    Supports JSON lines; records; pandas' orientations `index` (timm's `json`) and `split`; a value per image key, such as the list from a
    pipeline; FiftyOne's labels.json and samples.json; Label Studio's tasks.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        self.class_names: list[str] | None = None
        self.may_lack_labels = False

    def __iter__(self) -> Iterator[Row]:
        if Path(self.location).suffix.lower() in JSON_LINES_SUFFIXES or _is_json_lines(self.location):
            for _, row in json_lines(self.location):
                yield row
            return
        with ExitStack() as stack:
            text = JsonText(stack.enter_context(open(self.location, encoding="utf-8-sig")))
            yield from self._rows_in_list(text) if text.peek() == "[" else self._rows_in_object(text)

    def _rows_in_list(self, document: JsonText) -> Iterator[Row]:
        for number, _ in enumerate(document.elements()):
            row = document.value()
            if isinstance(row, list) and row and isinstance(row[0], dict):
                raise NstError(
                    f"{self.location}: lists labels without naming images, as a pipeline returns them; "
                    "write them as an object with a list for each image's key"
                )
            if not isinstance(row, dict):
                raise ValueError(f"element {number} is no JSON object")
            is_task = label_studio.is_task(row)
            self.may_lack_labels |= is_task
            yield label_studio.row_of(row, self.location) if is_task else row

    def _rows_in_object(self, document: JsonText) -> Iterator[Row]:
        columns: list[str] = []
        sections: dict[str, Any] = {}
        for key in document.object_keys():
            opening = document.peek()
            if key == "samples" and opening == "[":  # FiftyOneDataset
                self.may_lack_labels = True
                yield from self._rows_in_list(document)
            elif key == "labels" and opening == "{":  # FiftyOneImageClassificationDataset
                self.may_lack_labels = True
                for image in document.object_keys():
                    yield {KEY: image, **_as_columns(document.value())}
            elif key == "images" and opening == "[":
                yield from read_coco(self.location, self.location).iter_rows(named=True)
                return
            elif key in _COCO_SECTIONS and opening in "{[":  # sections of COCO's JSON that precede the images
                sections[key] = document.value()
            elif key == "columns" and opening == "[":  # pandas' `split`
                columns = [str(name) for name in document.value()]
            elif key == "data" and columns and opening == "[":
                yield from (dict(zip(columns, _check_is_list(document.value()), strict=True)) for _ in document.elements())
            elif key in ("classes", "index") and opening in "[n":
                names = document.value()
                self.class_names = [str(name) for name in names] if key == "classes" and names else self.class_names
            else:
                yield {KEY: key, **_as_columns(document.value())}
        yield from ({KEY: key, **_as_columns(value)} for key, value in sections.items())
        document.check_end()


def _is_json_lines(location: str) -> bool:
    """Whether a file with another suffix holds JSON lines: its first line is a complete object, and more text follows."""
    with open(location, "rb") as file:
        first, rest = file.readline(_FIRST_LINE_BYTES).strip(), file.read(1)
    return first.startswith(b"{") and first.endswith(b"}") and bool(rest.strip() or rest == b"{")


def _check_is_list(row: Any) -> list[Any]:  # noqa: ANN401
    if not isinstance(row, list):
        raise ValueError(f"expected a list of values for each row of `data`, found {short_repr(row)[:40]}")
    return row


def _as_columns(value: Any) -> Row:  # noqa: ANN401 - any JSON value
    """The value given for an image in an object, as columns."""
    if isinstance(value, dict):
        are_columns = KNOWN_COLUMNS & {name.removesuffix("_0") for name in value}
        return value if are_columns or object_contents(value) is None else {NUMBERS: value}  # a number per class
    if isinstance(value, list) and value and isinstance(value[0], int | float):
        return {NUMBERS: value}
    return {LABEL: value}
