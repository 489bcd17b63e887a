"""Decoding of batches in worker processes, ahead of a network that runs on a GPU.

The threads of one process decode no faster beyond about eight, since they contend for the GIL: 16 of them decoded a third of what 16
independent processes did, and a GPU could have consumed more (benchmarks/results/gpu.md). Threads still read the images, so nothing is
read twice or out of order; they hand them in small groups to an idle process and copy the pixels from memory shared with it.
"""

import itertools
import mmap
import multiprocessing
import queue
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from nst_data.errors import NstError, is_out_of_memory
from nst_data.prefetch import cpus_of_this_process, in_threads
from nst_data.sources import Row
from nst_train.classifiers.loading import Images, load_images, reason_of
from nst_train.classifiers.teachers import Teacher
from nst_train.interruption import STOP_SIGNALS

_AT_ONCE = 64  # images per request to a process


class HasRows(Protocol):
    """A batch of rows, with whatever else its creator wants returned along with the result."""

    @property
    def rows(self) -> Sequence[Row]:
        """Images that go through the network together."""


B = TypeVar("B", bound=HasRows)


def loaded(
    teacher: Teacher, batches: Iterable[B], batch_size: int, hashes: bool, threads: int | None = None
) -> Generator[tuple[B, Images], None, None]:
    """Yield each batch with its images, in order, padded to `batch_size` and in pinned memory if there is a CUDA device.

    Images are decoded by `threads` processes, by default one per CPU. Threads of this process decode them instead if only one is asked
    for, if the first batch is not full, or if processes cannot share memory by forking.
    """
    threads = threads or cpus_of_this_process()
    batches = iter(batches)
    first = list(itertools.islice(batches, 1))
    batches = itertools.chain(first, batches)
    if threads == 1 or not first or len(first[0].rows) < batch_size or not _may_fork():

        def load(batch: B) -> Images:
            images = load_images(batch.rows, teacher.preprocessings, batch_size, hashes, teacher.noise)
            return replace(images, pixels=[tensor.pin_memory() if torch.cuda.is_available() else tensor for tensor in images.pixels])

        yield from in_threads(load, batches, threads)
    else:
        with closing(Decoders(teacher, hashes, threads)) as decoders:
            yield from in_threads(lambda batch: decoders.load(batch.rows, batch_size), batches, threads + 1)


def _may_fork() -> bool:
    """Whether this process may fork children that share its memory: on Linux, unless it is a daemonic process."""
    return sys.platform == "linux" and not multiprocessing.current_process().daemon


@dataclass(frozen=True)
class _Decoder:
    process: BaseProcess
    connection: Connection
    pixels: list[Tensor]


class Decoders:
    """Processes that decode images for a teacher. They exit with this process, however it ends, and ignore stop signals until then."""

    def __init__(self, teacher: Teacher, hashes: bool, count: int) -> None:
        probe = torch.zeros(3, 64, 64, dtype=torch.uint8)
        self._alike = [preprocessing.prepare(probe) for preprocessing in teacher.preprocessings]
        self._all: list[_Decoder] = []
        self._free: queue.SimpleQueue[_Decoder] = queue.SimpleQueue()
        load = partial(_load, preprocessings=teacher.preprocessings, hashes=hashes, noise=teacher.noise)
        previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # inherited by the children, for good
        try:
            for _ in range(count):
                self._start(load)
        except BaseException:
            self.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)

    def _start(self, load: "_Load") -> None:
        context = multiprocessing.get_context("fork")
        connection, child_connection = context.Pipe()
        pixels = [_shared(_AT_ONCE, one) for one in self._alike]
        # closed in the child, which would not notice this process's end otherwise
        ours = [connection, *(one.connection for one in self._all)]
        process = context.Process(target=_decode, args=(child_connection, ours, partial(load, into=pixels)), daemon=True)
        process.start()
        child_connection.close()
        self._all.append(_Decoder(process, connection, pixels))
        self._free.put(self._all[-1])

    def load(self, rows: Sequence[Row], batch_size: int) -> Images:
        """Like `load_images`, in pinned memory if there is a CUDA device. Raises NstError if a process died."""
        pixels = [_pinned(batch_size, tensor) for tensor in self._alike]
        parts: list[Images] = []
        for start in range(0, len(rows), _AT_ONCE):
            read = [_read(row) for row in rows[start : start + _AT_ONCE]]
            decoder = self._free.get()
            try:
                part = _answer(decoder.connection, read)
                for whole, shared in zip(pixels, decoder.pixels, strict=True):
                    whole[start : start + len(read)].copy_(shared[: len(read)])
            finally:
                self._free.put(decoder)
            parts.append(part)
        for whole in pixels:
            whole[len(rows) :] = 0
        return _joined(parts, pixels)

    def close(self) -> None:
        """Kill the processes; threads waiting for one get an error."""
        for decoder in self._all:
            decoder.process.kill()
        for decoder in self._all:
            decoder.process.join()


