"""Images in an Arrow column: find the column, and access the bytes of its cells without copying."""

from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa

from nst_data.errors import NstError, UsageError
from nst_data.sources.features import Features, columns_of_kind
from nst_data.sources.files import read_file
from nst_data.sources.source import Content

PathResolver = Callable[[str], Content]
_NOTHING = "no image in this row"
NO_IMAGES = ""  # given as the image column when a table is opened for its other columns


class NoImagesError(NstError):
    """The table has no image column."""


def image_column(schema: pa.Schema, location: str, requested: str | None, features: Features | None = None) -> tuple[str, tuple[str, ...]]:
    """The image column, and what pins the choice: its name if several columns could hold images. NO_IMAGES skips the search.

    Among several candidates, the one that `datasets` declares an Image in the schema or in a card's `features` is chosen.

    Raises NstError if there is none, UsageError if the requested column does not exist or the choice is ambiguous.
    """
    if requested == NO_IMAGES:
        return NO_IMAGES, ()
    candidates: list[str] = [field.name for field in schema if holds_images(field.type)]
    if requested is None and not candidates:
        raise NoImagesError(f"{location}: expected an image column (binary, or a struct with bytes), found {_describe_columns(schema)}")
    if requested is None and len(candidates) > 1:
        declared = [name for name in columns_of_kind("Image", schema, features) if name in candidates]
        if len(declared) == 1:
            return declared[0], (declared[0],)
        raise UsageError(f"{location}: expected one image column, found {', '.join(candidates)}; name one with `image_column`")
    if requested is not None and requested not in candidates:
        problem = f"`{requested}` is {schema.field(requested).type}" if requested in schema.names else f"found {_describe_columns(schema)}"
        raise UsageError(
            f"{location}: `image_column` {requested}: {problem}; expected a column of images (binary, or a struct with bytes)"
            + (f", as in {', '.join(candidates)}" if candidates else "")
        )
    column = requested or candidates[0]
    return column, (column,) if len(candidates) > 1 else ()


def _describe_columns(schema: pa.Schema) -> str:
    return ", ".join(f"`{field.name}` ({field.type})" for field in schema) or "no column"


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold encoded images."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and is_binary(kind.field("bytes").type)
    return is_binary(kind)


def is_binary(kind: pa.DataType) -> bool:
    """Whether values of this type are bytes."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


class Cells:
    """The cells of one array: binary, or a struct of bytes and path. `resolve_path` resolves cells that have a path but no bytes."""

    def __init__(self, column: pa.Array, resolve_path: PathResolver) -> None:
        self._paths: pa.Array | None = None
        self._resolve_path = resolve_path
        if isinstance(column.type, pa.BaseExtensionType):
            column = column.storage
        self._dictionary: pa.Array | None = None
        if pa.types.is_dictionary(column.type):  # decoding it could make it a thousand times as large
            self._dictionary, self._places = column.dictionary, column.indices.to_pylist()
            return
        if pa.types.is_struct(column.type):
            fields = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
            column, self._paths = fields["bytes"], fields.get("path")
        if pa.types.is_binary_view(column.type):
            column = column.cast(pa.large_binary())
        _, offsets, data = column.buffers()
        width = np.int64 if pa.types.is_large_binary(column.type) else np.int32
        self._ends: list[int] = (
            np.frombuffer(offsets, dtype=width)[column.offset : column.offset + len(column) + 1].tolist() if offsets else []
        )
        self._data = memoryview(data) if data is not None else memoryview(b"")
        self._null: list[bool] | None = column.is_null().to_pylist() if column.null_count else None

    def __getitem__(self, cell: int) -> Content:
        """The bytes, or the reason why there are none."""
        if self._dictionary is not None:
            index = self._places[cell]
            return NstError(_NOTHING) if index is None else Cells(self._dictionary.slice(index, 1), self._resolve_path)[0]
        if self._null is not None and self._null[cell]:
            return self._read_by_path(cell)
        return self._data[self._ends[cell] : self._ends[cell + 1]]

    def _read_by_path(self, cell: int) -> Content:
        try:
            path = self._paths[cell].as_py() if self._paths is not None else None
        except UnicodeDecodeError:
            return NstError("names a file, but not in UTF-8")
        if not isinstance(path, str):
            return NstError(_NOTHING)
        return self._resolve_path(path)


def cell_content(column: pa.ChunkedArray, cell: int, resolve_path: PathResolver) -> Content:
    """A single cell of a chunked column."""
    for chunk in column.chunks:
        if cell < len(chunk):
            return Cells(chunk.slice(cell, 1), resolve_path)[0]
        cell -= len(chunk)
    raise IndexError(f"row {cell} after the last")


def path_resolver(folder: Path) -> PathResolver:
    """Resolve paths in cells relative to a folder; paths that lead out of it yield an error."""
    return partial(_resolve_below, folder)


def _resolve_below(folder: Path, path: str) -> Content:
    if not is_below(path):
        return NstError(f"names the file {path!r}, which is not below the folder of its table")
    return partial(read_file, str(folder / PurePosixPath(path)))


def is_below(path: str) -> bool:
    """Whether a path in a cell stays below its folder."""
    pure_path = PurePosixPath(path)
    return not (pure_path.is_absolute() or ".." in pure_path.parts or "\0" in path)


def refuse_path(path: str) -> Content:
    """Resolve no path: cells of a downloaded file must not refer to other files."""
    return NstError(f"names the file {path!r} and holds no bytes")
