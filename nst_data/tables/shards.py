"""The table `pseudo_labels`: its shard plan, which process takes which shard, writing a shard whole or not at all, reading it back."""

import contextlib
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nst_data.errors import NstError
from nst_data.store.counts import LabelCounts
from nst_data.store.files import PID_NAMESPACE, HashedWriter, atomic_write, write_text
from nst_data.store.manifest import SealedFile
from nst_data.store.remote_run import RemoteRun
from nst_data.store.staging import NotReadyError
from nst_data.tables.missing_shards import MissingShards, Route, note_name
from nst_data.tables.schema import errors_schema, soft_label_bytes

NO_PREDICTION = "the teacher gives no finite answer"  # the `reason` of such an image in the table `errors`
ROW_GROUP_ROWS = 10_000
STALLED_SECONDS = 30.0
_ROW_GROUP_BYTES = 2**25
_POLL_SECONDS = 0.5
_CLAIM_REFRESH_SECONDS = 3.0


@dataclass(frozen=True)
class ShardPlan:
    """How the rows of a table are divided into shards. A shard's rows depend on nothing else."""

    rows: int
    rows_per_shard: int
    table: str = "pseudo_labels"

    def __len__(self) -> int:
        return -(-self.rows // self.rows_per_shard)

    def bounds(self, shard: int) -> tuple[int, int]:
        """The first row of a shard, and the row after its last."""
        start = shard * self.rows_per_shard
        return start, min(start + self.rows_per_shard, self.rows)

    def size(self, shard: int) -> int:
        """The number of rows in a shard."""
        start, stop = self.bounds(shard)
        return stop - start

    def file(self, shard: int) -> str:
        """The shard's path in the version."""
        return f"{self.table}/train-{shard:05d}-of-{len(self):05d}.parquet"


_LifeSign = tuple[int, str]
"""The time of a claim and its content: a change shows even on file systems with coarse times, or none."""


class Shards:
    """The shards of a version in progress: which are done, and which this process takes next.

    Processes share them without a lock: a shard's bytes do not depend on who writes it, so a claim is a hint, not a right. Shards that
    nobody is working on are taken first. If others are working on all that are left, a shard is taken over once its process shows no sign
    of life.
    """

    def __init__(self, build: Path, work: Path, plan: ShardPlan, remote: RemoteRun | None = None) -> None:
        self.build, self.work, self.plan, self._remote = build, work, plan, remote
        self.stopped = threading.Event()  # ends a wait for others
        self._refreshed_at = 0.0
        self._missing = MissingShards(len(plan), self._notes, remote)
        self._own: set[int] = set()  # shards whose notes this process wrote
        self._held: set[int] = set()  # shards that this process still claims
        for folder in (self._notes, self._claims, self.temp_folder, build / plan.table):
            folder.mkdir(exist_ok=True)

    @property
    def _notes(self) -> Path:
        return self.work / "shards"

    @property
    def _claims(self) -> Path:
        return self.work / "claims"

    @property
    def temp_folder(self) -> Path:
        """The folder in which shards are written before they are moved to their place."""
        return self.work / "parts"

    def is_done(self, shard: int) -> bool:
        """Whether a shard is written."""
        return self._note_path(shard).exists()

    def missing(self) -> list[int]:
        """The shards that are not done yet. Checks all of them; see `recently_missing`."""
        return sorted(self._missing.refresh())

    def recently_missing(self) -> set[int]:
        """The shards that were not done yet a few seconds ago, for uses that need not be exact."""
        return self._missing.recent()

    def take(self, worker: int = 0, n_workers: int = 1, on_wait: Callable[[int], None] = lambda _: None) -> Iterator[int]:
        """Yield shards to work on until none is missing. Worker i of n starts i/n of the way through, so that each reads a contiguous part.

        `on_wait` is called with the number of shards left when others are working on all of them.
        """
        route, tried, unsettled = self._route(worker, n_workers), set[int](), set[int]()
        signs: dict[int, tuple[_LifeSign, float]] = {}  # for each claimed shard, the sign of life last seen, and when
        while remaining := self._missing.recent() - tried or self._missing.refresh() - tried:
            if self._has_overlapped(unsettled):
                route.record_overlap()
            shard = self._next_shard(route.order(remaining), signs)
            if shard is not None:
                route.record_taken(shard)
                tried.add(shard)
                unsettled.add(shard)
                self.claim(shard)
                yield shard
            elif missing := list(filter(self._missing.is_missing, self._missing.recent() - tried)):
                on_wait(len(missing))
                if self.stopped.wait(_POLL_SECONDS):
                    return

    def _route(self, worker: int, n_workers: int) -> Route:
        """The order of the shards. Claims are visible on one machine only, so each of several machines starts in a place of its own."""
        shards = len(self.plan)
        if self._remote is None:
            return Route(shards, shards * worker // n_workers)
        chance = random.Random(f"{self.work}.{PID_NAMESPACE}.{os.getpid()}")
        return Route(shards, chance.randrange(max(1, shards)) if n_workers == 1 else shards * worker // n_workers, chance)

    def _has_overlapped(self, unfinished: set[int]) -> bool:
        """Whether another process finished a shard that this one took; finished shards are removed from `unfinished`."""
        finished = {shard for shard in unfinished if self.is_done(shard)}
        unfinished -= finished
        return not finished <= self._own

    def _next_shard(self, order: Iterable[int], signs: dict[int, tuple[_LifeSign, float]]) -> int | None:
        """The first shard that nobody is working on, or else the first whose process shows no sign of life."""
        claimed, stalled = self._other_claims(), list[int]()
        for shard in order:
            if shard in claimed:
                if self._has_stalled(shard, claimed[shard], signs):
                    stalled.append(shard)
            elif self._missing.is_missing(shard):
                return shard
        return next(filter(self._missing.is_missing, stalled), None)

    def claim(self, shard: int) -> None:
        """Tell the others that this process is working on a shard from now on. Its claims to finished shards are removed."""
        self._claim_path(shard).write_text("0")
        for finished in list(filter(self.is_done, self._held)):
            self._claim_path(finished).unlink(missing_ok=True)
            self._held.remove(finished)
        self._held.add(shard)

    def refresh_claim(self, shard: int) -> None:
        """Tell the others that this process is still working on a shard."""
        now = time.monotonic()
        if now - self._refreshed_at < _CLAIM_REFRESH_SECONDS:
            return
        self._refreshed_at = now
        with contextlib.suppress(OSError), self._claim_path(shard).open("r+") as file:  # a hint; not created again if sealed meanwhile
            file.write(str(time.time_ns()))

    def _other_claims(self) -> dict[int, _LifeSign]:
        return _read_claims(self._claims)

    def _has_stalled(self, shard: int, life_sign: _LifeSign, signs: dict[int, tuple[_LifeSign, float]]) -> bool:
        sign, seen_at = signs.get(shard, (None, 0.0))  # by this machine's clock only
        if sign != life_sign:
            signs[shard] = life_sign, time.monotonic()
            return False
        return time.monotonic() - seen_at > STALLED_SECONDS

    def _claim_path(self, shard: int) -> Path:
        return self._claims / f"{shard:05d}.{PID_NAMESPACE}.{os.getpid()}"

    def reopen(self, shard: int) -> None:
        """Have a shard made again, with the same bytes except for images that can be read by now."""
        if self._remote is not None:
            self._remote.reopen_shard(note_name(shard))
        self._note_path(shard).unlink(missing_ok=True)
        self._missing.add(shard)

    def note(self, shard: int) -> dict[str, Any]:
        """What is recorded about a finished shard."""
        content: dict[str, Any] = json.loads(self._note_path(shard).read_text("utf-8"))
        return content

    def unread_images(self) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Yield each finished shard with the errors of its images that could not be read."""
        for shard in range(len(self.plan)):
            with contextlib.suppress(FileNotFoundError):  # another process is making it again
                yield shard, [error for error in self.note(shard)["errors"] if error["reason"] != NO_PREDICTION]

    def describe_first_unread(self) -> str:
        """The first image that could not be read and why, for a message; empty if all could."""
        return next((f"{errors[0]['key']!r}: {errors[0]['reason']}" for _, errors in self.unread_images() if errors), "")

    def write_note(self, shard: int, sealed: SealedFile, per_class: NDArray[np.int64], errors: list[dict[str, Any]]) -> None:
        """Mark a shard as done. If the process is killed before this, the shard is made again."""
        note = json.dumps({"sealed": sealed.model_dump(), "per_class": per_class.tolist(), "errors": errors})
        first_note = None
        if self._remote is not None:
            first_note = self._remote.upload_shard(self.plan.file(shard), note_name(shard), note.encode())
        if first_note is None:
            self._own.add(shard)
        write_text(self._note_path(shard), note if first_note is None else first_note.decode())
        self._missing.remove(shard)

    def finish(self, class_names: Sequence[str]) -> tuple[dict[str, SealedFile], LabelCounts]:
        """Write the `errors` table; return the sealed files and the counts of the whole table."""
        name, schema = ShardPlan(1, 1, "errors").file(0), errors_schema()
        files, per_class, no_answer, errors = {}, np.zeros(len(class_names), np.int64), 0, [schema.empty_table()]
        for shard in range(len(self.plan)):  # one at a time: each note counts all classes
            note = self.note(shard)
            files[self.plan.file(shard)] = SealedFile(**note["sealed"])
            per_class += np.array(note["per_class"], np.int64)
            no_answer += sum(error["reason"] == NO_PREDICTION for error in note["errors"])
            errors += [pa.Table.from_pylist(note["errors"], schema=schema)] if note["errors"] else []
        table = pa.concat_tables(errors).combine_chunks()
        files[name] = write_parquet(self.build / name, [table], schema, self.temp_folder)
        counts = LabelCounts(
            pool=self.plan.rows,
            labeled=int(per_class.sum()),
            errors=table.num_rows,
            no_answer=no_answer,
            per_class=dict(zip(class_names, per_class.tolist(), strict=True)),
        )
        return files, counts

    def check_unchanged(self, files: Mapping[str, SealedFile]) -> None:
        """Raise NotReadyError unless every shard is still the one that `finish` found, in this folder and at the address."""
        if self._remote is not None:
            self._remote.download_notes()
        with contextlib.suppress(FileNotFoundError):
            if all(SealedFile(**self.note(shard)["sealed"]) == files[self.plan.file(shard)] for shard in range(len(self.plan))):
                return
        raise NotReadyError

    def _note_path(self, shard: int) -> Path:
        return self._notes / note_name(shard)


class ShardWriter:
    """Writes one shard. Rows leave memory one row group at a time; the file appears once all are written."""

    def __init__(self, shards: Shards, shard: int, schema: pa.Schema) -> None:
        self._shards, self._shard, self._schema = shards, shard, schema
        self._waiting: list[pa.Table] = []
        self._rows = 0
        self._rows_per_group = min(ROW_GROUP_ROWS, max(1, _ROW_GROUP_BYTES // soft_label_bytes(schema)))
        self._per_class = np.zeros(len(_class_names(schema)), np.int64)
        self._errors: list[dict[str, Any]] = []
        self._open = ExitStack()
        self._file: HashedWriter | None = None
        self._parquet: pq.ParquetWriter | None = None

    def add(self, rows: pa.Table, errors: Sequence[dict[str, Any]] = ()) -> None:
        """Add the next rows, and the images among them that could not be read."""
        self._errors += errors
        self._waiting.append(rows.select(self._schema.names).cast(self._schema))
        self._rows += rows.num_rows
        while self._rows >= self._rows_per_group:
            self._write(self._rows_per_group)

    def finish(self) -> None:
        """Write the remaining rows, move the shard to its place and mark it as done."""
        self._write(self._rows)
        self._open.close()
        assert self._file is not None, "written just now"
        self._shards.write_note(self._shard, self._file.sealed, self._per_class, self._errors)

    def abandon(self) -> None:
        """Leave nothing behind: another process finished this shard first."""
        self._open.__exit__(_AbandonedError, _AbandonedError(), None)

    def _write(self, n_rows: int) -> None:
        if self._parquet is None:
            path = self._shards.build / self._shards.plan.file(self._shard)
            self._file = self._open.enter_context(atomic_write(path, self._shards.temp_folder))
            self._parquet = self._open.enter_context(parquet_writer(self._file, self._schema))
        table = pa.concat_tables(self._waiting) if self._waiting else self._schema.empty_table()
        self._per_class += np.bincount(table["label"].slice(0, n_rows).to_numpy(), minlength=len(self._per_class))
        self._parquet.write_table(table.slice(0, n_rows), row_group_size=max(1, n_rows))
        self._waiting = [table.slice(n_rows)]
        self._rows -= n_rows


class _AbandonedError(Exception):
    """Makes `atomic_write` drop its file."""


def wait_for_claims(work: Path, subject: str, report: Callable[[str], None]) -> None:
    """Raise NstError if a process is working on shards in `work`.

    A process of this machine that left a claim is, as long as it is alive. Claims of other machines that do not change for a while belong
    to dead processes.
    """
    claims = work / "claims"
    if (process := _live_owner_pid(claims)) is not None:
        raise NstError(f"{subject}: process {process} of this machine is computing it; stop it first, then rerun. Nothing was changed")
    signs, started = _read_claims(claims), time.monotonic()
    if signs:
        report(f"{subject}: a process left its sign here; watching up to {STALLED_SECONDS:.0f} s whether it still works")
    while signs and time.monotonic() - started <= STALLED_SECONDS:
        if _read_claims(claims) != signs:
            raise NstError(f"{subject}: a process is computing it; wait for it or stop it, then rerun. Nothing was changed")
        time.sleep(min(_POLL_SECONDS, STALLED_SECONDS))


def _live_owner_pid(claims: Path) -> int | None:
    """The id of another living process of this machine that wrote a claim, but not of a later process with the same id."""
    for path in claims.glob("[!.]*"):
        node, _, process = path.name.split(".", 1)[1].rpartition(".")
        if node != PID_NAMESPACE or int(process) == os.getpid():
            continue
        with contextlib.suppress(FileNotFoundError, psutil.NoSuchProcess):
            owner = psutil.Process(int(process))
            if owner.status() != psutil.STATUS_ZOMBIE and owner.create_time() <= path.stat().st_mtime:
                return owner.pid
    return None


def _read_claims(claims: Path) -> dict[int, _LifeSign]:
    """The newest sign of life of each claimed shard, to compare with the next one; claims of known dead processes are left out."""
    newest: dict[int, _LifeSign] = {}
    for path in claims.glob("[!.]*"):
        shard, owner = path.name.split(".", 1)
        node, _, process = owner.rpartition(".")
        if node == PID_NAMESPACE and (int(process) == os.getpid() or not psutil.pid_exists(int(process))):
            continue
        with contextlib.suppress(FileNotFoundError):
            newest[int(shard)] = max(newest.get(int(shard), (0, "")), (path.stat().st_mtime_ns, path.read_text("utf-8")))
    return newest


def _class_names(schema: pa.Schema) -> list[str]:
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    names: list[str] = features["label"]["names"]
    return names


def parquet_writer(file: HashedWriter | Path, schema: pa.Schema) -> pq.ParquetWriter:
    """The writer of every table: page index, content-defined chunks (so that the Hub stores equal parts once).

    Encoded images are not compressed: they would not get smaller, and each can be read by itself. Only columns with repeated values are
    dictionary-encoded: a column of distinct values would be read at half the speed. Row numbers are delta-encoded.
    """
    columns = _parquet_columns(schema)
    return pq.ParquetWriter(
        file,
        schema,
        compression={name: "none" if name == "image.bytes" else "zstd" for name in columns},
        use_dictionary=[name for name in columns if name.partition(".")[0] in _DICTIONARY_COLUMNS],
        column_encoding={name: "DELTA_BINARY_PACKED" for name in columns if name == "id"},
        write_page_index=True,
        use_content_defined_chunking=True,
        store_schema=True,
    )


_MAX_OPEN_FILES = 32  # of a table; some systems allow a process only 256 in total
_DICTIONARY_COLUMNS = ("label", "top_labels", "duplicates", "copies", "reason")


def _parquet_columns(schema: pa.Schema) -> list[str]:
    """The names that parquet gives the columns of a table, including those inside lists and structs."""
    buffer = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), buffer)
    parquet_schema = pq.ParquetFile(buffer.getvalue()).schema
    return [parquet_schema.column(index).path for index in range(len(parquet_schema))]


def write_parquet(path: Path, tables: Iterable[pa.Table], schema: pa.Schema, temp_folder: Path | None = None) -> SealedFile:
    """Write tables as one parquet file, whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path, temp_folder) as file, parquet_writer(file, schema) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
    return file.sealed


def table_files(folder: Path, table: str) -> list[Path]:
    """The parquet files of a table, in order, without hidden ones. Raises NstError if there are none.

    macOS puts `._NAME` next to each file on foreign disks, and archives made on it carry these files elsewhere.
    """
    files = sorted((folder / table).glob("[!.]*.parquet"), key=lambda file: (len(file.name), file.name))  # shard 100,000 after 99,999
    if not files:
        raise NstError(f"{folder}: expected parquet files in {table}/, found none")
    return files


class TableReader:
    """Reads rows of a sealed table by position, row group by row group. Only a few of its files are open at a time."""

    def __init__(self, folder: Path, table: str) -> None:
        self._files = table_files(folder, table)
        footers = [pq.read_metadata(file) for file in self._files]
        self._groups = [(file, group) for file, footer in zip(self._files, footers, strict=True) for group in range(footer.num_row_groups)]
        rows = [footer.row_group(group).num_rows for footer in footers for group in range(footer.num_row_groups)]
        self._starts = np.cumsum([0, *rows])
        self._open_files: dict[Path, pq.ParquetFile] = {}  # the most recently read file is last
        self.schema: pa.Schema = footers[0].schema.to_arrow_schema()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield all rows in order, in batches."""
        for path in self._files:
            with _open_unbuffered(path) as file:
                yield from file.iter_batches(columns=list(columns))

    def take(self, rows: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """The rows at these increasing positions."""
        tables = [self.schema.empty_table().select(list(columns))]
        for group in np.unique(np.searchsorted(self._starts, rows, side="right") - 1):
            path, number = self._groups[group]
            positions = rows[(rows >= self._starts[group]) & (rows < self._starts[group + 1])] - self._starts[group]
            tables.append(self._open_cached(path).read_row_group(number, columns=list(columns)).take(positions))
        return pa.concat_tables(tables)

    def _open_cached(self, path: Path) -> pq.ParquetFile:
        file = self._open_files.pop(path, None) or _open_unbuffered(path)
        self._open_files[path] = file
        if len(self._open_files) > _MAX_OPEN_FILES:
            self._open_files.pop(next(iter(self._open_files))).close()
        return file


def _open_unbuffered(path: Path) -> pq.ParquetFile:
    """Open a file unbuffered; otherwise it keeps in memory whatever was read of it, in the end the whole table."""
    return pq.ParquetFile(path, pre_buffer=False)
