"""Random access to the images of a self-contained edition."""

from collections.abc import Iterator
from functools import partial
from typing import TypeGuard

import numpy as np
import pyarrow.parquet as pq

from nst_data.errors import NstError
from nst_data.images import image_hash
from nst_data.self_contained.edition import SelfContainedEdition
from nst_data.self_contained.remote import StreamedEdition
from nst_data.self_contained.shard_folders import ShardFolders
from nst_data.sources.plain_pages import PlainPages, plain_groups
from nst_data.sources.source import Buffer, Row, RowIndices, Source
from nst_data.store.manifest import EditionManifest, is_anonymous
from nst_data.store.version import Version
from nst_data.tables.label_tables import translate_table_errors
from nst_data.tables.shards import table_files

_IMAGE = ("image", "bytes")


def needs_pool(edition: Version | StreamedEdition) -> TypeGuard[Version]:
    """Whether an edition lacks images and needs a pool to read them from. Raises NstError if its table cannot be read."""
    return "image" not in as_self_contained(edition).schema.names


def as_self_contained(edition: Version | StreamedEdition) -> SelfContainedEdition:
    """An edition in a store or on the Hub as a `SelfContainedEdition`. Raises NstError if its table cannot be read."""
    if isinstance(edition, StreamedEdition):
        return edition
    with translate_table_errors(edition.ref):
        schema = pq.read_schema(table_files(edition.folder, "balanced")[0])
    remedy = f"`store.open({edition.ref!r}).verify()` shows all that changed"
    return SelfContainedEdition(edition.ref, remedy, str(edition.folder), EditionManifest.from_manifest(edition.manifest), schema)


class EditionImages(Source):
    """The images of a self-contained edition, in its order; keys are those of the pool. Waits for shards that are not available yet."""

    def __init__(self, edition: SelfContainedEdition, shards: ShardFolders) -> None:
        super().__init__(edition.location)
        self._edition, self._shards, self._starts = edition, shards, shards.starts
        self._pages: dict[int, PlainPages] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def key(self, row: int) -> str:
        """The key of the image in the pool."""
        shard = self._shards.shard_of(row)
        with pq.ParquetFile(self._edition.shard_path(shard, self._shards.wait_for(shard))) as parquet:
            return str(parquet.read(["key"])["key"][row - int(self._starts[shard])])

    def read(self, row: int) -> bytes:
        """Read a single row from its page."""
        shard = self._shards.shard_of(row)
        if shard not in self._pages:
            self._pages[shard] = self._pages_of(shard)
        return self._pages[shard].read(row - int(self._starts[shard]))

    def rows(self, needed: RowIndices) -> Iterator[Row]:
        """Yield the requested rows one by one."""
        for row in np.asarray(needed).tolist():
            yield Row(row, self.key(row), partial(self.read, row))

    def check_content(self, row: int, encoded: Buffer, expected_hash: str) -> None:
        """Raises NstError if an image differs from the hash stored in the edition."""
        if not is_anonymous(self._edition.manifest) and image_hash(encoded) != expected_hash:
            raise self._damage_error(row, "differs from the image that was labeled")

    def unreadable_error(self, row: int, error: Exception) -> NstError:
        """The error to raise for an image that was readable when the edition was made."""
        return self._damage_error(row, f"cannot be read ({error})")

    def _damage_error(self, row: int, problem: str) -> NstError:
        return NstError(f"{self.location}: {self.key(row)!r} {problem}; {self._edition.remedy}")

    def _pages_of(self, shard: int) -> PlainPages:
        path = self._edition.shard_path(shard, self._shards.wait_for(shard))
        with translate_table_errors(f"{self.location}: {path.name}"), pq.ParquetFile(path) as parquet:
            groups = plain_groups(parquet, _IMAGE)
        if groups is None:
            raise NstError(f"{self.location}: its images are compressed inside parquet, as nst writes none; {self._edition.remedy}")
        return PlainPages.from_files([str(path)], [path.stat().st_size], [groups])
