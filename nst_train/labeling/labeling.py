"""A labeling under way: what is labeled here, shard by shard, and how the teacher's answers become rows."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from nst_data.errors import NstError
from nst_data.progress import Task
from nst_data.sources import Row, Source
from nst_data.store.store import Staging
from nst_data.tables.schema import top_k_of
from nst_data.tables.shards import NO_ANSWER, Shards, ShardWriter
from nst_train.classifiers.inference import Computation, Images, Prediction, has_answer, load_images, predict
from nst_train.classifiers.teachers import Teacher

RowNumbers = range | NDArray[np.int64]
Errors = list[dict[str, Any]]
OTHER_BYTES = "holds other bytes than the image that was selected"
_NOT_UNREAD = (OTHER_BYTES, NO_ANSWER)  # reasons that reading the image again changes nothing about
_TRIED = 64  # images without one finite answer after which the teacher is given up


class NoAnswerError(NstError):
    """The teacher has no finite answer to any image: nothing of this labeling is worth keeping."""


class Part(Protocol):
    """The rows of one shard: those that the teacher must see, and what is known of the others."""

    @property
    def to_label(self) -> RowNumbers:
        """Row numbers in the pool, increasing."""

    def complete(self, labels: pa.Table, errors: Errors, stop: int | None) -> tuple[pa.Table, Errors]:
        """The next rows of the table, from the teacher's next answers: up to and without pool row `stop`, or all that are left.

        `labels` has `id`, `key`, `image_hash`, `label`, `confidence`, the soft label and `phash`.
        """


PartMaker = Callable[[int, int, Callable[[], None]], Part]
"""From positions in the table, start and stop; calls its third argument while it works at length, as a sign of life."""


@dataclass(frozen=True)
class WholePart:
    """Every row is labeled."""

    to_label: range

    def complete(self, labels: pa.Table, errors: Errors, stop: int | None) -> tuple[pa.Table, Errors]:
        """As they come."""
        return labels, errors


@dataclass(frozen=True)
class Batch:
    """Rows of one shard that go through the teacher together; `stop` is the pool row before which the next batch does not begin."""

    shard: int
    part: Part
    rows: Sequence[Row]
    first: bool
    stop: int | None


@dataclass
class Labeling:
    """All that the making of a labeled table needs."""

    staging: Staging
    shards: Shards
    part: PartMaker
    pool: Source
    teacher: Teacher
    computation: Computation
    temperature: float
    schema: pa.Schema
    threads: int | None = None
    worker: tuple[int, int] = (0, 1)
    _writer: ShardWriter | None = field(default=None, init=False)
    _answered: int = field(default=0, init=False)  # images that the teacher saw in this run
    _any_label: bool = field(default=False, init=False)

    def run(self, task: Task, say: Callable[[str], None], since: float) -> None:
        """Label what is missing until nothing is: what this process takes, and what others leave. `since` is when this work began."""
        counted = dict.fromkeys(self._done(), 0)
        batches = predict(self.teacher, self.computation, self._batches(task, say, counted), self.temperature, threads=self.threads)
        writing, written = ThreadPoolExecutor(1), Future[None]()
        written.set_result(None)
        self.shards.stopped.clear()
        try:
            for batch, prediction in batches:
                written.result()
                written = writing.submit(self._write, batch, prediction)
                counted[batch.shard] = counted.get(batch.shard, 0) + len(batch.rows)
                task.advance(len(batch.rows))
                if batch.stop is None and self.worker[0] == 0:
                    since = self.staging.add_seconds(since)
            written.result()
        finally:
            self.shards.stopped.set()
            writing.shutdown()
            self._abandon()

    def retry_errors(self) -> int:
        """Read the images again that could not be read; the shards of those that now can be are made again. Gives how many there are."""
        healed = 0
        for shard in range(len(self.shards.plan)):
            errors = self.shards.note(shard)["errors"] if self.shards.is_done(shard) else []  # else another process makes it anew
            failed = np.array([error["id"] for error in errors if error["reason"] not in _NOT_UNREAD], dtype=np.int64)
            readable = sum(self._is_readable(row) for row in self.pool.rows(failed)) if len(failed) else 0
            if readable:
                self.shards.reopen(shard)
            healed += readable
        return healed

    def _is_readable(self, row: Row) -> bool:
        return bool(load_images([row], self.teacher.preprocessings, 1, hashes=False).readable)

    def _batches(self, task: Task, say: Callable[[str], None], counted: dict[int, int]) -> Iterator[Batch]:
        waited = False

        def on_wait(shards: int) -> None:
            nonlocal waited
            if not waited:
                say(f"{self.staging.ref}: other processes label the {shards} shard{'s' if shards > 1 else ''} left; waiting for them")
            waited = True

        for shard in self.shards.take(*self.worker, on_wait):
            part = self.part(*self.shards.plan.bounds(shard), partial(self.shards.show_life, shard))
            counted[shard] = self.shards.plan.size(shard) - len(part.to_label)
            task.advance(counted[shard])
            yield from self._batches_of(shard, part)
            self._count_what_others_did(task, counted)

    def _batches_of(self, shard: int, part: Part) -> Iterator[Batch]:
        """Batches begin anew with each shard. A shard without rows to label has one batch without rows."""
        size, wanted = self.computation.batch_size, part.to_label
        source = self.pool.rows(wanted)
        for first in range(0, max(1, len(wanted)), size):
            rows = [next(source) for _ in wanted[first : first + size]]
            stop = int(wanted[first + size]) if first + size < len(wanted) else None
            yield Batch(shard, part, rows, first == 0, stop)
            if stop is not None and self.shards.is_done(shard):  # by another process
                return

    def _count_what_others_did(self, task: Task, counted: dict[int, int]) -> None:
        missing = set(self.shards.missing())
        for shard in range(len(self.shards.plan)):
            if shard not in counted and shard not in missing:
                counted[shard] = self.shards.plan.size(shard)
                task.advance(counted[shard])

    def _write(self, batch: Batch, prediction: Prediction) -> None:
        """In a thread of its own, while the next batch is computed."""
        if batch.first:
            self._abandon()
            self._writer = ShardWriter(self.shards, batch.shard, self.schema)
        assert self._writer is not None, "a shard begins with its first batch"
        self.shards.show_life(batch.shard)
        self._writer.add(*batch.part.complete(*self._answers(batch, prediction), batch.stop))
        if batch.stop is None:
            self._writer.finish()
            self._writer = None

    def _answers(self, batch: Batch, prediction: Prediction) -> tuple[pa.Table, Errors]:
        images, log_probs = prediction.images, prediction.log_probs
        is_answered = has_answer(log_probs)
        reasons = images.reasons
        if not is_answered.all():
            images, log_probs = _of(images, is_answered.numpy()), log_probs[is_answered]
            reasons = sorted([*reasons, *((at, NO_ANSWER) for at in set(prediction.images.readable) - set(images.readable))])
        self._give_up_without_answers(len(is_answered), len(log_probs))
        rows = [batch.rows[position] for position in images.readable]
        columns = {
            "id": np.array([row.id for row in rows], np.int64),
            "key": pa.array([row.key for row in rows], pa.string()),
            "image_hash": pa.array(images.hashes, pa.string()),
            "phash": images.phashes,
            **soft_labels(log_probs, top_k_of(self.schema)),
        }
        errors = [{"id": batch.rows[at].id, "key": batch.rows[at].key, "reason": reason} for at, reason in reasons]
        return pa.table(columns), errors

    def _give_up_without_answers(self, seen: int, labeled: int) -> None:
        """Count what the teacher saw and labeled. Raises NoAnswerError where it had no finite answer to any of the first images."""
        self._answered += seen
        self._any_label = self._any_label or labeled > 0
        if self._answered >= _TRIED and not self._any_label:
            self._any_label = any(any(self.shards.note(shard)["per_class"]) for shard in self._done())
            if not self._any_label:
                raise self.no_answers(f"the first {self._answered}")

    def _done(self) -> set[int]:
        return set(range(len(self.shards.plan))) - set(self.shards.missing())

    def no_answers(self, images: str) -> "NoAnswerError":
        """What to say of a teacher that has no finite answer to any of these images."""
        at = f" at temperature {self.temperature:g}" if self.temperature != 1 else ""
        advice = "label with --precision fp32" if self.computation.precision != "fp32" else "use another teacher"
        return NoAnswerError(
            f"{self.staging.ref}: expected probabilities, but the teacher's output is not finite for any of {images} images{at}: "
            f"its weights are damaged, or it overflows in {self.computation.precision}; {advice}"
        )

    def _abandon(self) -> None:
        if self._writer:
            self._writer.abandon()
        self._writer = None


def _of(images: Images, which: NDArray[np.bool_]) -> Images:
    """Some of the readable images of a batch, shape (readable,)."""
    readable = [place for place, kept in zip(images.readable, which, strict=True) if kept]
    hashes = [one for one, kept in zip(images.hashes, which, strict=True) if kept]
    return replace(images, readable=readable, hashes=hashes, phashes=images.phashes[which])


def soft_labels(log_probs: Float[Tensor, "images classes"], top_k: int | None) -> dict[str, Any]:
    """Columns `label`, `confidence` and the soft label: `probs`, or the `top_k` largest as `top_labels` and `top_probs`.

    Label and confidence are those before rounding to float16.
    """
    probs = log_probs.float().exp()
    if top_k is None:
        confidence, label = probs.max(dim=1)
        return {"label": label.numpy(), "confidence": confidence.numpy(), "probs": _lists(probs.half(), probs.shape[1])}
    top_probs, top_labels = probs.topk(top_k, dim=1)
    return {
        "label": top_labels[:, 0].contiguous().numpy(),
        "confidence": top_probs[:, 0].contiguous().numpy(),
        "top_labels": _lists(top_labels.int(), top_k),
        "top_probs": _lists(top_probs.half(), top_k),
    }


def _lists(values: Tensor, length: int) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.numpy().ravel()), length)
