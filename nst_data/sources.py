"""A source as rows of (id, key, encoded bytes, label?) in one fixed order: a folder of images, parquet files, a saved dataset.

The order is part of the format: files sorted bytewise by relative path, rows inside them in order.
"""

import glob
import hashlib
import json
import os
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nst_data.errors import NstError, UsageError

IMAGE_SUFFIXES = frozenset(
    [
        ".avif",
        ".bmp",
        ".gif",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tga",
        ".tif",
        ".tiff",
        ".webp",
    ]
)
_SAVED_DATASET_FILES = ("state.json", "dataset_dict.json")


@dataclass(frozen=True)
class Row:
    """One image of a source. `encoded` is an error instead of bytes where the image could not be read."""

    id: int
    key: str
    encoded: bytes | Exception


class Source(ABC):
    """Images in a fixed order, with labels where `labels` is not None.

    `labels` holds a class index per row, shape (rows,), int64; `class_names[index]` is its name.
    """

    labels: NDArray[np.int64] | None = None
    class_names: list[str] | None = None

    def __init__(self, location: str) -> None:
        self.location = location

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def key(self, row: int) -> str:
        """Where row `row` is in the source."""

    @abstractmethod
    def read(self, row: int) -> bytes:
        """Encoded bytes of one row, at the cost of one image."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """Rows `start` to `stop` in order, read sequentially."""

    @abstractmethod
    def _content(self) -> Any:  # noqa: ANN401 - whatever JSON value pins this kind of source
        """What pins the images: names and sizes, or a dataset's own fingerprint."""

    @cached_property
    def images_fingerprint(self) -> str:
        """Equal for the same names and sizes, wherever the source lies."""
        return hashlib.sha256(json.dumps(self._content()).encode()).hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """That of the images, with the labels where the source was opened for them."""
        if self.labels is None:
            return self.images_fingerprint
        digest = hashlib.sha256(self.images_fingerprint.encode())
        digest.update(json.dumps(self.class_names).encode())
        digest.update(np.ascontiguousarray(self.labels).tobytes())
        return digest.hexdigest()

    def rows_of(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """The row of each key, shape (keys,). Raises NstError for a key that this source lacks."""
        where = {self.key(row): row for row in range(len(self))}
        missing = [key for key in keys if key not in where]
        if missing:
            raise NstError(
                f"{self.location}: lacks {len(missing)} of {len(keys)} images, the first is {missing[0]!r}; "
                "give the pool that was labeled (--pool)"
            )
        return np.fromiter((where[key] for key in keys), dtype=np.int64, count=len(keys))


class ImageFolder(Source):
    """Image files below a folder; with labels, the first folder level names the class."""

    def __init__(self, location: str, labeled: bool) -> None:
        super().__init__(location)
        listed = sorted(_walk(location))
        if not listed:
            raise NstError(f"{location}: expected images ({', '.join(sorted(IMAGE_SUFFIXES))}), found none below this folder")
        self._paths = pa.array([path.decode() for path, _ in listed], type=pa.large_string())
        self._sizes = np.array([size for _, size in listed], dtype=np.int64)
        if labeled:
            self.labels, self.class_names = self._class_folders()

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, row: int) -> str:
        """The path below the folder."""
        return str(self._paths[row])

    def read(self, row: int) -> bytes:
        """The file's bytes."""
        return Path(self.location, self.key(row)).read_bytes()

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """Files in bytewise order of their relative paths."""
        for row in range(start, stop):
            try:
                encoded: bytes | Exception = self.read(row)
            except OSError as error:
                encoded = error
            yield Row(row, self.key(row), encoded)

    def _content(self) -> Any:  # noqa: ANN401
        return [hashlib.sha256("\0".join(self._paths.to_pylist()).encode()).hexdigest(), hashlib.sha256(self._sizes.tobytes()).hexdigest()]

    def _class_folders(self) -> tuple[NDArray[np.int64], list[str]]:
        folders = []
        for key in self._paths.to_pylist():
            folder, slash, _ = key.partition("/")
            if not slash:
                raise NstError(
                    f"{self.location}: expected one folder per class, found the image {key!r} outside of any; move it into its class"
                )
            folders.append(folder)
        return _encode(folders)


