"""Parquet files on the Hub or an object store, read without downloading them: first the footers, then row groups as needed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nst_data.errors import NstError
from nst_data.parquet_footer import PARQUET_ERRORS, column_chunks
from nst_data.sources.cells import Cells
from nst_data.sources.features import Features
from nst_data.sources.kept_listing import AddressListing
from nst_data.sources.kinds import EXPECTED_AT_ADDRESS
from nst_data.sources.parquet import ParquetFiles, Stretch, reason_without_path
from nst_data.sources.range_file import RangeFile
from nst_data.sources.read_ahead import PIECE_BYTES, Extent, read_ahead
from nst_data.sources.source import Row, RowIndices, within
from nst_data.sources.stamps import stamps_of
from nst_data.store.file_tree import FileTree, MissingFileError, StoredFile
from nst_data.store.indexes import Indexes


class _Group(NamedTuple):
    """A row group that contains needed rows, with the footer of its file."""

    file: int
    number: int
    first_row: int
    after_last_row: int
    footer: pq.FileMetaData | str  # or why it can no longer be read


class StreamedParquet(ParquetFiles):
    """Parquet files read over the network, with the same rows and keys as a download. `stored` are the files of a `tree`."""

    _expected_formats = EXPECTED_AT_ADDRESS

    def __init__(
        self,
        location: str,
        tree: FileTree,
        stored: Sequence[StoredFile],
        names: Sequence[str],
        column: str | None,
        features: Features | None = None,
    ) -> None:
        self._tree, self._stored = tree, {tree.address_of(file.name): file for file in stored}
        super().__init__(location, list(self._stored), names, column, False, features)

    def read(self, row: int) -> bytes:
        """One row; its row group is cached, so that neighboring rows cost nothing more."""
        return self._read_from_group(row)

    def rows(self, needed: RowIndices) -> Iterator[Row]:
        """The needed rows as for local files, with row groups read ahead. Raises NstError if the network fails."""
        pieces = read_ahead(self._tree, self._pieces(needed))
        for _, of_group in groupby(pieces, lambda piece: piece[0][0][:2]):
            group_pieces = list(of_group)
            group, file = group_pieces[0][0][0], group_pieces[0][0][0].file
            for start, stop, cells in self._stretches_of(group, [(start, content) for (_, start), content in group_pieces]):
                for row in np.asarray(within(needed, start, stop)).tolist():
                    content = cells[row - start] if isinstance(cells, Cells) else cells
                    yield Row(row, f"{self._names[file]}:{row - self._starts[file]}", content)

    def store_listing(self, indexes: Indexes) -> None:
        """Store the listing of the parquet files, unless a commit pins them."""
        if self.revision is None:
            listing = AddressListing.from_files(self._tree, self._stored.values(), self.skipped)
            listing.store(indexes, self.location, self.images_fingerprint)

    def _pieces(self, needed: RowIndices) -> Iterator[tuple[Extent, tuple[_Group, int]]]:
        """The extents of the image column to read, each with its row group and its offset."""
        for file, (first, last) in enumerate(zip(self._starts[:-1], self._starts[1:], strict=True)):
            name = self._stored[self._files[file]].name
            if not len(within(needed, first, last)):
                continue
            try:
                with self._open_file(self._files[file]) as parquet:
                    footer = parquet.metadata
            except (*PARQUET_ERRORS, NstError) as error:
                self._raise_unless_damage(error)
                yield Extent(name, 0, 0), (_Group(file, 0, first, last, reason_without_path(error)), 0)
                continue
            for number in range(footer.num_row_groups):
                stop = first + footer.row_group(number).num_rows
                if len(within(needed, first, stop)):
                    try:
                        start, end = _column_bounds(footer, number, self._column)
                    except PARQUET_ERRORS as error:
                        yield Extent(name, 0, 0), (_Group(file, number, first, stop, reason_without_path(error)), 0)
                        first = stop
                        continue
                    for offset in range(start, end, PIECE_BYTES):
                        yield Extent(name, offset, min(offset + PIECE_BYTES, end)), (_Group(file, number, first, stop, footer), offset)
                first = stop

    def _stretches_of(self, group: _Group, pieces: list[tuple[int, bytes | MissingFileError]]) -> Iterator[Stretch]:
        contents: list[tuple[int, bytes]] = []
        for offset, content in pieces:
            if isinstance(content, MissingFileError):
                yield group.first_row, group.after_last_row, NstError(f"{self._names[group.file]}: {content}")
                return
            contents.append((offset, content))
        if isinstance(group.footer, str):
            yield group.first_row, group.after_last_row, NstError(f"{self._names[group.file]}: {group.footer}")
            return
        stored = self._stored[self._files[group.file]]
        with (
            RangeFile(self._tree, stored.name, stored.size, contents) as remote,
            pq.ParquetFile(remote, metadata=group.footer, **_READ_OPTIONS) as parquet,
        ):
            yield from self._group_stretches(group.file, parquet, group.number, group.first_row, group.after_last_row)

    def _stamps(self) -> NDArray[np.uint64]:
        return stamps_of(self._stored.values())

    def _paths(self) -> Iterator[str]:
        return iter(())

    def _first_bytes(self, file: str) -> bytes:
        return self._tree.read(self._stored[file].name, 0, min(4, self._size(file))) if self._size(file) else b""

    def _page_header_bytes(self, _file: str, _offset: int) -> bytes:
        return b""  # reading it would take a request per row group

    def _size(self, file: str) -> int:
        return self._stored[file].size

    @contextmanager
    def _open_file(self, file: str) -> Iterator[pq.ParquetFile]:
        stored = self._stored[file]
        # with Arrow's own read-ahead, its threads would still read at process exit, which aborts the process
        with RangeFile(self._tree, stored.name, stored.size) as remote, pq.ParquetFile(remote, **_READ_OPTIONS) as parquet:
            yield parquet

    def _raise_unless_damage(self, error: Exception) -> None:
        if not isinstance(error, pa.ArrowException | MissingFileError) and type(error) is not OSError:
            raise error  # the fault of the network, not of the file


_READ_OPTIONS = {"buffer_size": 2**20, "pre_buffer": False, "page_checksum_verification": True}


def _column_bounds(footer: pq.FileMetaData, group: int, column: str) -> tuple[int, int]:
    """Start and end offsets in the file of a column's bytes in a row group."""
    (chunks,) = column_chunks(footer, [column], [group])
    starts = [min(chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset) for chunk in chunks]
    ends = [start + chunk.total_compressed_size for start, chunk in zip(starts, chunks, strict=True)]
    return min(starts), max(ends)
