"""The digits of `nst demo`, whole, with store and pool on s3:// and labels by a Ray cluster of two nodes, killed again and again: the bytes
of a run on one machine."""

import multiprocessing
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

import object_store
import pytest
import yaml

from nst_data.digits import write_digits
from nst_data.progress import Progress
from nst_data.store.file_tree import FileTree
from nst_data.store.store import Store
from nst_train import load_recipe, self_training

pytestmark = pytest.mark.slow
ADDRESS = "s3://nst/story"
EXAMPLE = Path(__file__).parents[1] / "examples" / "digits.yaml"
REFS = [
    *("digits-teacher@gen-0", "digits@gen-1", "digits@gen-1.1", "digits-teacher@gen-1", "digits@gen-2", "digits@gen-2.1"),
    *("digits-teacher@gen-2", "digits-control@gen-0"),
]


@pytest.fixture
def server(tmp_path_factory, monkeypatch, tmp_path):
    with object_store.serving(tmp_path_factory.mktemp("s3")) as url:
        for name, value in object_store.settings(url).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("NST_MIRRORS", str(tmp_path / "mirrors-driver"))
        yield FileTree.parse(ADDRESS)


@pytest.fixture
def cluster(server, tmp_path, monkeypatch):
    """The address of two nodes of one CPU each, which share nothing with this machine but the server."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    def node(number):
        return {"num_cpus": 1, "object_store_memory": 80_000_000, "env_vars": {"NST_MIRRORS": str(tmp_path / f"mirrors-{number}")}}

    cluster = Cluster(initialize_head=True, head_node_args={**node(1), "include_dashboard": False})
    cluster.add_node(**node(2))
    yield cluster.address
    cluster.shutdown()


def run(recipe, store):
    self_training(Store(store), load_recipe(recipe), progress=Progress())


def contents(store):
    versions = {ref: Store(store).open(ref) for ref in REFS}
    files = {ref: {name: (one.folder / name).read_bytes() for name in one.manifest.files} for ref, one in versions.items()}
    return {ref: (one.manifest.digest, files[ref]) for ref, one in versions.items()}


def killed_when(tree, point, recipe):
    """Start the run and kill it once a file whose name holds this is there; whether it was."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nst_train.noisy_student", "nst_train.training.train", "timm", "ray"])
    process = context.Process(target=_run, args=(dict(os.environ), recipe, ADDRESS))
    process.start()
    deadline = time.monotonic() + 600  # of a run that hangs
    while not (reached := any(fnmatch(one.name, f"*{point}*") for one in tree.files())) and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return reached


def _run(environment, recipe, store):
    os.environ.update(environment)
    run(recipe, store)


def write_recipe(file, pool, **label):
    """The example, its networks trained for 3 epochs in place of 80."""
    recipe = yaml.safe_load(EXAMPLE.read_text())
    for network in recipe["generations"]:
        network |= {"epochs": 3, "warmup_epochs": 1}
    run = {"workers": 0, "decode_threads": 2, "checkpoint_minutes": 0}
    recipe |= {"pool": {"source": str(pool)}, "label": {"rows_per_shard": 100} | label, "run": run}
    recipe["select"] = {"min_confidence": 0, "per_class": 120}  # networks this little trained are sure of nothing
    file.write_text(yaml.safe_dump(recipe))
    return file


def test_the_digits_on_s3_and_a_cluster_killed_five_times_have_the_bytes_of_one_machine(server, cluster, tmp_path):
    write_digits(tmp_path / "digits", 0)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda image: FileTree.parse("s3://nst/pool").upload(image, image.name), (tmp_path / "digits" / "pool").iterdir()))
    run(write_recipe(tmp_path / "digits.yaml", tmp_path / "digits" / "pool"), tmp_path / "local")
    on_ray = {"engine": "ray", "address": cluster, "gpus_per_worker": 0}
    recipe = write_recipe(tmp_path / "digits.yaml", "s3://nst/pool", **on_ray)
    points = [
        "runs/teachers/digits-teacher/gen-0/work/*/checkpoints/",
        "runs/corpora/digits/gen-1/work/*/shards/00004.json",
        "corpora/digits/gen-1.1/nst.json",
        "runs/teachers/digits-teacher/gen-1/work/*/checkpoints/",
        "runs/corpora/digits/gen-2/work/*/shards/00003.json",
    ]
    kills = [killed_when(server, point, recipe) for point in points]
    assert sum(kills) >= 4, kills
    shutil.rmtree(tmp_path / "mirrors-driver")
    run(recipe, ADDRESS)
    assert contents(ADDRESS) == contents(tmp_path / "local")
    assert not [one.name for one in server.files("runs") if not one.name.startswith("runs/indexes/")]
