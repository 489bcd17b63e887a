"""This process among its peers, the device it computes on, and its threads."""

import torch
from accelerate import PartialState


def this_process() -> PartialState:
    """Accelerate's view of this process; on a machine without a GPU several processes speak gloo only when told that they use the CPU."""
    return PartialState(cpu=not torch.accelerator.is_available())


def this_device() -> torch.device:
    """The GPU of this process where there is one, else the CPU."""
    device: torch.device = this_process().device
    return device


DEFAULT_THREADS = torch.get_num_threads()  # before any training changed it


def set_threads(threads: int) -> None:
    """Compute with as many CPU threads as the work began with: sums depend on how they are split."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
