"""Sources at an address: image files and tar files on an object store or the Hub, read on demand without downloading the source."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import PurePosixPath
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nst_data.errors import NstError
from nst_data.sources.files import check_complete, check_file_size, has_image_suffix
from nst_data.sources.folder import ImageFiles, ImageFolder
from nst_data.sources.kept_listing import IMAGES, AddressListing
from nst_data.sources.kinds import READ_FROM_FOLDERS
from nst_data.sources.labels import LabelOptions
from nst_data.sources.listing import PIECE, Spool, build_listing, listing_from_table, write_listing
from nst_data.sources.range_file import HeaderFile
from nst_data.sources.read_ahead import Extent, group_neighbors, read_ahead
from nst_data.sources.skipped import SNIFFED_BYTES, Skipped
from nst_data.sources.source import Content, Row, RowIndices, Source, in_pieces, rows_of_table
from nst_data.sources.stamps import stamps_of
from nst_data.sources.tar import TarFiles
from nst_data.store.file_tree import FileTree, MissingFileError, StoredFile
from nst_data.store.indexes import Indexes


class AddressedFiles(ImageFiles):
    """Images stored as individual files below an address."""

    _tree: FileTree
    _tags: NDArray[np.uint64]  # the stamp of each file
    _bytes_if_empty = 0  # bytes to request from a file listed with size 0; if not 0, such a file may be missing

    def _object_name(self, key: str) -> str:
        """The name of an image relative to the address."""
        return key

    def _file_path(self, name: str) -> str:
        return self._tree.address_of(self._object_name(name))

    def read(self, row: int) -> bytes:
        """The file's bytes. Raises NstError if their number differs from the listing, or the server cannot be reached."""
        content = self._tree.read(self._object_name(self.key(row)))
        check_file_size(len(content), self._listing.table["bytes"][row].as_py())
        return content

    def rows(self, needed: RowIndices) -> Iterator[Row]:
        """The needed files, read ahead. Raises NstError if the network fails."""
        for (row, name, size), content in read_ahead(self._tree, self._extents(needed)):
            yield Row(row, name, _content_or_error(content, size))

    def _extents(self, needed: RowIndices) -> Iterator[tuple[Extent, tuple[int, str, int]]]:
        for piece in in_pieces(needed, 1024):
            entries = rows_of_table(self._listing.table, piece)
            for row, name, size in zip(piece.tolist(), entries["name"].to_pylist(), entries["bytes"].to_pylist(), strict=True):
                stop = size + 1 if size else self._bytes_if_empty  # one extra byte reveals that the file has grown
                yield Extent(self._object_name(name), 0, stop), (row, name, size)

    def _stamps(self) -> NDArray[np.uint64]:
        return self._tags

    def _paths(self) -> Iterator[str]:
        return iter(())


class AddressedImages(AddressedFiles, ImageFolder):
    """Image files below an address, with the same rows, keys and classes as the same files in a local folder.

    There may be no images; `other_files` are the tar and parquet files found next to them. Nothing is listed if an earlier listing is
    given as `listing`.
    """

    def __init__(self, tree: FileTree, labeled: bool = False, listing: AddressListing | None = None) -> None:
        Source.__init__(self, tree.address)
        self._tree = tree
        self.other_files: list[StoredFile] = []
        self.has_files = False  # whether any file was listed
        self._folders, self._skipped = set[str](), Skipped()
        if listing is not None:
            self._listing, self._tags, self.skipped = listing_from_table(listing.table), listing.table["stamp"].to_numpy(), listing.skipped
            return
        spool = Spool(IMAGES)
        for images in self._pages():
            names = pa.array([image.name for image in images], pa.large_string())
            spool.append([names, pa.array([image.size for image in images], pa.int64()), pa.array(stamps_of(images))])
        table = _sort_by_name(spool.table())
        self._tags = table["stamp"].to_numpy()
        pieces = (table.slice(start, PIECE) for start in range(0, len(table), PIECE))
        self._listing = build_listing((piece["name"].to_pylist(), piece["bytes"].to_pylist()) for piece in pieces)
        self.skipped = self._skipped.counts
        self.other_files.sort(key=lambda file: file.name.encode())
        if labeled and len(self):
            self._read_classes(self._folders)

    def _pages(self) -> Iterator[list[StoredFile]]:
        """The images on each page of one listing."""
        for page in self._tree.pages():
            files = [file for file in page if not is_hidden(file.name)]
            self.has_files = self.has_files or bool(page)
            self._folders.update(file.name.partition("/")[0] for file in files if "/" in file.name)
            yield [file for file in files if has_image_suffix(file.name)]
            for file in files:
                if not has_image_suffix(file.name):
                    self._skipped.record(file.name.rpartition("/")[2], partial(_first_bytes, self._tree, file))
                    self.other_files += [file] if PurePosixPath(file.name).suffix.lower() in READ_FROM_FOLDERS else []

    def reopen(self, labeled: bool) -> "AddressedImages":
        """The same files with or without their classes, without listing them again."""
        images = AddressedImages(self._tree, listing=self._address_listing)
        images._folders = self._folders
        if labeled:
            images._read_classes(self._folders)
        return images

    def store_listing(self, indexes: Indexes) -> None:
        """Store the listing together with the stamps."""
        self._address_listing.store(indexes, self.location, self.images_fingerprint)

    @property
    def _address_listing(self) -> AddressListing:
        table = pa.table([*self._listing.table.columns, pa.array(self._tags)], schema=IMAGES)
        return AddressListing(self.location, table, self.skipped)


