"""Running a classifier on labeled images, clean or under conditions; images are read and decoded once for all conditions."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from nst_data.errors import NstError
from nst_data.prefetch import cpus_of_this_process, map_batches_in_threads
from nst_data.progress import Progress, Task
from nst_data.sources import Row, Source, labels_in, match_classes
from nst_data.store.manifest import json_digest, package_version
from nst_train.classifiers.classifier import Classifier
from nst_train.classifiers.inference import PlainBatch, choose_computation, move_to_device, predict
from nst_train.classifiers.loading import load_images
from nst_train.classifiers.teachers import Teacher
from nst_train.device import broadcast_text, set_threads, this_device
from nst_train.evaluation.attacks import PixelClassifier, infer_normalization
from nst_train.evaluation.conditions import Condition
from nst_train.evaluation.outcomes import OUTCOME, OutcomeCache, Outcomes, compute_outcomes
from nst_train.settings import ReadSettings
from nst_train.transforms.preprocessing import Preprocessing, TimmPreprocessing

_FORWARD_PASSES = 8_192  # per chunk of work, the most that is lost when killed
_PACKAGES = (
    *("nst", "torch", "torchvision", "timm", "transformers", "pillow", "simplejpeg", "numpy", "opencv-python-headless"),
    *("xxhash", "av"),
)


@dataclass(frozen=True)
class Candidate:
    """A classifier to measure; `identity` is the digest of everything that its predictions depend on, as in a lineage."""

    ref: str
    classifier: Classifier
    identity: str


@dataclass(frozen=True)
class Trial:
    """Labeled images to run a classifier on, and the classes that compete for each.

    `labels` are indices into `class_names`, shape (images,); `columns` are the classifier's outputs for those names, shape (classes,), or
    None for all outputs in order. Other outputs are dropped before the arg max.
    """

    name: str
    source: Source
    class_names: list[str]
    labels: NDArray[np.int64]
    columns: NDArray[np.int64] | None = None
    uncropped: bool = False

    @classmethod
    def from_source(cls, name: str, source: Source, classifier: Classifier) -> "Trial":
        """The trial on a labeled source whose classes are matched with the classifier's by name. Raises NstError for unknown classes."""
        labels = labels_in(source)
        columns = match_classes(source.class_names or [], classifier.class_names, source.location, subset=True)
        return cls(name, source, classifier.class_names, columns[labels])

    @property
    def identity(self) -> dict[str, Any]:
        """Everything in the trial that outcomes depend on."""
        columns = None if self.columns is None else json_digest(self.columns.tolist())
        labels = json_digest(self.labels.tolist())
        return {"source": self.source.fingerprint, "labels": labels, "columns": columns, "uncropped": self.uncropped}


