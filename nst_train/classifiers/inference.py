"""Running a teacher over many images: reading, decoding and forward pass overlap, and every batch has the same size.

On a CPU each thread takes a whole batch from bytes to probabilities, which leaves no core idle and makes sums independent of the number
of cores. For a GPU, processes decode, and the device computes one batch while the results of the previous one are fetched.
"""

import copy
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate.utils import find_executable_batch_size
from jaxtyping import Bool, Float
from torch import Tensor, nn

from nst_data.errors import NstError
from nst_data.freed_memory import keep_freed_memory
from nst_data.prefetch import cpus_of_this_process, map_batches_in_threads
from nst_data.sources import Row, Source
from nst_train.classifiers.decoders import B, load_batches
from nst_train.classifiers.loading import LoadedImages, load_images
from nst_train.classifiers.teachers import Teacher
from nst_train.device import autocast, resolve_precision, set_threads, this_device

GPU_BATCH_SIZE, LARGEST_BATCH_SIZE = 256, 1024
_GPU_BATCH_PIXELS = GPU_BATCH_SIZE * 224 * 224  # 256 images of 800 px would take 70 GB in EfficientNet-L2
_BACKWARD_MEMORY = 16  # a backward pass needs the activations of every layer, inference only those of one or two
_MAX_RETAINED_BLOCK_BYTES = 2**26  # the activations of a layer for a batch of `_CPU_BATCH_PIXELS`
_CPU_BATCH_PIXELS = 2**19  # fits into a core's caches: 256 images of 32 px, 8 of 224 px


@dataclass(frozen=True)
class Prediction:
    """A teacher's output for a batch, and what was learned about its images while loading them."""

    output: Float[Tensor, "batch classes"]  # on the device, which may still be computing it
    images: LoadedImages

    @property
    def log_probs(self) -> Float[Tensor, "readable classes"]:
        """Log-probabilities of the readable images, in their order, on the CPU; waits for the device."""
        return self.output.cpu()[self.images.readable]


@dataclass(frozen=True)
class Computation:
    """How a teacher is run: what its labels depend on besides weights and settings. Recorded once for each labeling."""

    batch_size: int
    precision: str
    device: str
    threads: int = 1
    compile: bool = False


def restore_computation(recorded: dict[str, Any], ref: str) -> Computation:
    """The computation that a labeling was started with. Raises NstError if this machine cannot resume it."""
    computation = Computation(**recorded)
    if computation.device not in ("cpu", this_device().type):
        raise NstError(
            f"{ref} was started on {computation.device}, which this machine does not have; "
            f"resume it where there is one, or `store.remove({ref!r})` first"
        )
    return computation


@dataclass(frozen=True)
class PlainBatch:
    """A batch of rows and nothing else."""

    rows: Sequence[Row]


def plain_batches(source: Source, batch_size: int, row_range: range | None = None) -> Iterator[PlainBatch]:
    """Yield all rows of a source, or those in `row_range`, in order and in batches."""
    rows = source.rows(range(len(source)) if row_range is None else row_range)
    while batch := list(itertools.islice(rows, batch_size)):
        yield PlainBatch(batch)


def choose_computation(
    teacher: Teacher, batch_size: int | None, precision: str, compile_network: bool, backward: bool = False
) -> Computation:
    """Resolve the settings left open: the batch size (0: the largest that fits, by trial) and the precision for this device.

    With `backward`, gradients are computed too, and the default batch size on a GPU is smaller.
    """
    device = this_device()
    precision = resolve_precision(precision, device)
    pixels = max(int(np.prod(shape[1:])) for shape in _input_shapes(teacher))
    if batch_size is None:
        max_pixels = _CPU_BATCH_PIXELS if device.type == "cpu" else _GPU_BATCH_PIXELS // (_BACKWARD_MEMORY if backward else 1)
        batch_size = max(1, min(GPU_BATCH_SIZE, 2 ** int(np.log2(max(1, max_pixels / pixels)))))
    computation = Computation(batch_size, precision, device.type, compile=compile_network)
    return computation if batch_size else _find_largest_batch(teacher, computation)


def _find_largest_batch(teacher: Teacher, computation: Computation) -> Computation:
    halves = itertools.takewhile(bool, (LARGEST_BATCH_SIZE >> times for times in itertools.count(1)))

    def try_batch_size(batch_size: int) -> Computation:
        chosen = Computation(batch_size, computation.precision, computation.device)
        forward = _Forward(replace(teacher, noise=None), chosen)
        forward([torch.zeros(batch_size, *shape) for shape in _input_shapes(teacher)])
        return chosen

    # not used as a decorator: as one it drops the function that reduces the size, at least up to Accelerate 1.12
    largest = find_executable_batch_size(try_batch_size, LARGEST_BATCH_SIZE, lambda: next(halves, 0))
    try:
        fitted: Computation = largest()
    except RuntimeError as error:
        if "reached zero" not in str(error):
            raise
        raise NstError(f"out of memory on {computation.device} with a batch of one image; use a smaller network") from None
    return Computation(fitted.batch_size, computation.precision, computation.device, compile=computation.compile)


