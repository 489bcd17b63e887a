"""Sequences of frames in class folders: videos, or folders of images. Each frame is a row."""

import os
import re
from collections.abc import Callable, Container, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from nst_data.errors import NstError
from nst_data.sources.files import check_regular, has_image_suffix, read_file, regular_size
from nst_data.sources.labels import encode_names
from nst_data.sources.listing import build_listing
from nst_data.sources.source import Row, RowIndices, Source

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm")
_DEMUXERS = {"format_whitelist": "mov,avi,matroska,webm", "protocol_whitelist": "file"}
"""FFmpeg's demuxers for these suffixes, whatever a file holds. Others read playlists, which open the files and addresses that they name."""
_N_PROBED = 3
Frame = bytes | NstError | Callable[[], bytes]


class Sequences(Source):
    """`location`/CLASS/SEQUENCE, each sequence a video or a folder of images, all of the same length; rows are frames, in order.

    Labels are the classes. A sequence that is damaged or has another number of frames raises NstError when it is reached; with
    `is_partial`, its frames are unreadable instead. With `classes`, other folders are left out.
    """

    def __init__(self, location: str, is_partial: bool = False, classes: Container[str] | None = None) -> None:
        super().__init__(location)
        self._is_partial = is_partial
        kinds = [kind for kind in _class_folders(location) if classes is None or kind in classes]
        self._names = sorted(f"{kind}/{name}" for kind in kinds for name in _sequence_names(os.path.join(location, kind)))
        if not self._names:
            raise NstError(
                f"{location}: expected class folders with sequences, each a video ({', '.join(VIDEO_SUFFIXES)}) or a folder of frames"
            )
        self.frames = self._most_frequent_length()
        labels, self.class_names = encode_names([name.partition("/")[0] for name in self._names])
        self.labels = np.repeat(labels, self.frames)
        self._listing = build_listing(map(partial(_sequence_files, location), self._names))
        self._pins = (f"{self.frames} frames",)

    def __len__(self) -> int:
        return len(self._names) * self.frames

    @property
    def names(self) -> list[str]:
        """The sequences as CLASS/SEQUENCE, in order."""
        return self._names

    def key(self, row: int) -> str:
        """The key of a row, CLASS/SEQUENCE:FRAME."""
        return f"{self._names[row // self.frames]}:{row % self.frames}"

    def read(self, row: int) -> bytes:
        """Read one frame; for a video this decodes the whole sequence."""
        return bytes(next(self.rows(range(row, row + 1))).read())

    def rows(self, needed: RowIndices) -> Iterator[Row]:
        """Yield the needed frames; a video is decoded when its first needed frame is reached."""
        number, content = -1, list[Frame]()
        for row in np.asarray(needed).tolist():
            if row // self.frames != number:
                number = row // self.frames
                content = self._load_frames(number)
            yield Row(row, self.key(row), content[row % self.frames])

    def _paths(self) -> Iterator[str]:
        return (os.path.join(self.location, name) for name in self._listing.table["name"].to_pylist())

    def _load_frames(self, number: int) -> list[Frame]:
        """The frames of a sequence, or with `is_partial` for each frame the error why it cannot be read."""
        path = os.path.join(self.location, self._names[number])
        try:
            frames = list_frames(path)
            if len(frames) != self.frames:
                raise NstError(
                    f"{path}: expected {self.frames} frames, as in other sequences here, found {len(frames)}; "
                    "replace it, or leave it out with `partial`"
                )
        except NstError as error:
            if not self._is_partial:
                raise
            return [error] * self.frames
        return frames

    def _most_frequent_length(self) -> int:
        """The most frequent length of the first three sequences; with `is_partial`, of the first three that can be read."""
        lengths: list[int] = []
        problem: NstError | None = None
        for name in self._names:
            try:
                lengths.append(len(list_frames(os.path.join(self.location, name))))
            except NstError as error:
                if not self._is_partial:
                    raise
                problem = problem or error
            if len(lengths) == _N_PROBED:
                break
        if problem and not lengths:
            raise problem
        frames = max(lengths, key=lambda length: (lengths.count(length), length))
        if frames < 2:
            raise NstError(f"{self.location}: expected sequences of two frames or more, found {frames} in {self._names[0]}")
        return frames


def list_frames(path: str) -> list[Frame]:
    """The frames of a video, decoded and packed as PPM images, or the files in a folder of frames, ordered by the numbers in their names.

    Raises NstError for a video that cannot be decoded, or if PyAV is missing.
    """
    if os.path.isdir(path):
        names = sorted(filter(_is_frame, os.listdir(path)), key=_natural_sort_key)
        files = [os.path.join(path, name) for name in names]
        return [partial(read_file, file, os.path.getsize(file)) for file in files]
    check_regular(path)
    try:
        import av
    except ImportError:
        raise NstError(f"{path}: reading videos requires PyAV; pip install av, or give folders of frames") from None
    # titles may not be UTF-8; PyAV 19 accepts any, and no longer has this argument
    odd_titles = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
    try:
        with av.open(path, options=_DEMUXERS, **odd_titles) as container:
            return [_as_ppm(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    except (av.FFmpegError, IndexError, OSError, ValueError) as error:
        raise NstError(
            f"{path}: expected a video, found none that can be decoded ({error}); replace it, or leave it out with `partial`"
        ) from None


def _as_ppm(pixels: NDArray[np.uint8]) -> bytes:
    height, width, _ = pixels.shape
    return b"P6 %d %d 255\n" % (width, height) + pixels.tobytes()


def _natural_sort_key(name: str) -> list[tuple[int, str]]:
    """Sort key that puts 2.png before 10.png."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _class_folders(location: str) -> list[str]:
    with os.scandir(location) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")


def _sequence_names(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if entry.name[0] != "." and (entry.is_dir() or entry.name.lower().endswith(VIDEO_SUFFIXES))]


def _sequence_files(location: str, sequence: str) -> tuple[list[str], list[int]]:
    """Names relative to `location` and sizes in bytes of a sequence's files: a video, or all frames in a folder."""
    path = os.path.join(location, sequence)
    if not os.path.isdir(path):
        return [sequence], [os.path.getsize(path)]
    with os.scandir(path) as entries:
        frames = sorted((entry for entry in entries if _is_frame(entry.name)), key=lambda entry: entry.name)
    return [f"{sequence}/{entry.name}" for entry in frames], [regular_size(entry) for entry in frames]


def _is_frame(name: str) -> bool:
    return has_image_suffix(name) and name[0] != "."
