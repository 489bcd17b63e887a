"""Images listed in a text file, one path per line."""

import os
import stat
from collections.abc import Iterator, Sequence

from nst_data.errors import NstError, UsageError
from nst_data.sources.folder import Entries, ImageFiles
from nst_data.sources.listing import PIECE, build_listing


class ImageList(ImageFiles):
    """The images listed in a text file, in line order, by absolute paths or relative to its folder; blank lines are ignored."""

    def __init__(self, location: str, labeled: bool) -> None:
        super().__init__(location)
        check_unlabeled(location, labeled)
        self._top = os.path.dirname(location)
        self._listing = build_listing(_lines_with_sizes(location, self._top))
        if not len(self):
            raise no_images_error(location)

    def remarks(self) -> list[str]:
        """Adds where missing images were expected."""
        return [*super().remarks(), *self._missing_remarks()]


def check_unlabeled(location: str, labeled: bool) -> None:
    """Raise UsageError if labels are requested from a list."""
    if labeled:
        raise UsageError(f"{location}: a list of images has no labels; give class folders, or a CSV file with `path` and `label`")


def no_images_error(location: str) -> NstError:
    """The error to raise for an empty list."""
    return NstError(f"{location}: expected the path of an image on each line, found none")


def _lines_with_sizes(location: str, top: str) -> Iterator[Entries]:
    names: list[str] = []
    for name in lines_of(location, location):
        names.append(name)
        if len(names) == PIECE:
            yield names, sizes_of(top, names)
            names = []
    yield names, sizes_of(top, names)


def lines_of(file: str, location: str) -> Iterator[str]:
    """The non-blank lines of a text file; messages name its `location`. Raises NstError if it is not UTF-8 text."""
    try:
        with open(file, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if "\0" in line:
                    raise NstError(f"{location}: line {number} is not a path; expected a text file with the path of an image on each line")
                if line.strip():
                    yield line.rstrip("\n")
    except UnicodeDecodeError:
        raise NstError(f"{location}: expected a text file in UTF-8 with the path of an image on each line") from None


def sizes_of(top: str, names: Sequence[str]) -> list[int]:
    """Size of each file in bytes; 0 if it is missing or not a regular file, which is reported when its row is read."""
    return [_size(os.path.join(top, name)) for name in names]


def _size(path: str) -> int:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError for a path with a zero byte
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
