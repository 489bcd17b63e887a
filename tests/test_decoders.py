"""Processes that decode for a GPU: the same images as threads make, and an end to them whatever happens."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest
from test_inference import CONFIG, NAMES, Linear, row

from nst_data.errors import NstError
from nst_data.sources import Row
from nst_train.classifiers import decoders
from nst_train.classifiers.classifier import Classifier
from nst_train.classifiers.decoders import load_batches
from nst_train.classifiers.inference import PlainBatch
from nst_train.classifiers.noised_teacher import TeacherNoise
from nst_train.classifiers.teachers import Teacher
from nst_train.settings import TrainSettings
from nst_train.transforms.preprocessing import TimmPreprocessing


def teacher_of(sizes=(16,), noise=None):
    configs = [CONFIG | {"input_size": (3, size, size)} for size in sizes]
    members = tuple(Classifier(Linear(), TimmPreprocessing.from_data_config(config), NAMES) for config in configs)
    return Teacher(members, (None,) * len(members), noise)


def lost():
    raise OSError(errno.EIO, "Input/output error")


def refused():
    raise NstError("the member was cut short")


def odd_row(number):
    """Each seventh and its neighbors cannot be read, for a reason of their own."""
    contents = {0: b"", 1: b"no image", 2: lost, 3: refused, 4: NstError("no bytes")}
    return Row(number, str(number), contents[number % 7]) if number % 7 in contents and number > 6 else row(number)


def as_values(values):
    return [
        (images.readable, images.reasons, images.hashes, images.phashes.tolist(), [one.tolist() for one in images.pixels])
        for _, images in values
    ]


@pytest.mark.parametrize("noise", [False, True])
def test_processes_load_what_threads_load(monkeypatch, noise):
    monkeypatch.setattr(decoders, "_ROWS_PER_REQUEST", 4)
    settings = TrainSettings(model="test_resnet", image_size=16, noise={"magnitude": 9, "operations": 2})
    teacher = teacher_of((16, 24), TeacherNoise(settings, 0, "training") if noise else None)
    numbers = [range(10), range(10, 20), range(20, 21), range(0), range(21, 25)]
    batches = [PlainBatch([odd_row(number) for number in part]) for part in numbers]
    batches.insert(1, PlainBatch([Row(number, "lost", b"") for number in range(10)]))  # none can be read
    children = set(psutil.Process().children())
    ahead = load_batches(teacher, batches, 10, True, 3)
    first = next(ahead)
    assert len(set(psutil.Process().children()) - children) == 3
    found = [first, *ahead]
    assert not set(psutil.Process().children()) - children
    monkeypatch.setattr(decoders, "_can_fork", lambda: False)
    assert as_values(found) == as_values(load_batches(teacher, batches, 10, True, 3))
    assert [batch for batch, _ in found] == batches
    assert [len(one) for one in found[2][1].pixels] == [10, 10]
    assert [len(images.pixels[0]) for _, images in found if not images.readable] == [0, 0, 0]
    assert {why for _, images in found for _, why in images.reasons} >= {"Input/output error", "the member was cut short", "no bytes"}


def test_few_images_and_one_thread_start_no_process(monkeypatch):
    monkeypatch.setattr(decoders, "Decoders", None)
    teacher, rows = teacher_of(), [row(number) for number in range(4)]
    assert [images.readable for _, images in load_batches(teacher, [PlainBatch(rows)], 8, True, 3)] == [[0, 1, 2, 3]]
    assert [images.readable for _, images in load_batches(teacher, [PlainBatch(rows)], 4, True, 1)] == [[0, 1, 2, 3]]
    assert not list(load_batches(teacher, [], 4, True, 3))


def test_a_process_that_dies_is_one_error():
    batches = (PlainBatch([row(number) for number in range(4)]) for _ in range(1000))
    ahead = load_batches(teacher_of(), batches, 4, True, 2)
    next(ahead)
    for one in psutil.Process().children():
        if one.name() == psutil.Process().name():
            one.kill()
    with pytest.raises(NstError, match=r"a decoding process died.*`decode_threads`"):
        list(ahead)


def test_whoever_stops_early_leaves_no_process():
    before = set(psutil.Process().children())
    ahead = load_batches(teacher_of(), (PlainBatch([row(0), row(1)]) for _ in range(1000)), 2, True, 2)
    next(ahead)
    ahead.close()
    assert not set(psutil.Process().children()) - before


def test_an_error_in_a_process_is_raised_here(monkeypatch):
    monkeypatch.setattr(decoders, "load_images", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(load_batches(teacher_of(), [PlainBatch([row(0), row(1)])], 2, True, 2))
    monkeypatch.setattr(decoders, "load_images", lambda *_, **__: bytearray(2**62))
    with pytest.raises(NstError, match="out of memory while decoding; use fewer `decode_threads`"):
        list(load_batches(teacher_of(), [PlainBatch([row(0), row(1)])], 2, True, 2))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "ended"])
def test_processes_heed_no_signal_and_end_with_their_parent(number):
    """Also those of a parent that cannot end them any more."""
    script = """
        import sys, time
        sys.path[:0] = sys.argv[1:]
        import psutil
        from nst_train.classifiers.decoders import Decoders
        from test_decoders import teacher_of
        decoders = Decoders(teacher_of(), True, 3)
        print(*(one.pid for one in psutil.Process().children()), flush=True)
        time.sleep(60)
    """
    words = [sys.executable, "-c", textwrap.dedent(script), os.path.dirname(__file__)]
    parent = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    children = [psutil.Process(int(one)) for one in parent.stdout.readline().split()]
    assert len(children) == 3
    for one in children:
        one.send_signal(signal.SIGINT)
        one.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert all(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in children)
    parent.send_signal(number)
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    parent.stdout.close()
