"""Streamed training that is killed, cut off from the Hub, or run by two processes: the same weights as in one go."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch
from hub import environment, serving
from hub_faults import ALWAYS, Fault
from safetensors.torch import load_file
from streamed import REF, nst, process, publish, seal

from nst_data.store.store import Store

pytestmark = pytest.mark.slow
NST = ["-c", "from nst_cli.main import run; run()"]
AS_PUBLISHED = {"epochs": 8, "batch-size": 4, "ratio": 2, "image-size": 16, "workers": 1, "checkpoint-minutes": 0, "tracker": "none"}


def words(labeled, store, *more):
    chosen = [word for name, value in AS_PUBLISHED.items() for word in (f"--{name}", str(value))]
    start = ["train", "--labeled", labeled, "--pseudo", REF, "--stream", "--model", "test_resnet", "--name", "student"]
    return list(map(str, [*start, *chosen, *more, "--store", store]))


def weights(store):
    return load_file(Store(store).open("student@gen-0").folder / "model.safetensors")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(folder of the Hub, labeled images, the weights of a run that nothing stopped)."""
    top = tmp_path_factory.mktemp("published")
    edition, labeled = seal(top)
    publish(top / "hub", edition)
    with serving(top / "hub") as (url, _):
        done = nst(url, top / "home", *words(labeled, top / "store"))
    assert done.returncode == 0, done.stderr
    return top / "hub", labeled, weights(top / "store")


def has_weights(store, expected):
    found = weights(store)
    return found.keys() == expected.keys() and all(torch.equal(found[name], one) for name, one in expected.items())


@contextmanager
def held_with_a_checkpoint(url, hold, home, store, labeled):
    """A training that waits for a shard once it has a checkpoint."""
    with subprocess.Popen(
        [sys.executable, *NST, *words(labeled, store)],
        env=environment(url, home),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as running:
        assert hold.arrived.wait(120)
        deadline = time.monotonic() + 60
        while not any(store.glob("runs/*/*/*/work/checkpoints/*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert list(store.glob("runs/*/*/*/work/checkpoints/*"))
        yield running


def test_killed_while_shards_come_the_same_command_goes_on_and_leaves_nothing(published, tmp_path):
    top, labeled, expected = published
    store = tmp_path / "store"
    hold = Fault("lfs get", "hold", first=26)
    with serving(top, [hold]) as (url, _):
        with held_with_a_checkpoint(url, hold, tmp_path / "home", store, labeled) as running:
            os.killpg(running.pid, signal.SIGKILL)
        hold.go.set()
        assert list(store.glob("runs/**/stream-*/.part.*"))
        done = nst(url, tmp_path / "home", *words(labeled, store))
    assert done.returncode == 0, done.stderr
    assert has_weights(store, expected)
    assert not list(store.glob("**/.part.*"))


def test_cut_off_from_the_hub_training_ends_with_one_line_and_goes_on_later(published, tmp_path):
    top, labeled, expected = published
    store = tmp_path / "store"
    hold = Fault("lfs get", "hold", first=26)
    with serving(top, faults := [hold]) as (url, _):
        with held_with_a_checkpoint(url, hold, tmp_path / "home", store, labeled) as running:
            faults.append(Fault("head", "cut", times=ALWAYS))
            hold.go.set()
            said = running.communicate(timeout=120)[1]
        assert running.returncode == 1
        unreached = r"the Hub cannot be reached \([\w ]+\); check the network and HF_ENDPOINT"
        assert re.fullmatch(rf"nst: alice/bugs-pseudo: {unreached}", said.splitlines()[-1])
        assert "Traceback" not in said
        assert list(store.glob("runs/*/*/*/work/checkpoints/*"))
        faults.clear()
        done = nst(url, tmp_path / "home", *words(labeled, store))
    assert done.returncode == 0, done.stderr
    assert has_weights(store, expected)


def test_two_processes_share_the_shards_and_train_what_one_trains(published, tmp_path):
    top, labeled, expected = published
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29563", "--no-python", sys.executable]
    with serving(top) as (url, answers):
        process(url, tmp_path / "home", sys.executable, *launcher, *NST, *words(labeled, tmp_path / "store", "--sync-batch-norm"))
    for name, one in weights(tmp_path / "store").items():
        torch.testing.assert_close(one, expected[name], rtol=1e-3, atol=1e-3)
    downloads = [answer.path.partition("?")[0] for answer in answers if answer.call == "lfs get" and answer.size > 2**16]
    assert 10 <= len(downloads) <= 20
