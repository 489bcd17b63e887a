"""What was listed at an address, kept in a store: a source whose fingerprint is known opens again without being listed."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow as pa
from pydantic import BaseModel, NonNegativeInt

from nst_data.sources.listing import Listing, listed_in, read_listing, write_listing
from nst_data.store.file_tree import FileTree, StoredFile

_NAMES = [("name", pa.large_string()), ("bytes", pa.int64())]
_IMAGES, _FILES = pa.schema([*_NAMES, ("stamp", pa.uint64())]), pa.schema([*_NAMES, ("etag", pa.large_string())])
_ABOUT = b"about"  # in the metadata of the table


class _About(BaseModel):
    top: str
    fingerprint: str
    skipped: dict[str, NonNegativeInt]


@dataclass(frozen=True)
class AddressListing:
    """The files of a source, by their names below the address `top`: images, or tar or parquet files.

    `marks` are the stamps of images (see `stamps`), of other files their etags. `skipped` is as of the source.
    """

    top: str
    names: Listing
    marks: pa.ChunkedArray
    skipped: Mapping[str, int]

    @classmethod
    def of_files(cls, tree: FileTree, stored: Iterable[StoredFile], skipped: Mapping[str, int]) -> Self:
        """That of tar or parquet files of a tree."""
        names, sizes, etags = zip(*stored, strict=True)
        columns = [pa.array(names, pa.large_string()), pa.array(sizes, pa.int64()), pa.array(etags, pa.large_string())]
        table = pa.table(columns, schema=_FILES)
        return cls(tree.address, listed_in(table), table["etag"], skipped)

    @classmethod
    def kept(cls, indexes: Path, location: str, digest: str) -> Self | None:
        """That of a source with this fingerprint; None where none is kept, or it is damaged."""
        try:
            table = read_listing(_place(indexes, location, digest))
            table.validate(full=True)
            about = _About.model_validate_json((table.schema.metadata or {}).get(_ABOUT, b""))
        except (OSError, ValueError, pa.ArrowException):
            return None
        is_whole = table.schema in (_IMAGES, _FILES) and table.num_rows and not any(column.null_count for column in table.columns)
        if not is_whole or not f"{location}/".startswith(f"{about.top}/"):
            return None
        names = listed_in(table)
        return cls(about.top, names, table.column(2), about.skipped) if names.fingerprint == about.fingerprint else None

    def keep(self, indexes: Path, location: str, digest: str) -> None:
        """Keep it in a folder, unless that has it already or cannot be written to."""
        if self == self.kept(indexes, location, digest):
            return
        about = _About(top=self.top, fingerprint=self.names.fingerprint, skipped=dict(self.skipped))
        table = pa.table([*self.names.table.columns, self.marks], schema=_IMAGES if self.is_of_images else _FILES)
        with suppress(OSError):  # it is listed again
            indexes.mkdir(parents=True, exist_ok=True)
            write_listing(_place(indexes, location, digest), table.replace_schema_metadata({_ABOUT: about.model_dump_json()}))

    @property
    def is_of_images(self) -> bool:
        """Whether each file is an image."""
        return bool(pa.types.is_uint64(self.marks.type))

    @property
    def is_there(self) -> bool:
        """Whether its first file is still there, for one request. Raises NstError where the server cannot be asked."""
        return FileTree(self.top).stat(self.names.table["name"][0].as_py()) is not None

    @property
    def files(self) -> list[StoredFile]:
        """Those of tar or parquet files."""
        columns = (column.to_pylist() for column in (*self.names.table.columns, self.marks))
        return [StoredFile(*file) for file in zip(*columns, strict=True)]


def _place(indexes: Path, location: str, digest: str) -> Path:
    return indexes / f"{hashlib.sha256(json.dumps([location, digest]).encode()).hexdigest()}.arrow"
