"""Image files below a folder."""

import os
from collections.abc import Container, Iterator
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nst_data.errors import NstError
from nst_data.sources.class_words import case_warnings
from nst_data.sources.files import IMAGE_SUFFIXES, missing_remark, read_file, read_start, regular_size
from nst_data.sources.labels import encode_names, normalize_unicode
from nst_data.sources.listing import PIECE, build_listing, to_utf8_array
from nst_data.sources.skipped import SNIFFED_BYTES, Skipped
from nst_data.sources.source import Row, RowIndices, Source, in_pieces, rows_of_table
from nst_data.sources.splits import check_splits
from nst_data.utf8_names import check_utf8, is_utf8

_FOLDER_SIZE = -1  # stands for the size of a folder

Entries = tuple[list[str], list[int]]


class ImageFiles(Source):
    """Images stored as individual files; the listing holds their names relative to `_top` and their sizes."""

    _top: str

    def __len__(self) -> int:
        return int(self._listing.table.num_rows)

    def key(self, row: int) -> str:
        """The path in the listing."""
        return str(self._listing.table["name"][row])

    def read(self, row: int) -> bytes:
        """The file's bytes. Raises NstError if their number differs from the listing."""
        return read_file(self._file_path(self.key(row)), self._listing.table["bytes"][row].as_py())

    def rows(self, needed: RowIndices) -> Iterator[Row]:
        """The needed files; each is read when its row is read."""
        for piece in in_pieces(needed, 1024):
            entries = rows_of_table(self._listing.table, piece)
            for row, name, size in zip(piece.tolist(), entries["name"].to_pylist(), entries["bytes"].to_pylist(), strict=True):
                yield Row(row, name, partial(read_file, self._file_path(name), size))

    @property
    def rows_per_file(self) -> int:
        """One row per file."""
        return 1

    def rows_of_files(self, files: NDArray[np.int64]) -> NDArray[np.int64]:
        """The file numbers themselves, as each file is a row."""
        return files

    def empty_files(self, n_rows: int) -> tuple[int, str]:
        """The number of files of size 0, and the key of the first."""
        empty = pc.equal(self._listing.table["bytes"].slice(0, n_rows), 0)
        count = pc.sum(empty).as_py()
        return count, self.key(pc.index(empty, True).as_py()) if count else ""

    def _missing_remarks(self) -> list[str]:
        """A remark about listed files that are missing, for sources whose images are listed in a file."""
        count, first = self.empty_files(len(self))
        return [missing_remark(self.location, count, self._file_path(first))] if count else []

    def _file_path(self, name: str) -> str:
        """The path of a listed file."""
        return os.path.join(self._top, name)

    def _paths(self) -> Iterator[str]:
        for piece in self._keys():
            yield from map(self._file_path, piece.to_pylist())

    def _keys(self) -> Iterator[pa.Array]:
        yield from self._listing.table["name"].chunks

    def _rows_by_key(self, keys: set[str]) -> dict[str, int]:
        names = pa.array(sorted(keys), type=pa.large_string())
        rows = pc.index_in(names, value_set=self._listing.table["name"])
        return {name: row for name, row in zip(names.to_pylist(), rows.to_pylist(), strict=True) if row is not None}


class ImageFolder(ImageFiles):
    """Image files below a folder in bytewise order of their relative paths; if labeled, the top-level folder names the class.

    If `classes` is given, images below other folders are left out.
    """

    def __init__(self, location: str, labeled: bool, classes: Container[str] | None = None) -> None:
        super().__init__(location)
        self._top = location
        skipped = Skipped()
        entries = walk(location, IMAGE_SUFFIXES, skipped)
        self._listing = build_listing(entries if classes is None else (_filter_by_class(classes, *entry) for entry in entries))
        self.skipped, self.not_utf8 = skipped.counts, skipped.not_utf8
        if labeled and len(self):
            _check_links(location)
            self._read_classes(_list_folders(location), is_complete=classes is None)

    def remarks(self) -> list[str]:
        """Adds class folders without images, and those whose names differ only in case."""
        lines = [*super().remarks(), *(f"{self.location}: {line}" for line in case_warnings(self.class_names or ()))]
        if not self.empty_classes:
            return lines
        count = len(self.empty_classes)
        folders, predicate = ("folders", "are not classes") if count > 1 else ("folder", "is not a class")
        examples = ", ".join(self.empty_classes[:5]) + ", ..." * (count > 5)
        return [*lines, f"{self.location}: {count:,} {folders} without images {predicate}: {examples}"]

    def _read_classes(self, folders: set[str], is_complete: bool = True) -> None:
        self.labels, self.class_names = self._labels_from_folders()
        if is_complete:
            check_splits(self.location, self.class_names)
        with_images = set(map(normalize_unicode, self.class_names))
        self.empty_classes = sorted(folder for folder in folders if normalize_unicode(folder) not in with_images)

    def _labels_from_folders(self) -> tuple[NDArray[np.int64], list[str]]:
        folders = []
        keys = self._listing.table["name"].to_pylist()
        for key in keys:
            folder, slash, _ = key.partition("/")
            if not slash:
                if not any("/" in name for name in keys):
                    content = f"no folders and {len(keys):,} image{'s' * (len(keys) > 1)}"
                    raise NstError(f"{self.location}: expected one folder per class with its labeled images, found {content}")
                raise NstError(
                    f"{self.location}: expected one folder per class, found the image {key!r} outside them; move it to its class folder"
                )
            folders.append(folder)
        return encode_names(folders)


