"""How long a training step and labeling an image take on this machine, by timing a few of each."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from nst_data.errors import NstError
from nst_data.freed_memory import keep_freed_memory
from nst_data.prefetch import cpus_of_this_process
from nst_data.sources import Source
from nst_train.batches.batches import LabeledImages, TrainingBatch, training_batches
from nst_train.classifiers.classifier import Classifier
from nst_train.classifiers.inference import choose_computation, plain_batches, predict
from nst_train.classifiers.loading import load_images
from nst_train.classifiers.teachers import Teacher
from nst_train.device import DEFAULT_THREADS, set_threads, this_device, translate_memory_errors
from nst_train.networks.models import count_parameters, create_network, evaluation_data_config, training_data_config
from nst_train.networks.weights import local_name
from nst_train.noise_settings import Noise
from nst_train.settings import LabelSettings, RunSettings, TrainSettings
from nst_train.training.schedule import Schedule
from nst_train.training.step import create_step
from nst_train.transforms.noise import training_transforms
from nst_train.transforms.preprocessing import TimmPreprocessing

_CPU_IMAGES, _GPU_IMAGES = 32, 512  # at most, in a timed step; the time of a larger step is extrapolated
_N_PREPARED = 8  # images that are read and augmented
_MAX_SECONDS, _MAX_REPEATS = 6.0, 3


@dataclass(frozen=True)
class Speed:
    """The speed of one network with its settings on this machine."""

    parameters: int
    features: int  # approximate number of features per image, for a probe
    seconds_per_step: float
    seconds_per_label: float  # per image, in evaluation and labeling


def measure_speed(
    settings: TrainSettings,
    train_source: Source,
    class_names: list[str],
    pool: Source,
    images_per_step: int,
    label: LabelSettings,
    run: RunSettings,
) -> Speed:
    """Time a step of a randomly initialized network on random images, and labeling on some of the pool's.

    Raises NstError if the network cannot be created here without asking the Hub, or memory is too small.
    """
    classes = len(class_names)
    if (local := local_name(settings.model)) is None:
        raise NstError("its weights are not in the cache")
    bare = settings.model_copy(
        update={"model": local, "pretrained": False, "start": None, "accumulate": 1, "pseudo_only": False, "class_weights": None}
    )
    with torch.random.fork_rng(devices=[]), translate_memory_errors():
        network = create_network(bare.model_copy(update={"noise": Noise.none()} if settings.probe else {}), classes)
        parameters = count_parameters(network)
        seconds_per_label = _seconds_per_label(network, bare, class_names, pool, label, run)
        images_per_part = images_per_step // settings.accumulate
        seconds_per_step = (
            0.0 if settings.probe else _seconds_per_step(network, bare, train_source, classes, images_per_step, images_per_part, run)
        )
    return Speed(parameters, getattr(network, "num_features", 0), seconds_per_step, seconds_per_label)


def _seconds_per_step(
    network: nn.Module, settings: TrainSettings, source: Source, classes: int, images_per_step: int, images_per_part: int, run: RunSettings
) -> float:
    """The network's time combined with that of preparing images, which workers do concurrently on the remaining cores.

    `images_per_part` is the number of images of a step that are computed at once.
    """
    on_cpu = this_device().type == "cpu"
    batch_size = max(2, min(images_per_part, _CPU_IMAGES if on_cpu else _GPU_IMAGES) // 2 * 2)  # mixup works on pairs
    data_config = training_data_config(network, settings)
    side, threads = data_config["input_size"][-1], settings.compute_threads or DEFAULT_THREADS
    timed_settings = settings.model_copy(update={"batch_size": batch_size, "ratio": 1})
    set_threads(threads)
    step = create_step(network, timed_settings, Schedule.of(timed_settings, len(source)), data_config, classes)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (batch_size, side, side, 3), dtype=np.uint8)).permute(0, 3, 1, 2)
    batch = TrainingBatch(pixels, torch.arange(batch_size) % classes, {})
    with keep_freed_memory():
        compute = (
            _shortest_seconds(lambda: step(0, batch)[0].sum().item()) * images_per_step / batch_size
        )  # a schedule may end after this step
    set_threads(DEFAULT_THREADS)
    prepare = images_per_step * _seconds_to_prepare(settings, source, data_config)
    workers = run.workers_on(this_device().type)
    if not workers:
        return compute + prepare
    cores = cpus_of_this_process()
    busy = (compute * min(threads, cores) + prepare) / cores if on_cpu else prepare / cores
    return max(compute, prepare / workers, busy)


def _seconds_to_prepare(settings: TrainSettings, source: Source, data_config: dict[str, object]) -> float:
    """Seconds to read, decode and augment one image in one process; 0 if the images cannot be read."""
    rows = np.arange(len(source))
    timed_settings = settings.model_copy(update={"batch_size": min(_N_PREPARED, len(rows))})
    images = LabeledImages(source, rows, np.zeros(len(rows), np.int64))  # labels take no time
    transforms = training_transforms(timed_settings, data_config)
    try:
        return (
            _shortest_seconds(lambda: next(training_batches(timed_settings, images, None, transforms, range(1), 0)))
            / timed_settings.batch_size
        )
    except NstError:
        return 0.0


def _seconds_per_label(
    network: nn.Module, settings: TrainSettings, class_names: list[str], pool: Source, label: LabelSettings, run: RunSettings
) -> float:
    """Seconds per image, from bytes to probabilities, using all cores; a GPU computes meanwhile, so then the longer of both."""
    preprocessing = TimmPreprocessing.from_data_config(evaluation_data_config(network, settings))
    teacher = Teacher.from_members(Classifier(network.eval(), preprocessing, class_names))
    computation = choose_computation(teacher, label.batch_size or None, label.precision, compile_network=False)
    threads, on_cpu, size = run.decode_threads or cpus_of_this_process(), computation.device == "cpu", computation.batch_size
    num_batches = threads if on_cpu else 1
    rows = range(min(len(pool), size * num_batches))
    seconds = _shortest_seconds(lambda: list(predict(teacher, computation, plain_batches(pool, size, rows), threads=num_batches))) / len(
        rows
    )
    if not on_cpu:
        sample = list(pool.rows(range(min(len(pool), _N_PREPARED))))
        load = _shortest_seconds(lambda: load_images(sample, teacher.preprocessings, len(sample), hashes=True)) / len(sample)
        seconds = max(seconds - load, load / threads)
    set_threads(DEFAULT_THREADS)
    return seconds


def _shortest_seconds(function: Callable[[], object]) -> float:
    """The shortest of a few runs, after a first one that counts only if it took long."""
    times: list[float] = []
    while not times or (len(times) <= _MAX_REPEATS and sum(times) < _MAX_SECONDS):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times[1:] or times)
