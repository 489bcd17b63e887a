"""Safe access to the images of rows: only bytes with the row's `image_hash`, from a location that the user passed or labeled."""

import threading
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Protocol

import numpy as np

from nst_data.errors import NstError
from nst_data.images import image_hash
from nst_data.self_contained.images import EditionImages, as_self_contained, needs_pool
from nst_data.self_contained.shard_folders import ShardFolders
from nst_data.sources import Source, open_source
from nst_data.sources.hashing import image_hashes
from nst_data.sources.labeled_pool import open_labeled_pool
from nst_data.store.manifest import EditionManifest, is_anonymous
from nst_data.store.store import Store, Version

_MAX_HASHED, _WAIT_SECONDS = 1_000_000, 3.0
POOL_HINT = "was made from it, and its images are shown from there; pass its current location with `pool`"


class ImageReader(Protocol):
    """Where the images of a view come from."""

    def read(self, row: int, pool_row: int, key: str, expected_hash: str) -> bytes:
        """The encoded bytes of the image in row `row` of the view, row `pool_row` of the pool. Raises NstError or OSError."""


class PoolImages:
    """Images in a pool, which is opened when the first one is read."""

    def __init__(self, store: Store, version: Version, pool: str | None, wait_seconds: float | None) -> None:
        self._store, self._version, self._pool, self._wait_seconds = store, version, pool, wait_seconds
        self._lock = threading.Lock()
        self._source: Source | None = None
        self._rows: dict[str, int] = {}
        self._by_hash: Future[dict[str, int]] | None = None

    def check(self) -> None:
        """Raises NstError if the pool is missing, UsageError if it must not be opened. A local pool that exists is not listed yet."""
        entry = self._version.manifest.request.inputs.pool
        if self._pool is None and entry is not None and not entry.pulled and Path(entry.ref).exists():
            return  # opened later, since listing millions of files takes seconds
        self.source()

    def source(self) -> Source:
        """The open pool. Raises NstError if it cannot be opened."""
        with self._lock:
            if self._source is None:
                if self._pool is None:
                    self._source = open_labeled_pool(self._version, self._store.indexes, POOL_HINT)
                else:
                    self._source = open_source(self._pool, indexes=self._store.indexes)
            return self._source

    def read(self, row: int, pool_row: int, key: str, expected_hash: str) -> bytes:
        """Read an image by row number in the same pool, by key in a copy, or by hash if the copy uses other names."""
        source, place = self.source(), self.find_row(pool_row, key, expected_hash)
        encoded = source.read(place)
        source.check_content(place, encoded, expected_hash)
        return encoded

    def find_row(self, pool_row: int, key: str, expected_hash: str = "") -> int:
        """The row of an image in the pool as it is now. Raises NstError if the pool lacks the image."""
        source = self.source()
        if pool_row < len(source) and source.key(pool_row) == key:
            return pool_row
        if key not in self._rows:
            try:
                self._rows[key] = int(source.rows_of([key])[0])
            except NstError:
                if not expected_hash:
                    raise
                self._rows[key] = self._find_row_by_hash(source, key, expected_hash)
        return self._rows[key]

    def _find_row_by_hash(self, source: Source, key: str, expected_hash: str) -> int:
        """Find an image under another name by its hash; the first call starts to read all images of the pool once."""
        if len(source) > _MAX_HASHED:
            raise NstError(f"{source.location}: lacks {key!r}; pass the pool that was labeled, with `pool`")
        with self._lock:
            if self._by_hash is None:
                self._by_hash = Future()
                Thread(target=_hash_all, args=(source, self._by_hash), daemon=True).start()
        try:
            return self._by_hash.result(self._wait_seconds)[expected_hash]
        except TimeoutError:
            raise NstError(
                f"{source.location}: file names differ from those of the pool that was labeled; matching images by content"
            ) from None
        except KeyError:
            raise NstError(f"{source.location}: lacks {key!r}, under any name; pass the pool that was labeled, with `pool`") from None


def _hash_all(source: Source, future: "Future[dict[str, int]]") -> None:
    try:
        future.set_result({hashed: row.id for row, hashed in image_hashes(source.rows(range(len(source)))) if hashed})
    except (NstError, OSError) as error:
        future.set_exception(error)


class NoImages:
    """A stand-in if images cannot be shown, with the reason."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def read(self, row: int, pool_row: int, key: str, expected_hash: str) -> bytes:
        """Raises NstError with the reason."""
        raise NstError(self.reason)


class EmbeddedImages:
    """Images stored in the edition itself."""

    def __init__(self, store: Store, version: Version) -> None:
        edition = as_self_contained(version)
        starts = np.concatenate([[0], np.cumsum(edition.shard_sizes()[:, 0])])
        work = store.root / "runs" / "look"  # unused, since the edition is complete
        self._has_hashes = not is_anonymous(version.manifest)
        self._images = EditionImages(edition, ShardFolders(work, lambda folder, shard: None, starts))

    def read(self, row: int, pool_row: int, key: str, expected_hash: str) -> bytes:
        """Read an image by its row in the edition."""
        encoded = self._images.read(row)
        if self._has_hashes and expected_hash and image_hash(encoded) != expected_hash:
            raise NstError(f"{key!r} differs from the image that was labeled; `verify()` shows what changed")
        return encoded


class SourceImages:
    """The images of a labeled source, whose rows have no hash until their bytes are read."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def read(self, row: int, pool_row: int, key: str, expected_hash: str) -> bytes:
        """Read an image by row, checking that it has not been replaced."""
        encoded = self._source.read(row)
        if expected_hash and image_hash(encoded) != expected_hash:
            raise NstError(f"{key!r} was replaced since it was read; start again")
        return encoded


def open_images(store: Store, version: Version, pool: str | None, wait_seconds: float | None = _WAIT_SECONDS) -> ImageReader:
    """Where to read a version's images: from the version itself, the pool passed by the user, or the pool that was labeled.

    A pool named by a version from the Hub is never opened; its images are shown only if `pool` is passed. If the names in a pool have
    changed, all of its images are read once, for which a reader waits up to `wait_seconds`, or without limit if None. Raises NstError if
    the pool is missing.
    """
    if isinstance(version.manifest, EditionManifest) and not needs_pool(version):
        return EmbeddedImages(store, version)
    if is_anonymous(version.manifest):
        return NoImages(f"{version.ref} was published without keys and hashes: its images cannot be found")
    entry = version.manifest.request.inputs.pool
    if pool is None and entry is not None and entry.pulled:
        return NoImages(f"{version.ref} came from the Hub, and nst opens no pool that it names; pass yours with `pool`")
    images = PoolImages(store, version, pool, wait_seconds)
    images.check()
    return images
