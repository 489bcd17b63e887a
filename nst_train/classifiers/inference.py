"""An un-noised teacher over many images: read, decode and forward pass overlap, and every batch has the same size.

On a CPU each thread takes a whole batch from bytes to probabilities, which leaves no core idle and makes sums independent of the number
of cores. On a GPU the threads decode, and the device computes one batch while the results of the one before come back.
"""

import copy
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from accelerate.utils import find_executable_batch_size
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from nst_data.errors import NstError, first_line
from nst_data.images import ImageError, check_shape, image_hash, phash
from nst_data.prefetch import cpus_of_this_process, in_threads
from nst_data.sources import Row, Source
from nst_train.classifiers.noised_teacher import TeacherNoise
from nst_train.classifiers.teachers import Teacher
from nst_train.device import autocast, set_threads, settled_precision, this_device
from nst_train.transforms.preprocessing import Preprocessing, decode_pixels, stacked, stacked_thumbnails, thumbnail

GPU_BATCH_SIZE, LARGEST_BATCH_SIZE = 256, 1024
_GPU_BATCH_PIXELS = GPU_BATCH_SIZE * 224 * 224  # 256 images of 800 pixels would take 70 GB in EfficientNet-L2
_BACKWARD_MEMORY = 16  # the backward pass needs the activations of every layer, a forward pass alone those of one or two
_READ_AT_ONCE, _SMALL_BYTES = 32, 2**13
_small_images = threading.Lock()
_CPU_BATCH_PIXELS = 2**19  # what stays in a core's caches: 256 images of 32 px, 8 of 224


class HasRows(Protocol):
    """A batch of rows, with whatever else its maker wants back beside the result."""

    @property
    def rows(self) -> Sequence[Row]:
        """Images that go through the network together."""


B = TypeVar("B", bound=HasRows)


@dataclass(frozen=True)
class Images:
    """A batch of rows, decoded. Where one is unreadable `pixels` hold zeros: the others' logits do not depend on it."""

    readable: list[int]
    reasons: list[tuple[int, str]]
    hashes: list[str]
    phashes: NDArray[np.int64]
    pixels: list[Tensor]


@dataclass(frozen=True)
class Prediction:
    """A teacher's answer to a batch, and what was found out about its images on the way."""

    output: Float[Tensor, "batch classes"]  # on the device, which may still be at it
    images: Images

    @property
    def log_probs(self) -> Float[Tensor, "readable classes"]:
        """Log-probabilities of the readable images, in their order, on the CPU; waits for the device."""
        return self.output.cpu()[self.images.readable]


@dataclass(frozen=True)
class Computation:
    """How a teacher computes; what its labels depend on beside weights and settings. Written down once for a labeling."""

    batch_size: int
    precision: str
    device: str
    threads: int = 1
    compile: bool = False


def computation_of(chosen: dict[str, Any], ref: str) -> Computation:
    """The computation that a labeling was begun with. Raises NstError where this machine cannot go on with it."""
    computation = Computation(**chosen)
    if computation.device not in ("cpu", this_device().type):
        raise NstError(
            f"{ref} was started on {computation.device}, which this machine does not have; "
            f"resume it where there is one, or `store.remove({ref!r})` first"
        )
    return computation


@dataclass(frozen=True)
class PlainBatch:
    """Rows, and nothing else."""

    rows: Sequence[Row]


def batches_of(source: Source, batch_size: int, which: range | None = None) -> Iterator[PlainBatch]:
    """All rows of a source, or those of `which`, in order."""
    rows = source.rows(range(len(source)) if which is None else which)
    while batch := list(itertools.islice(rows, batch_size)):
        yield PlainBatch(batch)


def choose_computation(
    teacher: Teacher, batch_size: int | None, precision: str, compile_network: bool, backward: bool = False
) -> Computation:
    """Settle what was left open: the batch size (0: the largest that fits, by trial) and the precision of this device.

    `backward` says that gradients are taken too, for which a GPU gets smaller batches.
    """
    device = this_device()
    precision = settled_precision(precision, device)
    pixels = max(int(np.prod(shape[1:])) for shape in _shapes(teacher))
    if batch_size is None:
        at_once = _CPU_BATCH_PIXELS if device.type == "cpu" else _GPU_BATCH_PIXELS // (_BACKWARD_MEMORY if backward else 1)
        batch_size = max(1, min(GPU_BATCH_SIZE, 2 ** int(np.log2(max(1, at_once / pixels)))))
    computation = Computation(batch_size, precision, device.type, compile=compile_network)
    return computation if batch_size else _largest_batch(teacher, computation)


