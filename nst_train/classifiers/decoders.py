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
from nst_data.prefetch import cpus_of_this_process, map_batches_in_threads
from nst_data.sources import Row
from nst_train.classifiers.loading import LoadedImages, error_reason, load_images
from nst_train.classifiers.teachers import Teacher
from nst_train.interruption import STOP_SIGNALS

_ROWS_PER_REQUEST = 64  # images per request to a process


class HasRows(Protocol):
    """A batch of rows, with whatever else its creator wants returned along with the result."""

    @property
    def rows(self) -> Sequence[Row]:
        """Images that go through the network together."""


B = TypeVar("B", bound=HasRows)


def load_batches(
    teacher: Teacher, batches: Iterable[B], batch_size: int, hashes: bool, threads: int | None = None
) -> Generator[tuple[B, LoadedImages], None, None]:
    """Yield each batch with its images, in order, padded to `batch_size` and in pinned memory if there is a CUDA device.

    Images are decoded by `threads` processes, by default one per CPU. Threads of this process decode them instead if only one is asked
    for, if the first batch is not full, or if processes cannot share memory by forking.
    """
    threads = threads or cpus_of_this_process()
    batches = iter(batches)
    first = list(itertools.islice(batches, 1))
    batches = itertools.chain(first, batches)
    if threads == 1 or not first or len(first[0].rows) < batch_size or not _can_fork():

        def load(batch: B) -> LoadedImages:
            images = load_images(batch.rows, teacher.preprocessings, batch_size, hashes, teacher.noise)
            return replace(images, pixels=[tensor.pin_memory() if torch.cuda.is_available() else tensor for tensor in images.pixels])

        yield from map_batches_in_threads(load, batches, threads)
    else:
        with closing(Decoders(teacher, hashes, threads)) as decoders:
            yield from map_batches_in_threads(lambda batch: decoders.load(batch.rows, batch_size), batches, threads + 1)


def _can_fork() -> bool:
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
        self._templates = [preprocessing.prepare(probe) for preprocessing in teacher.preprocessings]
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
        pixels = [_shared_buffer(_ROWS_PER_REQUEST, one) for one in self._templates]
        # closed in the child, which would not notice this process's end otherwise
        parent_connections = [connection, *(one.connection for one in self._all)]
        process = context.Process(target=_run_decoder, args=(child_connection, parent_connections, partial(load, into=pixels)), daemon=True)
        process.start()
        child_connection.close()
        self._all.append(_Decoder(process, connection, pixels))
        self._free.put(self._all[-1])

    def load(self, rows: Sequence[Row], batch_size: int) -> LoadedImages:
        """Like `load_images`, in pinned memory if there is a CUDA device. Raises NstError if a process died."""
        pixels = [_pinned_buffer(batch_size, tensor) for tensor in self._templates]
        parts: list[LoadedImages] = []
        for start in range(0, len(rows), _ROWS_PER_REQUEST):
            chunk = [_read_row(row) for row in rows[start : start + _ROWS_PER_REQUEST]]
            decoder = self._free.get()
            try:
                part = _request_images(decoder.connection, chunk)
                for output, shared in zip(pixels, decoder.pixels, strict=True):
                    output[start : start + len(chunk)].copy_(shared[: len(chunk)])
            finally:
                self._free.put(decoder)
            parts.append(part)
        for output in pixels:
            output[len(rows) :] = 0
        return _join_parts(parts, pixels)

    def close(self) -> None:
        """Kill the processes; threads waiting for one get an error."""
        for decoder in self._all:
            decoder.process.kill()
        for decoder in self._all:
            decoder.process.join()


_Load = Callable[..., LoadedImages]


def _load(rows: Sequence[Row], into: Sequence[Tensor], **settings: object) -> LoadedImages:
    """Load images and write their pixels `into` shared memory."""
    images = load_images(rows, batch_size=len(rows), **settings)  # type: ignore[arg-type] # keyword arguments of `load_images`
    for shared, pixels in zip(into, images.pixels, strict=True):
        shared[: len(rows)] = pixels if len(pixels) else 0
    return replace(images, pixels=[])


def _run_decoder(connection: Connection, parent_connections: Sequence[Connection], load: _Load) -> None:
    """Main loop of a decoding process: load the rows it receives until the other end is closed."""
    for inherited in parent_connections:
        inherited.close()
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):  # the parent is gone
        while True:
            rows = connection.recv()
            try:
                response: LoadedImages | Exception = load(rows)
            except Exception as error:  # sent to the parent, which raises it
                response = NstError("out of memory while decoding; use fewer `decode_threads`") if is_out_of_memory(error) else error
            connection.send(response)


def _request_images(connection: Connection, rows: list[Row]) -> LoadedImages:
    try:
        connection.send(rows)
        response: LoadedImages | Exception = connection.recv()
    except (EOFError, OSError):
        raise NstError("a decoding process died, perhaps for lack of memory; use fewer `decode_threads`") from None
    if isinstance(response, Exception):
        raise response
    return response


def _read_row(row: Row) -> Row:
    """The same row with its bytes read, or with an error saying why they could not be."""
    try:
        return Row(row.id, row.key, bytes(row.read()))
    except (NstError, OSError) as error:
        return Row(row.id, row.key, NstError(error_reason(error)))


def _shared_buffer(images: int, template: Tensor) -> Tensor:
    """A buffer for `images` images, shared with processes forked later; anonymous memory, as containers may limit /dev/shm."""
    memory = mmap.mmap(-1, max(1, images * template.numel() * template.element_size()))
    channels, height, width = template.shape
    return torch.frombuffer(memory, dtype=template.dtype).view(images, height, width, channels).permute(0, 3, 1, 2)


def _pinned_buffer(images: int, template: Tensor) -> Tensor:
    """A channels-last buffer for `images` images, pinned if there is a CUDA device, which then copies from it while it computes."""
    order, pinned = torch.channels_last, torch.cuda.is_available()
    return torch.empty((images, *template.shape), dtype=template.dtype, memory_format=order, pin_memory=pinned)


def _join_parts(parts: Sequence[LoadedImages], pixels: list[Tensor]) -> LoadedImages:
    """Join the parts of a batch, with the pixels of the whole batch, or empty tensors if no image could be read."""
    readable = [first * _ROWS_PER_REQUEST + position for first, part in enumerate(parts) for position in part.readable]
    reasons = [(first * _ROWS_PER_REQUEST + position, reason) for first, part in enumerate(parts) for position, reason in part.reasons]
    hashes = [image_hash for part in parts for image_hash in part.hashes]
    phashes = np.concatenate([part.phashes for part in parts]) if parts else np.empty(0, np.int64)
    return LoadedImages(readable, reasons, hashes, phashes, pixels if readable else [torch.empty(0) for _ in pixels])