_Load = Callable[..., Images]


def _load(rows: Sequence[Row], into: Sequence[Tensor], **settings: object) -> Images:
    """Load images and write their pixels `into` shared memory."""
    images = load_images(rows, batch_size=len(rows), **settings)  # type: ignore[arg-type] # keyword arguments of `load_images`
    for shared, pixels in zip(into, images.pixels, strict=True):
        shared[: len(rows)] = pixels if len(pixels) else 0
    return replace(images, pixels=[])


def _decode(connection: Connection, ours: Sequence[Connection], load: _Load) -> None:
    """Main loop of a decoding process: load the rows it receives until the other end is closed."""
    for inherited in ours:
        inherited.close()
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):  # the parent is gone
        while True:
            rows = connection.recv()
            try:
                answer: Images | Exception = load(rows)
            except Exception as error:  # sent to the parent, which raises it
                answer = NstError("out of memory while decoding; use fewer `decode_threads`") if is_out_of_memory(error) else error
            connection.send(answer)


def _answer(connection: Connection, rows: list[Row]) -> Images:
    try:
        connection.send(rows)
        answer: Images | Exception = connection.recv()
    except (EOFError, OSError):
        raise NstError("a decoding process died, perhaps for lack of memory; use fewer `decode_threads`") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _read(row: Row) -> Row:
    """The same row with its bytes read, or with an error saying why they could not be."""
    try:
        return Row(row.id, row.key, bytes(row.read()))
    except (NstError, OSError) as error:
        return Row(row.id, row.key, NstError(reason_of(error)))


def _shared(images: int, alike: Tensor) -> Tensor:
    """A buffer for `images` images, shared with processes forked later; anonymous memory, as containers may limit /dev/shm."""
    memory = mmap.mmap(-1, max(1, images * alike.numel() * alike.element_size()))
    channels, height, width = alike.shape
    return torch.frombuffer(memory, dtype=alike.dtype).view(images, height, width, channels).permute(0, 3, 1, 2)


def _pinned(images: int, alike: Tensor) -> Tensor:
    """A channels-last buffer for `images` images, pinned if there is a CUDA device, which then copies from it while it computes."""
    order, pinned = torch.channels_last, torch.cuda.is_available()
    return torch.empty((images, *alike.shape), dtype=alike.dtype, memory_format=order, pin_memory=pinned)


def _joined(parts: Sequence[Images], pixels: list[Tensor]) -> Images:
    """Join the parts of a batch, with the pixels of the whole batch, or empty tensors if no image could be read."""
    readable = [first * _AT_ONCE + position for first, part in enumerate(parts) for position in part.readable]
    reasons = [(first * _AT_ONCE + position, reason) for first, part in enumerate(parts) for position, reason in part.reasons]
    hashes = [image_hash for part in parts for image_hash in part.hashes]
    phashes = np.concatenate([part.phashes for part in parts]) if parts else np.empty(0, np.int64)
    return Images(readable, reasons, hashes, phashes, pixels if readable else [torch.empty(0) for _ in pixels])
