"""A file-like object for a file at an address, which reads ranges; some ranges may have been fetched already."""

import io
import os
from collections.abc import Sequence
from typing import Any

from nst_data.store.file_tree import FileTree

_LOOK_BYTES = 2**16  # read if the next header is far away
_BLOCK_BYTES = 4 * 2**20  # read if it is near
_NEAR_BYTES = 2**20  # another request takes longer than reading this much


class RangeFile(io.RawIOBase):
    """A file of known size; each read is one request, unless its bytes are in `pieces`: pairs of (offset, bytes)."""

    def __init__(self, tree: FileTree, name: str, size: int, pieces: Sequence[tuple[int, bytes]] = ()) -> None:
        super().__init__()
        self._tree, self._name, self._size, self._pieces = tree, name, size, pieces
        self._position = 0

    def readable(self) -> bool:
        """Always True."""
        return True

    def seekable(self) -> bool:
        """Always True."""
        return True

    def tell(self) -> int:
        """The current position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position, as `io.IOBase.seek` does, but never before the start."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Read `size` bytes, fewer only at the end of the file. Raises NstError if the server cannot be reached."""
        remaining = max(0, self._size - self._position)
        length = remaining if size is None or size < 0 else min(size, remaining)
        content = self._read_range(self._position, self._position + length) if length else b""
        self._position += len(content)
        return content

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - a buffer has no type before Python 3.12
        """Read into a buffer; see `read`."""
        view = memoryview(buffer).cast("B")
        content = self.read(len(view))
        view[: len(content)] = content
        return len(content)

    def _read_range(self, start: int, stop: int) -> bytes:
        pieces = [
            content[max(0, start - offset) : stop - offset]
            for offset, content in self._pieces
            if offset < stop and start < offset + len(content)
        ]
        if sum(map(len, pieces)) == stop - start:
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return self._tree.read(self._name, start, stop)


class HeaderFile(RangeFile):
    """For reading from header to header: large blocks while the next header is near, small ones after a jump."""

    _stop = 0  # the end of the last read

    def _read_range(self, start: int, stop: int) -> bytes:
        (first, content), *_ = self._pieces or [(0, b"")]
        if not first <= start <= stop <= first + len(content):
            is_near = 0 <= start - self._stop < _NEAR_BYTES
            ahead = max(stop - start, _BLOCK_BYTES if is_near else _LOOK_BYTES)
            first, content = start, self._tree.read(self._name, start, min(start + ahead, self._size))
            self._pieces = [(first, content)]
        self._stop = stop
        return content[start - first : stop - first]
