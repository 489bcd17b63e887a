"""A classifier shown labeled images, as they are or under conditions: read and decoded once for all of them."""

import importlib.metadata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor, nn

from nst_data.manifest import json_digest
from nst_data.progress import Progress, Task
from nst_data.sources import Source, match_classes
from nst_train.inference import PlainBatch, batches_of, choose_computation, predict
from nst_train.outcomes import OUTCOME, Keeping, Outcomes, outcomes_of
from nst_train.preprocessing import uncropped
from nst_train.settings import ReadSettings
from nst_train.teachers import Classifier, Teacher

_FORWARD_PASSES = 8_192  # of a chunk of work, the piece that a kill loses
_PACKAGES = ("nst", "torch", "torchvision", "timm", "transformers", "pillow", "numpy")


@dataclass(frozen=True)
class Candidate:
    """A classifier that is measured; `identity` is the digest of all that its predictions follow from, as in a lineage."""

    ref: str
    classifier: Classifier
    identity: str


@dataclass(frozen=True)
class Trial:
    """Labeled images that a classifier is shown, and the classes that compete for each.

    `labels` are places among `class_names`, shape (images,); `columns` are the classifier's outputs for those names, shape (classes,), None
    for all in order. The others' outputs are left out before the arg max.
    """

    name: str
    source: Source
    class_names: list[str]
    labels: NDArray[np.int64]
    columns: NDArray[np.int64] | None = None
    uncropped: bool = False

    @classmethod
    def of(cls, name: str, source: Source, classifier: Classifier) -> "Trial":
        """A labeled source whose classes are some of the classifier's, by name. Raises NstError for others."""
        assert source.labels is not None, "evaluation needs labels"
        columns = match_classes(source.class_names or [], classifier.class_names, source.location, subset=True)
        return cls(name, source, classifier.class_names, columns[source.labels])

    @property
    def identity(self) -> dict[str, Any]:
        """All of it that decides outcomes."""
        columns = None if self.columns is None else json_digest(self.columns.tolist())
        labels = json_digest(self.labels.tolist())
        return {"source": self.source.fingerprint, "labels": labels, "columns": columns, "uncropped": self.uncropped}


class Condition(Protocol):
    """A way of showing an image to a classifier."""

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides what is shown."""

    def changed(self, pixels: UInt8[Tensor, "batch 3 height width"], rows: Sequence[int]) -> UInt8[Tensor, "batch 3 height width"]:
        """Images of the classifier's size as they are shown, made on the CPU; `rows` are their places in the source."""

    def attacked(
        self, network: nn.Module, images: Float[Tensor, "batch 3 height width"], labels: Int[Tensor, " batch"], rows: Sequence[int]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Images in [0, 1] as they are shown, made on the device with the network on such images, whose logits are those that compete."""


def observe(
    candidate: Candidate,
    trial: Trial,
    conditions: Sequence[Condition] = (),
    kept: Path | None = None,
    run: ReadSettings | None = None,
    progress: Progress | None = None,
) -> Outcomes:
    """The outcomes of a trial in the source's order: shape (1, images) of the images as they are, or (conditions, images).

    What the folder `kept` holds of them is not made again.
    """
    classifier = candidate.classifier
    if trial.uncropped:
        classifier = replace(classifier, preprocessing=uncropped(classifier.preprocessing))
    observation = _Observation(classifier, trial, conditions, run or ReadSettings(), progress or Progress())
    computation = observation.computation
    identity = {
        "model": candidate.identity,
        **trial.identity,
        "conditions": [condition.identity for condition in conditions],
        "computation": asdict(computation),
        "packages": {package: importlib.metadata.version(package) for package in _PACKAGES},
    }
    passes = computation.batch_size * max(1, len(conditions))
    chunk = computation.batch_size * max(1, _FORWARD_PASSES // passes)
    keeping = Keeping(kept, identity)
    return keeping.collect(max(1, len(conditions)), len(trial.source), chunk, observation, observation.under_way)


class _Observation:
    """The work of a trial: the outcomes of a range of rows."""

    def __init__(
        self, classifier: Classifier, trial: Trial, conditions: Sequence[Condition], run: ReadSettings, progress: Progress
    ) -> None:
        self._trial, self._conditions, self._threads, self._progress = trial, conditions, run.decode_threads, progress
        self._teacher = Teacher.of(classifier)
        self.computation = choose_computation(self._teacher, None, "fp32", compile_network=False)
        self._task: Task | None = None

    @contextmanager
    def under_way(self, rows: int) -> Iterator[None]:
        """While so many rows are worked at."""
        with self._progress.task(self._trial.name, rows * max(1, len(self._conditions)), "images") as self._task:
            yield

    def __call__(self, rows: range) -> Outcomes:
        """Outcomes of these rows under each condition, shape (conditions, rows)."""
        found = np.zeros((max(1, len(self._conditions)), len(rows)), OUTCOME)
        for first, condition, outcomes in self._under_conditions(rows) if self._conditions else self._as_they_are(rows):
            start = first - rows.start
            found[condition, start : start + len(outcomes)] = outcomes
            assert self._task is not None, "entered under_way"
            self._task.advance(len(outcomes))
        return found

    def _as_they_are(self, rows: range) -> Iterator[tuple[int, int, Outcomes]]:
        batches = batches_of(self._trial.source, self.computation.batch_size, rows)
        for batch, prediction in predict(self._teacher, self.computation, batches, hashes=False, threads=self._threads):
            readable = prediction.images.readable
            log_probs = competing(prediction.log_probs, self._trial.columns)
            yield batch.rows[0].id, 0, outcomes_of(log_probs, self._labels(batch, readable), readable, len(batch.rows))

    def _under_conditions(self, rows: range) -> Iterator[tuple[int, int, Outcomes]]:
        raise NotImplementedError

    def _labels(self, batch: PlainBatch, readable: Sequence[int]) -> Int[Tensor, " readable"]:
        return torch.from_numpy(self._trial.labels[[batch.rows[position].id for position in readable]])


def competing(log_probs: Float[Tensor, "images outputs"], columns: NDArray[np.int64] | None) -> Float[Tensor, "images classes"]:
    """Log-probabilities of the classes that compete, as if there were no others: the columns are taken before any arg max."""
    return log_probs if columns is None else log_probs[:, torch.from_numpy(columns)].log_softmax(dim=1)
