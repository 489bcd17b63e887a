"""The images of rows, opened safely: only bytes with the row's `image_hash`, from a place that the user named or made labels from."""

import threading
from pathlib import Path
from typing import Protocol

import numpy as np

from nst_data.errors import NstError
from nst_data.images import image_hash
from nst_data.self_contained.images import EditionImages, needs_pool, self_contained
from nst_data.self_contained.shard_folders import ShardFolders
from nst_data.sources import Source, open_source
from nst_data.sources.labeled_pool import open_labeled_pool
from nst_data.store.manifest import EditionManifest, is_anonymous
from nst_data.store.store import Store, Version

HINT = "was made from it, and its images are shown from there; pass its current location with `pool`"


class Images(Protocol):
    """Where the images of a view come from."""

    def read(self, row: int, number: int, key: str, hashed: str) -> bytes:
        """The encoded bytes of a row of the view, whose number in the pool, key and hash are given. Raises NstError or OSError."""


class PoolImages:
    """Images in a pool, which is opened when the first one is read."""

    def __init__(self, store: Store, version: Version, pool: str | None) -> None:
        self._store, self._version, self._pool = store, version, pool
        self._lock = threading.Lock()
        self._source: Source | None = None
        self._rows: dict[str, int] = {}

    def check(self) -> None:
        """Raises NstError where the pool is not there, UsageError where it is not to be opened; of a large one without listing it."""
        entry = self._version.manifest.request.inputs.pool
        if self._pool is None and entry is not None and not entry.pulled and Path(entry.ref).exists():
            return  # it is opened later: the names of millions of files take seconds
        self.source()

    def source(self) -> Source:
        """The pool, opened. Raises NstError where that cannot be."""
        with self._lock:
            if self._source is None:
                if self._pool is None:
                    self._source = open_labeled_pool(self._version, self._store.indexes, HINT)
                else:
                    self._source = open_source(self._pool, indexes=self._store.indexes)
            return self._source

    def place_of(self, number: int, key: str) -> int:
        """The row of the pool as it is now where the image of a number and key is. Raises NstError where it lacks that."""
        source = self.source()
        if number < len(source) and source.key(number) == key:
            return number
        if key not in self._rows:
            self._rows[key] = int(source.rows_of([key])[0])
        return self._rows[key]

    def read(self, row: int, number: int, key: str, hashed: str) -> bytes:
        """As `Images.read`: by number in the same pool, by key in another copy of it."""
        source, place = self.source(), self.place_of(number, key)
        encoded = source.read(place)
        source.check(place, encoded, hashed)
        return encoded


class NoImages:
    """No images, and the reason."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def read(self, row: int, number: int, key: str, hashed: str) -> bytes:
        """Raises NstError with the reason."""
        raise NstError(self.reason)


class EmbeddedImages:
    """Images that an edition holds itself."""

    def __init__(self, store: Store, version: Version) -> None:
        edition = self_contained(version)
        starts = np.concatenate([[0], np.cumsum(edition.sizes()[:, 0])])
        work = store.root / "runs" / "look"  # a complete edition needs nothing there
        self._images = EditionImages(edition, ShardFolders(work, lambda folder, shard: None, starts))

    def read(self, row: int, number: int, key: str, hashed: str) -> bytes:
        """As `Images.read`, by the row."""
        encoded = self._images.read(row)
        if hashed and image_hash(encoded) != hashed:
            raise NstError(f"{key!r} holds other bytes than the image that was labeled; `verify()` shows what changed")
        return encoded


class SourceImages:
    """The images of a labeled source, whose rows have no other hash than that of the bytes that are read."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def read(self, row: int, number: int, key: str, hashed: str) -> bytes:
        """As `Images.read`."""
        encoded = self._source.read(row)
        if hashed and image_hash(encoded) != hashed:
            raise NstError(f"{key!r} was replaced since it was read; start again")
        return encoded


def images_of(store: Store, version: Version, pool: str | None) -> Images:
    """Where the images of a version are: in itself, in the pool that the user names, else where they were labeled.

    A version that came from the Hub names no pool that is opened: its images are shown with `pool` alone. Raises NstError where the pool
    is not there.
    """
    if isinstance(version.manifest, EditionManifest) and not needs_pool(version):
        return EmbeddedImages(store, version)
    if is_anonymous(version.manifest):
        return NoImages(f"{version.ref} was published without keys and hashes: its images cannot be found")
    entry = version.manifest.request.inputs.pool
    if pool is None and entry is not None and entry.pulled:
        return NoImages(f"{version.ref} came from the Hub, and nst opens no pool that it names; pass yours with --pool")
    images = PoolImages(store, version, pool)
    images.check()
    return images
