"""Image files: which they are, and their bytes, checked against the size that was listed."""

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
    """The path from the root without `..`, except where that follows a link and would lead to another folder without it."""
    path = Path(path).absolute()
    plain = os.path.abspath(path)
    return Path(plain) if os.path.realpath(plain) == os.path.realpath(path) else path


def has_image_suffix(name: str) -> bool:
    """Whether a name without its folders ends like an image's."""
    return name[name.rfind(".") :].lower() in IMAGE_SUFFIXES


def regular_size(entry: os.DirEntry[str]) -> int:
    """Size in bytes; 0 for what is no file, or no longer there."""
    try:
        return entry.stat().st_size if entry.is_file() else 0
    except OSError:
        return 0


def check_regular(path: str) -> None:
    """Raises NstError for a named pipe or a device, which would be waited for or never end. What is not there may say so itself."""
    with suppress(OSError):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise NstError(f"{path}: not a file, but a folder, a named pipe or a device; remove it")


def read_file(path: str, listed_bytes: int | None = None) -> bytes:
    """All bytes of a file. Raises OSError, or NstError for what is no file, or has not as many as were listed."""
    if "\0" in path:
        raise NstError("its path holds a zero byte, which no file system takes")
    with open(path, "rb", buffering=0, opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise NstError("not a file")
        encoded: bytes = file.readall()
    if listed_bytes is not None:
        check_file_size(len(encoded), listed_bytes)
    return encoded


def read_start(path: str, size: int) -> bytes:
    """The first bytes of a file. Raises OSError."""
    with open(path, "rb", buffering=0, opener=_open_at_once) as file:
        return bytes(file.read(size))


def check_file_size(size: int, listed_bytes: int) -> None:
    """Raises NstError where a file has another size than the listing says."""
    if size != listed_bytes:
        raise NstError(f"has {size:,} bytes, {listed_bytes:,} when the pool was listed")


def missing_remark(location: str, missing: int, first: str) -> str:
    """What to say of image files that tables name and that are not there; `first` is where the first was looked for."""
    are, which = ("are", ", the first") if missing > 1 else ("is", "")
    files = f"{missing:,} of its image files {are} missing or empty{which}"
    where = "relative paths start at the folder of the file that lists them"
    return f"{location}: {files}: {first}; {where}; move the images there, or correct the paths"


def check_whole(size: int, expected_bytes: int) -> None:
    """Raises NstError where a file ends before what a header in it says."""
    if size != expected_bytes:
        raise NstError(f"cut short: {size:,} of {expected_bytes:,} bytes")


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a named pipe would wait for its writer


class OpenFile:
    """An open file, closed when nobody uses it any more: a reader keeps the one that a cache has dropped.

    Raises NstError for a file of another size than was listed.
    """

    def __init__(self, path: str, size: int) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY)
        self._size = size
        check_file_size(os.fstat(self.number).st_size, size)

    def read(self, size: int, offset: int) -> bytes:
        """The bytes at a place. Raises NstError where there are not as many."""
        found = os.pread(self.number, max(0, min(size, self._size - offset)), offset)  # a header may claim any size
        check_whole(len(found), size)
        return found

    def part(self, size: int, offset: int) -> bytes:
        """The bytes at a place; fewer, or none, where the file ends before or no file can have the place."""
        return os.pread(self.number, size, offset) if 0 <= offset < self._size else b""

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)
