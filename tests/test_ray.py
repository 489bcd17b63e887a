"""Labels and features by workers of a Ray cluster of two nodes: the bytes of one process, whatever is lost on the way.

Nodes of one machine are made different: the pool lies at a path that each process resolves by its own working folder, so that a node can
lack it, and of a store on s3:// each node has a copy of its own.
"""

import multiprocessing
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import object_store
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sick_nodes
from conftest import png
from labels import write_teacher
from watched import InterruptAfter, RecordingProgress
from wording import is_line

from nst_data.errors import NstError
from nst_data.features.under_way import start_features
from nst_data.sources import open_source
from nst_data.store.file_tree import FileTree
from nst_data.store.store import Store
from nst_train.cluster.workers import open_workers
from nst_train.cluster_settings import ClusterSettings
from nst_train.features.embed import embed
from nst_train.labeling.label import label
from nst_train.settings import EmbedRunSettings, EmbedSettings, LabelRunSettings, LabelSettings

pytestmark = pytest.mark.slow

POOL, STORE = "/proc/self/cwd/pool.parquet", "s3://nst/store"
ROWS, PER_SHARD = 240, 4
BROKEN = {17: b"", 18: b"no image"}
SETTINGS = LabelSettings(batch_size=4, rows_per_shard=PER_SHARD)
CLUSTER = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}


def on_ray(address, kind=LabelRunSettings, **more):
    return kind(engine="ray", address=address, gpus_per_worker=0, **more)


def node(number):
    """What the node of a number is started with."""
    mirrors = os.path.abspath(f"mirrors-{number}")
    return {"num_cpus": 1, "object_store_memory": 80_000_000, "env_vars": {"NST_MIRRORS": mirrors}}


def drive(address, teacher):
    """A driver in a process of its own, once it is told where the cluster is."""
    label(Store(STORE), "bugs", teacher, open_source(POOL), SETTINGS, run=on_ray(address.recv()), progress=RecordingProgress())


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """What a process has in its environment to reach a server."""
    with object_store.serving(tmp_path_factory.mktemp("s3")) as url:
        yield object_store.settings(url)


@pytest.fixture(scope="module")
def work(tmp_path_factory, s3):
    """A folder with a pool and a teacher, which is the working folder of all that starts here."""
    top = tmp_path_factory.mktemp("work")
    images = [BROKEN.get(row, png(row % 3, row)) for row in range(ROWS)]
    pq.write_table(pa.table({"image": images}), top / "pool.parquet", row_group_size=40)
    (top / "elsewhere").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top)
        for name, value in {**CLUSTER, **s3, "NST_MIRRORS": str(top / "mirrors-0")}.items():
            patch.setenv(name, value)
        yield top, write_teacher(top / "teacher", ["ant", "bee", "cat"], image_size=96)


@pytest.fixture(scope="module")
def undisturbed(work):
    """The labels of one process."""
    top, teacher = work
    return label(
        Store(top / "one"),
        "bugs",
        teacher,
        open_source(POOL),
        SETTINGS,
        run=LabelRunSettings(decode_threads=1),
        progress=RecordingProgress(),
    )


@pytest.fixture(scope="module")
def driver(work, undisturbed):
    """A driver that waits for an address: begun before Ray has threads in this process, which a fork does not copy."""
    _, teacher = work
    address, told = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=drive, args=(told, teacher))
    process.start()
    yield process, address
    process.kill()
    process.join()