def observe(
    candidate: Candidate,
    trial: Trial,
    conditions: Sequence[Condition] = (),
    cache_folder: Path | None = None,
    run: ReadSettings | None = None,
    progress: Progress | None = None,
) -> Outcomes:
    """The outcomes of a trial in the source's order: shape (conditions, images), or (1, images) for clean images without conditions.

    Outcomes that are cached in the folder `cache_folder` are not computed again.
    """
    classifier = candidate.classifier
    if trial.uncropped:
        classifier = replace(classifier, preprocessing=_without_crop(classifier.preprocessing))
    observation = _Observation(classifier, trial, conditions, run or ReadSettings(), progress or Progress())
    computation = observation.computation
    identity = {
        "model": candidate.identity,
        **trial.identity,
        "conditions": [condition.identity for condition in conditions],
        "computation": asdict(computation),
        "packages": {package: package_version(package) for package in _PACKAGES},
    }
    if cache_folder is not None:
        identity["stamp"] = broadcast_text(trial.source.stamp)
    passes = computation.batch_size * max(1, len(conditions))
    chunk = computation.batch_size * max(1, _FORWARD_PASSES // passes)
    cache = OutcomeCache(cache_folder, identity)
    return cache.collect(max(1, len(conditions)), len(trial.source), chunk, observation, observation.show_progress)


class _Observation:
    """Computes the outcomes of a trial for ranges of rows."""

    def __init__(
        self, classifier: Classifier, trial: Trial, conditions: Sequence[Condition], run: ReadSettings, progress: Progress
    ) -> None:
        self._trial, self._conditions, self._threads, self._progress = trial, conditions, run.decode_threads, progress
        self._teacher = Teacher.from_members(classifier)
        attacks = any(condition.needs_gradients for condition in conditions)
        self.computation = choose_computation(self._teacher, None, "fp32", compile_network=False, backward=attacks)
        self._task: Task | None = None
        self._rows: Iterator[Row] = iter(())
        self._next_row = -1  # the next row of `_rows`
        if conditions:
            smallest = 2 ** (len(trial.source) - 1).bit_length()  # with few images, larger batches would be mostly padding
            self.computation = replace(self.computation, batch_size=min(self.computation.batch_size, smallest))
            device = this_device() if self.computation.device != "cpu" else torch.device("cpu")
            self._network = PixelClassifier.wrap(move_to_device(classifier.network, device), classifier.preprocessing)

    @contextmanager
    def show_progress(self, rows: int) -> Iterator[None]:
        """Context in which this number of rows is computed, which shows progress."""
        with self._progress.task(self._trial.name, rows * max(1, len(self._conditions)), "images") as self._task:
            yield
        self._rows, self._next_row = iter(()), -1

    def __call__(self, rows: range) -> Outcomes:
        """Outcomes of these rows under each condition, shape (conditions, rows)."""
        result = np.zeros((max(1, len(self._conditions)), len(rows)), OUTCOME)
        for first, condition, outcomes in self._outcomes_by_condition(rows) if self._conditions else self._clean_outcomes(rows):
            start = first - rows.start
            result[condition, start : start + len(outcomes)] = outcomes
            assert self._task is not None, "entered under_way"
            self._task.advance(len(outcomes))
        return result

    def _batches(self, rows: range) -> Iterator[PlainBatch]:
        """Yield batches of rows. Consecutive ranges share one pass over the source, so that each parquet row group is decoded once."""
        if rows.start != self._next_row:
            self._rows = self._trial.source.rows(range(rows.start, len(self._trial.source)))
        self._next_row = rows.stop
        chunk = islice(self._rows, len(rows))
        while batch := list(islice(chunk, self.computation.batch_size)):
            yield PlainBatch(batch)

    def _clean_outcomes(self, rows: range) -> Iterator[tuple[int, int, Outcomes]]:
        for batch, prediction in predict(self._teacher, self.computation, self._batches(rows), hashes=False, threads=self._threads):
            readable = prediction.images.readable
            log_probs = renormalize(prediction.log_probs, self._trial.columns)
            yield batch.rows[0].id, 0, compute_outcomes(log_probs, self._labels(batch, readable), readable, len(batch.rows))

    def _outcomes_by_condition(self, rows: range) -> Iterator[tuple[int, int, Outcomes]]:
        """Outcomes under each condition: each batch is read and decoded once, and each condition of it is one task for a thread.

        On a CPU, threads do everything; with a GPU, threads corrupt, and the device attacks and classifies.
        """
        set_threads(self.computation.threads)
        threads = self._threads or cpus_of_this_process()
        loaded = map_batches_in_threads(
            self._load, self._batches(rows), max(1, threads // 8)
        )  # decoding takes little time compared with what follows
        views = (_ConditionView(images, condition) for _, images in loaded for condition in range(len(self._conditions)))
        if self.computation.device == "cpu":
            yield from (
                outcomes
                for _, outcomes in map_batches_in_threads(lambda view: self._classify(view, self._apply_condition(view)), views, threads)
            )
        else:
            yield from (self._classify(view, shown) for view, shown in map_batches_in_threads(self._apply_condition, views, threads))

    def _load(self, batch: PlainBatch) -> "_LoadedBatch":
        loaded = load_images(batch.rows, self._teacher.preprocessings, self.computation.batch_size, hashes=False)
        rows = [row.id for row in batch.rows]
        if not loaded.readable:
            return _LoadedBatch(rows, [], np.empty(0, dtype=np.uint8))
        images = self._network.denormalize(self._teacher.preprocessings[0].finish(loaded.pixels[0]).to(self._network.mean.device))
        levels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        return _LoadedBatch(rows, loaded.readable, levels.cpu().numpy())

    def _apply_condition(self, view: "_ConditionView") -> NDArray[np.uint8]:
        loaded, condition = view.loaded, self._conditions[view.condition]
        shown = loaded.images.copy()
        for place in loaded.readable:
            shown[place] = condition.apply(loaded.images[place], loaded.rows[place])
        return shown

    def _classify(self, view: "_ConditionView", shown: NDArray[np.uint8]) -> tuple[int, int, Outcomes]:
        loaded, labels = view.loaded, torch.from_numpy(self._trial.labels[view.loaded.rows])
        log_probs = torch.empty(0, len(self._trial.class_names))
        if loaded.readable:
            rows = loaded.rows + [0] * (len(shown) - len(loaded.rows))  # full batches, as everywhere
            padded = F.pad(labels, (0, len(shown) - len(labels))).to(self._network.mean.device)
            images = torch.from_numpy(shown).to(self._network.mean.device).float().div_(255).permute(0, 3, 1, 2)  # channels last
            try:
                images = self._conditions[view.condition].attack(self._network, images, padded, rows)
                with torch.inference_mode():
                    log_probs = self._network(images).float().log_softmax(dim=1).cpu()[loaded.readable]
            except torch.OutOfMemoryError:
                raise NstError(
                    f"{self._trial.name}: {len(images)} images at once do not fit into the memory of the {self.computation.device}; free "
                    "what other programs use of it, or compute on the CPU with CUDA_VISIBLE_DEVICES= before the command"
                ) from None
        return loaded.rows[0], view.condition, compute_outcomes(log_probs, labels[loaded.readable], loaded.readable, len(loaded.rows))

    def _labels(self, batch: PlainBatch, readable: Sequence[int]) -> Int[Tensor, " readable"]:
        return torch.from_numpy(self._trial.labels[[batch.rows[position].id for position in readable]])


@dataclass(frozen=True)
class _LoadedBatch:
    """A batch of images of the classifier's size, shape (batch, height, width, 3), with zeros for unreadable images."""

    rows: list[int]
    readable: list[int]
    images: NDArray[np.uint8]


@dataclass(frozen=True)
class _ConditionView:
    """A batch under one of the conditions."""

    loaded: _LoadedBatch
    condition: int


def renormalize(log_probs: Float[Tensor, "images outputs"], columns: NDArray[np.int64] | None) -> Float[Tensor, "images classes"]:
    """Log-probabilities renormalized over the competing classes: the columns are selected before any arg max."""
    return log_probs if columns is None else log_probs[:, torch.from_numpy(columns)].log_softmax(dim=1)


def _without_crop(preprocessing: Preprocessing) -> TimmPreprocessing:
    """The preprocessing for images that are already cropped, such as ImageNet-C's: not cropped, only resized to the classifier's size."""
    if isinstance(preprocessing, TimmPreprocessing):
        return replace(preprocessing, crop_pct=1.0, crop_mode=None)
    mean, std = infer_normalization(preprocessing)
    height, width = preprocessing.prepare(torch.zeros(3, 64, 64, dtype=torch.uint8)).shape[1:]
    return TimmPreprocessing((3, height, width), "bicubic", tuple(mean.tolist()), tuple(std.tolist()), 1.0, None, exact=True)
