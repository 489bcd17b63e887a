"""Durations converted to steps, in one place, and the learning rate of each step."""

import math
from dataclasses import dataclass
from typing import Self

from nst_train.settings import PAPER_DECAY_EPOCHS, PAPER_EPOCHS, TrainSettings

LEARNING_RATE_BATCH = 256


@dataclass(frozen=True)
class Schedule:
    """A training in steps. Only labeled images count (section 3.1); if there are none, see `equivalent_labeled_images`."""

    steps: int
    steps_per_epoch: float
    peak_learning_rate: float
    warmup_steps: float
    decay_steps: float
    decay_rate: float
    is_cosine: bool = False
    skipped_steps: int = 0  # if the training is the end of a longer schedule

    @classmethod
    def of(cls, settings: TrainSettings, labeled_images: float) -> Self:
        """Convert the settings' epochs to steps over `labeled_images`."""
        steps_per_epoch = labeled_images / settings.batch_size
        steps = settings.steps or max(1, round(settings.epochs * steps_per_epoch))
        decay_steps = settings.staircase_epochs * steps_per_epoch
        if settings.steps and not settings.decay_epochs:
            decay_steps = steps * PAPER_DECAY_EPOCHS / PAPER_EPOCHS
        return cls(
            steps=steps,
            steps_per_epoch=steps_per_epoch,
            peak_learning_rate=settings.learning_rate * settings.batch_size / LEARNING_RATE_BATCH,
            warmup_steps=settings.warmup_epochs * steps_per_epoch if settings.warmup_steps is None else settings.warmup_steps,
            decay_steps=decay_steps,
            decay_rate=settings.decay_rate,
            is_cosine=settings.schedule == "cosine",
            skipped_steps=max(0, round((settings.schedule_epochs or 0) * steps_per_epoch) - steps),
        )

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a staircase counted from step 0 (released code), or a cosine from the end of warm-up to 0."""
        step += self.skipped_steps
        if step < self.warmup_steps:
            return self.peak_learning_rate * step / self.warmup_steps
        if self.is_cosine:
            fraction = (step - self.warmup_steps) / (self.steps + self.skipped_steps - self.warmup_steps)
            return self.peak_learning_rate * (1 + math.cos(math.pi * fraction)) / 2
        return float(self.peak_learning_rate * self.decay_rate ** (step // self.decay_steps))

    @property
    def max_learning_rate(self) -> float:
        """The highest learning rate: the peak, or the first rate if the training starts after it."""
        return self.peak_learning_rate if self.skipped_steps < self.warmup_steps else self.learning_rate(0)

    def ends_epoch(self, steps_done: int, epochs: float = 1.0) -> bool:
        """Whether step `steps_done` (counted from 1) is the last or passes a multiple of `epochs`."""
        interval = epochs * self.steps_per_epoch
        return steps_done == self.steps or steps_done // interval > (steps_done - 1) // interval


def equivalent_labeled_images(entries: int, settings: TrainSettings) -> float:
    """The number that replaces the labeled images of a training on an edition only, so that an epoch uses each of its entries once."""
    return entries / settings.ratio
