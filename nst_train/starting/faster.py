"""Finds the way of computing a training that is fastest on this CPU, by timing a few steps once, when a recipe is written."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from nst_data.freed_memory import keep_freed_memory
from nst_train.batches.batches import TrainingBatch
from nst_train.device import DEFAULT_THREADS, set_threads, this_device
from nst_train.networks.attention import has_fused_attention
from nst_train.networks.models import create_network, parameters_and_classes, training_data_config
from nst_train.networks.outline import create_outline
from nst_train.seeds import seed_network
from nst_train.settings import TrainSettings
from nst_train.training.schedule import Schedule
from nst_train.training.step import create_step

MIN_SPEEDUP = 1.1  # a smaller speed-up may be due to chance
_MAX_SLOWDOWN = 3.0  # a candidate whose first step takes this many times as long, such as bf16 emulated by the CPU, is not tried again
_WITHOUT_BF16 = ("DEFAULT", "AVX2")  # CPUs that predate its instructions
_ROUNDS = 3
_MAX_WEIGHTS = 100_000_000  # of a network that is timed: two are held at once, with optimizers and averages
_PIXELS = 2**18  # in the images of a timed step: 16 of 128 px


def faster_settings(settings: TrainSettings, classes: int) -> dict[str, Any]:
    """The values of `precision`, `fused_attention` and `compute_threads` with which this CPU trains clearly faster than with the defaults.

    Candidates are tried in turn against the best so far, step by step, unless settings name a value: bf16 if the CPU may support it, the
    same without fused attention, one thread. The memory format is not a candidate: images arrive as channels-last, and networks are
    equally fast with weights in either format.

    Empty if nothing is faster, for networks of over 100 million weights, and on a GPU. Other load on the machine affects the result.
    """
    if this_device().type != "cpu":
        return {}
    if (size := parameters_and_classes(settings, classes)) is None or size[0] > _MAX_WEIGHTS:
        return {}
    plain, changes = _without_weights(settings), dict[str, Any]()
    candidates: list[dict[str, Any]] = []
    if settings.precision == "auto" and torch.backends.cpu.get_cpu_capability() not in _WITHOUT_BF16:
        candidates.append({"precision": "bf16"})
        if settings.fused_attention and _has_fused_attention(plain, classes):
            candidates.append({"precision": "bf16", "fused_attention": False})
    if settings.compute_threads is None and DEFAULT_THREADS > 1:
        candidates.append({"compute_threads": 1})
    with _restore_threads(), keep_freed_memory():
        for candidate in candidates:
            if _is_faster(plain.model_copy(update=changes | candidate), plain.model_copy(update=changes), classes):
                changes |= candidate
    return changes


def _is_faster(candidate: TrainSettings, baseline: TrainSettings, classes: int) -> bool:
    """Whether every step of the candidate takes clearly less time than the step of `baseline` that is timed next to it."""
    (old_step, _), (new_step, _) = (
        _create_step(settings, classes, settings.batch_size * (1 + settings.ratio)) for settings in (baseline, candidate)
    )
    if _time_call(new_step) > _MAX_SLOWDOWN * _time_call(old_step):
        return False
    return all(_time_call(new_step) * MIN_SPEEDUP < _time_call(old_step) for _ in range(_ROUNDS))


def _has_fused_attention(settings: TrainSettings, classes: int) -> bool:
    network = create_outline(settings, classes)
    return network is not None and has_fused_attention(network)


def _without_weights(settings: TrainSettings) -> TrainSettings:
    """The settings without weights to load, which do not affect the time."""
    return settings.model_copy(update={"pretrained": False, "start": None})


@contextmanager
def _restore_threads() -> Iterator[None]:
    previous_threads = torch.get_num_threads()
    try:
        yield
    finally:
        set_threads(previous_threads)


def _time_call(function: Callable[[], object]) -> float:
    since = time.perf_counter()
    function()
    return time.perf_counter() - since


def _create_step(settings: TrainSettings, classes: int, per_step: int) -> tuple[Callable[[], object], int]:
    """A training step on random images with hard labels, and their number, at most `per_step`."""
    seed_network(0)
    network = create_network(settings, classes)
    data_config = training_data_config(network, settings)
    size, threads = data_config["input_size"], settings.compute_threads or DEFAULT_THREADS
    images = min(per_step, max(2, _PIXELS // (size[1] * size[2])))
    parts = 1 if images < per_step else settings.accumulate
    images -= images % (2 * parts)  # mixup works on pairs
    settings = settings.model_copy(update={"batch_size": images, "accumulate": parts, "pseudo_only": False})
    step = create_step(network, settings, Schedule.of(settings, images), data_config, classes)
    # same layout as real batches: bytes in channels-last order
    pixels = torch.randint(256, (images, *size[1:], 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    batch = TrainingBatch(pixels, torch.randint(classes, (images,)), {})

    def take() -> object:
        set_threads(threads)
        return step(0, batch)

    return take, images
