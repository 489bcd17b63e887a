"""Writing files that are whole or not there: hashed as they are written, fsynced, then renamed."""

import contextlib
import hashlib
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from nst_data.manifest import SealedFile

_OWNER = platform.node() or "localhost"
_ABANDONED_SECONDS = 600


class HashedWriter:
    """A write-only file object that takes the sha256 of what passes through it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._bytes = 0
        self.closed = False

    def write(self, data: bytes) -> int:
        """Write and hash."""
        self._file.write(data)
        self._sha256.update(data)
        self._bytes += len(data)
        return len(data)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._bytes

    def flush(self) -> None:
        """Flush the file underneath."""
        self._file.flush()

    def close(self) -> None:
        """Stop taking writes; the file underneath is closed by `replacing`."""
        self.closed = True

    @property
    def sealed(self) -> SealedFile:
        """Hash and size of what was written."""
        return SealedFile(sha256=self._sha256.hexdigest(), bytes=self._bytes)


def temporary(path: Path) -> Path:
    """A name for what this process alone works at; `clear_abandoned` knows it."""
    return path.with_name(f"{path.name}.{_OWNER}.{os.getpid()}.tmp")


@contextmanager
def replacing(path: Path, parts: Path | None = None) -> Iterator[HashedWriter]:
    """Open `path` for writing under a temporary name; it appears whole when the block ends well, else not at all.

    The folder must be there. The temporary file lies beside it, or in the folder `parts` of the same file system.
    """
    part = temporary((parts or path.parent) / f".{path.name}")
    try:
        with part.open("wb") as file:
            yield HashedWriter(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_text(path: Path, text: str, parts: Path | None = None) -> SealedFile:
    """Write a small text file, whole or not at all."""
    with replacing(path, parts) as file:
        file.write(text.encode())
    return file.sealed


def hash_file(path: Path) -> SealedFile:
    """sha256 and size of a file on disk."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return SealedFile(sha256=digest.hexdigest(), bytes=file.tell())


def fsync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Make every file and folder below `folder` survive a power cut."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with (Path(parent) / name).open("rb") as file:
                os.fsync(file.fileno())
        fsync_folder(Path(parent))


def clear_abandoned(parts: Path) -> None:
    """Delete temporary files and folders that nobody has written to for ten minutes, of processes of this machine that are gone."""
    for path in parts.glob(f"*.{_OWNER}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another process clears too
            if not Path("/proc", path.name.split(".")[-2]).exists() and time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
