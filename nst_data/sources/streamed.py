"""Parquet files that stay on the Hub: footers first, then row groups as they are wanted."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nst_data.hub.errors import plain_errors
from nst_data.sources.parquet import ParquetFiles
from nst_data.sources.source import Row, Wanted


class StreamedParquet(ParquetFiles):
    """Parquet files read over the network: the same rows and keys as their download."""

    def read(self, row: int) -> bytes:
        """One row; its row group is kept, so that neighbours cost nothing more."""
        with plain_errors(self.location):
            return self._read_from_group(row)

    def rows(self, wanted: Wanted) -> Iterator[Row]:
        """As of local files; raises NstError where the network fails."""
        with plain_errors(self.location):
            yield from super().rows(wanted)

    def _file_system(self) -> Any:  # noqa: ANN401 - fsspec ships no types
        from huggingface_hub import HfFileSystem

        return HfFileSystem()  # the same one each time, with what it has learnt of the repo

    def _size(self, file: str) -> int:
        return int(self._file_system().info(file)["size"])

    # reads ahead of Arrow's threads would go on when the process ends, which aborts it
    @contextmanager
    def _opened(self, file: str) -> Iterator[pq.ParquetFile]:
        with self._file_system().open(file, "rb", cache_type="none") as remote, pq.ParquetFile(remote, pre_buffer=False) as parquet:
            yield parquet

    def _stop_unless_damage(self, error: Exception) -> None:
        if not isinstance(error, pa.ArrowException) and type(error) is not OSError:
            raise error  # the network's, not the file's