class ParquetFiles(Source):
    """Parquet files with one image column: binary, or the `datasets` struct of bytes and path."""

    def __init__(self, location: str, files: list[Path], labeled: bool) -> None:
        super().__init__(location)
        parent = Path(os.path.commonpath([file.parent for file in files]))
        self._files = sorted(files, key=lambda file: os.fsencode(file.relative_to(parent)))
        self._names = [file.relative_to(parent).as_posix() for file in self._files]
        footers = []
        for file in self._files:
            with _readable_parquet(file):
                footers.append(pq.read_metadata(file))
        self._starts = [0, *np.cumsum([footer.num_rows for footer in footers]).tolist()]
        if len(self) == 0:
            raise NstError(f"{location}: expected rows, found parquet files without any")
        schema = footers[0].schema.to_arrow_schema()
        self._image_column = _image_column(schema, location)
        if labeled:
            self.labels, self.class_names = self._read_labels(schema)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def key(self, row: int) -> str:
        """file:row."""
        file = bisect_right(self._starts, row) - 1
        return f"{self._names[file]}:{row - self._starts[file]}"

    def read(self, row: int) -> bytes:
        """One row, through the memory-mapped Arrow cache of `datasets`: a parquet row group would be decoded whole."""
        return _image_bytes(self._arrow[row][self._image_column])

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """Rows in order of the files, row group by row group."""
        for index, file in enumerate(self._files):
            first, last = self._starts[index], self._starts[index + 1]
            if first < stop and start < last:
                with _readable_parquet(file):
                    yield from self._file_rows(file, first, max(start, first), min(stop, last))

    def _file_rows(self, file: Path, first: int, start: int, stop: int) -> Iterator[Row]:
        with pq.ParquetFile(file) as parquet:
            position = first
            for group in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(group).num_rows
                if position < stop and start < position + rows:
                    for batch in parquet.iter_batches(64, row_groups=[group], columns=[self._image_column]):
                        for value in batch.column(0):
                            if start <= position < stop:
                                yield _row(position, self.key(position), value.as_py())
                            position += 1
                else:
                    position += rows

    @cached_property
    def _arrow(self) -> Any:  # noqa: ANN401 - datasets ships no types
        from datasets import Dataset, Image, disable_progress_bars

        disable_progress_bars()
        dataset = Dataset.from_parquet([glob.escape(str(file)) for file in self._files], columns=[self._image_column])
        return dataset.cast_column(self._image_column, Image(decode=False))

    def _content(self) -> Any:  # noqa: ANN401
        return [[name, file.stat().st_size] for name, file in zip(self._names, self._files, strict=True)]

    def _read_labels(self, schema: pa.Schema) -> tuple[NDArray[np.int64], list[str]]:
        column = _label_column(schema.names, self.location)
        names = _feature_names(schema, column)
        tables = []
        for file in self._files:
            with _readable_parquet(file):
                tables.append(pq.read_table(file, columns=[column]))
            if _feature_names(tables[-1].schema, column) != names:
                raise NstError(f"{file}: its class names differ from those of {self._files[0]}; expected one set of classes in all files")
        return _labels_of(pa.concat_tables(tables).column(column), names, self.location, column)


