"""A labeling in progress: the shards that this process labels, their batches, and when to give up on a teacher."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import numpy as np
import pyarrow as pa

from nst_data.errors import NstError
from nst_data.labeled_version import LabeledVersion
from nst_data.progress import Task
from nst_data.sources import Row
from nst_data.store.counts import Counts, LabelCounts
from nst_data.store.store import Staging
from nst_data.tables.pieces import ShardPieces
from nst_data.tables.schema import top_k_of
from nst_data.tables.shards import NO_PREDICTION, Shards, ShardWriter
from nst_train.classifiers.inference import Computation, Prediction, predict
from nst_train.classifiers.loading import load_images
from nst_train.classifiers.teachers import Teacher
from nst_train.labeling.answers import labels_and_errors
from nst_train.labeling.like import OTHER_BYTES
from nst_train.labeling.plan import Errors, Part, PartMaker, Plan

_PERMANENT_REASONS = (OTHER_BYTES, NO_PREDICTION)  # reasons that reading the image again would not change
_GIVE_UP_AFTER = 64  # images without a single finite answer after which to give up on the teacher


class NoAnswerError(NstError):
    """The teacher has no finite answer to any image, so nothing of this labeling is worth keeping."""

    @classmethod
    def for_version(cls, version: LabeledVersion, images: str, temperature: float) -> Self:
        """The error to raise if none of `images` has a finite answer at a temperature."""
        condition = f" at temperature {temperature:g}" if temperature != 1 else ""
        precision = version.machine["precision"]
        advice = "label with `precision` fp32" if precision != "fp32" else "use another teacher"
        return cls(
            f"{version.staging.ref}: expected probabilities, but the teacher's output is not finite for any of {images} images{condition}: "
            f"its weights are damaged, or it overflows in {precision}; {advice}"
        )


@dataclass(frozen=True)
class Batch:
    """Rows of one shard that pass through the teacher together; `stop` is the pool row at which the next batch starts, None for the last.

    The first batch of a resumed shard carries what is already there in `stored_batches`, with the `stop` of each batch.
    """

    shard: int
    part: Part
    rows: Sequence[Row]
    is_first: bool
    stop: int | None
    pieces: ShardPieces
    stored_batches: Sequence[tuple[pa.Table, Errors, int | None]] = ()


@dataclass
class Labeling:
    """Turns a teacher's predictions into the labels of a version. `teacher_counts` go into the manifest next to those of the table."""

    version: LabeledVersion
    plan: Plan
    create_part: PartMaker
    teacher: Teacher
    computation: Computation
    temperature: float
    schema: pa.Schema
    teacher_counts: dict[str, Any]
    threads: int | None = None
    worker: tuple[int, int] = (0, 1)
    _writer: ShardWriter | None = field(default=None, init=False)
    _pieces: ShardPieces | None = field(default=None, init=False)  # of the current shard
    _n_seen: int = field(default=0, init=False)  # readable images that the teacher saw in this run
    _has_label: bool = field(default=False, init=False)

    @property
    def staging(self) -> Staging:
        """The staging of the version."""
        return self.version.staging

    @property
    def shards(self) -> Shards:
        """The shards of its table."""
        return self.version.shards

    def fill(self, task: Task, since: float) -> None:
        """Label until no shard is missing, including shards that other processes abandon. `since` is when this work started."""
        counted = dict.fromkeys(self._done_shards(), 0)
        self.shards.stopped.clear()
        with closing(self._label_and_write(self._batches(task, counted))) as batches:
            for batch in batches:
                counted[batch.shard] = counted.get(batch.shard, 0) + len(batch.rows)
                task.advance(len(batch.rows))
                if batch.stop is None and self.worker[0] == 0:
                    since = self.staging.add_seconds(since)

    def fill_shard(self, shard: int) -> Iterator[int]:
        """Label one shard, even if others are working on it. Yields the number of rows done since the last yield."""
        self.shards.claim(shard)
        part, pieces = self._part_of_shard(shard), ShardPieces(self.shards.work, shard)
        stored_batches = self._stored_batches(part, pieces)
        yield self._n_done_rows(shard, part, stored_batches)
        with closing(self._label_and_write(self._shard_batches(shard, part, pieces, stored_batches))) as batches:
            for batch in batches:
                yield len(batch.rows)

    def counts(self, counts: LabelCounts) -> Counts:
        """The counts of the plan. Raises NoAnswerError if the teacher has no finite answer to any image."""
        if counts.no_answer and not counts.labeled:
            raise NoAnswerError.for_version(self.version, f"{counts.no_answer:,}", self.temperature)
        return self.plan.counts(self.staging.build, counts, self.teacher_counts)

    def read_again(self) -> None:
        """Retry the images that could not be read, and reopen the shards of those that can be read now."""
        n_recovered = 0
        for shard in range(len(self.shards.plan)):
            errors = self.shards.note(shard)["errors"] if self.shards.is_done(shard) else []  # otherwise another process is rewriting it
            failed = np.array([error["id"] for error in errors if error["reason"] not in _PERMANENT_REASONS], dtype=np.int64)
            readable = sum(self._is_readable(row) for row in self.plan.pool.rows(failed)) if len(failed) else 0
            if readable:
                self.shards.reopen(shard)
            n_recovered += readable
        if n_recovered:
            images = f"{n_recovered:,} previously unreadable image{'s are' if n_recovered > 1 else ' is'} readable now"
            self.version.progress.say(f"{self.staging.ref}: {images}; rewriting their shards")

    def _is_readable(self, row: Row) -> bool:
        return bool(load_images([row], self.teacher.preprocessings, 1, hashes=False).readable)

    def _batches(self, task: Task, counted: dict[int, int]) -> Iterator[Batch]:
        waited = False

        def on_wait(shards: int) -> None:
            nonlocal waited
            if not waited:
                remaining = f"{shards} shard{'s' if shards > 1 else ''} left"
                self.version.progress.say(f"{self.staging.ref}: waiting for other processes to label the {remaining}")
            waited = True

        for shard in self.shards.take(*self.worker, on_wait):
            part, pieces = self._part_of_shard(shard), ShardPieces(self.shards.work, shard)
            stored_batches = self._stored_batches(part, pieces)
            counted[shard] = self._n_done_rows(shard, part, stored_batches)
            task.advance(counted[shard])
            yield from self._shard_batches(shard, part, pieces, stored_batches)
            self._count_shards_of_others(task, counted)
        self._count_shards_of_others(task, counted)

    def _part_of_shard(self, shard: int) -> Part:
        return self.create_part(*self.shards.plan.bounds(shard), partial(self.shards.refresh_claim, shard))

    def _stored_batches(self, part: Part, pieces: ShardPieces) -> list[tuple[pa.Table, Errors]]:
        """The stored batches of a partially labeled shard, except its last batch, which is always computed."""
        last_batch = (max(1, len(part.to_label)) - 1) // self.computation.batch_size
        return pieces.load_batches()[:last_batch]

    def _n_done_rows(self, shard: int, part: Part, stored: Sequence[tuple[pa.Table, Errors]]) -> int:
        """How many rows of a shard are done or known before labeling resumes."""
        return self.shards.plan.size(shard) - len(part.to_label) + len(stored) * self.computation.batch_size

    def _shard_batches(self, shard: int, part: Part, pieces: ShardPieces, stored: Sequence[tuple[pa.Table, Errors]]) -> Iterator[Batch]:
        """Batches start over with each shard. A shard without rows to label has one empty batch."""
        size, to_label = self.computation.batch_size, part.to_label
        start = len(stored) * size
        stored_batches = [(*batch, int(to_label[(index + 1) * size])) for index, batch in enumerate(stored)]
        source = self.plan.pool.rows(to_label[start:])
        for offset in range(start, max(1, len(to_label)), size):
            rows = [next(source) for _ in to_label[offset : offset + size]]
            stop = int(to_label[offset + size]) if offset + size < len(to_label) else None
            yield Batch(shard, part, rows, offset == start, stop, pieces, stored_batches if offset == start else ())
            if stop is not None and self.shards.is_done(shard):  # done by another process
                return

    def _count_shards_of_others(self, task: Task, counted: dict[int, int]) -> None:
        for shard in self._done_shards().difference(counted):
            counted[shard] = self.shards.plan.size(shard)
            task.advance(counted[shard])

    def _label_and_write(self, batches: Iterable[Batch]) -> Generator[Batch, None, None]:
        """Label batches and yield them. Writing happens in a thread; all are written at the end."""
        labeled = predict(self.teacher, self.computation, batches, self.temperature, threads=self.threads)
        writing, pending = ThreadPoolExecutor(1), Future[None]()
        pending.set_result(None)
        try:
            for batch, prediction in labeled:
                pending.result()
                pending = writing.submit(self._write, batch, prediction)
                yield batch
            pending.result()
        finally:
            self.shards.stopped.set()
            labeled.close()
            writing.shutdown()
            if self._pieces is not None:
                with suppress(OSError):  # a full disk, for example; the error that stopped the work is reported
                    self._pieces.write()
            self._abandon()

    def _write(self, batch: Batch, prediction: Prediction) -> None:
        """Runs in a separate thread while the next batch is computed."""
        if batch.is_first:
            self._abandon()
            self._writer = ShardWriter(self.shards, batch.shard, self.schema)
            for stored in batch.stored_batches:
                self._writer.add(*batch.part.complete(*stored))
                self._has_label = self._has_label or stored[0].num_rows > 0
        assert self._writer is not None, "a shard begins with its first batch"
        self.shards.refresh_claim(batch.shard)
        rows, errors = labels_and_errors(batch.rows, prediction, top_k_of(self.schema))
        self._give_up_without_labels(len(prediction.images.readable), rows.num_rows)
        self._writer.add(*batch.part.complete(rows, errors, batch.stop))
        if batch.stop is None:
            self._writer.finish()
            self._writer = None
            self._pieces = None
            batch.pieces.discard()
        else:
            self._pieces = batch.pieces
            batch.pieces.add(rows, errors)

    def _give_up_without_labels(self, n_seen: int, n_labeled: int) -> None:
        """Count the images that the teacher saw and labeled. Raises NoAnswerError if none of the first images has a finite answer."""
        self._n_seen += n_seen
        self._has_label = self._has_label or n_labeled > 0
        if self._n_seen >= _GIVE_UP_AFTER and not self._has_label:
            done_shards = set(range(len(self.shards.plan))).difference(self.shards.missing())
            self._has_label = any(any(self.shards.note(shard)["per_class"]) for shard in done_shards)
            if not self._has_label:
                raise NoAnswerError.for_version(self.version, f"the first {self._n_seen}", self.temperature)

    def _done_shards(self) -> set[int]:
        return set(range(len(self.shards.plan))) - self.shards.recently_missing()

    def _abandon(self) -> None:
        if self._writer:
            self._writer.abandon()
        self._writer = None
