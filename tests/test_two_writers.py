"""The same work started twice: nothing is done twice in one place, nothing is lost, and who is second is told in one line."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from conftest import write_class_folders

from nst_data.store.store import Store

pytestmark = pytest.mark.slow
NST = [sys.executable, "-c", "from nst_cli.main import run; run()"]


def nst(*words):
    return subprocess.run([*NST, *map(str, words)], capture_output=True, text=True, timeout=300)


def begin(store, *words, until):
    """Start a command and stop it (it lives on) once there is a file."""
    process = subprocess.Popen([*NST, *map(str, words)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not any(store.glob(until)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGSTOP)
    return process


def test_the_second_of_two_trainings_is_told_and_a_killed_one_is_gone_on_with(tmp_path):
    labeled, store = write_class_folders(tmp_path / "labeled", ["ant", "bee", "cat"], 4), tmp_path / "store"
    tiny = ["--model", "test_resnet", "--image-size", 16, "--batch-size", 4, "--epochs", 8, "--workers", 0, "--tracker", "none"]
    train = ["train", "--labeled", labeled, "--name", "twice", *tiny, "--checkpoint-minutes", 0, "--store", store]
    first = begin(store, *train, until="runs/teachers/twice/gen-0/work/checkpoints/step-*")
    try:
        second, remove = nst(*train), nst("remove", "twice@gen-0", "--store", store)
        for refused in (second, remove):
            assert refused.returncode == 1
            assert re.fullmatch(rf"nst: twice@gen-0: in use by process {first.pid} on \S+ \(since [\d :-]+\); .*\n", refused.stderr)
    finally:
        os.killpg(first.pid, signal.SIGKILL)  # not asked for its end: a parent may be busy
    third = nst(*train)
    first.wait()
    assert third.returncode == 0, third.stderr
    version = Store(store).open("twice@gen-0")
    steps = [json.loads(line)["step"] for line in (version.folder / "metrics.jsonl").read_text().splitlines()]
    assert set(Counter(steps).values()) == {1}
    assert steps[-1] == version.manifest.counts.steps == 24
    assert Store(store).unfinished() == []
    assert not [path for path in version.folder.rglob("*") if "owner" in path.name]
