"""Nothing is waited for without a sign of life: workers that die, hang or cannot hand over what they made."""

import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, write_class_folders
from wording import mentions

from nst_data.errors import NstError
from nst_data.sources import Source, open_source
from nst_data.store.store import Store
from nst_train.batches.batches import choose_prefetch_factor, readable_images, training_batches
from nst_train.interruption import Interrupted, StopRequests
from nst_train.settings import RunSettings, TrainSettings
from nst_train.training.train import train

PIXELS = np.zeros((16, 16, 3), np.uint8)


def batches(folder, transform, workers=1):
    """Steps over 12 labeled images whose transform is given."""
    labeled = readable_images(open_source(str(write_class_folders(folder / "labeled", ["ant", "bee", "cat"], 4)), labeled=True), {})
    return training_batches(TrainSettings(**TINY), labeled, None, {"labeled": transform}, range(8), workers)


def test_a_batch_that_its_worker_cannot_hand_over_is_an_error_of_the_parent(tmp_path, capfd):
    def transform(encoded, seed):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))  # of shared memory too
        return PIXELS

    with closing(batches(tmp_path, transform)) as items, pytest.raises(NstError, match=r"cannot pass on its batch.*`workers` 0"):
        next(items)
    assert capfd.readouterr().err == ""


def test_a_worker_that_is_killed_is_an_error_that_says_what_may_be_full(tmp_path):
    def transform(encoded, seed):
        os.kill(os.getpid(), signal.SIGKILL)
        return PIXELS

    expected = r"worker died \(.*(Killed|exited).*\), perhaps for lack of memory; use `workers` 0, a smaller `batch_size` or"
    with closing(batches(tmp_path, transform)) as items, pytest.raises(NstError, match=expected):
        next(items)


@pytest.mark.parametrize(
    ("cause", "left"), [(MemoryError(), "fewer `workers`"), (RuntimeError("can't allocate memory"), "fewer `workers`")]
)
def test_a_worker_without_memory_is_one_line(tmp_path, cause, left):
    def transform(encoded, seed):
        raise cause

    with (
        closing(batches(tmp_path, transform)) as items,
        pytest.raises(NstError, match=f"^out of memory.*batch; use {left}"),
    ):
        next(items)


def test_workers_that_are_stopped_share_the_seconds_that_ending_takes(tmp_path, monkeypatch):
    monkeypatch.setattr("nst_train.batches.batches._SHUTDOWN_SECONDS", 0.2)
    items = batches(tmp_path, lambda encoded, seed: PIXELS, workers=2)
    next(items)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGSTOP)
    since = time.monotonic()
    items.close()
    assert time.monotonic() - since < 2
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.slow
def test_a_worker_that_hangs_is_ended_with_the_training(tmp_path):
    started = tmp_path / "worker"

    def transform(encoded, seed):
        started.write_text(str(os.getpid()))
        time.sleep(600)
        return PIXELS

    since = time.monotonic()
    with closing(batches(tmp_path, transform)) as items, StopRequests() as stops:
        signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGTERM))
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        with pytest.raises(Interrupted, match="by SIGTERM"), stops.interruptible():
            next(items)
    assert time.monotonic() - since < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)


def test_of_several_processes_one_waits_some_seconds_for_the_others_to_agree(monkeypatch):
    monkeypatch.setattr("nst_train.interruption.MAX_WAIT_SECONDS", 0.05)
    with StopRequests(lambda own: own) as stops:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="by SIGTERM"), stops.interruptible():
            time.sleep(10)
        with stops.interruptible():  # what comes in time is no longer counted
            pass
        time.sleep(0.1)


class Stuck:
    """A source whose images stop coming in workers: after eight the training is told to end."""

    __class__ = Source  # for isinstance

    def __init__(self, source):
        self._source, self._parent, self._reads = source, os.getpid(), 0

    def __getattr__(self, name):
        return getattr(self._source, name)

    def __len__(self):
        return len(self._source)

    def read(self, row):
        if os.getpid() != self._parent:
            self._reads += 1
            if self._reads > 8:
                time.sleep(3)  # the parent takes its two steps
                os.kill(self._parent, signal.SIGTERM)
                time.sleep(600)
        return self._source.read(row)


