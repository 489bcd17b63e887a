"""Read bytes of files at an address ahead of their use, with several concurrent requests."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from nst_data.store.file_tree import NO_SUCH_FILE, FileTree, MissingFileError

T = TypeVar("T")

PIECE_BYTES = 8 * 2**20  # target size of one request
_GAP_BYTES = 2**18  # largest gap between extents that is read as well, because a separate request takes longer
_MAX_CONCURRENT = 16
_AHEAD_BYTES, _AHEAD = 64 * 2**20, 64


class Extent(NamedTuple):
    """The half-open byte range from `start` to `stop` of a file."""

    name: str
    start: int
    stop: int


def read_ahead(tree: FileTree, extents: Iterable[tuple[Extent, T]]) -> Iterator[tuple[T, bytes | MissingFileError]]:
    """The second item of each pair with the bytes of its extent, in order: fewer bytes at the end of a file, the error if it is missing.

    Raises NstError if the server cannot be reached.
    """
    waiting: deque[tuple[int, T, Future[bytes | MissingFileError]]] = deque()
    ahead = 0
    readers = ThreadPoolExecutor(_MAX_CONCURRENT, "nst-read-ahead")
    try:
        for extent, item in extents:
            size = extent.stop - extent.start
            while waiting and (ahead + size > _AHEAD_BYTES or len(waiting) >= _AHEAD):
                done_size, done_item, future = waiting.popleft()
                yield done_item, future.result()
                ahead -= done_size
            waiting.append((size, item, readers.submit(_read, tree, extent)))
            ahead += size
        while waiting:
            _, done_item, future = waiting.popleft()
            yield done_item, future.result()
    finally:
        readers.shutdown(wait=False, cancel_futures=True)


def _read(tree: FileTree, extent: Extent) -> bytes | MissingFileError:
    if extent.start >= extent.stop:
        return b""
    try:
        return tree.read(extent.name, extent.start, extent.stop)
    except MissingFileError:
        return MissingFileError(NO_SUCH_FILE)  # without the address: the reason goes to the table `errors`, which is published


def group_neighbors(needed: Iterable[tuple[Extent, T]]) -> Iterator[tuple[Extent, list[tuple[Extent, T]]]]:
    """Group extents that are close together in a file, each group with one extent that covers it."""
    group: list[tuple[Extent, T]] = []
    cover = Extent("", 0, 0)
    for extent, item in needed:
        fits = extent.name == cover.name and cover.start <= extent.start <= cover.stop + _GAP_BYTES
        if group and not (fits and extent.stop - cover.start <= PIECE_BYTES):
            yield cover, group
            group = []
        cover = cover._replace(stop=max(cover.stop, extent.stop)) if group else extent
        group.append((extent, item))
    if group:
        yield cover, group
