"""The optimizer step: one noised forward pass over labeled and pseudo-labeled images (Algorithm 1, step 3; section 3.1)."""

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType, DynamoBackend, TorchDynamoPlugin
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from nst_data.errors import NstError, UsageError
from nst_train.batches.batches import TrainingBatch
from nst_train.device import autocast, resolve_channels_last, resolve_precision, this_process
from nst_train.networks.batch_norm import synchronize_batch_norm
from nst_train.networks.network_noise import NetworkNoise, add_noise
from nst_train.networks.preparation import prepare_for_training
from nst_train.networks.transformers_networks import TransformersClassifier
from nst_train.seeds import derive_seed, seed_network
from nst_train.settings import TrainSettings
from nst_train.training.loss import joint_cross_entropies, weighted_loss
from nst_train.training.mixing import sample_mixing
from nst_train.training.optimizer import create_optimizer
from nst_train.training.schedule import Schedule
from nst_train.transforms.noise import Normalize

_UNREDUCED_MESSAGE = "finished reduction in the prior iteration"  # torch's words if a weight gets no gradient in a step
_SHARDED_TYPES = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


@dataclass
class Step:
    """One optimizer step: both parts of the batch in one noised forward pass, so that batch norm sees both."""

    network: nn.Module
    unwrapped: nn.Module
    averaged: ModelEmaV3
    optimizer: Any  # Accelerate's wrapper
    accelerator: Accelerator
    schedule: Schedule
    settings: TrainSettings
    normalize: Normalize
    noise: NetworkNoise
    precision: str
    scaler: torch.amp.GradScaler
    class_weights: Tensor | None

    def __call__(self, step: int, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        """Take the step. Return the cross-entropy of each labeled and of each pseudo-labeled image before it, detached."""
        seed, process = derive_seed(self.settings.seed, "own noise", step), self.accelerator.process_index
        seed_network(derive_seed(seed, process) if process else seed)  # for random numbers that a network draws in addition to our noise
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate(step) * group.get("lr_scale", 1.0)  # from `layer_decay`
        parts = batch.split(self.settings.accumulate, self.accelerator.device)
        losses = [self._accumulate_gradients(step, number, part) for number, part in enumerate(parts)]
        if self.accelerator.num_processes > 1:
            seed_network(derive_seed(seed, "optimizer"))  # an optimizer that draws random numbers draws the same in every process
        if self.settings.clip_grad:
            self.scaler.unscale_(self.optimizer.optimizer)
            self.accelerator.clip_grad_norm_(self.network.parameters(), self.settings.clip_grad)
        self.scaler.step(self.optimizer.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        # timm's warm-up with power 1 and gamma 9 at step + 2 is the released code's min(decay, (1 + t) / (10 + t))
        self.averaged.update(self.unwrapped, step + 2)
        return torch.cat([labeled for labeled, _ in losses]), torch.cat([pseudo for _, pseudo in losses])

    def _accumulate_gradients(self, step: int, part_index: int, part: TrainingBatch) -> tuple[Tensor, Tensor]:
        """Add the gradient of one part of a step, already on the device, and return the cross-entropies of its images."""
        settings, labeled = self.settings, len(part.labels)
        position = self.accelerator.process_index * settings.accumulate + part_index  # among parts of equal size
        self.noise.prepare_step(step, *(range(position * size, (position + 1) * size) for size in (labeled, len(part.images) - labeled)))
        images = self.normalize(part.images)
        mixing = sample_mixing(settings, step, images, labeled)
        if mixing:
            images = mixing.mix_images(images)
        if settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        is_last = part_index + 1 == settings.accumulate
        with nullcontext() if is_last else self.accelerator.no_sync(self.network):
            logits = self._logits(images)
            criterion = partial(
                joint_cross_entropies,
                labels=part.labels,
                pseudo=part.pseudo,
                smoothing=settings.label_smoothing,
                temperature=settings.pseudo_temperature,
                class_weights=self.class_weights,
            )
            losses = mixing.mix_losses(logits, criterion) if mixing else criterion(logits)
            loss = weighted_loss(losses[:labeled], losses[labeled:], settings.loss, settings.ratio) / settings.accumulate
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        losses = losses.detach()
        return losses[:labeled], losses[labeled:]

    def _logits(self, images: Tensor) -> Tensor:
        try:
            with autocast(self.precision, self.accelerator.device.type):
                logits: Tensor = self.network(images)
        except RuntimeError as error:
            if _UNREDUCED_MESSAGE not in str(error):
                raise
            raise NstError(
                f"{self.settings.model}: some weights get a gradient in some steps only, which processes cannot average; "
                "train in one process, without a launcher, or choose another `model`"
            ) from None
        return logits


def create_step(
    network: nn.Module,
    settings: TrainSettings,
    schedule: Schedule,
    data_config: dict[str, Any],
    classes: int,
    class_weights: Tensor | None = None,
) -> Step:
    """The step of a network on Accelerate's device, with its noise, timm's optimizer and averaged weights.

    `class_weights` weigh the labeled images of each class. Raises NstError if the network has no place for the noise.
    """
    # precision and accumulation come from the settings, not from the environment that `accelerate launch` sets
    ddp_kwargs = DistributedDataParallelKwargs()
    uncompiled = TorchDynamoPlugin(backend=DynamoBackend.NO)
    accelerator = Accelerator(
        cpu=this_process().device.type == "cpu", mixed_precision="no", kwargs_handlers=[ddp_kwargs], dynamo_plugin=uncompiled
    )
    if (kind := accelerator.distributed_type) in _SHARDED_TYPES:
        raise UsageError(
            f"`accelerate launch` asks for {kind.value}, which splits a network over processes; expected each of them to hold the whole one"
        )
    precision = resolve_precision(settings.precision, accelerator.device)
    channels_last = resolve_channels_last(settings.channels_last, network, accelerator.device.type, precision)
    settings = settings.model_copy(update={"channels_last": channels_last})
    network = network.to(accelerator.device)
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    averaged = ModelEmaV3(network, decay=settings.ema_decay, use_warmup=True, warmup_gamma=9.0, warmup_power=1.0)
    prepare_for_training(network, settings)
    if accelerator.distributed_type != DistributedType.NO:
        ddp_kwargs.find_unused_parameters = isinstance(network, TransformersClassifier) or has_unused_weights(
            network, data_config["input_size"]
        )
    noise = add_noise(network, settings.noise, settings.for_pseudo_images.noise, classes, settings.seed)
    optimizer = create_optimizer(network, settings, schedule)
    if settings.compile:
        network.compile()
    wrapped, optimizer = accelerator.prepare(network, optimizer)
    if settings.sync_batch_norm and accelerator.num_processes > 1:
        synchronize_batch_norm(wrapped, accelerator.device)
    scaler = torch.amp.GradScaler(accelerator.device.type, enabled=precision == "fp16")
    normalize = Normalize(data_config, accelerator.device)
    weights = class_weights.to(accelerator.device) if class_weights is not None else None
    return Step(wrapped, network, averaged, optimizer, accelerator, schedule, settings, normalize, noise, precision, scaler, weights)


def has_unused_weights(network: nn.Module, size: tuple[int, int, int]) -> bool:
    """Whether some trainable weight does not affect the logits for this image size, such as DINOv2's mask token or an auxiliary head."""
    trial = copy.deepcopy(network)  # a copy, because a forward pass updates running statistics
    trained = [weight for weight in trial.parameters() if weight.requires_grad]
    images = torch.zeros(2, *size, device=trained[0].device)
    with torch.random.fork_rng(devices=[]):
        logits = trial(images)
    return any(gradient is None for gradient in torch.autograd.grad(logits.sum(), trained, allow_unused=True))
