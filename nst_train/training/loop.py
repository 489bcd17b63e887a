"""A training in progress: its preparation, and the loop over its steps."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nst_data.errors import NstError
from nst_data.progress import Progress, escape_unprintable
from nst_data.self_contained.remote import StreamedEdition
from nst_data.store.manifest import EditionManifest
from nst_data.store.ownership import Sign
from nst_data.store.store import Staging, Store, Version
from nst_train.batches.batches import LabeledImages, TrainingBatch, choose_prefetch_factor, readable_images, training_batches
from nst_train.batches.entries import PseudoLabeledImages, open_edition
from nst_train.device import create_max_reducer, resolve_channels_last, resolve_precision, this_process
from nst_train.interruption import Interrupted, StopRequests
from nst_train.networks.models import check_accepts_images, count_parameters, create_network, evaluation_data_config, training_data_config
from nst_train.seeds import derive_seed, seed_network
from nst_train.settings import RunSettings, TrainSettings
from nst_train.training.checkpoint import (
    CheckpointClock,
    ResumePoint,
    divergence_error,
    is_finite,
    last_checkpoint_step,
    load_checkpoint,
    save_checkpoint,
)
from nst_train.training.loss import balanced_weights
from nst_train.training.material import TrainingData
from nst_train.training.optimizer import check_optimizer, is_layer_decay_idle
from nst_train.training.readable import check_classes, find_unreadable_images, report_lost_classes, warn_of_overlap
from nst_train.training.schedule import Schedule, equivalent_labeled_images
from nst_train.training.step import Step, create_step
from nst_train.training.trackers import Trackers
from nst_train.training.training_log import TrainingLog
from nst_train.training.validation import Validation
from nst_train.training.warm_start import load_start_weights
from nst_train.transforms.noise import training_transforms

_log = logging.getLogger(__name__)
_NAMES_SHOWN = 3
_VALIDATION_PENDING = "validation_owed"  # set in a checkpoint that was written in the middle of a validation


@dataclass
class Training:
    """A training in progress, in its staging."""

    staging: Staging
    step: Step
    labeled: LabeledImages
    pseudo: PseudoLabeledImages | None
    class_names: list[str]
    unreadable: list[str]
    classes_without_images: list[str]
    data_config: dict[str, Any]
    prefetch_factor: int
    validation: Validation | None
    unreadable_validation: int
    sign: Sign | None = None  # of the main process: nobody else trains this
    has_started: bool = False

    @classmethod
    def prepare(
        cls,
        store: Store,
        staging: Staging,
        settings: TrainSettings,
        data: TrainingData,
        run: RunSettings,
        progress: Progress,
    ) -> "Training":
        """Check images, edition and network, and set everything up. Raises NstError if they do not allow the training.

        Without a labeled source, the network is trained on the edition only.
        """
        processes, source, edition, pool = this_process().num_processes, data.labeled, data.edition, data.pool
        _check_batch_size(settings, processes, edition is not None)
        for images in filter(None, (source, pool)):
            if copy := images.describe_copy():
                progress.say(f"{images.location}: reading single images from {copy}, created once; image files need no copy")
        labeled, lines, empty = LabeledImages.empty(), list[str](), list[str]()
        class_names = list(edition.manifest.class_names) if edition is not None else []
        if source is not None:
            faults = find_unreadable_images(store, staging, "labeled", source, run, progress, settings.transform == "evaluation")
            labeled, lines = readable_images(source, faults), list(faults.values())
            empty = check_classes(source, labeled, faults, progress)
            source.read(int(labeled.rows[0]))  # opens files that are opened once, before workers are forked
            class_names = source.class_names or []
        pseudo: PseudoLabeledImages | None = None
        if edition is not None:
            with this_process().main_process_first():
                pseudo = open_edition(edition, pool, class_names, staging.work, settings.hard, settings.seed, progress)
        seed_network(derive_seed(settings.seed, "initial weights"))
        network = create_network(settings, len(class_names))
        for images in filter(None, (source, pool)):
            if reason := images.describe_slow_reads():
                progress.say(f"{images.location}: reading single images is slow: {reason}")
        if settings.start:
            load_start_weights(network, settings, store, class_names, progress)
        if edition is not None:
            _warn_if_smaller(settings.model, count_parameters(network), edition, progress)
        device_type = this_process().device.type
        channels_last = resolve_channels_last(settings.channels_last, network, device_type, settings.precision)
        settings = settings.model_copy(update=staging.get_or_store("memory_format", {"channels_last": channels_last}))
        data_config = training_data_config(network, settings)
        _log.info(
            "%s: %s on %s, processes: %d, precision: %s, channels-last: %s",
            *(staging.ref, settings.model, this_process().device, processes),
            *(resolve_precision(settings.precision, this_process().device), "on" if settings.channels_last else "off"),
        )
        images = settings.batch_size // processes * _images_per_labeled(settings, pseudo is not None)
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        prefetch_factor = choose_prefetch_factor(images, data_config["input_size"][-1], run.workers_on(device_type), local_processes)
        part_images = images // settings.accumulate * (processes if settings.sync_batch_norm else 1)
        check_accepts_images(network, settings, data_config, len(class_names), part_images)
        check_optimizer(settings, this_process().device)
        weights = balanced_weights(labeled.labels, len(class_names)) if settings.class_weights else None
        counted = len(labeled) if source is not None or pseudo is None else equivalent_labeled_images(len(pseudo), settings)
        step = create_step(network, settings, Schedule.of(settings, counted), data_config, len(class_names), weights)
        scores, unscored = None, 0
        if (validation := data.validation) is not None:
            unscored_faults = find_unreadable_images(store, staging, "validation", validation, run, progress)
            report_lost_classes(validation, unscored_faults, progress)
            warn_of_overlap(staging, validation, progress)
            unscored = len(unscored_faults)
            per_epoch = round(counted * _images_per_labeled(settings, pseudo is not None))
            test_config = evaluation_data_config(network, settings)
            scores = Validation.from_settings(validation, class_names, settings, test_config, step.schedule, per_epoch, run.decode_threads)
        return cls(staging, step, labeled, pseudo, class_names, lines, empty, data_config, prefetch_factor, scores, unscored)

    def report_size(self, progress: Progress) -> None:
        """Report the images and the number of steps, and warn if batch size, warm-up or `layer_decay` do not suit them."""
        ref, settings, schedule = self.staging.ref, self.step.settings, self.step.schedule
        images, pseudo = 0 if settings.pseudo_only else len(self.labeled), len(self.pseudo) if self.pseudo else 0
        parts = [f"{images:,} labeled image{'s' * (images > 1)} of {_summarize_classes(self.class_names)}"] if images else []
        parts += [f"{pseudo:,} pseudo-labeled {'entries' if pseudo > 1 else 'entry'}"] if pseudo else []
        progress.say(f"{ref}: {schedule.steps:,} step{'s' * (schedule.steps > 1)} over {' and '.join(parts)}")
        if images and settings.batch_size > images:
            progress.say(
                f"{ref}: warning: each step takes {settings.batch_size:,} labeled images, more than the {images:,} there are; "
                f"set `batch_size` to at most {images:,}, or `preset` pretrained"
            )
        if schedule.warmup_steps >= schedule.skipped_steps + schedule.steps:
            in_steps = settings.warmup_steps is not None
            warmup = f"{settings.warmup_steps:,} steps" if in_steps else f"{settings.warmup_epochs:g} epochs"
            progress.say(
                f"{ref}: the learning rate rises for {warmup}, at least as long as the training, so it never reaches `learning_rate`; "
                f"set fewer `{'warmup_steps' if in_steps else 'warmup_epochs'}`, or more `{'steps' if settings.steps else 'epochs'}`"
            )

        if is_layer_decay_idle(settings, self.step.optimizer.optimizer):
            progress.say(f"{ref}: warning: `layer_decay` changes nothing: timm counts all trained weights as the last layer; remove it")

    def run(self, run: RunSettings, progress: Progress, since: float, tracker_names: list[str]) -> None:
        """Take all steps after the last checkpoint. Raises Interrupted, after writing a checkpoint, if a signal asks to stop."""
        step, state, settings = self.step, this_process(), self.step.settings
        with state.main_process_first():  # it deletes damaged checkpoints before the others look
            resumed = self._load_checkpoint(progress)
        if resumed.step:
            progress.say(f"{self.staging.ref}: resumes after step {resumed.step:,}")
        steps = range(resumed.step, step.schedule.steps)
        transforms = training_transforms(settings, self.data_config)
        batches = training_batches(
            settings,
            self.labeled,
            self.pseudo,
            transforms,
            steps,
            run.workers_on(state.device.type),
            state.process_index,
            state.num_processes,
            self.prefetch_factor,
        )
        per_step = settings.batch_size * _images_per_labeled(settings, self.pseudo is not None)
        tracker_runs = resumed.notes.get("trackers", {})
        ref, digest = self.staging.ref, self.staging.request.digest
        trackers = Trackers.start(tracker_names, ref, digest, tracker_runs, settings, self.staging.build, resumed.step, progress)
        log = TrainingLog(self.staging.build, step.schedule, per_step, resumed.step, resumed.notes, trackers)
        total = step.schedule.steps * per_step
        with trackers, closing(batches), progress.task(f"train {self.staging.ref}", total, "images", resumed.step * per_step) as task:
            for _ in self._take_steps(
                steps, batches, log, run, since, progress.say, is_validation_pending=bool(resumed.notes.get(_VALIDATION_PENDING))
            ):
                task.advance(per_step, log.note)
        if not is_finite(step.averaged.module):
            raise self._divergence_error(step.schedule.steps, "the averaged weights are", None)

    def _take_steps(
        self,
        steps: range,
        batches: Iterator[TrainingBatch],
        log: TrainingLog,
        run: RunSettings,
        since: float,
        report: Callable[[str], None],
        is_validation_pending: bool,
    ) -> Iterator[None]:
        """Take the steps, each followed by any log, validation and checkpoint due.

        `is_validation_pending`: validate before the first step as well.
        """
        step, clock = self.step, CheckpointClock(run.checkpoint_minutes)
        with StopRequests(create_max_reducer(), steps.start, report) as stops:
            if is_validation_pending:
                self._validate(steps.start, log, stops, run, since)
            for index in steps:
                steps_done = index + 1
                if self.sign:
                    self.sign.check(self.staging.ref)
                try:
                    with stops.interruptible():
                        batch = next(batches)
                except (NstError, Interrupted) as error:
                    if index > steps.start and last_checkpoint_step(self._checkpoint_folder) != index:
                        self._save_checkpoint(index, log, run.keep_checkpoints, since)
                    raise self._with_position(error, index) from None
                self._check_finite(log.add(steps_done, *step(index, batch)))
                self.has_started = True
                is_validated = self.validation is not None and self.validation.is_due(steps_done)
                if is_validated:
                    self._validate(steps_done, log, stops, run, since)
                elif log.is_row_due(steps_done):
                    self._check_finite(log.write_row(steps_done, self.staging.seconds + time.monotonic() - since))
                stop = stops.agreed_signal(steps_done)
                if stop or steps_done == steps.stop or clock.is_due(step.schedule.ends_epoch(steps_done)):  # sealing may be interrupted too
                    since = self._save_checkpoint(steps_done, log, run.keep_checkpoints, since)
                    clock.restart()
                if stop:
                    this_process().wait_for_everyone()  # otherwise torchrun would kill the process that writes
                    raise self._with_position(Interrupted(stop), steps_done)
                yield
        if this_process().is_main_process:
            self.staging.add_seconds(since)

    def _validate(self, steps_done: int, log: TrainingLog, stops: StopRequests, run: RunSettings, since: float) -> None:
        """Score the averaged weights after step `steps_done`. If it is interrupted, the resumed training starts with this validation."""
        assert self.validation is not None, "expected by a training with validation images"
        try:
            with stops.interruptible():
                scores = self.validation.score(self.step.averaged.module, steps_done)
        except Interrupted as error:
            self._save_checkpoint(steps_done, log, run.keep_checkpoints, since, {_VALIDATION_PENDING: True})
            raise self._with_position(error, steps_done) from None
        log.log_validation(steps_done, scores)
        self._check_finite(log.write_row(steps_done, self.staging.seconds + time.monotonic() - since))

    def _with_position(self, error: BaseException, steps_done: int) -> BaseException:
        """Add the position in the training to an interruption; return any other error unchanged."""
        if not isinstance(error, Interrupted):
            return error
        return Interrupted(error.number, f"after step {steps_done:,} of {self.staging.ref}")

    def _load_checkpoint(self, progress: Progress) -> ResumePoint:
        network, optimizer = self.step.unwrapped, self.step.optimizer.optimizer
        if self.staging.remote_run is not None:
            self.staging.remote_run.download_training()
        resumed = load_checkpoint(self._checkpoint_folder, network, self.step.averaged.module, optimizer, progress.say)
        if scale := resumed.notes.get("loss_scale"):  # fp16 only
            self.step.scaler.load_state_dict(scale)
        if self.validation:
            self.validation.resume(resumed.notes, resumed.best_weights)
        return resumed

    def _save_checkpoint(
        self, steps_done: int, log: TrainingLog, max_checkpoints: int, since: float, extra_notes: Mapping[str, Any] | None = None
    ) -> float:
        """Write a checkpoint, unless a number in it is no longer finite (the log will report that). Return the new start of the timing."""
        network, averaged = self.step.unwrapped, self.step.averaged.module
        if not this_process().is_main_process or not log.is_finite or not is_finite(network, averaged):
            return since
        notes = {"log": log.notes, "trackers": log.trackers.runs, "loss_scale": self.step.scaler.state_dict()}
        notes |= (self.validation.notes if self.validation else {}) | dict(extra_notes or {})
        best = self.validation.best.weights if self.validation and self.validation.best else None
        save_checkpoint(self._checkpoint_folder, steps_done, network, averaged, self.step.optimizer.optimizer, notes, best, max_checkpoints)
        _log.info("%s: checkpoint after step %d in %s", self.staging.ref, steps_done, self._checkpoint_folder)
        new_start = self.staging.add_seconds(since)
        if self.staging.remote_run is not None:
            self.staging.remote_run.upload_training()
        return new_start

    def _check_finite(self, bad_step: int | None) -> None:
        if bad_step is not None:
            raise self._divergence_error(bad_step, "the loss is", self.step.schedule.learning_rate(bad_step - 1))

    def _divergence_error(self, steps_done: int, subject: str, learning_rate: float | None) -> NstError:
        return divergence_error(self.staging.ref, self._checkpoint_folder, steps_done, subject, learning_rate, self.step.settings)

    @property
    def _checkpoint_folder(self) -> Path:
        return self.staging.work / "checkpoints"


def _summarize_classes(class_names: Sequence[str]) -> str:
    """The number of classes and the first few names, which reveal a wrong folder."""
    shown = ", ".join(map(escape_unprintable, class_names[:_NAMES_SHOWN])) + ", ..." * (len(class_names) > _NAMES_SHOWN)
    return f"{len(class_names):,} class{'es' * (len(class_names) > 1)} ({shown})"


def _images_per_labeled(settings: TrainSettings, with_pseudo: bool) -> int:
    """Images in a step per unit of `batch_size`."""
    return (0 if settings.pseudo_only else 1) + (settings.ratio if with_pseudo else 0)


def _check_batch_size(settings: TrainSettings, processes: int, with_pseudo: bool) -> None:
    parts = processes * settings.accumulate
    unit = f"{processes} process{'es' * (processes > 1)}" + (f" x {settings.accumulate} parts of a step" if settings.accumulate > 1 else "")
    if settings.batch_size % parts:
        raise NstError(f"batch size {settings.batch_size}: expected a multiple of the {unit}; batch sizes are global")
    is_one_kind = not with_pseudo or settings.pseudo_only
    images = settings.batch_size // parts * _images_per_labeled(settings, with_pseudo)
    if (settings.mixup or settings.cutmix) and is_one_kind and images % 2:
        raise NstError(f"batch size {settings.batch_size}: `mixup` and `cutmix` mix pairs; expected a multiple of 2 x {unit}")


def _warn_if_smaller(model: str, parameters: int, edition: Version | StreamedEdition, progress: Progress) -> None:
    """Warn if the student is smaller than its teacher; Noisy Student Training uses an equal or larger one (section 2)."""
    teacher = EditionManifest.from_manifest(edition.manifest).counts.teacher_parameters
    if parameters < teacher:
        progress.say(
            f"warning: the student {model} has {parameters:,} parameters, its teacher {teacher:,}; "
            "the method requires an equal or larger student; a smaller one may not beat its teacher"
        )
