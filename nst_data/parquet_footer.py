"""What the footer of a parquet file says of columns, without harm from one that contradicts itself."""

import io
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq

DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What reading a damaged parquet file raises; the last where a name in its footer is no text."""


def column_chunks(
    footer: pq.FileMetaData, names: Sequence[str], groups: Sequence[int] | None = None
) -> Iterator[list[pq.ColumnChunkMetaData]]:
    """For each row group what its footer says of the columns with these names, and of those below them. Raises one of `DAMAGE`.

    Arrow ends the process where it is asked for what contradicts itself, such as a histogram of another length or statistics of another
    type. Beginning to read a column raises at the former; so that is done first, from a file that has no pages. It is a buffered one,
    whose first page is wanted only after all columns have begun. Statistics may be asked for of columns of bytes alone: of others
    Arrow decodes the least and the greatest value too, and ends the process where one is too short.
    """
    tops = tuple(f"{name}." for name in names)
    leaves = [footer.schema.column(index) for index in range(len(footer.schema))]
    kinds = {index: leaf.physical_type for index, leaf in enumerate(leaves) if f"{leaf.path}.".startswith(tops)}
    reader = pq.ParquetFile(pa.PythonFile(_NoPages(), mode="r"), metadata=footer, buffer_size=1, pre_buffer=False)
    for group in range(footer.num_row_groups) if groups is None else groups:
        with suppress(_PagesWantedError):
            next(reader.iter_batches(1, row_groups=[group], columns=list(names), use_threads=False), None)
        columns = footer.row_group(group)
        chunks = [columns.column(index) for index in kinds]
        for chunk, kind in zip(chunks, kinds.values(), strict=True):
            if chunk.physical_type != kind:
                raise OSError(f"column {chunk.path_in_schema} is {chunk.physical_type} in row group {group}, {kind} in the schema")
        yield chunks


class _PagesWantedError(Exception):
    """The footer was sound enough to read on."""


class _NoPages(io.RawIOBase):
    """A file that is never read: its footer is known."""

    def __init__(self) -> None:
        self._at = 0

    def readable(self) -> bool:
        """As Arrow asks."""
        return True

    def seekable(self) -> bool:
        """As Arrow asks."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """To a place, or to the end, which is far away."""
        self._at = offset if whence == io.SEEK_SET else 2**62
        return self._at

    def tell(self) -> int:
        """The place."""
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Never."""
        raise _PagesWantedError
