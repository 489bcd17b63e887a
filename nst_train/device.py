"""The device that this process computes on."""

import torch
from accelerate import PartialState


def this_device() -> torch.device:
    """Accelerate's choice: the GPU of this process where there is one, else the CPU."""
    device: torch.device = PartialState().device
    return device


DEFAULT_THREADS = torch.get_num_threads()  # before any training changed it


def set_threads(threads: int) -> None:
    """Compute with as many CPU threads as the work began with: sums depend on how they are split."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
