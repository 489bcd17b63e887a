"""The finished part of an unfinished shard: its batches so far, saved every few seconds for whoever resumes it."""

import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from nst_data.store.files import atomic_write, discard

Batch = tuple[pa.Table, list[dict[str, Any]]]
"""The rows of a batch, and its images without a row, with the reasons."""

SAVE_EVERY_SECONDS = 10.0
_BATCHES = b"batches"  # in the metadata of a piece


class ShardPieces:
    """The batches of one shard, saved in pieces: files with some of them each. Pieces of several processes may hold equal batches."""

    def __init__(self, work: Path, shard: int) -> None:
        self._folder = work / "pieces" / f"{shard:05d}"
        self._first, self._waiting = 0, list[Batch]()
        self._since = time.monotonic()

    def load_batches(self) -> list[Batch]:
        """All batches from the first on that the pieces hold without a gap; `add` continues after them."""
        batches: list[Batch] = []
        while piece := max(self._folder.glob(f"{len(batches):08d}-*.arrow"), default=None):  # the longest that continues from here
            piece_batches = _read_piece(piece)
            if not piece_batches:
                piece.unlink(missing_ok=True)
                continue
            batches += piece_batches
        self._first = len(batches)
        return batches

    def add(self, rows: pa.Table, errors: list[dict[str, Any]]) -> None:
        """Add the next batch. It is written together with others once enough time has passed."""
        self._waiting.append((rows, errors))
        if time.monotonic() - self._since >= SAVE_EVERY_SECONDS:
            self.write()

    def write(self) -> None:
        """Write the waiting batches."""
        if self._waiting:
            stop = self._first + len(self._waiting)
            table = pa.concat_tables(rows for rows, _ in self._waiting)
            batches = json.dumps([[rows.num_rows, errors] for rows, errors in self._waiting])
            self._folder.mkdir(parents=True, exist_ok=True)
            with (
                atomic_write(self._folder / f"{self._first:08d}-{stop:08d}.arrow") as file,
                pa.ipc.new_file(file, table.schema.with_metadata({_BATCHES: batches})) as writer,
            ):
                writer.write_table(table.replace_schema_metadata({_BATCHES: batches}))
            self._first, self._waiting = stop, []
        self._since = time.monotonic()

    def discard(self) -> None:
        """Delete the pieces: the shard is done."""
        discard(self._folder)


def _read_piece(piece: Path) -> list[Batch]:
    """The batches of a piece; empty if it is damaged, or another process has just deleted it."""
    try:
        table = pa.ipc.open_file(pa.py_buffer(piece.read_bytes())).read_all()
        table.validate(full=True)
        batches, start = list[Batch](), 0
        for rows, errors in json.loads((table.schema.metadata or {})[_BATCHES]):
            batches.append((table.slice(start, rows).replace_schema_metadata(), errors))
            start += rows
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return []
    return batches if start == table.num_rows else []
