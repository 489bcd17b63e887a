"""Spark on a cluster, a real one of several processes: the bytes of Polars, also where a part of it dies, and lines about what it lacks.

test_spark.py shows that these labels, selected so, also have these bytes in Spark's local mode.
"""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from sealed_labels import label_row, seal_generation
from selections import many_labels
from spark_cluster import cluster
from wording import mentions

from nst_data.selection.editions import balance
from nst_data.settings import BalanceSettings
from nst_data.store.store import Store

pytestmark = pytest.mark.slow

SELECTION = ["balance", "bugs@gen-1", "--per-class", "30", "--exclude-class", "cat", "--fraction", "0.9", "--engine", "spark"]
QUICK = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"  # halves the time of a short run
SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.sql.shuffle.partitions": "2",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.executor.memory": "512m",
    "spark.executor.extraJavaOptions": f"'{QUICK}'",
}
COMMAND = "from nst_cli.main import run; run()"


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """A store with labels in three files, and the edition that Polars makes of them in a copy of it."""
    top = tmp_path_factory.mktemp("sealed")
    rows = [label_row(row, image, label, confidence) for row, image, label, confidence in many_labels(300, 3).rows()]
    seal_generation(Store(top / "store"), rows, counts={"teacher_parameters": 7}, shards=3)
    shutil.copytree(top / "store", top / "polars")
    chosen = BalanceSettings(per_class=30, exclude_class=("cat",), fraction=0.9)
    return top / "store", balance(Store(top / "polars"), "bugs@gen-1", chosen)


@pytest.fixture(scope="module")
def spark(tmp_path_factory):
    with cluster(tmp_path_factory.mktemp("spark")) as found:
        yield found


@pytest.fixture
def store(sealed, tmp_path):
    return shutil.copytree(sealed[0], tmp_path / "store")


def start(master, store, code=COMMAND, **settings):
    options = [f"--conf {name}={value}" for name, value in (SETTINGS | settings).items()]
    arguments = " ".join([*options, f"--driver-java-options '{QUICK}'", "pyspark-shell"])
    environment = os.environ | {
        "PYSPARK_SUBMIT_ARGS": arguments,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_PYTHON": "none",
    }  # workers run no Python
    command = [sys.executable, "-c", code, *SELECTION, "--master", master, "--store", str(store)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True)


def is_begun(process, store, step):
    """Whether the folder of a step of the selection appears before the process ends."""
    while not any(store.glob(f"runs/corpora/bugs/gen-1.1/work/selection.*/{step}")):
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    return True


def ended(process):
    """The exit status, and the lines on standard error."""
    _, said = process.communicate(timeout=120)
    return process.returncode, said.splitlines()


def differing(store, edition):
    """The files of the edition in a store that are not those of another one."""
    folder = store / "corpora" / "bugs" / "gen-1.1"
    names = {str(file.relative_to(edition.folder)) for file in edition.folder.rglob("*") if file.is_file()}
    assert {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} == names
    assert Store(store).open("bugs@gen-1.1").manifest.digest == edition.manifest.digest
    pictures = {name for name in names if name.endswith(".png")}  # which commands draw, and tests do not
    return {name for name in names - {"nst.json"} - pictures if (folder / name).read_bytes() != (edition.folder / name).read_bytes()}


def test_the_edition_of_a_cluster_has_the_bytes_of_polars_and_gives_the_cluster_back(spark, store, sealed):
    at_end = "atexit.register(lambda: print('session:', pyspark.SparkContext._active_spark_context))"
    process = start(spark.url, store, f"import atexit, pyspark; {at_end}; {COMMAND}")
    printed, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert printed.splitlines()[-1] == "session: None"
    assert differing(store, sealed[1]) == set()
    assert spark.is_idle()


def test_a_wait_for_workers_ctrl_c_and_a_worker_that_dies_change_nothing(spark, store, sealed):
    soon = "from nst_data.tables import spark; spark._UNSERVED_SECONDS = 1"
    with start(spark.url, store, f"{soon}; {COMMAND}", **{"spark.executor.memory": "1g"}) as process:
        line = next(line for line in process.stderr if line.startswith("--engine spark: "))
        os.killpg(process.pid, signal.SIGINT)
        status, said = ended(process)
    assert mentions(line, "no worker of spark://… has taken a task for 1 s; still waiting … memory: 1g … spark.driver.host: 127.0.0.1")
    assert (status, said) == (130, ["nst: interrupted; finished work is kept; the same command resumes"])
    assert spark.is_idle()
    with start(spark.url, store) as process:
        assert is_begun(process, store, "repeated")
        spark.kill(spark.workers[0])
        status, said = ended(process)
    assert status == 0, said
    assert [line for line in said if "Lost executor" in line]
    assert differing(store, sealed[1]) == set()
    assert [path for path in store.glob("runs/**/*") if path.is_file()] == []


def test_a_store_that_workers_do_not_share_is_a_line(spark, store, tmp_path):
    (tmp_path / "theirs").mkdir()
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", str(tmp_path / "theirs")], check=False).returncode:
        pytest.skip("needs the right to mount")
    shutil.copytree(store, tmp_path / "copy")
    for worker in [*spark.workers]:  # this is the last test: no worker that sees the others' stores is left
        spark.kill(worker)
    spark.add_worker(instead_of=store, shows=tmp_path / "copy")
    status, said = ended(start(spark.url, store))
    assert status == 1, said
    assert mentions(said[-1], "Spark's workers wrote … rows, and 0 of them are here; --engine spark requires a store … all workers share")