def _list_folders(location: str) -> set[str]:
    with os.scandir(location) as entries:
        return {entry.name for entry in entries if entry.name[0] != "." and _is_folder(entry)}


def _check_links(location: str) -> None:
    """Raise NstError if a class folder links to another one: the class of its images would be ambiguous."""
    with os.scandir(location) as entries:
        links = sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_symlink() and _is_folder(entry))
    if not links:
        return
    name_of = {os.path.realpath(os.path.join(location, name)): name for name in sorted(_list_folders(location) - set(links))}
    for name in links:
        if (other := name_of.setdefault(os.path.realpath(os.path.join(location, name)), name)) != name:
            raise NstError(f"{location}: the class folders {other!r} and {name!r} are one folder; remove the link {name!r}")


def _filter_by_class(classes: Container[str], names: list[str], sizes: list[int]) -> Entries:
    entries = [(name, size) for name, size in zip(names, sizes, strict=True) if name.partition("/")[0] in classes]
    return [name for name, _ in entries], [size for _, size in entries]


def walk(top: str, suffixes: frozenset[str], skipped: Skipped | None = None) -> Iterator[Entries]:
    """(names, sizes) of the files below a folder with one of the suffixes, in pieces, in bytewise order of relative paths.

    Hidden names are left out; links are followed, and each folder is entered once. A file that cannot be examined has size 0. `skipped`
    is told of files with other suffixes and of names that are not UTF-8. The latter raise NstError without it, and for folders.
    """
    seen: set[tuple[int, int]] = set()
    stack = [_walk_folder(top, "", suffixes, seen, skipped)]
    while stack:
        item = next(stack[-1], None)
        if item is None:
            stack.pop()
        elif isinstance(item, str):
            stack.append(_walk_folder(os.path.join(top, item), item, suffixes, seen, skipped))
        else:
            yield item


def _walk_folder(
    folder: str, prefix: str, suffixes: frozenset[str], seen: set[tuple[int, int]], skipped: Skipped | None
) -> Iterator[Entries | str]:
    """The content of a folder in order: files as pieces of (names, sizes), a subfolder as its path with a trailing slash."""
    stat = os.stat(folder)
    if (stat.st_dev, stat.st_ino) in seen:
        return
    seen.add((stat.st_dev, stat.st_ino))
    for names, sizes in _sorted_pieces(folder, suffixes, skipped):
        start = 0
        for stop in [*(index for index, size in enumerate(sizes) if size == _FOLDER_SIZE), len(names)]:
            if start < stop:
                yield [prefix + name for name in names[start:stop]], sizes[start:stop]
            if stop < len(names):
                yield prefix + names[stop]
            start = stop + 1


def _sorted_pieces(folder: str, suffixes: frozenset[str], skipped: Skipped | None) -> Iterator[Entries]:
    """Sorted names (those of folders end in a slash, which determines their place) and sizes; a large folder is sorted in Arrow."""
    large: list[tuple[pa.Array, pa.Array]] = []
    names: list[str] = []
    sizes: list[int] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name[0] == ".":
                continue
            if _is_folder(entry):
                check_utf8(entry.path)
                names.append(name + "/")
                sizes.append(_FOLDER_SIZE)
            elif name[name.rfind(".") :].lower() in suffixes:
                if skipped is not None and not is_utf8(name):
                    skipped.record_not_utf8(entry.path)
                    continue
                check_utf8(entry.path)
                names.append(name)
                sizes.append(regular_size(entry))
            elif skipped is not None:
                skipped.record(name, partial(_first_bytes, entry))
            if len(names) == PIECE:
                large.append((to_utf8_array(names), pa.array(sizes)))
                names, sizes = [], []
    if not large:
        order = sorted(range(len(names)), key=names.__getitem__)
        yield [names[index] for index in order], [sizes[index] for index in order]
        return
    large.append((to_utf8_array(names), pa.array(sizes, type=pa.int64())))
    yield from _sort_in_arrow(large)


def _sort_in_arrow(pieces: list[tuple[pa.Array, pa.Array]]) -> Iterator[Entries]:
    names, sizes = (pa.concat_arrays(column) for column in zip(*pieces, strict=True))
    pieces.clear()
    order = pc.array_sort_indices(names)
    for start in range(0, len(order), PIECE):
        piece = order.slice(start, PIECE)
        yield names.take(piece).to_pylist(), sizes.take(piece).to_pylist()


def _first_bytes(entry: os.DirEntry[str]) -> bytes:
    """The first bytes of a file; empty if it is not a file or cannot be read."""
    try:
        return read_start(entry.path, SNIFFED_BYTES) if entry.is_file() else b""
    except OSError:
        return b""


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circular link
        return False
