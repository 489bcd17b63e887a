"""Safe access to column metadata in parquet footers, even if a footer contradicts itself."""

import io
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq

PARQUET_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What reading a damaged parquet file raises; UnicodeDecodeError if a name in its footer is not text."""


def column_chunks(
    footer: pq.FileMetaData, names: Sequence[str], groups: Sequence[int] | None = None
) -> Iterator[list[pq.ColumnChunkMetaData]]:
    """Yield, for each row group, the metadata of the columns with these names and of columns nested in them.

    Raises one of `PARQUET_ERRORS` if the footer is damaged.

    Arrow aborts the process when asked for inconsistent metadata, such as a histogram of the wrong length or statistics of the wrong type.
    For the former, starting to read a column raises an error instead; so that is done first, on a file without pages. It is read buffered,
    so that the first page is requested only once all columns have been started. Statistics may be requested for columns of bytes only: for
    others Arrow also decodes the minimum and maximum, and aborts if one is too short.
    """
    prefixes = tuple(f"{name}." for name in names)
    leaves = [footer.schema.column(index) for index in range(len(footer.schema))]
    kinds = {index: leaf.physical_type for index, leaf in enumerate(leaves) if f"{leaf.path}.".startswith(prefixes)}
    reader = pq.ParquetFile(pa.PythonFile(_FileWithoutPages(), mode="r"), metadata=footer, buffer_size=1, pre_buffer=False)
    for group in range(footer.num_row_groups) if groups is None else groups:
        with suppress(_PageRequestedError):
            next(reader.iter_batches(1, row_groups=[group], columns=list(names), use_threads=False), None)
        columns = footer.row_group(group)
        chunks = [columns.column(index) for index in kinds]
        for chunk, kind in zip(chunks, kinds.values(), strict=True):
            if chunk.physical_type != kind:
                raise OSError(f"column {chunk.path_in_schema} is {chunk.physical_type} in row group {group}, {kind} in the schema")
        yield chunks


class _PageRequestedError(Exception):
    """The footer was valid enough for Arrow to start reading pages."""


class _FileWithoutPages(io.RawIOBase):
    """A file that is never read, since its footer is already known."""

    def __init__(self) -> None:
        self._at = 0

    def readable(self) -> bool:
        """Required by Arrow."""
        return True

    def seekable(self) -> bool:
        """Required by Arrow."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to an offset, or to the end, which is far away."""
        self._at = offset if whence == io.SEEK_SET else 2**62
        return self._at

    def tell(self) -> int:
        """The current offset."""
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Signal that a page was requested."""
        raise _PageRequestedError
