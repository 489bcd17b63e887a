"""Training a teacher or a student: the step, and the loop around it (Algorithm 1, steps 1 and 3)."""

import json
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.optim import create_optimizer_v2
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from nst_data import cards
from nst_data.curves import write_curves
from nst_data.errors import NstError, first_line
from nst_data.files import hash_file, write_text
from nst_data.manifest import Input, Request
from nst_data.progress import Progress
from nst_data.sources import Source, check_trainable
from nst_data.store import Staging, Store, Version
from nst_train.batches import LabeledImages, TrainingBatch, readable, training_batches
from nst_train.checkpoint import CheckpointClock, Resumed, diverged, is_finite, load_checkpoint, save_checkpoint
from nst_train.device import DEFAULT_THREADS, agreed_maxima, autocast, cpus_of_this_process, set_threads, settled_precision, this_process
from nst_train.entries import PseudoLabeledImages, open_edition
from nst_train.evaluate import METRICS
from nst_train.interruption import Interrupted, StopRequests
from nst_train.loss import joint_cross_entropies, weighed
from nst_train.models import check_names, check_size, count_parameters, create_network, data_config_of, freeze, local_weights, save_teacher
from nst_train.network_noise import NetworkNoise, add_noise
from nst_train.noise import Normalize, seed_network, seed_of, training_transforms
from nst_train.schedule import Schedule
from nst_train.settings import RunSettings, TrainSettings
from nst_train.sync_batch_norm import synchronize_batch_norm
from nst_train.trackers import Trackers, check_trackers
from nst_train.training_log import TrainingLog
from nst_train.validation import Validation
from nst_train.warm_start import start_from, start_input


def train(
    store: Store,
    name: str,
    settings: TrainSettings,
    labeled: Source,
    edition: Version | None = None,
    pool: Source | None = None,
    generation: int | None = None,
    run: RunSettings | None = None,
    progress: Progress | None = None,
    validation: Source | None = None,
) -> Version:
    """Train a network on labeled images and, with `edition`, on pseudo-labeled ones; seal its averaged weights as a teacher.

    With `validation`, labeled images of the same classes, they are the weights that did best on it, else the last ones. A run that was
    killed goes on at its last checkpoint and ends, on the CPU, with the same weights; one that a signal stops raises Interrupted.
    Raises NstError for settings that the data or the network refuse, before any work starts.
    """
    run, progress = run or RunSettings(), progress or Progress()
    check_trainable(labeled)
    check_names(settings)
    trackers = check_trackers(run.tracker)
    if edition is None:
        settings = settings.of_labeled_alone()
    if validation is None:
        settings = settings.without_validation()
    state = this_process()
    with state.main_process_first():
        staging = store.begin(_request(store, settings, labeled, edition, validation), name, generation, first=0)
    if isinstance(staging, Version):
        return staging
    since = time.monotonic()
    chosen = {"device": state.device.type, "precision": settled_precision(settings.precision, state.device)}
    machine = staging.remembered("machine", {"threads": settings.compute_threads or DEFAULT_THREADS, **chosen})
    set_threads(machine["threads"])
    with staging.refusable():
        training = _Training.prepare(store, staging, settings, labeled, edition, pool, run, progress, validation)
    entries = f" and {len(training.pseudo):,} pseudo-labeled entries" if training.pseudo else ""
    progress.say(f"{staging.ref}: {training.step.schedule.steps:,} steps over {len(training.labeled):,} labeled images{entries}")
    training.run(run, progress, since, trackers)
    if state.is_main_process:
        _seal(staging, settings, training, labeled.class_names or [], machine)
    state.wait_for_everyone()
    return Version(staging.target)


def _request(store: Store, settings: TrainSettings, labeled: Source, edition: Version | None, validation: Source | None) -> Request:
    inputs = {"labeled": labeled.lineage}
    if validation is not None:
        inputs["validation"] = validation.lineage
    if edition is not None:
        inputs["edition"] = edition.lineage
        inputs["pool"] = edition.manifest.request.inputs["pool"]
    if settings.pretrained and (weights := local_weights(settings.model)):
        inputs["initial_weights"] = Input(ref=settings.model, digest=hash_file(weights).sha256)
    if settings.start:
        inputs["initial_weights"] = start_input(settings.start, store)
    return Request(kind="teacher", settings=settings.for_request(), inputs=inputs)


