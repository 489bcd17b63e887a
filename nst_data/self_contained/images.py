"""The images that a self-contained edition holds beside its soft labels."""

import pyarrow.parquet as pq

from nst_data.errors import NstError
from nst_data.images import image_hash
from nst_data.sources.parquet import ParquetFiles
from nst_data.sources.source import Buffer
from nst_data.store.manifest import is_anonymous
from nst_data.store.version import Version
from nst_data.tables.label_tables import damage_is_named
from nst_data.tables.shards import table_files


def holds_images(edition: Version) -> bool:
    """Whether an edition is self-contained. Raises NstError where its table cannot be read."""
    with damage_is_named(edition.ref), pq.ParquetFile(table_files(edition.folder, "balanced")[0]) as parquet:
        return "image" in parquet.schema_arrow.names


class EmbeddedImages(ParquetFiles):
    """The images of a self-contained edition, in its order; each is read alone, out of its page. Keys are those of the pool."""

    _footers_at_once = 2  # they are large where images are small: a row group has 100 of them

    def __init__(self, edition: Version) -> None:
        files = table_files(edition.folder, "balanced")
        names = [f"balanced/{file.name}" for file in files]
        super().__init__(edition.ref, [str(file) for file in files], names, "image", images_beside=False)
        self._has_hashes = not is_anonymous(edition.manifest)

    def key(self, row: int) -> str:
        """Where the image was in the pool."""
        file = self._file_of(row)
        with self._readable(self._files[file]), self._opened(self._files[file]) as parquet:
            row -= self._starts[file]
            for group in range(parquet.num_row_groups):
                if row < (rows := parquet.metadata.row_group(group).num_rows):
                    return str(parquet.read_row_group(group, columns=["key"])["key"][row])
                row -= rows
        raise IndexError(f"row {row} after the last")

    def check(self, row: int, encoded: Buffer, hashed: str) -> None:
        """Raises NstError where the bytes of a row are not those that were sealed."""
        if self._has_hashes and image_hash(encoded) != hashed:
            raise self._damaged(row, "holds other bytes than the image that was labeled")

    def unreadable(self, row: int, error: Exception) -> NstError:
        """What to raise for an image that could be read when the edition was made."""
        return self._damaged(row, f"cannot be read any more ({error})")

    def _damaged(self, row: int, what: str) -> NstError:
        return NstError(f"{self.location}: {self.key(row)!r} {what}; `nst verify {self.location}` shows all that changed")
