"""Work on a Ray cluster: what is asked for, and what is refused before any cluster is joined."""

import sys
from types import SimpleNamespace

import pytest
from conftest import write_tiny_recipe
from nst_cli.main import app
from typer.testing import CliRunner
from watched import RecordingProgress
from wording import is_line

from nst_data.errors import NstError, UsageError
from nst_data.selection.editions import Engine, balance
from nst_data.sources import open_source
from nst_data.store.manifest import installed_packages
from nst_data.store.store import Store
from nst_train.cluster.job import SourceAddress, check_machine, describe_missing_teacher, portable_model
from nst_train.cluster.nodes import connect_cluster, usable_nodes
from nst_train.cluster.workers import Workers, loss_reason
from nst_train.cluster_settings import ClusterSettings
from nst_train.recipes.reading import load_recipe
from nst_train.settings import EmbedRunSettings, LabelRunSettings, LabelSettings, RunSettings
from nst_train.zero_shot_settings import ZeroShot

ON_CPUS = ClusterSettings(engine="ray", gpus_per_worker=0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--engine", "dask"), "--engine: … 'local' or 'ray', found dask"),
        (("--workers", 3), "--workers … --engine ray; add …, or remove …"),
        (("--gpus-per-worker", 0), "--gpus-per-worker … --engine ray; add …, or remove …"),
        (("--engine", "ray", "--gpus-per-worker", "1.5"), "--gpus-per-worker: … whole number, … below 1"),
        (("--engine", "ray", "--cpus-per-worker", "0"), "--cpus-per-worker: … at least 1, found 0"),
        (("--engine", "ray", "--worker", "0/2"), "--worker splits the work among processes"),
        (("--engine", "ray", "--address", "ray://head:10001"), "--address: … HOST:PORT or auto, not … ray://"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(words, says):
    result = CliRunner().invoke(app, ["label", "pool", "--teacher", "net", "--corpus", "bugs", *map(str, words)])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert is_line(line, f"nst: {says}…")


def test_without_ray_a_line_says_what_to_install(tiny_store, monkeypatch):
    store, _, pool = tiny_store
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["label", pool, "--teacher", "tiny-teacher", "--corpus", "on-ray", "--engine", "ray", "--store", store.root]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == "nst: --engine ray: expected Ray, found none; pip install 'nst[ray]', or leave out --engine"
    assert store.unfinished() == []


def test_processes_of_torchrun_are_not_each_a_driver(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"`engine` ray:.*one process.*without torchrun or accelerate"), connect_cluster(ON_CPUS):
        pass


def test_an_address_where_nothing_listens_is_one_line_at_once():
    pytest.importorskip("ray")
    nowhere = ClusterSettings(engine="ray", address="127.0.0.1:1")
    says = r"^`address` 127.0.0.1:1: no Ray cluster there \(.*Connection refused\); `ray start` starts one$"
    with pytest.raises(UsageError, match=says), connect_cluster(nowhere):
        pass


def test_a_recipe_labels_on_a_cluster_by_keys_of_its_label_section_that_change_no_request(tmp_path):
    plain = load_recipe(write_tiny_recipe(tmp_path, generations=[{"model": "a"}, {"model": "b"}]))
    keys = {"engine": "ray", "address": "head:6379", "gpus_per_worker": 0.5, "workers": 4}
    recipe = load_recipe(write_tiny_recipe(tmp_path, generations=[{"model": "a"}, {"model": "b"}], label={"top_k": 2, **keys}))
    assert recipe.label.for_request() == {**plain.label.for_request(), "top_k": 2} == LabelSettings(top_k=2).for_request()
    assert recipe.label.cluster_options == {**ClusterSettings().cluster_options, **keys}
    path = write_tiny_recipe(tmp_path, generations=[{"model": "a"}, {"model": "b"}], label={"workers": 4})
    with pytest.raises(UsageError, match=r"bugs\.yaml, line \d+: label: `workers`.*`engine` ray; add.*remove"):
        load_recipe(path)


def test_what_says_how_images_are_read_says_it_of_labeling_too():
    read = {"decode_threads": 3, "max_unreadable": 0.1}
    assert LabelRunSettings.from_run(RunSettings(workers=7, **read)) == LabelRunSettings(**read)
    on_ray = EmbedRunSettings(engine="ray", workers=7, **read)
    assert LabelRunSettings.from_run(on_ray) == LabelRunSettings(engine="ray", workers=7, **read)


def cluster_of(*nodes):
    """What Ray says of nodes with so many (GPUs, CPUs)."""
    about = {"Alive": True, "NodeManagerHostname": "host", "NodeManagerAddress": "10.0.0.1"}
    rows = [{**about, "NodeID": str(number), "Resources": {"GPU": gpus, "CPU": cpus}} for number, (gpus, cpus) in enumerate(nodes)]
    return SimpleNamespace(nodes=lambda: rows)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [("0", 8, 12), ("1", 1, 16)]),
        ({"gpus_per_worker": 2}, [("0", 4, 24)]),
        ({"gpus_per_worker": 0.25}, [("0", 32, 3), ("1", 4, 4)]),
        ({"cpus_per_worker": 14}, [("0", 6, 14), ("1", 1, 14)]),
        ({"gpus_per_worker": 0}, [("0", 1, 96), ("1", 1, 16), ("2", 1, 4)]),
        ({"gpus_per_worker": 0, "cpus_per_worker": 4}, [("0", 24, 4), ("1", 4, 4), ("2", 1, 4)]),
    ],
)
def test_a_node_has_room_for_as_many_workers_as_its_gpus_and_cpus_allow(settings, expected):
    cluster = cluster_of((8, 96), (1, 16), (0, 4), (0, 0))
    found = usable_nodes(cluster, ClusterSettings(engine="ray", **settings))
    assert [(node.id, node.capacity, node.cpus) for node in found] == expected


