"""`nst balance --embed-images` killed and started again, and run by several processes at once: the same bytes, nothing left behind."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from sealed_labels import label_row, seal_generation

from nst_data.sources import open_source
from nst_data.store.store import Store

pytestmark = pytest.mark.slow

# 6 MB in as many shards, from chunks of 1 MB in place of 256: there is something to be killed in
SMALL_CHUNKS = "from nst_data.self_contained import writing; writing.CHUNK_BYTES = 2**20; from nst_cli.main import run; run()"
NST = [sys.executable, "-c", SMALL_CHUNKS]
SELECTION = ["balance", "bugs@gen-1", "--min-confidence", "0.2", "--per-class", "150"]
EMBEDDED = [*SELECTION, "--embed-images", "--shard-mb", "1"]


def write_labels(store, pool):
    """A generation of a pool of 320 images of 20 kB."""
    pool.mkdir(exist_ok=True)
    for index in range(320):
        (pool / f"{index:04d}.jpg").write_bytes(np.random.default_rng(index).bytes(20_000))
    source = open_source(str(pool))
    rows = [label_row(row, source.read(row), row % 2, (row * 37 % 320) / 320, key=source.key(row)) for row in range(len(source))]
    return seal_generation(Store(store), rows, counts={"teacher_parameters": 7}, pool=source.lineage)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The pool, and the digest of each edition that was made by one process that nobody killed."""
    top = tmp_path_factory.mktemp("undisturbed")
    write_labels(top / "store", top / "pool")
    digests = []
    for words in (EMBEDDED, SELECTION):
        done = subprocess.run([*NST, *words, "--store", str(top / "store")], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for version in Store(top / "store").versions()[1:]:
        assert version.verify() == []
        digests.append(version.manifest.digest)
    assert len(list((top / "store" / "corpora" / "bugs" / "gen-1.1" / "balanced").iterdir())) == 6
    return top / "pool", digests


def start(words, store):
    command = [*NST, *words, "--store", str(store)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def killed_when(store, pattern):
    """Run the command and kill it as soon as a file that matches appears; whether it was killed."""
    with start(EMBEDDED, store) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and not any(store.glob(pattern)):
            assert time.monotonic() < deadline, pattern
            time.sleep(0.0005)
        alive = process.poll() is None
        if alive:
            os.killpg(process.pid, signal.SIGKILL)
    return alive


def left_behind(store):
    """What lies in the store beside sealed versions."""
    return [path for path in store.rglob("*") if path.is_file() and not path.is_relative_to(store / "corpora")]


def test_balancing_killed_at_many_moments_ends_with_the_bytes_of_one_that_was_not(undisturbed, tmp_path):
    pool, (expected, _) = undisturbed
    store, run = tmp_path / "store", "runs/corpora/bugs/gen-1.1"
    write_labels(store, pool)
    moments = [
        f"{run}/request.json",
        f"{run}/work/selection.*.tmp/repeated/*",
        f"{run}/work/selection.*.tmp/selected/*",
        f"{run}/work/self_contained.json",
        f"{run}/work/self_contained/.*.tmp",
        f"{run}/work/self_contained/*.arrow",
        f"{run}/work/self_contained/*4*.arrow",
        f"{run}/work/self_contained/*3??.arrow",
        f"{run}/build/balanced/train-00000*",
        f"{run}/build/balanced/train-00003*",
        f"{run}/build/README.md",
        f"{run}/build/nst.json",
        "corpora/bugs/gen-1.1/nst.json",
    ]
    kills = sum(killed_when(store, moment) for moment in moments)
    assert kills >= 8
    with start(EMBEDDED, store) as process:
        assert process.wait(timeout=120) == 0, process.stderr.read()
    (version,) = (version for version in Store(store).versions() if version.manifest.kind == "edition")
    assert version.verify() == []
    assert version.manifest.digest == expected
    assert [path for path in left_behind(store) if ".discarded." not in str(path)] == []


def test_images_that_were_read_before_a_kill_are_not_read_again(undisturbed, tmp_path):
    pool, _ = undisturbed
    store = tmp_path / "store"
    write_labels(store, pool)
    work = store / "runs/corpora/bugs/gen-1.1/work/self_contained"
    while not killed_when(store, "runs/corpora/bugs/gen-1.1/work/self_contained/*2??.arrow"):
        pass
    before = {path.name: path.stat().st_ino for path in work.glob("*.arrow")}
    assert killed_when(store, "runs/corpora/bugs/gen-1.1/build/balanced/train-00001*")
    assert len(before) >= 4
    assert {name: (work / name).stat().st_ino for name in before} == before


@pytest.mark.parametrize(("words", "number"), [(EMBEDDED, 0), (SELECTION, 1)], ids=["images", "labels"])
@pytest.mark.parametrize("seconds", [0, 0.05, 0.2])
def test_processes_that_run_the_same_command_at_once_all_succeed_with_the_bytes_of_one(undisturbed, tmp_path, words, number, seconds):
    pool, digests = undisturbed
    store = tmp_path / "store"
    write_labels(store, pool)
    processes = []
    for _ in range(3):
        processes.append(start(words, store))
        time.sleep(seconds)
    for process in processes:
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert out.startswith("bugs@gen-1.1: 300 entries from 256 of 320 images\n"), out
    (version,) = (version for version in Store(store).versions() if version.manifest.kind == "edition")
    assert version.verify() == []
    assert version.manifest.digest == digests[number]
    assert left_behind(store) == []


@pytest.mark.parametrize("free", [12_000, 4_000_000], ids=["in the selection", "in the images"])
def test_a_full_disk_is_one_line_and_after_making_room_the_same_command_goes_on(undisturbed, tmp_path, free):
    pool, (expected, _) = undisturbed
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(disk)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a small disk: {mounted.stderr.strip()}")
    try:
        write_labels(disk / "store", pool)
        (disk / "rest").write_bytes(bytes(shutil.disk_usage(disk).free - free))
        with start(EMBEDDED, disk / "store") as process:
            _, errors = process.communicate(timeout=120)
        assert process.returncode == 1, errors
        line = "nst: the disk is full; free some space and rerun the same command, which resumes"
        assert errors.splitlines()[-1] == line
        (disk / "rest").unlink()
        with start(EMBEDDED, disk / "store") as process:
            assert process.wait(timeout=120) == 0, process.stderr.read()
        assert Store(disk / "store").open("bugs@gen-1.1").manifest.digest == expected
        assert left_behind(disk / "store") == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