def _sort_by_name(table: pa.Table) -> pa.Table:
    """The table sorted by the bytes of the names, which is how most servers list them."""
    names = table["name"]
    if pc.all(pc.less_equal(names.slice(0, max(0, len(names) - 1)), names.slice(1))).as_py() in (True, None):
        return table
    return table.sort_by("name")


def _content_or_error(content: bytes | MissingFileError, size: int) -> Content:
    if isinstance(content, bytes):
        try:
            check_file_size(len(content), size)
        except NstError as error:
            return error
    return content


class AddressedTars(TarFiles):
    """Tar files at an address: members are read by range requests, neighboring ones in a single request."""

    _files_at_once = 16  # mostly waiting for the server

    def __init__(
        self,
        location: str,
        tree: FileTree,
        stored: Sequence[StoredFile],
        names: Sequence[str],
        labels: LabelOptions | None,
        indexes: Indexes | None,
    ) -> None:
        self._tree, self._stored = tree, stored
        super().__init__(location, [tree.address_of(file.name) for file in stored], names, labels, indexes)

    def rows(self, needed: RowIndices) -> Iterator[Row]:
        """The needed members, read ahead. Raises NstError if the network fails."""
        for group, content in read_ahead(self._tree, group_neighbors(self._extents(needed))):
            for extent, (row, key, size, problem) in group:
                if isinstance(content, MissingFileError) or problem is not None:
                    yield Row(row, key, NstError(problem or str(content)))
                    continue
                start = extent.start - group[0][0].start
                member = memoryview(content)[start : start + size]
                is_whole = len(member) == size
                yield Row(row, key, member if is_whole else NstError(f"cut short: {len(member):,} of {size:,} bytes"))

    def _extents(self, needed: RowIndices) -> Iterator[tuple[Extent, tuple[int, str, int, str | None]]]:
        for piece in in_pieces(needed, 1024):
            for row, entry in zip(piece.tolist(), rows_of_table(self._index, piece).to_pylist(), strict=True):
                file, start, size = self._stored[entry["file"]], entry["offset"], entry["size"]
                stop = start if entry["problem"] is not None else min(start + size, file.size)  # a header may claim any size
                yield Extent(file.name, start, stop), (row, self._key(row, entry["file"], entry["name"]), size, entry["problem"])

    def store_listing(self, indexes: Indexes) -> None:
        """Store the listing of the tar files and the index of their members."""
        if self._stored_index(indexes) is None:
            indexes.save(self._index_name, partial(write_listing, table=self._index))
        else:
            indexes.share(self._index_name, self._index_name)
        AddressListing.from_files(self._tree, self._stored, self.skipped).store(indexes, self.location, self.images_fingerprint)

    def _stat_files(self) -> Sequence[tuple[int, int | str]]:
        return [(file.size, file.etag) for file in self._stored]

    def _canonical_path(self, file: str) -> str:
        return file

    def _open_file(self, file: int) -> AbstractContextManager[BinaryIO]:
        return cast("BinaryIO", HeaderFile(self._tree, self._stored[file].name, self._stored[file].size))

    def _read_range(self, file: int, offset: int, size: int) -> bytes:
        stored = self._stored[file]
        stop = min(offset + size, stored.size)
        content = self._tree.read(stored.name, offset, stop) if offset < stop else b""
        check_complete(len(content), size)
        return content

    def _stamps(self) -> NDArray[np.uint64]:
        return stamps_of(self._stored)

    def _paths(self) -> Sequence[str]:
        return ()


def is_hidden(name: str) -> bool:
    """Whether the name of the file, or of a folder in its path, begins with a dot."""
    return name.startswith(".") or "/." in name


def _first_bytes(tree: FileTree, file: StoredFile) -> bytes:
    try:
        return tree.read(file.name, 0, min(file.size, SNIFFED_BYTES)) if file.size else b""
    except MissingFileError:
        return b""
