"""Validation of the averaged weights during a training, which keeps the best ones as its result."""

import copy
import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, distributed, nn

from nst_data.errors import NstError
from nst_data.sources import Source, match_classes
from nst_train.classifiers.classifier import Classifier
from nst_train.classifiers.inference import choose_computation
from nst_train.classifiers.teachers import Teacher
from nst_train.device import all_reduce, set_threads, this_process
from nst_train.evaluation.evaluate import score
from nst_train.evaluation.metrics import Score
from nst_train.settings import TrainSettings
from nst_train.training.schedule import Schedule
from nst_train.transforms.preprocessing import TimmPreprocessing

TRAINING_IMAGES_PER_SCORED = 10  # at least this many training images per scored image: scoring takes at most a tenth of the time


@dataclass(frozen=True)
class BestWeights:
    """The averaged weights with the highest top-1 so far; the latest among ties."""

    step: int
    scores: dict[str, Any]
    weights: dict[str, Tensor]


class Validation:
    """The validation images and the best scores so far.

    Images are preprocessed as `nst evaluate` does for the finished teacher, so that both give the same top-1.
    """

    def __init__(
        self,
        source: Source,
        class_names: list[str],
        data_config: dict[str, Any],
        interval_epochs: float,
        schedule: Schedule,
        threads: int | None,
    ) -> None:
        self.source = source
        self.best: BestWeights | None = None
        self._class_names, self._epochs, self._schedule, self._threads = class_names, interval_epochs, schedule, threads
        self._columns = match_classes(source.class_names or [], class_names, source.location, subset=True)
        self._preprocessing = TimmPreprocessing.from_data_config(data_config, exact=True)

    @classmethod
    def from_settings(
        cls,
        source: Source,
        class_names: list[str],
        settings: TrainSettings,
        data_config: dict[str, Any],
        schedule: Schedule,
        images_per_epoch: int,
        threads: int | None,
    ) -> Self:
        """The validation of a training. Raises NstError if the classes differ."""
        if settings.crop_pct:
            data_config = data_config | {"crop_pct": settings.crop_pct}
        epochs = settings.validate_every or default_interval_epochs(len(source), images_per_epoch)
        return cls(source, class_names, data_config, epochs, schedule, threads)

    def is_due(self, steps_done: int) -> bool:
        """Whether to score the weights after step `steps_done`: at a fixed interval of epochs, and at the end."""
        return self._schedule.ends_epoch(steps_done, self._epochs)

    def score(self, averaged: nn.Module, steps_done: int) -> dict[str, Any]:
        """Score the averaged weights after step `steps_done`, split over the processes, and keep them if they are the best."""
        state, threads = this_process(), torch.get_num_threads()
        network = copy.deepcopy(averaged)
        if state.num_processes > 1:
            for buffer in network.buffers():  # statistics differ between processes; those of the first one are sealed
                distributed.broadcast(buffer, 0)
        teacher = Teacher.from_members(Classifier(network, self._preprocessing, self._class_names))
        start, stop = (len(self.source) * process // state.num_processes for process in (state.process_index, state.process_index + 1))
        computation = choose_computation(teacher, None, "fp32", compile_network=False)
        local_score = score(teacher, computation, self.source, range(start, stop), self._columns, self._threads)
        set_threads(threads)
        total = Score.from_numbers(all_reduce(torch.tensor(local_score.numbers, dtype=torch.float64), "sum").tolist())
        if not total.images:
            raise NstError(f"{self.source.location}: none of its {len(self.source)} validation images could be read")
        scores = total.as_metrics(len(self._class_names))
        if self.best is None or scores["top1"] >= self.best.scores["top1"]:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in averaged.state_dict().items()}
            self.best = BestWeights(steps_done, scores, weights)
        return scores

    @property
    def notes(self) -> dict[str, Any]:
        """What a checkpoint keeps in addition to the best weights."""
        return {"best": {"step": self.best.step, "scores": self.best.scores}} if self.best else {}

    def resume(self, notes: dict[str, Any], weights: dict[str, Tensor] | None) -> None:
        """Restore the best weights so far when a training resumes from a checkpoint."""
        self.best = BestWeights(notes["best"]["step"], notes["best"]["scores"], weights) if weights is not None else None


def default_interval_epochs(images: int, images_per_epoch: int) -> float:
    """Epochs between two validations on `images`: 1, or as many as it takes to train on ten times that number of images."""
    return float(max(1, math.ceil(TRAINING_IMAGES_PER_SCORED * images / images_per_epoch)))
