"""Batch-norm: the decay of its statistics, freezing them, and synchronizing them, as if one process had the images of all."""

from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


def decay_batch_norm(network: nn.Module, decay: float) -> None:
    """Set the decay of the running means and variances of all batch-norm layers; torch's `momentum` is 1 - `decay`."""
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            layer.momentum = 1 - decay


def freeze_batch_norm(network: nn.Module) -> None:
    """Make all batch-norm layers normalize by their stored means and variances; their scales and shifts are still trained."""
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            layer.eval()


def synchronize_batch_norm(network: nn.Module, device: torch.device) -> None:
    """Synchronize all batch-norm layers across processes, in place. Call it after wrapping in DDP, which refuses SyncBatchNorm on CPUs."""
    if device.type != "cpu":
        convert_sync_batchnorm(network)
        return
    # SyncBatchNorm requires a GPU: here each process normalizes the images of all processes and continues with its own
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            layer.register_forward_pre_hook(_gather_images)
            layer.register_forward_hook(_select_own_images)


class _GatherImages(torch.autograd.Function):
    """Gather the images of all processes in the order of their ranks; backward sums all processes' gradients for a process's images."""

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


def _gather_images(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (_GatherImages.apply(inputs[0]),) if layer.training else inputs


def _select_own_images(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    images = len(output) // distributed.get_world_size()
    # `chunk` would return views that autograd does not let the next layers modify in place
    return output.narrow(0, distributed.get_rank() * images, images) if layer.training else output
