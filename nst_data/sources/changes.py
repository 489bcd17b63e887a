"""Detect images whose content has changed since they were read although names and sizes stayed the same.

Names and sizes are a source's identity. In addition, each version made from a source records a stamp of every file, taken from its times:
images in files whose stamp differs, newer or older, are hashed again, and the hashes compared with those of the images that were read.
"""

import datetime
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nst_data.errors import NstError
from nst_data.progress import Progress
from nst_data.sources.hashing import image_hashes
from nst_data.sources.source import Source
from nst_data.store.files import atomic_write, write_text
from nst_data.store.places import READ_FOLDER

_SAMPLED_ROWS = 10_000  # for tables and tar files, where one changed file may hold many images
_SAMPLED_ELSEWHERE = 1_000  # if a source with the same names and sizes is at another location
_PIECE = 65_536
_BEFORE_VERB = re.compile(" was | were ")
_INVALID_RECORD = (ValueError, KeyError, TypeError, OverflowError)  # raised by reading a record that nst did not write

KnownHashes = Iterable[tuple[NDArray[np.int64], NDArray[np.bytes_]]]  # increasing row numbers, and the 16 bytes of each `image_hash`
HASH = np.dtype("V16")


class Times(NamedTuple):
    """Latest modification time (mtime) and latest status change (ctime) of a set of files, in nanoseconds."""

    written: int
    changed: int


class _Record(NamedTuple):
    location: str  # empty if unknown
    stamps: NDArray[np.uint64] | None  # one per file, or
    times: Times | None  # as recorded by earlier versions of nst


class ReadRecord:
    """The record of how one source (`role`) was read for the version in `folder`, which may be in progress or sealed."""

    def __init__(self, folder: Path, role: str) -> None:
        self._about, self._stamps, self._hashes = (folder / READ_FOLDER / f"{role}.{kind}" for kind in ("json", "stamps.npy", "npy"))

    def record_stamps(self, source: Source) -> None:
        """Record the stamps of the source's files before any image is read, unless they are already recorded."""
        if not self._about.exists():
            self._write_record(source, source.stamps())

    def store_hashes(self, hashes: NDArray[np.void]) -> None:
        """Store the hash of each image, shape (rows,), if no table of the version has it; zeros for an image that cannot be read."""
        self._hashes.parent.mkdir(exist_ok=True)
        with atomic_write(self._hashes) as file:
            np.lib.format.write_array(file, hashes)

    def stored_hashes(self) -> KnownHashes:
        """The hashes that `store_hashes` stored, without images that could not be read."""
        if self._hashes.exists():
            hashes = np.load(self._hashes, mmap_mode="r")
            for start in range(0, len(hashes), _PIECE):
                piece = np.asarray(hashes[start : start + _PIECE])
                rows = np.flatnonzero(piece != np.zeros(1, HASH))
                yield start + rows, piece[rows]

    def known_hashes(self) -> NDArray[np.bytes_]:
        """The 16 bytes of each `image_hash` that `store_hashes` stored, as "S16", shape (images,); empty if it stored none."""
        pieces = [hashes.view("S16") for _, hashes in self.stored_hashes()]
        return np.concatenate([np.empty(0, "S16"), *pieces])

    def check_unchanged(
        self,
        source: Source,
        known: KnownHashes,
        event: str,
        remedy: str,
        progress: Progress,
        sealed_at: str | None = None,
        update_record: bool = True,
    ) -> None:
        """Raise NstError if the content of images differs from the `known` hashes.

        Images in files whose stamp differs from the recorded one are compared, and the new stamps recorded if nothing has changed; of a
        source at another location a sample is compared. In messages, `event` says what was made from the images and `remedy` what to do.
        `sealed_at` is when the version was sealed, used if it has no record. Without `update_record` nothing is written.
        """
        record = self._read_record(sealed_at)
        if record is None:
            return
        stamps, is_same_location = source.stamps(), record.location in ("", source.location)
        if is_same_location:
            files = _changed_files(source, record, stamps)
            rows = np.arange(len(source)) if files is None else source.rows_of_files(files)
            max_compared = len(source) if source.rows_per_file == 1 else _SAMPLED_ROWS
            reason = f"{'the' if files is None else f'{len(files):,}'} file{'s' * (files is None or len(files) > 1)} changed since {event}"
        else:
            rows, max_compared, reason = np.arange(len(source)), _SAMPLED_ELSEWHERE, f"{record.location} was read before, when {event}"
        if not len(rows) or not stamps.any():
            return
        sample = rows if len(rows) <= max_compared else rows[np.linspace(0, len(rows) - 1, max_compared, dtype=np.int64)]
        pieces = _select_known(sample, known)
        if total := sum(len(numbers) for numbers, _ in pieces):
            sampling_note = f" ({total:,} checked, the rest assumed unchanged)" if len(sample) < len(rows) else ""
            images = len(rows) if sampling_note else total
            progress.say(
                f"{source.location}: {reason}; comparing {images:,} image{'s' * (images > 1)} with the earlier ones{sampling_note}"
            )
        changed, first = 0, -1
        with progress.task(f"compare images with those of {_BEFORE_VERB.split(event)[0]}", total, "images") as task:
            for row, is_same in _compare_hashes(source, pieces, task.advance):
                changed += not is_same
                first = row if not is_same and first < 0 else first
        if changed:
            example, pronoun = (f"the first is {source.key(first)!r}", "them") if changed > 1 else (repr(source.key(first)), "it")
            subject = f"{changed:,} images have" if changed > 1 else "1 image has"
            raise NstError(f"{source.location}: {subject} different content than when {event} ({example}); restore {pronoun}, or {remedy}")
        if is_same_location and update_record:
            with suppress(OSError):  # with a read-only store the comparison is repeated next time
                self._write_record(source, stamps)

    def _write_record(self, source: Source, stamps: NDArray[np.uint64]) -> None:
        self._about.parent.mkdir(exist_ok=True)
        with atomic_write(self._stamps) as file:
            np.lib.format.write_array(file, stamps)
        write_text(self._about, json.dumps({"location": source.location}))

    def _read_record(self, sealed_at: str | None) -> _Record | None:
        record = self._stored_record()
        if record is not None or sealed_at is None:
            return record
        moment = int(datetime.datetime.fromisoformat(sealed_at).timestamp()) * 10**9
        return _Record("", None, Times(moment, moment))

    def _stored_record(self) -> _Record | None:
        """The record, or None if there is none that this version of nst understands."""
        with suppress(FileNotFoundError, IsADirectoryError, *_INVALID_RECORD):
            record = json.loads(self._about.read_text("utf-8"))
            location = str(record["location"])
            if not self._stamps.exists():
                return _Record(location, None, Times(int(record["written"]), int(record["changed"])))
            with self._stamps.open("rb") as file:
                stamps = np.lib.format.read_array(file)
            return _Record(location, stamps, None) if stamps.ndim == 1 and stamps.dtype == np.uint64 else None
        return None


