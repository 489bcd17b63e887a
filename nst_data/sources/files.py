"""Recognize image files, and read them with a check of the listed size."""

import os
import stat
from contextlib import suppress
from pathlib import Path

from nst_data.errors import NstError

IMAGE_SUFFIXES = frozenset(
    f".{kind}"
    for kind in "avif bmp gif jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm tga tif tiff webp".split()  # noqa: SIM905 - one line
)


def absolute_path(path: str | Path) -> Path:
    """The absolute path without `..`, except where `..` follows a symbolic link and removing it would lead to another folder."""
    path = Path(path).absolute()
    plain = os.path.abspath(path)
    return Path(plain) if os.path.realpath(plain) == os.path.realpath(path) else path


def has_image_suffix(name: str) -> bool:
    """Whether a file name (without folders) has an image suffix."""
    return name[name.rfind(".") :].lower() in IMAGE_SUFFIXES


def regular_size(entry: os.DirEntry[str]) -> int:
    """Size in bytes; 0 if the entry is not a file or no longer exists."""
    try:
        return entry.stat().st_size if entry.is_file() else 0
    except OSError:
        return 0


def check_regular(path: str) -> None:
    """Raise NstError for anything but a regular file: reading a pipe or device may block or never end. Missing files are not reported."""
    with suppress(OSError):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise NstError(f"{path}: not a file, but a folder, a named pipe or a device; remove it")


def read_file(path: str, listed_bytes: int | None = None) -> bytes:
    """All bytes of a file. Raises OSError, or NstError if it is not a regular file or differs in size from the listing."""
    if "\0" in path:
        raise NstError("its path holds a zero byte, which no file system takes")
    with open(path, "rb", buffering=0, opener=_open_nonblocking) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise NstError("not a file")
        encoded: bytes = file.readall()
    if listed_bytes is not None:
        check_file_size(len(encoded), listed_bytes)
    return encoded


def read_start(path: str, size: int) -> bytes:
    """The first bytes of a file. Raises OSError."""
    with open(path, "rb", buffering=0, opener=_open_nonblocking) as file:
        return bytes(file.read(size))


def check_file_size(size: int, listed_bytes: int) -> None:
    """Raise NstError if the size of a file differs from the listing."""
    if size != listed_bytes:
        raise NstError(f"has {size:,} bytes, {listed_bytes:,} when the pool was listed")


def missing_remark(location: str, n_missing: int, first_path: str) -> str:
    """A remark about missing image files that a table lists; `first_path` is the path at which the first was expected."""
    verb, first_phrase = ("are", ", the first") if n_missing > 1 else ("is", "")
    files = f"{n_missing:,} of its image files {verb} missing or empty{first_phrase}"
    hint = "relative paths start at the folder of the file that lists them"
    return f"{location}: {files}: {first_path}; {hint}; move the images there, or correct the paths"


def check_complete(size: int, expected_bytes: int) -> None:
    """Raise NstError if fewer bytes were read than a header in the file promises."""
    if size != expected_bytes:
        raise NstError(f"cut short: {size:,} of {expected_bytes:,} bytes")


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # opening a named pipe would wait for its writer


class OpenFile:
    """An open file that is closed when the last reference is gone, so that a reader may still use one that a cache has dropped.

    Raises NstError if the size of the file differs from the listing.
    """

    def __init__(self, path: str, size: int) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY)
        self._size = size
        check_file_size(os.fstat(self.number).st_size, size)

    def read(self, size: int, offset: int) -> bytes:
        """`size` bytes at an offset. Raises NstError if the file has fewer."""
        content = os.pread(self.number, max(0, min(size, self._size - offset)), offset)  # a header may claim any size
        check_complete(len(content), size)
        return content

    def read_up_to(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes at an offset: fewer if the file ends earlier, none if the offset is outside the file."""
        return os.pread(self.number, size, offset) if 0 <= offset < self._size else b""

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)
