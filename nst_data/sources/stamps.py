"""Stamps of files: hashes of metadata that changes when a file is rewritten, used only to notice that."""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from nst_data.store.file_tree import StoredFile


def hash64(text: str) -> int:
    """A 64-bit hash of text, never 0."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") or 1


def digest_of(stamps: NDArray[np.uint64]) -> str:
    """One digest of all stamps; empty if there are none."""
    return hashlib.sha256(stamps.tobytes()).hexdigest() if len(stamps) else ""


def stamps_of(files: Iterable[StoredFile]) -> NDArray[np.uint64]:
    """The stamps of files at an address, shape (files,)."""
    return np.fromiter((hash64(f"{file.etag} {file.size}") for file in files), dtype=np.uint64)
