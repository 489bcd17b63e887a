"""The same work started twice: nothing is done twice in one place, nothing is lost, and who is second is told in one line."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import png, write_class_folders

from nst_data.store.store import Store

pytestmark = pytest.mark.slow
NST = [sys.executable, "-c", "from nst_cli.main import run; run()"]


def nst(*arguments):
    return subprocess.run([*NST, *map(str, arguments)], capture_output=True, text=True, timeout=300)


def start_until(store, *arguments, until):
    """Start a command and stop it (it lives on) once there is a file."""
    process = subprocess.Popen([*NST, *map(str, arguments)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
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
    first = start_until(store, *train, until="runs/teachers/twice/gen-0/work/checkpoints/step-*")
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


ADOPT = """
import sys, time
from pathlib import Path
from nst_data.adoption import adopt
from nst_data.sources import open_source
from nst_data.store.store import Store

top, number = Path(sys.argv[1]), sys.argv[2]
for store in ("once", "twice", "thrice"):
    (top / f"{store}-{number}").touch()
    while not all((top / f"{store}-{one}").exists() for one in (0, 1)):
        time.sleep(0.001)
    table, names = open_source(str(top / "labels.parquet")), str(top / "names.txt")
    try:
        print(adopt(Store(top / store), "theirs", table, probs="probs", rows_per_shard=4, class_names=names).manifest.digest)
    except Exception as error:  # told to the test: the other process waits for this one's next round
        print(repr(error))
"""


def test_two_processes_that_adopt_the_same_labels_at_once_end_with_one_version(tmp_path):
    images = pa.array([png(index % 3, index) for index in range(12)])
    pq.write_table(pa.table({"image": images, "probs": [[0.5, 0.25, 0.25]] * 12}), tmp_path / "labels.parquet")
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    words = [sys.executable, "-c", ADOPT, str(tmp_path)]
    both = [subprocess.Popen([*words, str(number)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for number in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    versions = [Store(tmp_path / name).open("theirs@gen-1") for name in ("once", "twice", "thrice")]
    assert {tuple(out.splitlines()) for out, _ in said} == {tuple(version.manifest.digest for version in versions)}
    assert [version.verify() for version in versions] == [[], [], []]
