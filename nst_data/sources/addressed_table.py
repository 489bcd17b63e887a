"""Images at an address, listed by a table (CSV, TSV, JSON lines, COCO's JSON) or a text file that is itself at an address or local."""

import posixpath
import re
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl

from nst_data.errors import NstError
from nst_data.sources.addressed import AddressedFiles
from nst_data.sources.image_table import ImageTable, TextTable
from nst_data.sources.labels import LabelOptions
from nst_data.sources.listed import ImageList, check_unlabeled, lines_of, no_images_error
from nst_data.sources.listing import PIECE, Listing, build_listing
from nst_data.sources.source import Source
from nst_data.sources.stamps import stamps_of
from nst_data.store.file_tree import FileTree, StoredFile, without_secrets

LIST_SUFFIX = ".txt"
_PATH = "path"
_ADDRESS = r"^[A-Za-z][A-Za-z0-9+.-]*://."
_AT_ONCE, _LEAST_PAGES = 16, 4


class AddressedTable(AddressedFiles, ImageTable):
    """The images that a table lists, in row order, all in one bucket: paths relative to the table's folder, or full addresses."""

    _bytes_if_empty = 1

    def __init__(
        self, location: str, table: TextTable, labels: LabelOptions | None, column: str | None, only_in_folder: bool = False
    ) -> None:
        """`location` is an address, or a local file that lists addresses."""
        own_tree = FileTree.parse(location)
        tree = own_tree or FileTree.parse(table.paths[0])
        if tree is None:
            raise NstError(f"{location}: expected the address of each image, as in some rows, found {table.paths[0]!r}")
        self._tree = tree.bucket
        self._folder = None if own_tree is None else posixpath.dirname(own_tree.address.removeprefix(f"{self._tree.address}/"))
        super().__init__(location, table, labels, column, only_in_folder)

    def _build_listing(self, paths: pl.Series) -> Listing:
        self._check_in_bucket(paths)
        objects = [self._object_name(path) for path in paths]
        files_by_name = self._stat_objects(objects)
        no_file = StoredFile("", 0, "")
        files = [files_by_name.get(name, no_file) for name in objects]
        tags = stamps_of(files)
        self._tags = np.where([bool(file.name) for file in files], tags, 0).astype(np.uint64)
        pieces = range(0, len(files), PIECE)
        return build_listing(
            (paths.slice(start, PIECE).to_list(), [file.size for file in files[start : start + PIECE]]) for start in pieces
        )

    def _stat_objects(self, names: list[str]) -> Mapping[str, StoredFile]:
        """The given files that exist: found by listing their common folder as long as that takes fewer requests than asking for each."""
        missing, files_by_name = set(names), dict[str, StoredFile]()
        folder = posixpath.commonpath([posixpath.dirname(name) for name in missing])
        tree, prefix = (FileTree(self._tree.address_of(folder)), f"{folder}/") if folder else (self._tree, "")
        last, max_pages = max(missing), max(_LEAST_PAGES, len(missing) // _AT_ONCE)
        for number, page in enumerate(tree.pages(), start=1):
            files = [file._replace(name=prefix + file.name) for file in page]
            page_files = {file.name: file for file in files if file.name in missing}
            files_by_name |= page_files
            missing -= page_files.keys()
            if not missing or (files and files[-1].name > last):
                return files_by_name
            if number == max_pages:
                break
        else:
            return files_by_name
        with ThreadPoolExecutor(_AT_ONCE, "nst-stat") as readers:
            return files_by_name | {file.name: file for file in readers.map(self._tree.stat, sorted(missing)) if file is not None}

    def _object_name(self, key: str) -> str:
        return self._name_in_bucket(key) or ""

    def _name_in_bucket(self, path: str) -> str | None:
        """The name within the bucket that a path in the table refers to, or None if it points elsewhere."""
        if "://" in path:
            top = f"{self._tree.address}/"
            return path.removeprefix(top) if path.startswith(top) and without_secrets(path) == path else None
        if self._folder is None or "\0" in path:
            return None
        name = posixpath.normpath(posixpath.join(self._folder, path))
        return None if name.startswith(("/", "../")) or name in ("", ".", "..") else name

    def _check_in_bucket(self, paths: pl.Series) -> None:
        outside = [path for path in paths if self._name_in_bucket(path) is None]
        if not outside:
            return
        if "://" in outside[0]:
            FileTree.parse(outside[0])  # raises a more specific error for an invalid address
        rows = f"{len(outside):,} row{'s' * (len(outside) > 1)}"
        raise NstError(f"{self.location}: expected images in {self._tree.address}, found {outside[0]!r} in {rows}; correct the paths")


def open_local_table(location: str, labels: LabelOptions | None, column: str | None, only_in_folder: bool = False) -> Source:
    """Open a local table or list of images, which may be local or at an address."""
    is_list = location.lower().endswith(LIST_SUFFIX)
    if is_list and not _is_address(next(lines_of(location, location), "")):
        return ImageList(location, labels is not None)
    table = _read_table(location, location, labels, column)
    if is_list or (not only_in_folder and table.paths.str.contains(_ADDRESS).any()):
        return AddressedTable(location, table, labels, None if is_list else column)
    return ImageTable(location, table, labels, column, only_in_folder)


def open_table_at(tree: FileTree, name: str, labels: LabelOptions | None, column: str | None, only_in_folder: bool = False) -> Source:
    """Open a table or list that is a file of a tree. Raises NstError if it cannot be read or has another format."""
    location = tree.address_of(name)
    with tempfile.TemporaryDirectory(prefix="nst-table-") as folder:
        file = Path(folder, posixpath.basename(name))
        tree.download(name, file)
        table = _read_table(location, str(file), labels, column)
    return AddressedTable(location, table, labels, None if location.lower().endswith(LIST_SUFFIX) else column, only_in_folder)


def _read_table(location: str, file: str, labels: LabelOptions | None, column: str | None) -> TextTable:
    if not location.lower().endswith(LIST_SUFFIX):
        return TextTable.read(location, column, file)
    check_unlabeled(location, labels is not None)
    lines = list(lines_of(file, location))
    if not lines:
        raise no_images_error(location)
    return TextTable(pl.DataFrame({_PATH: lines}), _PATH)


def _is_address(path: str) -> bool:
    return re.match(_ADDRESS, path) is not None