class SavedDataset(Source):
    """A folder written by `Dataset.save_to_disk`."""

    def __init__(self, location: str, labeled: bool) -> None:
        super().__init__(location)
        from datasets import DatasetDict, Image, load_from_disk

        dataset = load_from_disk(location)
        if isinstance(dataset, DatasetDict):
            raise NstError(
                f"{location}: expected one split, found {', '.join(dataset)}; name one, as in {Path(location, next(iter(dataset)))}"
            )
        if len(dataset) == 0:
            raise NstError(f"{location}: expected rows, found an empty dataset")
        schema = dataset.features.arrow_schema
        self._image_column = _image_column(schema, location)
        self._dataset_fingerprint = dataset._fingerprint
        if labeled:
            column = _label_column(schema.names, location)
            values = dataset.with_format("arrow")[column][:]
            self.labels, self.class_names = _labels_of(values, _feature_names(schema, column), location, column)
        self._arrow = dataset.select_columns([self._image_column])
        if schema.field(self._image_column).type != pa.binary():
            self._arrow = self._arrow.cast_column(self._image_column, Image(decode=False))

    def __len__(self) -> int:
        return len(self._arrow)

    def key(self, row: int) -> str:
        """The row number."""
        return str(row)

    def read(self, row: int) -> bytes:
        """One row of the memory-mapped dataset."""
        return _image_bytes(self._arrow[row][self._image_column])

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """Rows of the memory-mapped dataset."""
        for row in range(start, stop):
            yield _row(row, self.key(row), self._arrow[row][self._image_column])

    def _content(self) -> Any:  # noqa: ANN401
        return [self._dataset_fingerprint, len(self)]


def open_source(location: str, labeled: bool = False, class_names_file: str | None = None) -> Source:
    """Open a source; with `labeled`, read its labels too.

    `class_names_file` lists one class name a line, for labels stored as integers without names.
    Raises NstError or UsageError where there is nothing usable, and says what was expected.
    """
    source = _open(location, labeled)
    if class_names_file is not None:
        source.class_names = _renamed(source, class_names_file)
    return source


def check_trainable(source: Source) -> None:
    """Raises NstError for a labeled source with images of one class alone."""
    assert source.labels is not None, "opened with its labels"
    present = np.unique(source.labels)
    if len(present) < 2:
        names = [(source.class_names or [])[label] for label in present]
        raise NstError(f"{source.location}: expected labels of two classes or more, found only {', '.join(map(repr, names))}")


def _open(location: str, labeled: bool) -> Source:
    path = Path(location).absolute()
    if glob.has_magic(location) and not path.exists():
        files = [Path(name).absolute() for name in glob.glob(location, recursive=True)]
        if not files:
            raise NstError(f"{location}: expected parquet files, no file matches")
        return ParquetFiles(str(path), files, labeled)
    if path.is_file():
        return ParquetFiles(str(path), [path], labeled)
    if not path.is_dir():
        raise NstError(f"{location}: no such file or folder; expected a folder of images, parquet files or a folder saved by datasets")
    if any((path / name).is_file() for name in _SAVED_DATASET_FILES):
        return SavedDataset(str(path), labeled)
    parquet = sorted(path.rglob("*.parquet"))
    if parquet and next(_walk(str(path)), None) is None:
        return ParquetFiles(str(path), parquet, labeled)
    return ImageFolder(str(path), labeled)


def match_classes(found: Sequence[str], expected: Sequence[str], what: str, subset: bool = False) -> NDArray[np.int64]:
    """For each found class its index among the expected ones, by name; shape (found,).

    Another set of names is an error that shows both; `subset` allows classes that are missing.
    """
    where = {name: index for index, name in enumerate(expected)}
    unknown = [name for name in found if name not in where]
    lacking = [name for name in expected if name not in set(found)]
    if unknown or (lacking and not subset):
        raise NstError(
            f"{what}: expected the classes {_abridged(expected)}, found {_abridged(found)}"
            + (f"; not expected: {_abridged(unknown)}" if unknown else f"; missing: {_abridged(lacking)}")
            + ". Rename them, or give the names of integer labels with --class-names FILE"
        )
    return np.array([where[name] for name in found], dtype=np.int64)


def _abridged(names: Sequence[str]) -> str:
    shown = ", ".join(names[:10])
    return f"{len(names)} ({shown}{', ...' if len(names) > 10 else ''})"