def _largest_batch(teacher: Teacher, computation: Computation) -> Computation:
    halves = itertools.takewhile(bool, (LARGEST_BATCH_SIZE >> times for times in itertools.count(1)))

    def fitting(batch_size: int) -> Computation:
        chosen = Computation(batch_size, computation.precision, computation.device)
        forward = _Forward(replace(teacher, noise=None), chosen)
        forward([torch.zeros(batch_size, *shape) for shape in _shapes(teacher)])
        return chosen

    # no decorator: as one it forgets how to reduce the size, up to Accelerate 1.12 at least
    largest = find_executable_batch_size(fitting, LARGEST_BATCH_SIZE, lambda: next(halves, 0))
    try:
        found: Computation = largest()
    except RuntimeError as error:
        if "reached zero" not in str(error):
            raise
        raise NstError(f"out of memory on {computation.device} with a batch of one image; use a smaller network") from None
    return Computation(found.batch_size, computation.precision, computation.device, compile=computation.compile)


def _shapes(teacher: Teacher) -> list[tuple[int, ...]]:
    probe = torch.zeros(3, 64, 64, dtype=torch.uint8)
    return [tuple(one.prepare(probe).shape) for one in teacher.preprocessings]


def predict(
    teacher: Teacher,
    computation: Computation,
    batches: Iterable[B],
    temperature: float = 1.0,
    hashes: bool = True,
    threads: int | None = None,
) -> Iterator[tuple[B, Prediction]]:
    """Each batch with its prediction, in order. A batch has at most `computation.batch_size` rows."""
    threads = threads or cpus_of_this_process()
    set_threads(computation.threads)
    forward = _Forward(teacher, computation, temperature)
    on_gpu = computation.device != "cpu"

    def load(batch: B) -> Images:
        images = load_images(batch.rows, teacher.preprocessings, computation.batch_size, hashes, teacher.noise)
        return replace(images, pixels=[one.pin_memory() for one in images.pixels]) if on_gpu else images

    def answer(batch: B, images: Images) -> Prediction:
        with teacher.noise.drawing(_ids(batch, computation.batch_size)) if teacher.noise else nullcontext():
            return Prediction(forward(images.pixels), replace(images, pixels=[]))

    if on_gpu:  # the device is given its next batch while this one's results are fetched
        yield from ((batch, answer(batch, images)) for batch, images in in_threads(load, batches, threads))
    else:
        yield from in_threads(lambda batch: answer(batch, load(batch)), batches, threads)


def _ids(batch: B, batch_size: int) -> list[int]:
    """The rows of a whole batch; 0 where there is no image."""
    ids = [row.id for row in batch.rows]
    return ids + [0] * (batch_size - len(ids))


def load_images(
    rows: Sequence[Row], preprocessings: Sequence[Preprocessing], batch_size: int, hashes: bool, noise: TeacherNoise | None = None
) -> Images:
    """Read, hash, decode, noise and prepare the rows of a batch, in this thread."""
    exact = any(one.exact for one in preprocessings)
    sides = [one.least_side_px for one in preprocessings]
    least_side_px = None if None in sides else max(side for side in sides if side is not None)
    readable, reasons, hashed, small = [], [], [], []
    prepared: list[list[Tensor]] = [[] for _ in preprocessings]
    start = 0
    while start < len(rows):
        contents = _contents(rows[start : start + _READ_AT_ONCE])
        with _one_at_a_time(contents):
            for position, content in enumerate(contents, start):
                try:
                    if isinstance(content, Exception):
                        raise content
                    pixels = decode_pixels(content, least_side_px, exact)
                    check_shape(pixels.shape[2], pixels.shape[1])
                    views = [_prepared(one, content, pixels, rows[position].id, noise) for one in preprocessings]
                except (NstError, OSError) as error:
                    reasons.append((position, error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)))
                    continue
                readable.append(position)
                if hashes:
                    hashed.append(image_hash(content))
                    small.append(thumbnail(pixels))
                for view, into in zip(views, prepared, strict=True):
                    into.append(view)
        start += len(contents)
    batches = [stacked(one) if one else torch.empty(0) for one in prepared]
    if small and all(view is one for view, one in zip(prepared[0], small, strict=True)):  # an image of its size is its own thumbnail
        thumbnails = batches[0].permute(0, 2, 3, 1).numpy()
    else:
        thumbnails = stacked_thumbnails(small)
    return Images(readable, reasons, hashed, phash(thumbnails), [_padded(one, readable, batch_size) for one in batches])