@pytest.mark.slow
def test_a_signal_while_a_batch_does_not_come_writes_a_checkpoint_and_ends(tmp_path):
    source = open_source(str(write_class_folders(tmp_path / "labeled", ["ant", "bee", "cat"], 4)), labeled=True)
    settings, store = TrainSettings(**TINY), Store(tmp_path / "store")
    with pytest.raises(Interrupted, match=r"SIGTERM.*step 2 of net@gen-0.*kept"):
        train(store, "net", Stuck(source), settings, run=RunSettings(workers=1, checkpoint_minutes=60))
    assert [path.name for path in store.root.glob("runs/teachers/net/gen-0/work/checkpoints/*")] == ["step-000000002"]
    resumed = train(store, "net", source, settings, run=RunSettings(workers=0))
    whole = train(Store(tmp_path / "other"), "net", source, settings, run=RunSettings(workers=0))
    assert resumed.manifest.files == whole.manifest.files


def test_batches_that_do_not_fit_are_refused_before_any_work():
    with pytest.raises(NstError, match=r"1,000,000,000 images of 224 px.*[\d,.]+ GB.*`batch_size`"):
        choose_prefetch_factor(10**9, 224, workers=0)
    free = shutil.disk_usage("/dev/shm").free
    held = 3 * 3 * 224**2  # bytes of one image in a batch of each of two workers and in the one in use
    images = free // held + 10
    with pytest.raises(NstError, match=r"shared memory \(/dev/shm\).*`workers` 0.*`docker run --shm-size`"):
        choose_prefetch_factor(images, 224, workers=2)
    choose_prefetch_factor(images, 224, workers=0)
    choose_prefetch_factor(images // 2, 224, workers=2)
    with pytest.raises(NstError, match="too small"):
        choose_prefetch_factor(images // 2 + 10, 224, workers=2, local_processes=2)


def test_workers_hold_fewer_batches_ready_where_shared_memory_has_not_the_room_for_four(monkeypatch):
    batch = 12 * 3 * 16**2
    for room, expected in ((9 * batch, 4), (9 * batch - 1, 2), (5 * batch, 2), (5 * batch - 1, 1), (3 * batch, 1)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=room: SimpleNamespace(free=free))
        assert choose_prefetch_factor(12, 16, workers=2) == expected, room
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3 * batch - 1))
    with pytest.raises(NstError, match=r"too small: 2 workers need 0\.00 GB"):
        choose_prefetch_factor(12, 16, workers=2)


@pytest.mark.parametrize("ahead", [1, 2])
def test_how_many_batches_a_worker_holds_ready_is_no_more_than_asked_and_changes_none(tmp_path, ahead):
    labeled = readable_images(open_source(str(write_class_folders(tmp_path / "labeled", ["ant", "bee", "cat"], 4)), labeled=True), {})
    made = multiprocessing.get_context("fork").Value("i", 0)

    def transform(encoded, seed):
        with made.get_lock():
            made.value += 1
        return np.full((16, 16, 3), seed % 256, np.uint8)

    settings = TrainSettings(**TINY)
    alone = list(training_batches(settings, labeled, None, {"labeled": transform}, range(8), 0))
    made.value = 0
    with closing(training_batches(settings, labeled, None, {"labeled": transform}, range(8), 1, prefetch_factor=ahead)) as items:
        first = next(items)
        time.sleep(0.5)
        assert made.value <= TINY["batch_size"] * (1 + ahead)
        ahead_of_time = [first, *items]
    assert all(torch.equal(one.images, other.images) for one, other in zip(alone, ahead_of_time, strict=True))


@pytest.mark.slow
def test_where_shared_memory_is_small_training_is_one_line_and_leaves_nothing(tmp_path):
    labeled = write_class_folders(tmp_path / "labeled", ["ant", "bee"], 4)
    nst = [sys.executable, "-c", "from nst_cli.main import run; run()"]
    words = ["--labeled", labeled, "--model", "test_resnet", "--image-size", "128", "--batch-size", "64", "--name", "net"]
    train = [*nst, "train", *map(str, words), "--store", str(tmp_path / "store")]

    def with_room(mb, *command):
        small = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size={mb}m tmpfs /dev/shm && exec "$@"', "sh"]
        return subprocess.run([*small, *command], capture_output=True, text=True, timeout=120)

    if with_room(8, "true").returncode:
        pytest.skip("needs the right to mount")
    done = with_room(8, *train)  # a batch has 3.1 MB: of each of two workers, and the one in use
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert mentions(line, "--workers 0, … --batch-size …, … `docker run --shm-size`")
    assert Store(tmp_path / "store").unfinished() == []
    done = with_room(16, *train, "--workers", "2", "--epochs", "1")  # one batch of each worker has room, not four
    assert done.returncode == 0, done.stderr