@pytest.fixture(scope="module")
def cluster(driver):
    """Two nodes of one CPU each."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**node(1), "include_dashboard": False})
    cluster.second = cluster.add_node(**node(2))
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def work_files(top, kind):
    """Of the work on bugs@gen-1: files that any machine has."""
    return list(top.glob(f"mirrors-*/*/runs/corpora/bugs/gen-1/work/{kind}/*"))


def shards_done(top):
    return len({path.name for path in work_files(top, "shards") if path.suffix == ".json"})


def shards_at_the_address():
    """More than are noted on this disk, where a worker ended between the two."""
    return len({one.name for one in FileTree(STORE).files("runs") if "/shards/" in one.name and one.name.endswith(".json")})


def working_processes(top):
    """The processes that have claimed shards."""
    return {int(path.name.rpartition(".")[2]) for path in work_files(top, "claims")}


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Disturbed(RecordingProgress):
    """Disturbs the work as it goes: each step waits, slowly, until the one before has had its effect."""

    def __init__(self, *steps):
        super().__init__()
        self.rows, self._steps, self._is_due = 0, iter(steps), lambda: True
        self.is_through = False

    @contextmanager
    def task(self, name, total, unit, done=0):
        yield self

    def advance(self, amount, note=""):
        self.rows += amount
        if self.is_through:
            return
        if not self._is_due():
            time.sleep(0.6)  # so that it is not all done before
            return
        step = next(self._steps, None)
        self.is_through = step is None
        if step is not None:
            self._is_due = step()


def test_a_killed_driver_lost_workers_and_nodes_and_nodes_that_join_change_no_byte(work, undisturbed, driver, cluster):
    (top, teacher), (process, address) = work, driver
    address.send(cluster.address)
    wait_for(lambda: shards_done(top) >= 4)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    first = set()

    def have_ended():
        first.update(working_processes(top))  # one that is between two shards claims none
        return not any(map(psutil.pid_exists, first))

    wait_for(have_ended)  # Ray ends them
    before = shards_at_the_address()
    assert 4 <= before < ROWS // PER_SHARD // 2

    def begin():
        return lambda: len(working_processes(top) - first) >= 2

    def kill_a_worker():
        seen = working_processes(top)
        os.kill(max(seen - first), signal.SIGKILL)
        return lambda: working_processes(top) - seen

    def add_nodes():
        seen = working_processes(top)
        cluster.third = cluster.add_node(**node(3))
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir("elsewhere")
            cluster.lacking = cluster.add_node(**node(4))
        return lambda: working_processes(top) - seen

    def remove_a_node():
        lines = len(said.lines)
        cluster.remove_node(cluster.second, allow_graceful=False)
        return lambda: any("lost a worker" in line for line in said.lines[lines:])

    said = Disturbed(begin, kill_a_worker, add_nodes, remove_a_node)
    version = label(Store(STORE), "bugs", teacher, open_source(POOL), SETTINGS, run=on_ray(cluster.address), progress=said)
    assert said.is_through
    assert said.rows == ROWS - before * PER_SHARD
    assert sum("lost a worker" in line for line in said.lines) >= 2
    (line,) = [line for line in said.lines if line.startswith("warning: ")]
    assert line.endswith(f"lacks the pool {POOL}; it gets no work")
    assert version.verify() == []
    assert version.manifest.files == undisturbed.manifest.files
    assert version.manifest.counts == undisturbed.manifest.counts
    assert version.manifest.request.digest == undisturbed.manifest.request.digest
    cluster.remove_node(cluster.third)
    cluster.remove_node(cluster.lacking)


def test_workers_take_a_pool_at_an_address_as_their_driver_has_listed_it(work, cluster, monkeypatch):
    top, teacher = work
    tree = FileTree("s3://nst/pool")
    for row in range(12):
        tree.write(f"{row:02d}.png", png(row % 3, row))
    pool = open_source(tree.address)
    one = label(Store(top / "one"), "listed", teacher, pool, SETTINGS, run=LabelRunSettings(decode_threads=1), progress=RecordingProgress())
    features = EmbedSettings(batch_size=4, rows_per_shard=PER_SHARD)
    embedded = embed(Store(top / "one"), teacher, pool, features, progress=RecordingProgress())
    tree.write("new.png", png(0, 99))  # a worker that lists finds it
    store = Store(top / "listed")
    assert (
        label(store, "listed", teacher, pool, SETTINGS, run=on_ray(cluster.address), progress=RecordingProgress()).manifest.files
        == one.manifest.files
    )
    (kept,) = store.indexes.folder.iterdir()
    kept.unlink()
    by_workers = embed(store, teacher, pool, features, run=on_ray(cluster.address, EmbedRunSettings), progress=RecordingProgress())
    assert by_workers.about.files == embedded.about.files
    monkeypatch.setenv("NST_MIRRORS", str(top / "mirrors-7"))  # the driver is another machine than the workers
    version = label(Store(STORE), "listed", teacher, pool, SETTINGS, run=on_ray(cluster.address), progress=RecordingProgress())
    assert version.manifest.files == one.manifest.files


def test_features_that_were_interrupted_go_on_and_are_those_of_one_process(work, cluster):
    top, teacher = work
    settings = EmbedSettings(batch_size=4, rows_per_shard=PER_SHARD)
    one = embed(Store(top / "one"), teacher, open_source(POOL), settings, progress=RecordingProgress())
    store, run = Store(top / "store"), on_ray(cluster.address, EmbedRunSettings, workers=1)
    with pytest.raises(KeyboardInterrupt):
        embed(store, teacher, open_source(POOL), settings, run=run, progress=InterruptAfter(ROWS // 2))
    (folder,) = (store.root / "features").iterdir()
    shards = start_features(store, one.about.request, ROWS, PER_SHARD, one.about.dimensions).shards
    finished = sorted(set(range(ROWS // PER_SHARD)) - set(shards.missing()))  # a file without its note yet is written again
    done = {name: (folder / name).stat().st_ino for name in map(shards.plan.file, finished)}
    assert 2 < len(done) < ROWS // PER_SHARD
    features = embed(store, teacher, open_source(POOL), settings, run=run, progress=RecordingProgress())
    assert features.about.files == one.about.files
    assert {name: (folder / name).stat().st_ino for name in done} == done
    assert [path.name for path in store.root.iterdir() if path.name.startswith(".")] == []


def test_features_on_s3_that_one_process_began_are_finished_by_a_cluster_with_the_same_bytes(work, cluster, monkeypatch):
    top, teacher = work
    settings, store = EmbedSettings(batch_size=4, rows_per_shard=PER_SHARD), Store(STORE)
    one = embed(Store(top / "one"), teacher, open_source(POOL), settings, progress=RecordingProgress())
    with pytest.raises(KeyboardInterrupt):
        embed(store, teacher, open_source(POOL), settings, progress=InterruptAfter(ROWS // 2))
    begun = {file.name for file in store.mirror.tree.files("runs/features") if "/shards/" in file.name}
    monkeypatch.setenv("NST_MIRRORS", str(top / "mirrors-6"))  # another machine drives
    features = embed(
        Store(STORE), teacher, open_source(POOL), settings, run=on_ray(cluster.address, EmbedRunSettings), progress=RecordingProgress()
    )
    assert len(begun) >= 20
    assert not list(Path(top, "mirrors-6").glob("*/features/*/features/*"))  # the workers wrote them all
    assert features.about.files == one.about.files
    assert features.matrix().tobytes() == one.matrix().tobytes()
    assert not store.mirror.tree.files("runs/features")
    assert not [file.name for file in store.mirror.tree.files("runs") if "seen-by-workers" in file.name]


def test_a_node_that_loses_one_worker_after_the_other_gets_no_more_work_and_the_others_do_it_all(work, cluster):
    import ray

    top, _ = work
    sick = node(8)
    nodes = [cluster.add_node(**node(6)), cluster.add_node(**sick)]
    log, said = top / "losses", RecordingProgress()
    log.touch()
    ray.cloudpickle.register_pickle_by_value(sick_nodes)  # workers know no module of the tests
    job = sick_nodes.FailingJob("NST_MIRRORS", sick["env_vars"]["NST_MIRRORS"], log)
    settings = ClusterSettings(engine="ray", address=cluster.address, gpus_per_worker=0)
    with open_workers(job, settings, 9, said) as workers:
        steps = list(workers.fill(range(9), lambda shard: False))
    assert sorted(step.shard for step in steps if step.is_complete) == list(range(9))
    assert sum(step.rows for step in steps) == 9 * 3
    lost = log.read_text().split()
    assert len(set(lost)) == len(lost) == sick_nodes.LOSSES  # none was lost there twice
    (line,) = [line for line in said.lines if line.startswith("warning: ")]
    assert is_line(
        line, "warning: node …: 3 workers in a row were lost on it, the last by … Read-only file system: '/scratch'; it gets no work"
    )
    for one in nodes:
        cluster.remove_node(one)


def test_a_node_that_lacks_the_pool_is_named_before_any_work(work, cluster):
    top, teacher = work
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top / "elsewhere")
        lacking = cluster.add_node(**node(5))
    store = Store(top / "refused")
    with pytest.raises(NstError, match=rf"^node \S+ \(\S+\) lacks the pool {POOL}$"):
        label(store, "bugs", teacher, open_source(POOL), SETTINGS, run=on_ray(cluster.address), progress=RecordingProgress())
    assert (store.versions(), store.unfinished()) == ([], [])
    cluster.remove_node(lacking)