def _changed_files(source: Source, record: _Record, stamps: NDArray[np.uint64]) -> NDArray[np.int64] | None:
    """Numbers of the existing files that differ from the record; None if any file may differ."""
    if record.stamps is None:
        assert record.times is not None, "one of both is noted"
        return newer_files(source, record.times)
    if len(record.stamps) != len(stamps):
        return None
    return np.flatnonzero((stamps != record.stamps) & (stamps != 0))


def newer_files(source: Source, recorded: Times) -> NDArray[np.int64]:
    """Numbers of the files that were written, replaced or otherwise changed since."""
    numbers = (
        number for number, path in enumerate(source.files()) if any(new > old for new, old in zip(_file_times(path), recorded, strict=True))
    )
    return np.fromiter(numbers, dtype=np.int64)


def _file_times(path: str) -> Times:
    try:
        stat = os.stat(path)
    except OSError:  # reported when its rows are read
        return Times(0, 0)
    return Times(stat.st_mtime_ns, stat.st_ctime_ns)


def _select_known(rows: NDArray[np.int64], known: KnownHashes) -> list[tuple[NDArray[np.int64], NDArray[np.bytes_]]]:
    """Those of the `rows` (increasing row numbers) whose hash is known, with these hashes."""
    pieces = []
    for numbers, hashes in known:
        rows_in_range = rows[slice(*np.searchsorted(rows, [numbers.min(), numbers.max() + 1]))] if len(numbers) else rows[:0]
        common, indices, _ = np.intersect1d(numbers, rows_in_range, assume_unique=True, return_indices=True)
        pieces.append((common, hashes[indices]))
    return pieces


def _compare_hashes(source: Source, pieces: KnownHashes, advance: Callable[[int], None]) -> Iterator[tuple[int, bool]]:
    """The readable rows whose hash is known, each with whether its bytes are unchanged."""
    for numbers, hashes in pieces:
        for (row, new_hash), old_hash in zip(image_hashes(source.rows(numbers)), hashes, strict=True):
            if new_hash:
                yield row.id, new_hash == old_hash.tobytes().hex()
            advance(1)


def hashes_in(folder: Path) -> KnownHashes:
    """The image hashes in the label tables of a version, sealed or in progress."""
    for file in sorted((*folder.glob("pseudo_labels/[!.]*.parquet"), *folder.glob("balanced/[!.]*.parquet"))):
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(_PIECE, columns=["id", "image_hash"]):
                rows = batch["id"].to_numpy()
                order = np.argsort(rows, kind="stable")
                yield rows[order], np.frombuffer(bytes.fromhex("".join(batch["image_hash"].to_pylist())), HASH)[order]
