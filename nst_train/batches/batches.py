"""Training batches with labeled and pseudo-labeled images; each batch is a pure function of (seed, step)."""

import errno
import multiprocessing
import multiprocessing.queues
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from nst_data.errors import NstError, first_line, is_out_of_memory
from nst_data.freed_memory import return_freed_memory
from nst_data.images import ImageError, check_shape, decode, image_hash
from nst_data.progress import Task
from nst_data.sources import Source, labels_in
from nst_train.batches.entries import PseudoLabeledImages
from nst_train.batches.order import shuffled_rows
from nst_train.interruption import MAX_WAIT_SECONDS, STOP_SIGNALS
from nst_train.seeds import derive_seed
from nst_train.settings import TrainSettings
from nst_train.transforms.noise import Transform

_CHECK_CHUNK = 64  # labeled images per thread task, to avoid one object per image
_PREFETCH_FACTORS = (4, 2, 1)  # batches that a worker prefetches: the largest number for which there is room
_SHUTDOWN_SECONDS = 2.5  # for all workers together; schedulers kill 30 s after a signal, and a step may have taken 20 of them
_REMEDIES = "use `workers` 0, a smaller `batch_size` or, in a container, a larger `docker run --shm-size`"
_SHARED_MEMORY = Path("/dev/shm")  # nosec B108 # only its free space is queried; torch puts the workers' batches here on Linux


