"""Labeling by several processes that are killed: every image once, the same bytes, no work done twice."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY, png, write_class_folders

from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_data.tables import pieces

pytestmark = pytest.mark.slow

NST = [sys.executable, "-c", "from nst_cli.main import run; run()"]
ROWS, PER_SHARD = 3_000, 60
BROKEN = {17: b"", 18: b"no image", 1_234: png(0, 1_234)[:90]}


@pytest.fixture(scope="module")
def forkserver():
    """Processes that have imported torch before they start: a kill then falls into labeling, not into imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nst_train.labeling.make", "nst_train.training.train", "nst_data.sources"])
    return context


def label_in(store, pool, worker, threads, corpus="killed"):
    """One `nst label` process, by the same functions."""
    from nst_train.labeling.label import label
    from nst_train.settings import LabelRunSettings, LabelSettings

    os.setpgrp()
    if corpus != "undisturbed":
        pieces.SAVE_EVERY_SECONDS = 0.01  # this process is its own
    settings, run = LabelSettings(batch_size=16, rows_per_shard=PER_SHARD), LabelRunSettings(worker=worker, decode_threads=threads)
    label(Store(store), corpus, "tiny-teacher@gen-0", open_source(str(pool)), settings, run=run)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(store with a teacher and the labels of an undisturbed run, pool)."""
    from nst_train.settings import RunSettings, TrainSettings
    from nst_train.training.train import train

    top = tmp_path_factory.mktemp("made")
    labeled = write_class_folders(top / "labeled", ["ant", "bee", "cat"], 4)
    images = [BROKEN.get(row, png(row % 3, row)) for row in range(ROWS)]
    pq.write_table(pa.table({"image": images}), top / "pool.parquet", row_group_size=250)
    train(Store(top / "store"), "tiny-teacher", open_source(str(labeled), labeled=True), TrainSettings(**TINY), run=RunSettings(workers=0))
    label_in(top / "store", top / "pool.parquet", "0/1", 2, "undisturbed")
    return top / "store", top / "pool.parquet"


def start(forkserver, made, number, threads=1, corpus="killed"):
    processes = [forkserver.Process(target=label_in, args=(*made, f"{index}/{number}", threads, corpus)) for index in range(number)]
    for process in processes:
        process.start()
    return processes


def done(store, corpus="killed"):
    """{file name: inode} of the shards that are done in the version under way."""
    folder = store / "runs" / "corpora" / corpus / "gen-1"
    notes = [int(path.stem) for path in (folder / "work" / "shards").glob("[0-9]*.json")]
    files = {int(path.name[6:11]): path for path in (folder / "build" / "pseudo_labels").glob("train-*.parquet")}
    return {files[note].name: files[note].stat().st_ino for note in notes}


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def wait_for_more(store, shards, processes):
    wait_for(lambda: len(done(store)) > shards or not any(process.is_alive() for process in processes))


def assert_same_labels(store, corpus):
    version, undisturbed = (Store(store).open(f"{name}@gen-1") for name in (corpus, "undisturbed"))
    assert version.verify() == []
    assert version.manifest.files == undisturbed.manifest.files
    assert version.manifest.counts == undisturbed.manifest.counts
    assert not (store / "runs" / "corpora" / corpus / "gen-1").exists()


def test_killed_twenty_times_with_one_to_three_workers_it_ends_with_the_bytes_of_an_undisturbed_run(forkserver, made):
    store, _ = made
    rng = random.Random(0)
    before: dict[str, int] = {}
    kills = 0
    while kills < 20:
        processes = start(forkserver, made, rng.randint(1, 3))
        if rng.random() < 0.7:  # else at any moment, also before anything is done
            wait_for_more(store, len(before), processes)
        time.sleep(rng.random() * 0.1)
        alive = [process for process in processes if process.is_alive()]
        for process in alive:
            os.kill(process.pid, signal.SIGKILL)
        for process in processes:
            process.join()
        assert alive, "killed before it was done: else make the pool larger"
        kills += 1
        now = done(store)
        assert before.items() <= now.items(), "no shard is made again"
        before = now
    assert 0 < len(before) < ROWS // PER_SHARD
    (last,) = start(forkserver, made, 1)
    last.join()
    assert last.exitcode == 0
    assert_same_labels(store, "killed")
    sealed = store / "corpora" / "killed" / "gen-1" / "pseudo_labels"
    assert {name: (sealed / name).stat().st_ino for name in before} == before


def test_a_worker_that_is_killed_leaves_its_shards_to_the_other_which_seals(forkserver, made):
    store, _ = made
    dies, lives = start(forkserver, made, 2, corpus="left")
    wait_for(lambda: len(done(store, "left")) > 4)
    os.kill(dies.pid, signal.SIGKILL)
    lives.join()
    assert lives.exitcode == 0
    assert_same_labels(store, "left")


def test_three_workers_race_to_seal_and_each_ends_well(forkserver, made):
    store, _ = made
    for attempt in range(5):
        processes = start(forkserver, made, 3, corpus=f"race-{attempt}")
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0, 0]
        assert_same_labels(store, f"race-{attempt}")


def test_workers_of_a_job_array_share_the_command_line(made):
    store, pool = made
    words = ["label", pool, "--teacher", "tiny-teacher@gen-0", "--corpus", "array", "--batch-size", 16, "--rows-per-shard", PER_SHARD]
    command = [*NST, *map(str, words), "--store", str(store)]
    workers = [
        subprocess.Popen([*command, "--worker", f"{index}/2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for index in (0, 1)
    ]
    said = [worker.communicate(timeout=300) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    assert all("array@gen-1: 2,997 of 3,000 images labeled, 3 could not be read" in out for out, _ in said)
    assert_same_labels(store, "array")
