"""Listings of addresses stored for reuse: a source whose fingerprint is known opens again without being listed."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import pyarrow as pa
from pydantic import BaseModel, NonNegativeInt

from nst_data.sources.listing import read_listing, write_listing
from nst_data.sources.stamps import digest_of, stamps_of
from nst_data.store.file_tree import FileTree, StoredFile
from nst_data.store.indexes import Indexes

_NAMES = [("name", pa.large_string()), ("bytes", pa.int64())]
IMAGES, FILES = pa.schema([*_NAMES, ("stamp", pa.uint64())]), pa.schema([*_NAMES, ("etag", pa.large_string())])
_METADATA_KEY = b"about"  # key in the metadata of the table


class _ListingMetadata(BaseModel):
    top: str
    skipped: dict[str, NonNegativeInt]


@dataclass(frozen=True)
class AddressListing:
    """The files of a source, named relative to the address `top`: `IMAGES` with stamps, or tar or parquet `FILES` with etags.

    `skipped` is that of the source.
    """

    top: str
    table: pa.Table
    skipped: Mapping[str, int]

    @classmethod
    def from_files(cls, tree: FileTree, stored: Iterable[StoredFile], skipped: Mapping[str, int]) -> Self:
        """The listing of tar or parquet files of a tree."""
        columns = [pa.array(column, kind) for column, kind in zip(zip(*stored, strict=True), FILES.types, strict=True)]
        return cls(tree.address, pa.table(columns, schema=FILES), skipped)

    @classmethod
    def load(cls, indexes: Indexes, location: str, digest: str, stamp: str = "") -> Self | None:
        """The stored listing of a source with this fingerprint: the latest made by this machine or, if given, the one with this `stamp`.

        None if there is none, or if it is visibly damaged.
        """
        latest = cls._read_file(indexes.alone.find(_index_name(location, digest)), location)
        if not stamp or (latest is not None and latest.stamp == stamp):
            return latest
        return cls._read_file(indexes.find(_index_name(location, digest, stamp)), location)

    @classmethod
    def _read_file(cls, file: Path | None, location: str) -> Self | None:
        if file is None:
            return None
        try:
            table = read_listing(file)
            table.validate(full=True)
            metadata = _ListingMetadata.model_validate_json((table.schema.metadata or {}).get(_METADATA_KEY, b""))
        except (OSError, ValueError, pa.ArrowException):
            return None
        is_whole = table.schema in (IMAGES, FILES) and table.num_rows and not any(column.null_count for column in table.columns)
        if not is_whole or not f"{location}/".startswith(f"{metadata.top}/"):
            return None
        return cls(metadata.top, table.replace_schema_metadata(), metadata.skipped)

    def store(self, indexes: Indexes, location: str, digest: str) -> None:
        """Store it as this machine's latest listing, and share it under its stamp."""
        if self != self.load(indexes, location, digest):
            metadata = _ListingMetadata(top=self.top, skipped=dict(self.skipped)).model_dump_json()
            write = partial(write_listing, table=self.table.replace_schema_metadata({_METADATA_KEY: metadata}))
            indexes.alone.save(_index_name(location, digest), write)
        indexes.share(_index_name(location, digest), _index_name(location, digest, self.stamp))

    @property
    def holds_images(self) -> bool:
        """Whether each file is an image."""
        return bool(self.table.schema == IMAGES)

    @property
    def stamp(self) -> str:
        """The stamp of the source."""
        return digest_of(self.table["stamp"].to_numpy() if self.holds_images else stamps_of(self.files))

    @property
    def exists(self) -> bool:
        """Whether its first file still exists, found with one request. Raises NstError if the server cannot be reached."""
        return FileTree(self.top).stat(self.table["name"][0].as_py()) is not None

    @property
    def files(self) -> list[StoredFile]:
        """The tar or parquet files of the listing."""
        return [StoredFile(*file) for file in zip(*(column.to_pylist() for column in self.table.columns), strict=True)]


def _index_name(location: str, digest: str, stamp: str = "") -> str:
    """The name of a listing. The digest covers names and sizes only, so changed files may share it; the stamp makes it unique."""
    return f"{hashlib.sha256(json.dumps([location, digest, *filter(None, [stamp])]).encode()).hexdigest()}.arrow"
