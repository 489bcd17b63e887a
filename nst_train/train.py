"""Training a teacher or a student: the step, and the loop around it (Algorithm 1, steps 1 and 3)."""

import json
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.optim import create_optimizer_v2
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from nst_data import cards
from nst_data.errors import NstError, first_line
from nst_data.files import hash_file, write_text
from nst_data.manifest import Input, Request
from nst_data.progress import Progress
from nst_data.sources import Source, check_trainable
from nst_data.store import Staging, Store, Version
from nst_train.batches import LabeledImages, TrainingBatch, readable, training_batches
from nst_train.checkpoint import load_checkpoint, save_checkpoint
from nst_train.device import DEFAULT_THREADS, autocast, cpus_of_this_process, set_threads, settled_precision, this_process
from nst_train.entries import PseudoLabeledImages, open_edition
from nst_train.loss import joint_cross_entropies, weighed
from nst_train.models import check_names, check_size, count_parameters, create_network, data_config_of, freeze, local_weights, save_teacher
from nst_train.network_noise import NetworkNoise, add_noise
from nst_train.noise import Normalize, seed_network, seed_of, training_transforms
from nst_train.schedule import Schedule
from nst_train.settings import RunSettings, TrainSettings
from nst_train.sync_batch_norm import synchronize_batch_norm
from nst_train.warm_start import start_from, start_input

LOG_EVERY_STEPS = 20


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
) -> Version:
    """Train a network on labeled images and, with `edition`, on pseudo-labeled ones; seal its averaged weights as a teacher.

    A run that was killed goes on at its last checkpoint and ends, on the CPU, with the same weights. Raises NstError for settings
    that the data or the network refuse, before any work starts.
    """
    run, progress = run or RunSettings(), progress or Progress()
    check_trainable(labeled)
    check_names(settings)
    if edition is None:
        settings = settings.of_labeled_alone()
    state = this_process()
    with state.main_process_first():
        staging = store.begin(_request(store, settings, labeled, edition), name, generation, first=0)
    if isinstance(staging, Version):
        return staging
    since = time.monotonic()
    chosen = {"device": state.device.type, "precision": settled_precision(settings.precision, state.device)}
    machine = staging.remembered("machine", {"threads": settings.compute_threads or DEFAULT_THREADS, **chosen})
    set_threads(machine["threads"])
    with staging.refusable():
        training = _Training.prepare(store, staging, settings, labeled, edition, pool, run, progress)
    entries = f" and {len(training.pseudo):,} pseudo-labeled entries" if training.pseudo else ""
    progress.say(f"{staging.ref}: {training.step.schedule.steps:,} steps over {len(training.labeled):,} labeled images{entries}")
    training.run(run, progress, since)
    if state.is_main_process:
        _seal(staging, settings, training, labeled.class_names or [], machine)
    state.wait_for_everyone()
    return Version(staging.target)


def _request(store: Store, settings: TrainSettings, labeled: Source, edition: Version | None) -> Request:
    inputs = {"labeled": labeled.lineage}
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
        return cls(staging, step, labeled, pseudo, unreadable, data_config)

    def run(self, run: RunSettings, progress: Progress, since: float) -> None:
        """All steps from the last checkpoint on."""
        step, state = self.step, this_process()
        optimizer, network = step.optimizer.optimizer, step.accelerator.unwrap_model(step.network)
        done = load_checkpoint(self.staging.work / "checkpoints", network, step.averaged.module, optimizer)
        total = step.schedule.steps
        transforms = training_transforms(step.settings, self.data_config)
        steps = range(done, total)
        batches = training_batches(
            step.settings, self.labeled, self.pseudo, transforms, steps, run.workers, state.process_index, state.num_processes
        )
        log = Log(self.staging.build / "training.jsonl", self.staging.ref, done, step)
        saved = time.monotonic()
        per_step = step.settings.batch_size * ((not step.settings.pseudo_only) + (step.settings.ratio if self.pseudo else 0))
        with progress.task(f"train {self.staging.ref}", total * per_step, "images", done * per_step) as task:
            for index, batch in zip(steps, batches, strict=True):
                note = log.add(index, *step(index, batch))
                task.advance(per_step, note)
                due = time.monotonic() - saved >= 60 * run.checkpoint_minutes
                if due and index + 1 < total and state.is_main_process:
                    log.check(index)
                    save_checkpoint(self.staging.work / "checkpoints", index + 1, network, step.averaged.module, optimizer)
                    saved = since = self.staging.add_seconds(since)
        log.check(total - 1)
        if state.is_main_process:
            self.staging.add_seconds(since)


class Log:
    """`training.jsonl`: every 20 steps the mean loss of both parts since the line before, and the learning rate."""

    def __init__(self, path: Path, ref: str, done: int, step: Step) -> None:
        self._path, self._ref, self._step, self._note = path, ref, step, ""
        self._sums = torch.zeros(4, device=step.accelerator.device)
        lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("}\n")]  # a kill can cut the last one short
        write_text(path, "".join(line for line in whole if json.loads(line)["step"] < done))

    def add(self, index: int, labeled: Tensor, pseudo: Tensor) -> str:
        """Count one step's losses; a note for a person."""
        self._sums += torch.stack([labeled.sum(), self._count(labeled), pseudo.sum(), self._count(pseudo)])
        if (index + 1) % LOG_EVERY_STEPS == 0:
            self._write(index)
        return self._note

    def check(self, index: int) -> None:
        """Raises NstError where the loss is no number any more."""
        if not math.isfinite(float(self._sums.sum())):
            raise NstError(
                f"step {index + 1}: the loss is not a finite number any more; "
                f"lower --learning-rate or lengthen --warmup-epochs; `nst remove {self._ref}` first gives its number free"
            )

    def _count(self, losses: Tensor) -> Tensor:
        return torch.tensor(float(len(losses)), device=losses.device)

    def _write(self, index: int) -> None:
        self.check(index)
        labeled, images, pseudo, pseudo_images = self._sums.tolist()
        self._sums.zero_()
        line = {
            "step": index,
            "epoch": round((index + 1) / self._step.schedule.steps_per_epoch, 4),
            "learning_rate": self._step.schedule.learning_rate(index),
            "loss_labeled": labeled / images if images else None,
            "loss_pseudo": pseudo / pseudo_images if pseudo_images else None,
        }
        parts = {"loss": line["loss_labeled"], "pseudo": line["loss_pseudo"]}
        self._note = " ".join(f"{name} {value:.3f}" for name, value in parts.items() if value is not None)
        if this_process().is_main_process:
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")


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
    files = save_teacher(training.step.averaged.module, staging.build, class_names, settings)
    counts = {
        "parameters": count_parameters(training.step.averaged.module),
        "steps": training.step.schedule.steps,
        "labeled": len(training.labeled),
        "unreadable": len(training.unreadable),
        "pseudo_labeled": len(training.pseudo.rows) if training.pseudo else 0,
        "entries": len(training.pseudo) if training.pseudo else 0,
    }
    cards.write_model_card(staging.build, staging.ref, staging.request, class_names, counts, {})
    staging.seal(files, class_names, counts, machine)