def _walk(top: str) -> Iterator[tuple[bytes, int]]:
    """(relative path, size) of every image file; follows links, once each."""
    seen: set[tuple[int, int]] = set()

    def enter(folder: str, prefix: str) -> Iterator[tuple[bytes, int]]:
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in seen:
            return
        seen.add((stat.st_dev, stat.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                name = prefix + entry.name
                if entry.is_dir():
                    yield from enter(entry.path, name + "/")
                elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                    yield _utf8(name), entry.stat().st_size if entry.is_file() else 0

    return enter(top, "")


def _utf8(name: str) -> bytes:
    try:
        return name.encode()
    except UnicodeEncodeError:
        raise NstError(f"{os.fsencode(name)!r}: expected file names in UTF-8; rename this file") from None


@contextmanager
def _readable_parquet(file: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise NstError(f"{file}: expected a parquet file, found damage ({str(error).splitlines()[0]}); make it again") from None


def _image_column(schema: pa.Schema, location: str) -> str:
    candidates: list[str] = [field.name for field in schema if _holds_images(field.type)]
    if "image" in candidates:
        return "image"
    if len(candidates) != 1:
        what = "none" if not candidates else "several: " + ", ".join(candidates)
        raise NstError(f"{location}: expected one image column (binary, or a struct with bytes), found {what}; name the right one `image`")
    return candidates[0]


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _label_column(names: list[str], location: str) -> str:
    for name in ("label", "labels"):
        if name in names:
            return name
    raise NstError(f"{location}: expected a column `label`, found {', '.join(names)}; rename the column that holds the classes")


def _feature_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Class names that `datasets` wrote into the schema."""
    text = (schema.metadata or {}).get(b"huggingface")
    feature = json.loads(text)["info"].get("features", {}).get(column, {}) if text else {}
    return feature.get("names") if feature.get("_type") == "ClassLabel" else None


def _labels_of(column: pa.ChunkedArray, names: list[str] | None, location: str, name: str) -> tuple[NDArray[np.int64], list[str]]:
    if column.null_count:
        raise NstError(f"{location}: column `{name}` has {column.null_count} rows without a label; a labeled set has one for every image")
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return _encode(column.to_pylist())
    if not pa.types.is_integer(column.type):
        raise NstError(f"{location}: column `{name}` is {column.type}, expected integers or strings")
    labels = column.to_numpy().astype(np.int64)
    classes = len(names) if names else int(labels.max()) + 1
    if labels.min() < 0 or labels.max() >= classes:
        raise NstError(f"{location}: column `{name}` holds {labels.min()} to {labels.max()}, expected 0 to {classes - 1}")
    return labels, names or [str(index) for index in range(classes)]


def _encode(values: list[str]) -> tuple[NDArray[np.int64], list[str]]:
    names = sorted(set(values))
    where = {name: index for index, name in enumerate(names)}
    return np.fromiter((where[value] for value in values), dtype=np.int64, count=len(values)), names


def _renamed(source: Source, file: str) -> list[str]:
    try:
        names = [line.strip() for line in Path(file).read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not in UTF-8"
        raise UsageError(f"--class-names {file}: {reason}; expected a text file with one class name a line") from None
    if source.class_names != [str(index) for index in range(len(source.class_names or []))]:
        raise UsageError(f"--class-names {file}: {source.location} has class names of its own ({_abridged(source.class_names or [])})")
    if source.class_names is None or len(names) < len(source.class_names) or len(set(names)) != len(names):
        raise UsageError(
            f"--class-names {file}: expected {len(source.class_names or [])} or more different names, one a line, found {len(set(names))}"
        )
    return names


def _row(row: int, key: str, value: Any) -> Row:  # noqa: ANN401 - a cell of any parquet file
    try:
        return Row(row, key, _image_bytes(value))
    except (OSError, NstError) as error:
        return Row(row, key, error)


def _image_bytes(value: Any) -> bytes:  # noqa: ANN401
    """The bytes in a cell: binary, or a struct of bytes and path."""
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, str):
        return Path(value).read_bytes()
    if value is None:
        raise NstError("no image in this row")
    return bytes(value)
