"""This process among its peers, the device it computes on, and its threads."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, distributed, nn

from nst_data.errors import NstError, is_out_of_memory

_PROCESS_GROUP_TIMEOUT = timedelta(hours=3)  # for the main process, which may be reading all labeled images or making a selection
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def this_process() -> PartialState:
    """Accelerate's state of this process. On a machine without a GPU, several processes use gloo only if `cpu` is set."""
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=_PROCESS_GROUP_TIMEOUT)


def this_device() -> torch.device:
    """The GPU of this process if there is one, else the CPU. Unlike `this_process`, it joins no process group and never waits."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return torch.device(kind.type, int(os.environ.get("LOCAL_RANK", "0")) % torch.accelerator.device_count())


def resolve_precision(precision: str, device: torch.device) -> str:
    """Resolve `auto` for a device: fp32 on CPUs, bf16 on GPUs that support it, else fp16."""
    if precision != "auto":
        return precision
    if device.type == "cpu":
        return "fp32"
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "fp16"


def resolve_channels_last(requested: bool | None, network: nn.Module, device_type: str, precision: str) -> bool:
    """Whether a training keeps images and weights in channels-last format: as requested, or by default if the network benefits.

    Convolutional networks benefit on CPUs, and on GPUs in reduced precision, whose convolutions use that format.
    """
    return requested if requested is not None else (device_type == "cpu" or precision != "fp32") and is_convolutional(network)


def is_convolutional(network: nn.Module) -> bool:
    """Whether a network has convolutions with overlapping windows. Those of a ViT, which cut the image into patches, do not overlap."""
    return any(isinstance(module, nn.Conv2d) and max(module.kernel_size) > max(module.stride) for module in network.modules())


def autocast(precision: str, device_type: str) -> AbstractContextManager[Any]:
    """The context of a forward pass in fp32, bf16 or fp16."""
    return nullcontext() if precision == "fp32" else torch.autocast(device_type, _DTYPES[precision])


def all_reduce(values: Tensor, operation: Literal["sum", "max"]) -> Tensor:
    """Sum or maximum of each value over all processes, on this process's device. Collective: call it on every rank."""
    state = this_process()
    if state.num_processes == 1:
        return values
    values = values.to(state.device, copy=True)
    distributed.all_reduce(values, distributed.ReduceOp.SUM if operation == "sum" else distributed.ReduceOp.MAX)
    return values


def create_max_reducer() -> Callable[[list[float]], list[float]] | None:
    """A function that returns the maximum of each number over all processes; None if there is only one process."""
    if this_process().num_processes == 1:
        return None
    return lambda values: all_reduce(torch.tensor(values), "max").tolist()


def broadcast_text(text: str) -> str:
    """The text of the main process, on all processes. Collective: call it on every rank."""
    this_process()
    texts: list[str] = broadcast_object_list([text])
    return texts[0]


DEFAULT_THREADS = torch.get_num_threads()  # before any training changed it


def total_gpu_memory(gpu: torch.device) -> int:
    """The memory of a CUDA device in bytes."""
    return int(torch.cuda.get_device_properties(gpu).total_memory)


def set_threads(threads: int) -> None:
    """Set the number of CPU threads to that with which the work started, since sums depend on how they are split."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@contextmanager
def translate_memory_errors() -> Iterator[None]:
    """Turn running out of memory, on this machine or its GPU, into a one-line error."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise NstError(
            "out of memory: the network and the images of a step do not fit; use a smaller `batch_size` or `image_size`, "
            "or split steps with `accumulate`"
        ) from None