def _input_shapes(teacher: Teacher) -> list[tuple[int, ...]]:
    probe = torch.zeros(3, 64, 64, dtype=torch.uint8)
    return [tuple(preprocessing.prepare(probe).shape) for preprocessing in teacher.preprocessings]


def predict(
    teacher: Teacher,
    computation: Computation,
    batches: Iterable[B],
    temperature: float = 1.0,
    hashes: bool = True,
    threads: int | None = None,
) -> Generator[tuple[B, Prediction], None, None]:
    """Yield each batch with its prediction, in order. A batch has at most `computation.batch_size` rows."""
    set_threads(computation.threads)
    forward = _Forward(teacher, computation, temperature)

    def run_batch(batch: B, images: LoadedImages) -> Prediction:
        with teacher.noise.for_rows(_padded_ids(batch, computation.batch_size)) if teacher.noise else nullcontext():
            return Prediction(forward(images.pixels), replace(images, pixels=[]))

    def load_and_run(batch: B) -> Prediction:
        return run_batch(batch, load_images(batch.rows, teacher.preprocessings, computation.batch_size, hashes, teacher.noise))

    if computation.device == "cpu":
        with keep_freed_memory(_MAX_RETAINED_BLOCK_BYTES):
            yield from map_batches_in_threads(load_and_run, batches, threads or cpus_of_this_process())
    else:  # the device gets its next batch while the results of this one are fetched
        with closing(load_batches(teacher, batches, computation.batch_size, hashes, threads)) as ahead:
            for batch, images in ahead:
                yield batch, run_batch(batch, images)


def _padded_ids(batch: B, batch_size: int) -> list[int]:
    """Row ids of a batch, padded to `batch_size` with 0."""
    ids = [row.id for row in batch.rows]
    return ids + [0] * (batch_size - len(ids))


class _Forward:
    """Forward pass through the teacher's networks, on this process's device."""

    def __init__(self, teacher: Teacher, computation: Computation, temperature: float = 1.0) -> None:
        self._teacher, self._computation, self._temperature = teacher, computation, temperature
        self._device = this_device() if computation.device != "cpu" else torch.device("cpu")
        on_device = [move_to_device(member.network, self._device) for member in teacher.members]
        if teacher.noise:
            on_device = [copy.deepcopy(network) for network in on_device]
            for network in on_device:
                teacher.noise.add_to(network, len(teacher.class_names))
        self._networks: list[Callable[[Tensor], Tensor]] = list(on_device)
        self._which = [teacher.preprocessings.index(member.preprocessing) for member in teacher.members]
        if computation.compile:
            self._networks = [torch.compile(network) for network in self._networks]
            # compile now, before threads share the networks
            with teacher.noise.for_rows([0] * computation.batch_size) if teacher.noise else nullcontext():
                self([torch.zeros(computation.batch_size, *shape) for shape in _input_shapes(teacher)])

    def __call__(self, pixels: Sequence[Tensor]) -> Float[Tensor, "batch classes"]:
        """Log-probabilities of a full batch, on the device; empty if none of its images is readable."""
        if any(not len(batch) for batch in pixels):
            return torch.empty(0, len(self._teacher.class_names))
        with torch.inference_mode(), autocast(self._computation.precision, self._computation.device):
            finished = [
                preprocessing.finish(batch.to(self._device, non_blocking=True)).contiguous(memory_format=torch.channels_last)
                for preprocessing, batch in zip(self._teacher.preprocessings, pixels, strict=True)
            ]
            logits = [network(finished[index]) for network, index in zip(self._networks, self._which, strict=True)]
            return self._teacher.log_probs(logits, self._temperature)


def move_to_device(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to a device, channels last and in eval mode, all tensors newly allocated: results can depend on memory alignment."""
    network = network.to(device).to(memory_format=torch.channels_last)
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()
    return network.eval()


def has_valid_output(log_probs: Float[Tensor, "images classes"]) -> Bool[Tensor, " images"]:
    """Whether each image has valid probabilities. All of them are NaN if a logit is NaN or +infinity, or if all logits are -infinity."""
    return ~log_probs.isnan().any(dim=1)