@dataclass(frozen=True)
class LabeledImages:
    """The readable images of a labeled source; empty if there is no source."""

    source: Source | None
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]

    @classmethod
    def empty(cls) -> "LabeledImages":
        """The labeled images of a training on pseudo-labels only."""
        return cls(None, np.empty(0, np.int64), np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class TrainingBatch:
    """Images of one step in this process, labeled ones first. `pseudo` holds the stored targets of the others; empty without an edition."""

    images: UInt8[Tensor, "images 3 height width"]
    labels: Int[Tensor, " labeled"]
    pseudo: Mapping[str, Tensor]

    def split(self, count: int, device: torch.device) -> Iterator["TrainingBatch"]:
        """Split into `count` equal batches, moved to a device one at a time, each with its share of both kinds of images."""
        labeled = len(self.labels)
        kinds = [self.images] if count == 1 else [self.images[:labeled], self.images[labeled:]]
        for index in range(count):
            # concatenate on the device: the result would not be in pinned memory here
            images = [_move_part(kind, count, index, device) for kind in kinds]
            labels = _move_part(self.labels, count, index, device)
            pseudo = {name: _move_part(column, count, index, device) for name, column in self.pseudo.items()}
            yield TrainingBatch(torch.cat(images) if len(images) > 1 else images[0], labels, pseudo)

    def pin_memory(self) -> "TrainingBatch":
        """Copy to pinned memory; called by DataLoader."""
        pseudo = {name: column.pin_memory() for name, column in self.pseudo.items()}
        return TrainingBatch(self.images.pin_memory(), self.labels.pin_memory(), pseudo)


def _move_part(column: Tensor, count: int, index: int, device: torch.device) -> Tensor:
    """One of `count` equal parts of a column, on a device."""
    return column.tensor_split(count)[index].to(device, non_blocking=True)


def find_unreadable(
    source: Source, threads: int, hashes: NDArray[np.void] | None = None, task: Task | None = None, shapes: bool = False
) -> dict[str, str]:
    """Read and decode every image; map the row number (as text) of each failure to the reason.

    If `hashes`, shape (rows,), is given, it is filled with the bytes of each image's `image_hash` if the image can be read. `task` shows
    progress. With `shapes`, images that are too elongated to be labeled are failures too.
    """

    def find_faults(start: int) -> dict[str, str]:
        reasons = {}
        for row in range(start, min(start + _CHECK_CHUNK, len(source))):
            try:
                encoded = source.read(row)
                if hashes is not None:
                    hashes[row] = bytes.fromhex(image_hash(encoded))
                image = decode(encoded)
                if shapes:
                    check_shape(*image.size)
            except (NstError, OSError) as error:
                reasons[str(row)] = f"{source.key(row)}: {error}"
        return reasons

    starts, reasons = range(0, len(source), _CHECK_CHUNK), dict[str, str]()
    with ThreadPoolExecutor(threads) as pool:
        for start, chunk_faults in zip(starts, pool.map(find_faults, starts), strict=True):
            reasons |= chunk_faults
            if task:
                task.advance(min(_CHECK_CHUNK, len(source) - start))
    return reasons


def readable_images(source: Source, faults: Mapping[str, str]) -> LabeledImages:
    """The images of a labeled source except the rows in `faults` and the rows that the source leaves out."""
    rows = np.delete(np.arange(len(source)), [*(int(row) for row in faults), *source.left_out])
    return LabeledImages(source, rows, labels_in(source)[rows])


class _StepBatches(Dataset[TrainingBatch | NstError]):
    """Item `step` is the batch of that step for one of `num_processes` processes, or an error for the parent to raise."""

    def __init__(
        self,
        settings: TrainSettings,
        labeled: LabeledImages,
        pseudo: PseudoLabeledImages | None,
        transforms: Mapping[str, Transform],
        process_index: int,
        num_processes: int,
    ) -> None:
        self._settings, self._labeled, self._pseudo, self._transforms = settings, labeled, pseudo, transforms
        self._process, self._processes = process_index, num_processes

    def __getitem__(self, step: int) -> TrainingBatch | NstError:
        try:
            return self._batch(step)
        except NstError as error:
            return error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return NstError("out of memory while preparing a batch; use fewer `workers` or a smaller `batch_size`")

    def _batch(self, step: int) -> TrainingBatch:
        positions = self._positions(step, 0 if self._settings.pseudo_only else self._settings.batch_size)
        indices = shuffled_rows(positions, len(self._labeled), self._settings.seed, "labeled")
        images = [self._labeled_image(int(self._labeled.rows[index]), position) for index, position in zip(indices, positions, strict=True)]
        targets: dict[str, Tensor] = {}
        if self._pseudo is not None:
            pseudo_images, targets = self._pseudo_batch(step, self._pseudo)
            images += pseudo_images
        return TrainingBatch(
            torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.from_numpy(self._labeled.labels[indices]), targets
        )

    def _positions(self, step: int, batch_size: int) -> NDArray[np.int64]:
        """This process's share of the step's positions in the endless stream of epochs."""
        share = batch_size // self._processes
        start = step * batch_size + self._process * share
        return np.arange(start, start + share, dtype=np.int64)

    def _pseudo_batch(self, step: int, pseudo: PseudoLabeledImages) -> tuple[list[NDArray[np.uint8]], dict[str, Tensor]]:
        positions = self._positions(step, self._settings.batch_size * self._settings.ratio)
        indices = pseudo.images_at(positions)
        images = []
        for index, position in zip(indices, positions, strict=True):
            with _translate_read_errors(pseudo.source, int(pseudo.rows[index])):
                images.append(self._augment(pseudo.read(int(index)), "pseudo", position))
        return images, pseudo.targets_of(indices)

    def _labeled_image(self, row: int, position: np.int64) -> NDArray[np.uint8]:
        source = self._labeled.source
        assert source is not None, "an image of it was drawn"
        with _translate_read_errors(source, row):
            return self._augment(source.read(row), "labeled", position)

    def _augment(self, encoded: bytes, part: str, position: np.int64) -> NDArray[np.uint8]:
        return self._transforms[part](encoded, derive_seed(self._settings.seed, part, "noise", int(position)))


@contextmanager
def _translate_read_errors(source: Source, row: int) -> Iterator[None]:
    """Name an image that was readable when training started but no longer is."""
    try:
        yield
    except (ImageError, OSError) as error:
        raise source.unreadable_error(row, error) from None


def training_batches(
    settings: TrainSettings,
    labeled: LabeledImages,
    pseudo: PseudoLabeledImages | None,
    transforms: Mapping[str, Transform],
    steps: range,
    workers: int,
    process_index: int = 0,
    num_processes: int = 1,
    prefetch_factor: int = _PREFETCH_FACTORS[0],
) -> Generator[TrainingBatch, None, None]:
    """The batches of `steps`, made by `workers` processes that each prefetch up to `prefetch_factor` of them.

    Neither number changes the batches. `transforms` maps "labeled" and "pseudo" to the transform of these images.
    """
    loader = DataLoader(
        _StepBatches(settings, labeled, pseudo, transforms, process_index, num_processes),
        batch_size=None,
        sampler=steps,
        num_workers=min(workers, len(steps)),
        prefetch_factor=prefetch_factor if workers and len(steps) else None,
        worker_init_fn=_init_worker,
        pin_memory=torch.cuda.is_available(),
    )
    other_children = set(multiprocessing.active_children())
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # workers inherit the blocked signals, and keep them blocked
    try:
        items = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
    try:
        shards = pseudo.prefetch_shards(steps, settings.batch_size * settings.ratio) if pseudo is not None else nullcontext(lambda _: None)
        with shards as mark_reached:  # from here on a thread may run, which forked workers must not inherit
            for step in steps:
                with translate_worker_errors():
                    item = next(items)
                if isinstance(item, NstError):
                    raise item
                yield item
                mark_reached(step + 1)
    finally:
        _shut_down(items, set(multiprocessing.active_children()) - other_children)


def _shut_down(items: Any, workers: Set[multiprocessing.process.BaseProcess]) -> None:  # noqa: ANN401 - an iterator of DataLoader
    """Shut down the workers of a DataLoader; after a few seconds, kill those that are stuck, such as in a read that never returns."""

    def kill() -> None:
        for worker in workers:
            worker.kill()

    # private: PyTorch has no public way (pytorch/pytorch#64766). It shuts down when `items` is collected, which the traceback of a current
    # error delays; and as long as it knows the workers' ids, killing one below raises an error anywhere in this process
    if hasattr(items, "_shutdown_workers"):
        if items._worker_pids_set:
            signal_handling._remove_worker_pids(id(items))  # type: ignore[attr-defined]
            items._worker_pids_set = False
        timer = threading.Timer(_SHUTDOWN_SECONDS, kill)
        timer.start()
        items._shutdown_workers()  # waits for each worker
        timer.cancel()
    kill()
    for worker in workers:
        worker.join(_SHUTDOWN_SECONDS)


@contextmanager
def translate_worker_errors() -> Iterator[None]:
    """Turn the death of a worker process into a one-line error; DataLoader raises it wherever this process happens to be."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error) and "Communication with the workers" not in str(error):
            raise
        raise NstError(f"a data-loading worker died ({first_line(error)}), perhaps for lack of memory; {_REMEDIES}") from None


def choose_prefetch_factor(images: int, side_px: int, workers: int, local_processes: int = 1) -> int:
    """The number of batches of `images` images that each worker may prefetch into shared memory.

    Raises NstError if one batch does not fit in memory, or one batch per worker does not fit in shared memory.
    """
    batch = images * 3 * side_px**2
    if batch > (memory := psutil.virtual_memory().total):
        raise NstError(
            f"a batch of {images:,} images of {side_px} px needs {_format_gigabytes(batch)}, but this machine has "
            f"{_format_gigabytes(memory)}; "
            "use a smaller `batch_size` or `image_size`"
        )
    if not workers or not _SHARED_MEMORY.is_dir():
        return _PREFETCH_FACTORS[0]
    needed_bytes = {ahead: batch * (workers * ahead + 1) * local_processes for ahead in _PREFETCH_FACTORS}
    free = shutil.disk_usage(_SHARED_MEMORY).free
    if fitting := next((ahead for ahead in _PREFETCH_FACTORS if needed_bytes[ahead] <= free), None):
        return fitting
    raise NstError(
        f"the shared memory ({_SHARED_MEMORY}) is too small: {workers} workers need {_format_gigabytes(min(needed_bytes.values()))} for "
        "prefetched "
        f"batches; {_format_gigabytes(free)} is free; {_REMEDIES}"
    )


def _format_gigabytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB"


def _init_worker(_: int) -> None:
    return_freed_memory()  # a worker decodes images of any size, and takes no training steps
    _install_quiet_exit()


def _install_quiet_exit() -> None:
    """Once the parent is interrupted or killed, keep the thread that sends tensors to it from printing a stack trace for each of them.

    Errors in making a batch are not affected: they are passed to the parent, and so are errors in handing a batch over.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # workers of a fork server do not inherit the mask
    sys.excepthook = lambda *_: None
    multiprocessing.queues.Queue._on_queue_feeder_error = _send_error  # type: ignore[attr-defined] # a hook of Python's own
    threading.Thread(target=_exit_on_parent_signal, daemon=True).start()


def _send_error(queue: "multiprocessing.queues.Queue[Any]", error: Exception, item: object) -> None:
    """Send an error in place of a batch that cannot be sent, since the parent would wait forever: Python would print it and continue."""
    if not isinstance(item, tuple):  # part of it may have been sent already
        os._exit(1)
    is_full = os.strerror(errno.ENOSPC) in str(error)
    reason = (
        f"the workers' shared memory ({_SHARED_MEMORY}) is full" if is_full else f"a worker cannot pass on its batch ({first_line(error)})"
    )
    queue.put((item[0], NstError(f"{reason}; {_REMEDIES}")))


def _exit_on_parent_signal() -> None:
    """Exit only on a SIGTERM from the parent: a scheduler sends one to all processes, and the parent wants to finish its step."""
    parent = multiprocessing.parent_process()
    if hasattr(signal, "sigwaitinfo") and parent is not None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
            pass
    else:  # macOS does not tell the sender
        signal.sigwait({signal.SIGTERM})
        time.sleep(MAX_WAIT_SECONDS)
    os._exit(0)