@dataclass
class Step:
    """One optimizer step: both parts of the batch in one noised forward pass, so that batch-norm sees both."""

    network: nn.Module
    averaged: ModelEmaV3
    optimizer: Any  # Accelerate's wrapper
    accelerator: Accelerator
    schedule: Schedule
    settings: TrainSettings
    normalize: Normalize
    noise: NetworkNoise
    precision: str
    scaler: torch.amp.GradScaler

    def __call__(self, step: int, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        """Cross-entropy of each labeled and each pseudo-labeled image before the step, detached."""
        seed_network(seed_of(self.settings.seed, "own noise", step))  # for what a network draws beside ours
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate(step)
        losses = [self._gradients(step, number, part) for number, part in enumerate(batch.parts(self.settings.accumulate))]
        if self.settings.clip_grad:
            self.scaler.unscale_(self.optimizer.optimizer)
            self.accelerator.clip_grad_norm_(self.network.parameters(), self.settings.clip_grad)
        self.scaler.step(self.optimizer.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        # timm's warm-up with power 1 and gamma 9 at step + 2 is the released code's min(decay, (1 + t) / (10 + t))
        self.averaged.update(self.accelerator.unwrap_model(self.network), step + 2)
        return torch.cat([labeled for labeled, _ in losses]), torch.cat([pseudo for _, pseudo in losses])

    def _gradients(self, step: int, number: int, part: TrainingBatch) -> tuple[Tensor, Tensor]:
        """Add the gradient of one part of a step; the cross-entropies of its images."""
        settings, device, labeled = self.settings, self.accelerator.device, len(part.labels)
        pseudo = {name: column.to(device, non_blocking=True) for name, column in part.pseudo.items()}
        at = self.accelerator.process_index * settings.accumulate + number  # of parts of equal size
        self.noise.begin(step, *(range(at * size, (at + 1) * size) for size in (labeled, len(part.images) - labeled)))
        images = self.normalize(part.images.to(device, non_blocking=True))
        if settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        is_last = number + 1 == settings.accumulate
        with nullcontext() if is_last else self.accelerator.no_sync(self.network):
            with autocast(self.precision, device.type):
                logits = self.network(images)
            losses = joint_cross_entropies(
                logits, part.labels.to(device, non_blocking=True), pseudo, settings.label_smoothing, settings.pseudo_temperature
            )
            loss = weighed(losses[:labeled], losses[labeled:], settings.loss, settings.ratio) / settings.accumulate
            self.accelerator.backward(self.scaler.scale(loss))
        losses = losses.detach()
        return losses[:labeled], losses[labeled:]


def make_step(network: nn.Module, settings: TrainSettings, schedule: Schedule, data_config: dict[str, Any], classes: int) -> Step:
    """The step for a network on Accelerate's device: its noise, timm's optimizer and averaged weights around it.

    Raises NstError for a network that has no place for the noise.
    """
    accelerator = Accelerator(cpu=this_process().device.type == "cpu")
    precision = settled_precision(settings.precision, accelerator.device)
    network = network.to(accelerator.device).train()
    freeze(network, settings.freeze)
    if settings.channels_last:
        network = network.to(memory_format=torch.channels_last)
    averaged = ModelEmaV3(network, decay=settings.ema_decay, use_warmup=True, warmup_gamma=9.0, warmup_power=1.0)
    noise = add_noise(network, settings.noise, settings.noise_of_pseudo, classes, settings.seed)
    optimizer = _optimizer(network, settings, schedule)
    if settings.compile:
        network.compile()
    network, optimizer = accelerator.prepare(network, optimizer)
    if settings.sync_batch_norm and accelerator.num_processes > 1:
        synchronize_batch_norm(network, accelerator.device)
    scaler = torch.amp.GradScaler(accelerator.device.type, enabled=precision == "fp16")
    normalize = Normalize(data_config, accelerator.device)
    return Step(network, averaged, optimizer, accelerator, schedule, settings, normalize, noise, precision, scaler)


def _optimizer(network: nn.Module, settings: TrainSettings, schedule: Schedule) -> torch.optim.Optimizer:
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            network, settings.optimizer, schedule.peak, settings.weight_decay, settings.momentum, **_released(settings)
        )
    except (ValueError, TypeError) as error:
        raise NstError(f"optimizer {settings.optimizer}: cannot be made with these settings ({first_line(error)})") from None
    return optimizer


def _released(settings: TrainSettings) -> dict[str, float]:
    """RMSProp as in the released code: decay 0.9, epsilon 0.001."""
    return {"alpha": 0.9, "eps": 1e-3} if settings.optimizer == "rmsproptf" else {}


@dataclass
class _Training:
    """A training under way in its staging."""

    staging: Staging
    step: Step
    labeled: LabeledImages
    pseudo: PseudoLabeledImages | None
    unreadable: list[str]
    data_config: dict[str, Any]
    validation: Validation | None

    @classmethod
    def prepare(
        cls,
        store: Store,
        staging: Staging,
        settings: TrainSettings,
        source: Source,
        edition: Version | None,
        pool: Source | None,
        run: RunSettings,
        progress: Progress,
        validation: Source | None,
    ) -> "_Training":
        processes = this_process().num_processes
        _check_batch_size(settings, processes)
        for images in filter(None, (source, pool)):
            if copy := images.copy_of_images():
                progress.say(f"{images.location}: single images are read from {copy}, made once; files of images need none")
        labeled, unreadable = readable(source, run.decode_threads or cpus_of_this_process())
        for line in unreadable[:3]:
            progress.say(f"left out, cannot be read: {line}")
        if not len(labeled):
            raise NstError(f"{source.location}: none of its {len(source)} labeled images can be read; the first is {unreadable[0]}")
        class_names = source.class_names or []
        pseudo = None
        if edition is not None:
            with this_process().main_process_first():
                pseudo = open_edition(edition, pool, class_names, staging.work, settings.hard)
        seed_network(seed_of(settings.seed, "initial weights"))
        network = create_network(settings, len(class_names))
        if settings.start:
            start_from(network, settings, store, class_names, progress)
        if edition is not None:
            _warn_if_smaller(settings.model, count_parameters(network), edition, progress)
        data_config = data_config_of(network, settings)
        check_size(network, settings, data_config, len(class_names))
        step = make_step(network, settings, Schedule.of(settings, len(labeled)), data_config, len(class_names))
        scores = None
        if validation is not None:
            per_epoch = len(labeled) * _images_per_labeled(settings, pseudo is not None)
            scores = Validation.of(validation, class_names, settings, data_config, step.schedule, per_epoch, run.decode_threads)
        return cls(staging, step, labeled, pseudo, unreadable, data_config, scores)

    def run(self, run: RunSettings, progress: Progress, since: float, tracker_names: list[str]) -> None:
        """All steps from the last checkpoint on. Raises Interrupted, with a checkpoint written, when a signal asks for it."""
        step, state, settings = self.step, this_process(), self.step.settings
        with state.main_process_first():  # it deletes a damaged checkpoint before others look
            resumed = self._load(progress)
        steps = range(resumed.step, step.schedule.steps)
        transforms = training_transforms(settings, self.data_config)
        batches = training_batches(
            settings, self.labeled, self.pseudo, transforms, steps, run.workers, state.process_index, state.num_processes
        )
        per_step = settings.batch_size * _images_per_labeled(settings, self.pseudo is not None)
        trackers = Trackers.start(tracker_names, self.staging.ref, self.staging.request.digest, settings, self.staging.build, resumed.step)
        log = TrainingLog(self.staging.build, step.schedule, per_step, resumed.step, resumed.notes, trackers)
        total = step.schedule.steps * per_step
        with trackers, closing(batches), progress.task(f"train {self.staging.ref}", total, "images", resumed.step * per_step) as task:
            for _ in self._steps(steps, batches, log, run, since):
                task.advance(per_step, log.note)
        if not is_finite(step.averaged.module):
            raise diverged(self.staging.ref, self._checkpoints, step.schedule.steps, "the averaged weights are")

    def _steps(self, steps: range, batches: Iterator[TrainingBatch], log: TrainingLog, run: RunSettings, since: float) -> Iterator[None]:
        """Take the steps; after each, what is due: log, validation, checkpoint."""
        step, clock = self.step, CheckpointClock(run.checkpoint_minutes)
        with StopRequests(agreed_maxima()) as stops:
            for index, batch in zip(steps, batches, strict=True):
                done = index + 1
                self._check(log.add(done, *step(index, batch)))
                is_validated = self.validation is not None and self.validation.is_due(done)
                if self.validation and is_validated:
                    log.validated(done, self.validation.score(step.averaged.module, done))
                if is_validated or log.is_row_due(done):
                    self._check(log.write_row(done, self.staging.seconds + time.monotonic() - since))
                stop = stops.agreed(done)
                if stop or (index + 1 < steps.stop and clock.is_due(step.schedule.ends_epoch(done))):
                    since = self._save(done, log, run.keep_checkpoints, since)
                    clock.restart()
                if stop:
                    this_process().wait_for_everyone()  # else torchrun would end the one that writes
                    raise Interrupted(stop, f"after step {done:,} of {self.staging.ref}")
                yield
        if this_process().is_main_process:
            self.staging.add_seconds(since)

    def _load(self, progress: Progress) -> Resumed:
        network, optimizer = self.step.accelerator.unwrap_model(self.step.network), self.step.optimizer.optimizer
        resumed = load_checkpoint(self._checkpoints, network, self.step.averaged.module, optimizer, progress.say)
        if self.validation:
            self.validation.go_on(resumed.notes, resumed.best)
        return resumed

    def _save(self, done: int, log: TrainingLog, keep: int, since: float) -> float:
        """Write a checkpoint, unless a number in it is finite no more: the log will say so. Gives the time of now."""
        network, averaged = self.step.accelerator.unwrap_model(self.step.network), self.step.averaged.module
        if not this_process().is_main_process or not log.is_finite or not is_finite(network, averaged):
            return since
        notes = {"log": log.notes} | (self.validation.notes if self.validation else {})
        best = self.validation.best.weights if self.validation and self.validation.best else None
        save_checkpoint(self._checkpoints, done, network, averaged, self.step.optimizer.optimizer, notes, best, keep)
        return self.staging.add_seconds(since)

    def _check(self, bad_step: int | None) -> None:
        if bad_step is not None:
            raise diverged(self.staging.ref, self._checkpoints, bad_step, "the loss is")

    @property
    def _checkpoints(self) -> Path:
        return self.staging.work / "checkpoints"


def _images_per_labeled(settings: TrainSettings, with_pseudo: bool) -> int:
    """How many images a step has for each of its `batch_size`."""
    return (0 if settings.pseudo_only else 1) + (settings.ratio if with_pseudo else 0)


def _check_batch_size(settings: TrainSettings, processes: int) -> None:
    if settings.batch_size % (processes * settings.accumulate):
        parts = f" x {settings.accumulate} parts of a step" if settings.accumulate > 1 else ""
        raise NstError(
            f"batch size {settings.batch_size}: expected a multiple of the {processes} "
            f"process{'es' * (processes > 1)}{parts}; batch sizes are global"
        )


def _warn_if_smaller(model: str, parameters: int, edition: Version, progress: Progress) -> None:
    """Noisy Student Training takes a student that is at least as large as its teacher (section 2)."""
    teacher = edition.manifest.counts["teacher_parameters"]
    if parameters < teacher:
        progress.say(
            f"warning: the student {model} has {parameters:,} parameters, its teacher {teacher:,}; "
            "the method asks for an equal or larger student, a smaller one may not beat its teacher"
        )


def _seal(staging: Staging, settings: TrainSettings, training: _Training, class_names: list[str], machine: dict[str, Any]) -> None:
    averaged, schedule, validation = training.step.averaged.module, training.step.schedule, training.validation
    best = validation.best if validation else None
    metrics = {}
    if validation and best:
        averaged.load_state_dict(best.weights)
        place = {"step": best.step, "source": validation.source.location, "fingerprint": validation.source.fingerprint}
        metrics["validation"] = best.scores | place
        write_text(staging.build / METRICS, json.dumps(metrics, indent=2) + "\n")
    files = save_teacher(averaged, staging.build, class_names, settings)
    counts = {
        "parameters": count_parameters(averaged),
        "steps": schedule.steps,
        **({"best_step": best.step} if best else {}),
        "labeled": len(training.labeled),
        "unreadable": len(training.unreadable),
        "pseudo_labeled": len(training.pseudo.rows) if training.pseudo else 0,
        "entries": len(training.pseudo) if training.pseudo else 0,
    }
    write_curves(staging.build, staging.ref, best.step / schedule.steps_per_epoch if best else None)
    cards.write_model_card(staging.build, staging.ref, staging.request, class_names, counts, metrics)
    staging.seal(files, class_names, counts, machine)
