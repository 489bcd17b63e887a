"""How long training and labeling take on this machine, by a few timed steps, and which of its ways to train is the fastest."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nst_data.prefetch import cpus_of_this_process
from nst_data.sources import Source
from nst_train.batches.batches import TrainingBatch
from nst_train.classifiers.inference import default_batch_size
from nst_train.device import DEFAULT_THREADS, autocast, set_threads, settled_precision, this_device
from nst_train.networks.models import create_network, data_config_of, evaluation_data_config_of
from nst_train.seeds import seed_network
from nst_train.settings import TrainSettings
from nst_train.training.schedule import Schedule
from nst_train.training.step import make_step
from nst_train.transforms.noise import training_transform

CLEARLY = 1.1  # a way of computing that is not faster by this factor may be so by chance
_SLOW = 3.0  # what takes so many times as long at its first step, such as bf16 on a CPU that emulates it, is not tried again
_WITHOUT_BF16 = ("DEFAULT", "AVX2")  # CPUs that are older than its instructions
_ROUNDS = 3
_PIXELS = {"cpu": 2**17, "gpu": 2**23}  # of the images of a timed step: 8 of 128 px, 167 of 224
_READ_IMAGES = 16


@dataclass(frozen=True)
class Speed:
    """Seconds of one training step, and of one image that the trained network labels."""

    step: float
    labeled_image: float


def measure(settings: TrainSettings, classes: int, images: Source | None = None, with_pseudo: bool = True) -> Speed:
    """Time a few steps and forward passes of the network that settings ask for, with random weights.

    Steps are timed on fewer images than a batch has where it is large, and counted up. With `images` a step's time includes reading and
    augmenting them: a CPU does both with the same cores, a GPU computes meanwhile. `with_pseudo` says whether steps have pseudo-labeled
    images too. Raises NstError for what the network refuses.
    """
    settings, device = _untrained(settings), this_device()
    per_step = settings.batch_size * ((0 if settings.pseudo_only else 1) + (settings.ratio if with_pseudo else 0))
    with _threads_kept():
        step, timed = _step(settings, classes, per_step)
        step()
        computing = min(_seconds(step) for _ in range(_ROUNDS)) * per_step / timed
        labeled_image = _seconds_per_labeled_image(settings, classes)
    reading = _seconds_per_augmented_image(settings, classes, images) * per_step / cpus_of_this_process() if images is not None else 0.0
    return Speed(computing + reading if device.type == "cpu" else max(computing, reading), labeled_image)


def faster_settings(settings: TrainSettings, classes: int) -> dict[str, Any]:
    """The values of `precision` and `compute_threads` that train clearly faster on this CPU than the defaults do.

    Each is tried in turn beside the best so far, step by step, unless settings name it: bf16 where the CPU may compute in it, one thread.
    The order in memory is no candidate: images come in channels-last order, and networks compute as fast whatever that of weights is.
    Empty where nothing is faster, and on a GPU. Other work on the machine sways it.
    """
    if this_device().type != "cpu":
        return {}
    plain, changes = _untrained(settings), dict[str, Any]()
    candidates: list[dict[str, Any]] = []
    if settings.precision == "auto" and torch.backends.cpu.get_cpu_capability() not in _WITHOUT_BF16:
        candidates.append({"precision": "bf16"})
    if settings.compute_threads is None and DEFAULT_THREADS > 1:
        candidates.append({"compute_threads": 1})
    with _threads_kept():
        for candidate in candidates:
            if _is_faster(plain.model_copy(update=changes | candidate), plain.model_copy(update=changes), classes):
                changes |= candidate
    return changes


def _is_faster(candidate: TrainSettings, before: TrainSettings, classes: int) -> bool:
    """Whether each step of a candidate takes clearly less time than the one of `before` beside it."""
    (old, _), (new, _) = (_step(one, classes, one.batch_size * (1 + one.ratio)) for one in (before, candidate))
    if _seconds(new) > _SLOW * _seconds(old):
        return False
    return all(_seconds(new) * CLEARLY < _seconds(old) for _ in range(_ROUNDS))


def _untrained(settings: TrainSettings) -> TrainSettings:
    """Without weights to load: they change no time."""
    return settings.model_copy(update={"pretrained": False, "start": None})


@contextmanager
def _threads_kept() -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        yield
    finally:
        set_threads(before)


def _seconds(work: Callable[[], object]) -> float:
    since = time.perf_counter()
    work()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - since


def _step(settings: TrainSettings, classes: int, per_step: int) -> tuple[Callable[[], object], int]:
    """A training step on random images with hard labels, and how many they are: at most `per_step`."""
    seed_network(0)
    network = create_network(settings, classes)
    data_config = data_config_of(network, settings)
    size, threads = data_config["input_size"], settings.compute_threads or DEFAULT_THREADS
    images = min(per_step, max(2, _pixels() // (size[1] * size[2])))
    parts = 1 if images < per_step else settings.accumulate
    images -= images % parts
    settings = settings.model_copy(update={"batch_size": images, "accumulate": parts, "pseudo_only": False})
    step = make_step(network, settings, Schedule.of(settings, images), data_config, classes)
    # as batches are: bytes in channels-last order
    pixels = torch.randint(256, (images, *size[1:], 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    batch = TrainingBatch(pixels, torch.randint(classes, (images,)), {})

    def take() -> object:
        set_threads(threads)
        return step(0, batch)

    return take, images


def _pixels() -> int:
    return _PIXELS["cpu" if this_device().type == "cpu" else "gpu"]


@torch.inference_mode()
def _seconds_per_labeled_image(settings: TrainSettings, classes: int) -> float:
    """Of a forward pass as labeling does it: on a CPU each core takes a batch of its own."""
    device = this_device()
    network = create_network(settings, classes)
    size = evaluation_data_config_of(network, settings)["input_size"]
    images = default_batch_size(size[1] * size[2], device)
    network = network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    pixels = torch.randn(images, *size, device=device).contiguous(memory_format=torch.channels_last)
    set_threads(1)

    def label() -> Tensor:
        with autocast(settled_precision("auto", device), device.type):
            answer: Tensor = network(pixels)
        return answer

    label()
    at_once = cpus_of_this_process() if device.type == "cpu" else 1
    return min(_seconds(label) for _ in range(_ROUNDS)) / images / at_once


def _seconds_per_augmented_image(settings: TrainSettings, classes: int, images: Source) -> float:
    """Of reading, decoding and augmenting one image in one process."""
    transform = training_transform(settings, data_config_of(create_network(settings, classes), settings))
    rows: NDArray[np.int64] = np.unique(np.linspace(0, len(images) - 1, _READ_IMAGES).astype(np.int64))
    transform(images.read(int(rows[0])), 0)  # opens what is opened once
    return _seconds(lambda: [transform(images.read(int(row)), 0) for row in rows]) / len(rows)