def _contents(rows: Sequence[Row]) -> list[bytes | memoryview | Exception]:
    """The first of these images, as many as are small together; one at least."""
    contents: list[bytes | memoryview | Exception] = []
    size = 0
    for row in rows:
        contents.append(content := _content(row))
        size += 0 if isinstance(content, Exception) else len(content)
        if size > 2**20:
            break
    return contents


def _content(row: Row) -> bytes | memoryview | Exception:
    """The bytes of an image, or why there are none."""
    try:
        return row.read()
    except (NstError, OSError) as error:
        return error


def _one_at_a_time(contents: Sequence[bytes | memoryview | Exception]) -> AbstractContextManager[object]:
    """What to hold while some images are decoded: of small ones Python's lock would change hands several times in each, at its full cost.

    Meanwhile the other threads are in the network, or read.
    """
    sizes = [len(content) for content in contents if not isinstance(content, Exception)]
    return _small_images if sum(sizes) <= _SMALL_BYTES * len(sizes) else nullcontext()


def _prepared(preprocessing: Preprocessing, encoded: bytes | memoryview, pixels: Tensor, row: int, noise: TeacherNoise | None) -> Tensor:
    try:
        return noise.prepare(preprocessing, encoded, pixels, row) if noise else preprocessing.prepare(pixels)
    except (RuntimeError, ValueError, ZeroDivisionError) as error:  # such as a side that would be 0 pixels long
        raise ImageError(
            f"{pixels.shape[2]}x{pixels.shape[1]} pixels, which the teacher's transform refuses ({first_line(error)})"
        ) from None


def _padded(stacked: Tensor, readable: list[int], batch_size: int) -> Tensor:
    """A whole batch; zeros where there is no image. Logits differ in the last bits between batch sizes, so there is one size only."""
    if len(stacked) in (0, batch_size):
        return stacked
    batch = stacked.new_zeros(batch_size, *stacked.shape[1:])
    batch[readable] = stacked
    return batch


class _Forward:
    """The teacher's networks on this process's device."""

    def __init__(self, teacher: Teacher, computation: Computation, temperature: float = 1.0) -> None:
        self._teacher, self._computation, self._temperature = teacher, computation, temperature
        self._device = this_device() if computation.device != "cpu" else torch.device("cpu")
        on_device = [placed(member.network, self._device) for member in teacher.members]
        if teacher.noise:
            on_device = [copy.deepcopy(network) for network in on_device]
            for network in on_device:
                teacher.noise.add_to(network, len(teacher.class_names))
        self._networks: list[Callable[[Tensor], Tensor]] = list(on_device)
        self._which = [teacher.preprocessings.index(member.preprocessing) for member in teacher.members]
        if computation.compile:
            self._networks = [torch.compile(network) for network in self._networks]
            with teacher.noise.drawing([0] * computation.batch_size) if teacher.noise else nullcontext():
                self([torch.zeros(computation.batch_size, *shape) for shape in _shapes(teacher)])  # compiled once, before threads share it

    def __call__(self, pixels: Sequence[Tensor]) -> Float[Tensor, "batch classes"]:
        """Log-probabilities of a whole batch, on the device."""
        if any(not len(one) for one in pixels):
            return torch.empty(0, len(self._teacher.class_names))
        with torch.inference_mode(), autocast(self._computation.precision, self._computation.device):
            finished = [
                preprocessing.finish(one.to(self._device, non_blocking=True)).contiguous(memory_format=torch.channels_last)
                for preprocessing, one in zip(self._teacher.preprocessings, pixels, strict=True)
            ]
            logits = [network(finished[which]) for network, which in zip(self._networks, self._which, strict=True)]
            return self._teacher.log_probs(logits, self._temperature)


def placed(network: nn.Module, device: torch.device) -> nn.Module:
    """On the device, channels last, every tensor at an address of its own: what torch computes can depend on how memory is aligned."""
    network = network.to(device).to(memory_format=torch.channels_last)
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()
    return network.eval()


def has_answer(log_probs: Float[Tensor, "images classes"]) -> Bool[Tensor, " images"]:
    """Whether an image's probabilities are numbers. Where a logit is NaN or infinite, none of them is."""
    return ~log_probs.isnan().any(dim=1)
