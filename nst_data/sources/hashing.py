"""Hash images that are read only for that purpose."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from nst_data.errors import NstError
from nst_data.images import image_hash
from nst_data.prefetch import cpus_of_this_process, map_in_threads

if TYPE_CHECKING:
    from nst_data.sources.source import Row


def image_hashes(rows: "Iterable[Row]", threads: int | None = None) -> "Iterator[tuple[Row, str]]":
    """Each row with the `image_hash` of its bytes, in order; the hash is empty if the image cannot be read."""
    return map_in_threads(_hash_row, rows, threads or min(32, cpus_of_this_process() + 4))  # threads mostly wait for disks and networks


def _hash_row(row: "Row") -> "tuple[Row, str]":
    try:
        return row, image_hash(row.read())
    except (OSError, NstError):
        return row, ""
