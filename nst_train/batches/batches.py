"""Training batches: labeled and pseudo-labeled images side by side, each batch a pure function of (seed, step)."""

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
from nst_data.images import ImageError, decode, image_hash
from nst_data.progress import Task
from nst_data.sources import Source, labels_in
from nst_train.batches.entries import PseudoLabeledImages
from nst_train.batches.order import draw
from nst_train.interruption import LONGEST_WAIT_SECONDS, STOP_SIGNALS
from nst_train.seeds import seed_of
from nst_train.settings import TrainSettings
from nst_train.transforms.noise import Transform

_CHECKED_AT_ONCE = 64  # labeled images that a thread takes: not an object for each of them
_AHEAD = (4, 2, 1)  # batches that a worker holds ready: the most for which there is room
_ENDING_SECONDS = 2.5  # of all workers together; schedulers kill 30 s after a signal, of which a step may have taken 20
_REMEDIES = "use `workers` 0, a smaller `batch_size` or, in a container, a larger `docker run --shm-size`"
_SHARED_MEMORY = Path("/dev/shm")  # nosec B108 # asked for its room alone; where torch puts the batches of workers on Linux


@dataclass(frozen=True)
class LabeledImages:
    """The readable images of a labeled source; without a source there are none."""

    source: Source | None
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]

    @classmethod
    def none(cls) -> "LabeledImages":
        """Those of a training on pseudo-labels alone."""
        return cls(None, np.empty(0, np.int64), np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class TrainingBatch:
    """One step's images of this process, labeled ones first. `pseudo` are the others' targets as stored; empty without an edition."""

    images: UInt8[Tensor, "images 3 height width"]
    labels: Int[Tensor, " labeled"]
    pseudo: Mapping[str, Tensor]

    def parts(self, number: int, device: torch.device) -> Iterator["TrainingBatch"]:
        """Split into `number` equal batches on a device, one after the other, each with its share of both kinds of images."""
        labeled = len(self.labels)
        kinds = [self.images] if number == 1 else [self.images[:labeled], self.images[labeled:]]
        for index in range(number):
            # joined on the device: what is joined here no longer lies in pinned memory
            images = [_part(kind, number, index, device) for kind in kinds]
            labels = _part(self.labels, number, index, device)
            pseudo = {name: _part(column, number, index, device) for name, column in self.pseudo.items()}
            yield TrainingBatch(torch.cat(images) if len(images) > 1 else images[0], labels, pseudo)

    def pin_memory(self) -> "TrainingBatch":
        """Copy to pinned memory; DataLoader calls this."""
        pseudo = {name: column.pin_memory() for name, column in self.pseudo.items()}
        return TrainingBatch(self.images.pin_memory(), self.labels.pin_memory(), pseudo)


def _part(column: Tensor, number: int, index: int, device: torch.device) -> Tensor:
    """One of `number` equal parts of a column, on a device."""
    return column.tensor_split(number)[index].to(device, non_blocking=True)


def unreadable(source: Source, threads: int, hashes: NDArray[np.void] | None = None, task: Task | None = None) -> dict[str, str]:
    """Maps row number (as text) to the reason why the image cannot be decoded; each image is read and decoded.

    The bytes of each one's `image_hash` are put into `hashes`, shape (rows,), where its bytes can be had. `task` shows how far it is.
    """

    def faults(start: int) -> dict[str, str]:
        found = {}
        for row in range(start, min(start + _CHECKED_AT_ONCE, len(source))):
            try:
                encoded = source.read(row)
                if hashes is not None:
                    hashes[row] = bytes.fromhex(image_hash(encoded))
                decode(encoded)
            except (NstError, OSError) as error:
                found[str(row)] = f"{source.key(row)}: {error}"
        return found

    every, found = range(0, len(source), _CHECKED_AT_ONCE), dict[str, str]()
    with ThreadPoolExecutor(threads) as pool:
        for start, part in zip(every, pool.map(faults, every), strict=True):
            found |= part
            if task:
                task.advance(min(_CHECKED_AT_ONCE, len(source) - start))
    return found


def without(source: Source, faults: Mapping[str, str]) -> LabeledImages:
    """The images of a labeled source but these rows, and those that are left out anyway."""
    rows = np.delete(np.arange(len(source)), [*(int(row) for row in faults), *source.left_out])
    return LabeledImages(source, rows, labels_in(source)[rows])


class _Steps(Dataset[TrainingBatch | NstError]):
    """Item `step` is the batch of that step for one process of `processes`, or the error that the parent raises as its own."""

    def __init__(
        self,
        settings: TrainSettings,
        labeled: LabeledImages,
        pseudo: PseudoLabeledImages | None,
        transforms: Mapping[str, Transform],
        process: int,
        processes: int,
    ) -> None:
        self._settings, self._labeled, self._pseudo, self._transforms = settings, labeled, pseudo, transforms
        self._process, self._processes = process, processes

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
        drawn = draw(positions, len(self._labeled), self._settings.seed, "labeled")
        images = [self._labeled_image(int(self._labeled.rows[index]), position) for index, position in zip(drawn, positions, strict=True)]
        targets: dict[str, Tensor] = {}
        if self._pseudo is not None:
            pseudo_images, targets = self._pseudo_batch(step, self._pseudo)
            images += pseudo_images
        return TrainingBatch(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.from_numpy(self._labeled.labels[drawn]), targets)

    def _positions(self, step: int, batch_size: int) -> NDArray[np.int64]:
        """This process's share of the step's positions in the endless stream."""
        share = batch_size // self._processes
        start = step * batch_size + self._process * share
        return np.arange(start, start + share, dtype=np.int64)

    def _pseudo_batch(self, step: int, pseudo: PseudoLabeledImages) -> tuple[list[NDArray[np.uint8]], dict[str, Tensor]]:
        positions = self._positions(step, self._settings.batch_size * self._settings.ratio)
        indices = pseudo.at(positions)
        images = []
        for index, position in zip(indices, positions, strict=True):
            with _naming(pseudo.source, int(pseudo.rows[index])):
                images.append(self._augmented(pseudo.read(int(index)), "pseudo", position))
        return images, pseudo.targets_of(indices)

    def _labeled_image(self, row: int, position: np.int64) -> NDArray[np.uint8]:
        source = self._labeled.source
        assert source is not None, "an image of it was drawn"
        with _naming(source, row):
            return self._augmented(source.read(row), "labeled", position)

    def _augmented(self, encoded: bytes, part: str, position: np.int64) -> NDArray[np.uint8]:
        return self._transforms[part](encoded, seed_of(self._settings.seed, part, "noise", int(position)))


@contextmanager
def _naming(source: Source, row: int) -> Iterator[None]:
    """An image that could be read when training began and cannot any more is named."""
    try:
        yield
    except (ImageError, OSError) as error:
        raise source.unreadable(row, error) from None


def training_batches(
    settings: TrainSettings,
    labeled: LabeledImages,
    pseudo: PseudoLabeledImages | None,
    transforms: Mapping[str, Transform],
    steps: range,
    workers: int,
    process: int = 0,
    processes: int = 1,
    ahead: int = _AHEAD[0],
) -> Generator[TrainingBatch, None, None]:
    """The batches of `steps`, made by `workers` processes, each up to `ahead` of them ahead of time. Neither changes what comes.

    `transforms` are those of `labeled` and of `pseudo` images, by these names.
    """
    loader = DataLoader(
        _Steps(settings, labeled, pseudo, transforms, process, processes),
        batch_size=None,
        sampler=steps,
        num_workers=min(workers, len(steps)),
        prefetch_factor=ahead if workers and len(steps) else None,
        worker_init_fn=_begin_worker,
        pin_memory=torch.cuda.is_available(),
    )
    others = set(multiprocessing.active_children())
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # a worker is born deaf to them, and stays so
    try:
        items = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        shards = pseudo.kept(steps, settings.batch_size * settings.ratio) if pseudo is not None else nullcontext(lambda _: None)
        with shards as reached:  # from here on a thread may run, which forked workers must not inherit
            for step in steps:
                with worker_failures():
                    item = next(items)
                if isinstance(item, NstError):
                    raise item
                yield item
                reached(step + 1)
    finally:
        _end(items, set(multiprocessing.active_children()) - others)


def _end(items: Any, workers: Set[multiprocessing.process.BaseProcess]) -> None:  # noqa: ANN401 - an iterator of DataLoader
    """End the workers of a DataLoader; after some seconds those too that cannot, such as in a read that never comes back."""

    def kill() -> None:
        for worker in workers:
            worker.kill()

    # private: PyTorch has no public way (pytorch/pytorch#64766). It does this when `items` is collected, which the traceback of an error
    # under way puts off; and while it knows the workers' ids, one that is killed below is an error wherever this process is
    if hasattr(items, "_shutdown_workers"):
        if items._worker_pids_set:
            signal_handling._remove_worker_pids(id(items))  # type: ignore[attr-defined]
            items._worker_pids_set = False
        timer = threading.Timer(_ENDING_SECONDS, kill)
        timer.start()
        items._shutdown_workers()  # waits for each
        timer.cancel()
    kill()
    for worker in workers:
        worker.join(_ENDING_SECONDS)


@contextmanager
def worker_failures() -> Iterator[None]:
    """A worker process that died as one line: DataLoader tells of it wherever this process is at that moment."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error) and "Communication with the workers" not in str(error):
            raise
        raise NstError(f"a data-loading worker died ({first_line(error)}), perhaps for lack of memory; {_REMEDIES}") from None


def batches_ahead(images: int, side_px: int, workers: int, processes_here: int = 1) -> int:
    """How many batches of so many images each worker may hold ready in shared memory.

    Raises NstError where one batch does not fit in memory, or one of each worker not in shared memory.
    """
    batch = images * 3 * side_px**2
    if batch > (memory := psutil.virtual_memory().total):
        raise NstError(
            f"a batch of {images:,} images of {side_px} px needs {_gigabytes(batch)}, but this machine has {_gigabytes(memory)}; "
            "use a smaller `batch_size` or `image_size`"
        )
    if not workers or not _SHARED_MEMORY.is_dir():
        return _AHEAD[0]
    needed = {ahead: batch * (workers * ahead + 1) * processes_here for ahead in _AHEAD}
    free = shutil.disk_usage(_SHARED_MEMORY).free
    if fitting := next((ahead for ahead in _AHEAD if needed[ahead] <= free), None):
        return fitting
    raise NstError(
        f"the shared memory ({_SHARED_MEMORY}) is too small: {workers} workers need {_gigabytes(min(needed.values()))} for prefetched "
        f"batches; {_gigabytes(free)} is free; {_REMEDIES}"
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB"


def _begin_worker(_: int) -> None:
    return_freed_memory()  # a worker decodes images of any size, and computes no steps
    _end_quietly()


def _end_quietly() -> None:
    """When the parent is interrupted or killed, the thread that hands it tensors would print a stack trace for each of them.

    Errors in making a batch do not pass here: they travel to the parent, and so do those of handing it over.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # one that a fork server began was not born deaf to them
    sys.excepthook = lambda *_: None
    multiprocessing.queues.Queue._on_queue_feeder_error = _hand_over_the_error  # type: ignore[attr-defined] # a hook of Python's own
    threading.Thread(target=_heed_the_parent, daemon=True).start()


def _hand_over_the_error(queue: "multiprocessing.queues.Queue[Any]", error: Exception, item: object) -> None:
    """In place of a batch that could not be handed over, for which the parent would wait for ever: Python would print it and go on."""
    if not isinstance(item, tuple):  # some of it may be on its way
        os._exit(1)
    is_full = os.strerror(errno.ENOSPC) in str(error)
    what = (
        f"the workers' shared memory ({_SHARED_MEMORY}) is full" if is_full else f"a worker cannot pass on its batch ({first_line(error)})"
    )
    queue.put((item[0], NstError(f"{what}; {_REMEDIES}")))


def _heed_the_parent() -> None:
    """End on a SIGTERM of the parent alone: a scheduler sends it to all processes, and the parent wants to finish its step."""
    parent = multiprocessing.parent_process()
    if hasattr(signal, "sigwaitinfo") and parent is not None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
            pass
    else:  # macOS does not say who sent it
        signal.sigwait({signal.SIGTERM})
        time.sleep(LONGEST_WAIT_SECONDS)
    os._exit(0)