def test_a_cluster_without_a_gpu_is_refused_with_the_way_out(tmp_path):
    workers = Workers(cluster_of((0, 4), (0, 2)), None, ClusterSettings(engine="ray"), None)
    says = "no node has room for a worker of 1 GPU and 1 CPU: of 2 nodes the largest has 0 GPUs and 4 CPUs; `gpus_per_worker` 0"
    with pytest.raises(NstError, match=says):
        workers.start(1)


def test_a_node_that_ends_while_it_is_looked_at_is_left_out_and_the_others_work():
    class GoneError(Exception):
        pass

    def get(ref):
        if ref == "gone":
            raise GoneError("the node is gone")
        return ""

    cluster, said = cluster_of((0, 4), (0, 2)), RecordingProgress()
    cluster.get, cluster.exceptions = get, SimpleNamespace(RayError=GoneError)
    workers = Workers(cluster, None, ON_CPUS, said)
    first, second = usable_nodes(cluster, ON_CPUS)
    workers._nodes = {"0": first, "1": second}
    workers._first_nodes, workers._checks = {"0", "1"}, {"gone": first, "fine": second}
    workers._handle_checked("gone")
    workers._handle_checked("fine")
    assert said.lines == ["warning: node host (10.0.0.1) runs nothing of ours (the node is gone); it gets no work"]
    assert (first.is_checked, second.is_checked, second.refusal) == (True, True, "")


def test_why_a_worker_was_lost_is_said_without_what_it_was_called():
    died = (
        "The actor died unexpectedly before finishing this task.\n\tclass_name: Worker\n\tactor_id: 0a\nIts process was killed: low memory."
    )
    assert loss_reason(RuntimeError(died)) == "Its process was killed: low memory"
    assert loss_reason(RuntimeError(f"The actor {32 * 'a'} is unavailable: socket closed.")) == "The actor is unavailable: socket closed"
    assert loss_reason(OSError()) == "OSError"


def test_what_a_machine_lacks_is_named(tiny_store, tmp_path):
    pool = open_source(tiny_store[2])
    place = SourceAddress.from_source(pool)
    assert place.describe_missing() == ""
    gone = SourceAddress(str(tmp_path / "nowhere"), None, False, "")
    assert gone.describe_missing() == f"lacks the pool {tmp_path}/nowhere"
    assert SourceAddress(f"{tiny_store[2]}/*.png", None, False, "").describe_missing() == ""
    assert SourceAddress(f"{tmp_path}/*.tar", None, False, "").describe_missing() == f"lacks the pool {tmp_path}/*.tar"
    assert describe_missing_teacher(f"local-dir:{tmp_path}/net") == f"lacks the teacher local-dir:{tmp_path}/net"
    assert [describe_missing_teacher(name) for name in (f"local-dir:{tmp_path}", "owner/net", "net@gen-0")] == ["", "", ""]
    other = installed_packages() | {"torch": "1.0"}
    assert check_machine(place, installed_packages()) == ""
    assert "where the driver has torch 1.0; equal bytes need equal packages" in check_machine(place, other)
    less = {name: version for name, version in installed_packages().items() if name != "simplejpeg"}
    assert "where the driver has no simplejpeg; equal bytes need equal packages" in check_machine(place, less)
    assert check_machine(place, installed_packages() | {"jpegs": "1.0"}).startswith("has no jpegs where the driver has jpegs 1.0")


def test_a_pool_of_other_files_is_not_labeled_by_a_worker(tiny_store, tmp_path):
    place = SourceAddress(str(tiny_store[2]), None, False, "of other files")
    with pytest.raises(NstError, match=r"pool.*different files.*\(15 images\).*same files"):
        place.open(tmp_path)


def test_a_model_is_named_so_that_another_working_folder_does_not_matter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    assert portable_model("local-dir:net") == f"local-dir:{tmp_path}/net"
    assert portable_model("net@gen-1") == "net@gen-1"
    clip = portable_model(ZeroShot(model="owner/clip", class_names="names.txt"))
    (tmp_path / "names.txt").unlink()
    assert (clip.model, clip.synonyms) == ("owner/clip", {"ant": ("ant",), "bee": ("bee",)})


def test_spark_is_refused_for_a_store_at_an_address():
    with pytest.raises(UsageError, match=r"^`engine` spark: s3://bucket/store.*hadoop-aws.*leave out `engine`"):
        balance(Store("s3://bucket/store"), "tiny@gen-1", engine=Engine("spark"))
