"""Batch-norm: how slowly its statistics move, whether they do, and over the images of all processes, as on one process with all of them."""

from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


def decay_batch_norm(network: nn.Module, decay: float) -> None:
    """Let the means and variances of all batch-norm layers keep this share at each step; torch's `momentum` is the rest."""
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            layer.momentum = 1 - decay


def freeze_batch_norm(network: nn.Module) -> None:
    """Let all batch-norm layers normalize by the means and variances that they have; what they scale and shift by is trained."""
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            layer.eval()


def synchronize_batch_norm(network: nn.Module, device: torch.device) -> None:
    """Change all batch-norm layers of a network in place, once DDP is around it, which refuses torch's own such layers on CPUs."""
    if device.type != "cpu":
        convert_sync_batchnorm(network)
        return
    # torch's layer runs on GPUs alone: here each process normalizes the images of all, and goes on with its own
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            layer.register_forward_pre_hook(_with_all_images)
            layer.register_forward_hook(_own_images)


class _Gathered(torch.autograd.Function):
    """The images of all processes, one process's after the other's; each gets the gradients that all have for its own."""

    @staticmethod
    def forward(context: Any, own: Tensor) -> Tensor:  # noqa: ANN401 - torch's
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:  # noqa: ANN401 - torch's
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        return total.chunk(distributed.get_world_size())[distributed.get_rank()]


def _with_all_images(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (_Gathered.apply(inputs[0]),) if layer.training else inputs


def _own_images(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    images = len(output) // distributed.get_world_size()
    return output.narrow(0, distributed.get_rank() * images, images) if layer.training else output  # others' next layers work in place
