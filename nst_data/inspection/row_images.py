"""The images of rows, opened safely: only bytes with the row's `image_hash`, from a place that the user named or made labels from."""

import threading
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Protocol

import numpy as np

from nst_data.errors import NstError
from nst_data.images import image_hash
from nst_data.self_contained.images import EditionImages, needs_pool, self_contained
from nst_data.self_contained.shard_folders import ShardFolders
from nst_data.sources import Source, open_source
from nst_data.sources.hashing import image_hashes
from nst_data.sources.labeled_pool import open_labeled_pool
from nst_data.store.manifest import EditionManifest, is_anonymous
from nst_data.store.store import Store, Version

_MOST_HASHED, _WAIT_SECONDS = 1_000_000, 3.0
HINT = "was made from it, and its images are shown from there; pass its current location with `pool`"


class Images(Protocol):
    """Where the images of a view come from."""

    def read(self, row: int, number: int, key: str, hashed: str) -> bytes:
        """The encoded bytes of a row of the view, whose number in the pool, key and hash are given. Raises NstError or OSError."""


class PoolImages:
    """Images in a pool, which is opened when the first one is read."""

    def __init__(self, store: Store, version: Version, pool: str | None, wait_seconds: float | None) -> None:
        self._store, self._version, self._pool, self._wait_seconds = store, version, pool, wait_seconds
        self._lock = threading.Lock()
        self._source: Source | None = None
        self._rows: dict[str, int] = {}
        self._by_hash: Future[dict[str, int]] | None = None

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

    def read(self, row: int, number: int, key: str, hashed: str) -> bytes:
        """As `Images.read`: by number in the same pool, by key in another copy of it, by its bytes in one with other names."""
        source, place = self.source(), self.place_of(number, key, hashed)
        encoded = source.read(place)
        source.check(place, encoded, hashed)
        return encoded

    def place_of(self, number: int, key: str, hashed: str = "") -> int:
        """The row of the pool as it is now where the image of a number, key and hash is. Raises NstError where it lacks that."""
        source = self.source()
        if number < len(source) and source.key(number) == key:
            return number
        if key not in self._rows:
            try:
                self._rows[key] = int(source.rows_of([key])[0])
            except NstError:
                if not hashed:
                    raise
                self._rows[key] = self._place_of_bytes(source, key, hashed)
        return self._rows[key]

    def _place_of_bytes(self, source: Source, key: str, hashed: str) -> int:
        """Where the bytes are under another name: all of a pool's images are read once for that."""
        if len(source) > _MOST_HASHED:
            raise NstError(f"{source.location}: lacks {key!r}; pass the pool that was labeled, with `pool`")
        with self._lock:
            if self._by_hash is None:
                self._by_hash = Future()
                Thread(target=_hash_all, args=(source, self._by_hash), daemon=True).start()
        try:
            return self._by_hash.result(self._wait_seconds)[hashed]
        except TimeoutError:
            raise NstError(
                f"{source.location}: file names differ from those of the pool that was labeled; matching images by content"
            ) from None
        except KeyError:
            raise NstError(f"{source.location}: lacks {key!r}, under any name; pass the pool that was labeled, with `pool`") from None


def _hash_all(source: Source, found: "Future[dict[str, int]]") -> None:
    try:
        found.set_result({hashed: row.id for row, hashed in image_hashes(source.rows(range(len(source)))) if hashed})
    except (NstError, OSError) as error:
        found.set_exception(error)


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
        self._has_hashes = not is_anonymous(version.manifest)
        self._images = EditionImages(edition, ShardFolders(work, lambda folder, shard: None, starts))

    def read(self, row: int, number: int, key: str, hashed: str) -> bytes:
        """As `Images.read`, by the row."""
        encoded = self._images.read(row)
        if self._has_hashes and hashed and image_hash(encoded) != hashed:
            raise NstError(f"{key!r} differs from the image that was labeled; `verify()` shows what changed")
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


def images_of(store: Store, version: Version, pool: str | None, wait_seconds: float | None = _WAIT_SECONDS) -> Images:
    """Where the images of a version are: in itself, in the pool that the user names, else where they were labeled.

    A version that came from the Hub names no pool that is opened: its images are shown with `pool` alone. Of a pool whose names changed
    all images are read once, for which a reader waits `wait_seconds`, None for as long as that takes. Raises NstError where the pool is
    not there.
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
