"""Spark, a real one on this machine, gives what Polars gives: equal rows of a selection, equal bytes of an edition."""

import gc
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from sealed_labels import label_row, seal_generation
from selections import many_labels

from nst_data.errors import NstError, UsageError
from nst_data.progress import Progress
from nst_data.selection import cutoffs
from nst_data.selection.editions import Engine, balance
from nst_data.selection.selection import select
from nst_data.settings import BalanceSettings
from nst_data.store.store import Store
from nst_data.tables.engines import scan
from nst_data.tables.label_tables import translate_table_errors
from nst_data.tables.schema import SELECTION_COLUMNS
from nst_data.tables.spark import SparkRunner

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:unclosed <socket.socket:ResourceWarning"),  # PySpark leaves those by which it fetches results open
]
SPARK = Engine("spark", "local[2]")
NAMES = ["ant", "bee", "cat", "dog", "eel", "fox"]


@pytest.fixture(scope="module", autouse=True)
def spark(tmp_path_factory):
    """Spark as `--engine spark` starts it, with settings of Spark's own for tables this small."""
    settings = {"spark.ui.enabled": "false", "spark.sql.shuffle.partitions": "2", "spark.driver.bindAddress": "127.0.0.1"}
    with pytest.MonkeyPatch.context() as patch:
        options = [f"--conf {name}={value}" for name, value in settings.items()]
        compile_once = "--driver-java-options -XX:TieredStopAtLevel=1"  # halves the time of a short run
        patch.setenv("PYSPARK_SUBMIT_ARGS", " ".join([*options, compile_once, "pyspark-shell"]))
        file = tmp_path_factory.mktemp("spark") / "labels.parquet"
        many_labels(1, 1).write_parquet(file)
        session = scan([file], SELECTION_COLUMNS, SPARK.name, SPARK.master).sparkSession
    yield session
    session.stop()
    gc.collect()


def selections(file, chosen, left_out, work):
    """What each engine selects: rows, and counts in a fixed order."""
    for engine in ("polars", "spark"):
        found = select(scan([file], SELECTION_COLUMNS, engine), chosen, NAMES, left_out, work / engine, "bugs@gen-0")
        rows = pl.concat([pl.read_parquet(part, glob=False) for part in found.files]).select("id", "label", "duplicates", "copies")
        yield (
            rows,
            found.quota,
            found.labeled_counts,
            found.selected_counts.sort("label").rows(),
            found.dropped_counts.sort("label", "reason").rows(),
        )


EVERY_FILTER = {"exclude_class": ("cat",), "fraction": 0.8, "class_min_confidence": {"dog": 0.6, "ant": 0.3}, "min_confidence": 0.5}


@pytest.mark.parametrize(
    ("chosen", "ranked_rows"),
    [
        (BalanceSettings(per_class=40, max_copies=3, **EVERY_FILTER), cutoffs._MAX_SORTED_ROWS),
        (BalanceSettings(per_class=40, method="official", seed=3, **EVERY_FILTER), cutoffs._MAX_SORTED_ROWS),
        (BalanceSettings(per_class="auto", auto_quantile=0.4, confidence_range=(0.3, 0.9)), cutoffs._MAX_SORTED_ROWS),
        (BalanceSettings(per_class=25, seed=2), 100),
        (BalanceSettings(per_class="none"), cutoffs._MAX_SORTED_ROWS),
    ],
    ids=["every filter", "as released", "automatic quota", "narrowed to hashes", "no quota"],
)
def test_spark_selects_the_rows_that_polars_selects(chosen, ranked_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(cutoffs, "_MAX_SORTED_ROWS", ranked_rows)
    labels = many_labels(800, len(NAMES), seed=len(str(chosen)))
    labels.sample(fraction=1, shuffle=True, seed=0).write_parquet(tmp_path / "labels.parquet", row_group_size=100)
    left_out = {"held_out": set(labels["image_hash"][:20]), "near_held_out": set(labels["image_hash"][10:40])}
    by_polars, by_spark = selections(tmp_path / "labels.parquet", chosen, left_out, tmp_path)
    assert by_polars[0].equals(by_spark[0])
    assert by_polars[1:] == by_spark[1:]
    assert by_polars[0].height > 80


@pytest.mark.parametrize("method", ["exact", "official"])
def test_the_edition_that_spark_computes_has_the_bytes_of_that_of_polars(method, tmp_path):
    labels = many_labels(300, 3)
    rows = [label_row(row, image, label, confidence) for row, image, label, confidence in labels.rows()]
    editions = []
    for engine in (Engine(), SPARK):
        store = Store(tmp_path / engine.name)
        chosen = BalanceSettings(per_class=30, method=method, exclude_class=("cat",), fraction=0.9)
        editions.append(balance(store, seal_generation(store, rows, counts={"teacher_parameters": 7}), chosen, engine=engine))
    assert editions[0].manifest.counts == editions[1].manifest.counts
    assert editions[0].manifest.digest == editions[1].manifest.digest
    files = [{str(file.relative_to(one.folder)) for file in one.folder.rglob("*") if file.is_file()} for one in editions]
    assert files[0] == files[1]
    for name in files[0] - {"nst.json"}:
        assert (editions[0].folder / name).read_bytes() == (editions[1].folder / name).read_bytes(), name


@pytest.mark.parametrize(("label", "confidence"), [(-1, 0.5), (None, 0.5)], ids=str)
def test_labels_that_no_teacher_gives_are_the_same_error_on_both_engines(label, confidence, tmp_path):
    rows = [(row, f"{row:032x}", 0, 0.5) for row in range(3)] + [(3, f"{3:032x}", label, confidence)]
    pl.DataFrame(rows, schema=SELECTION_COLUMNS, orient="row").write_parquet(tmp_path / "labels.parquet")
    frames = {engine: scan([tmp_path / "labels.parquet"], SELECTION_COLUMNS, engine) for engine in ("polars", "spark")}
    said = []
    for engine, labels in frames.items():
        with pytest.raises(NstError, match=r"bugs@gen-0:.*0 to 5.*0 to 1.*1 row.*changed elsewhere") as error:
            select(labels, BalanceSettings(), NAMES, {}, tmp_path / engine, "bugs@gen-0")
        said.append(str(error.value))
    assert said[0] == said[1]


def test_a_row_without_a_number_is_dropped_for_that_on_both_engines(tmp_path):
    rows = [(row, f"{row:032x}", 0, 0.5) for row in range(3)] + [(3, f"{3:032x}", 0, float("nan"))]
    pl.DataFrame(rows, schema=SELECTION_COLUMNS, orient="row").write_parquet(tmp_path / "labels.parquet")
    for engine in ("polars", "spark"):
        labels = scan([tmp_path / "labels.parquet"], SELECTION_COLUMNS, engine)
        selection = select(labels, BalanceSettings(per_class=3), NAMES, {}, tmp_path / engine, "bugs@gen-0")
        assert selection.dropped_counts.filter(pl.col("reason") == "no_answer").height == 1
        assert sorted(pl.concat(map(pl.read_parquet, selection.files))["id"].to_list()) == [0, 1, 2]


def test_damage_that_spark_finds_is_one_line_that_names_the_generation(tmp_path):
    file = tmp_path / "labels.parquet"
    many_labels(50, 3).write_parquet(file)
    file.write_bytes(bytes(100) + file.read_bytes()[100:])
    with (
        pytest.raises(NstError, match=r"^bugs@gen-1: .*\(\[FAILED_READ_FILE.*\); `verify\(\)` checks whether"),
        translate_table_errors("bugs@gen-1"),
    ):
        select(scan([file], SELECTION_COLUMNS, "spark"), BalanceSettings(), NAMES, {}, tmp_path, "bugs@gen-1")


def test_a_file_that_workers_do_not_see_is_one_line_that_says_what_they_must_see(tmp_path):
    file = tmp_path / "labels.parquet"
    many_labels(50, 3).write_parquet(file)
    labels = scan([file], SELECTION_COLUMNS, "spark")
    file.unlink()
    expected = r"^bugs@gen-1: .*\(\[FAILED_READ_FILE.FILE_NOT_EXIST\].*\); its workers must see the store under the same path.*`verify\(\)`"
    with pytest.raises(NstError, match=expected), translate_table_errors("bugs@gen-1"):
        select(labels, BalanceSettings(), NAMES, {}, tmp_path, "bugs@gen-1")


def test_a_store_that_workers_may_not_write_to_is_one_line_that_says_so():
    from pyspark.errors import PySparkException

    with (
        pytest.raises(
            NstError, match=r"^bugs@gen-1: Spark failed \(.*\); its workers must be allowed to write to the store, best as its owner$"
        ),
        translate_table_errors("bugs@gen-1"),
    ):
        raise PySparkException(
            "Job aborted: java.io.IOException: Mkdirs failed to create file:/store/runs/bugs/_temporary/0 (exists=false)"
        )


def test_another_master_than_that_of_the_session_that_runs_is_refused(tmp_path):
    with pytest.raises(
        UsageError, match=r"^`master` spark://host:7077: Spark already runs in this process with local\[2\]; stop its session"
    ):
        scan([tmp_path / "labels.parquet"], SELECTION_COLUMNS, "spark", "spark://host:7077")


def test_a_folder_may_have_any_name_and_a_path_that_is_not_whole(tmp_path, monkeypatch):
    folder = tmp_path / "labels [1] {a,b} *?#%20"
    folder.mkdir()
    many_labels(50, 3).write_parquet(folder / "labels.parquet")
    monkeypatch.chdir(folder)
    by_polars, by_spark = selections(Path("labels.parquet"), BalanceSettings(per_class=3), {"held_out": {"0" * 32}}, Path("work"))
    assert by_polars[0].equals(by_spark[0])


def test_a_master_that_is_none_is_one_line():
    code = "from nst_data.tables.engines import scan; from pathlib import Path; scan([Path('labels.parquet')], {}, 'spark', 'nonsense')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith("nst_data.errors.NstError: `engine` spark: Spark did not start (")


def test_a_java_process_that_takes_seconds_to_die_is_told_as_dead(monkeypatch):
    from py4j.protocol import Py4JNetworkError
    from pyspark import SparkContext

    def fail():
        raise Py4JNetworkError("Error while sending or receiving")

    with subprocess.Popen(["sleep", "3"]) as java:
        monkeypatch.setattr(SparkContext, "_gateway", SimpleNamespace(proc=java))
        with pytest.raises(NstError, match=r"^`engine` spark: Spark's Java process on this machine has died;"):
            SparkRunner(Progress()).result(fail)


def test_a_session_ends_and_begins_anew_and_ctrl_c_and_the_death_of_its_java_are_one_line_each():
    code = """
import os, signal, sys, psutil
from nst_data.progress import Progress
from nst_data.tables.spark import SparkRunner, spark_session

def die():
    (java,) = psutil.Process().children()
    java.kill()
    spark_session(None).range(9).count()

def stop():
    session = spark_session("local[1]")
    os.kill(os.getpid(), signal.SIGINT)
    session.range(10**15).selectExpr("max(id * id % 7)").collect()

with SparkRunner(Progress()) as work:
    print(work.result(lambda: spark_session("local[2]").range(9).count()))
with SparkRunner(Progress()) as work:
    try:
        work.result(stop)
    except KeyboardInterrupt:
        print("stopped", len(spark_session(None).sparkContext.statusTracker().getActiveJobsIds()))
    work.result(die)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["9", "stopped 0"], done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        "nst_data.errors.NstError: `engine` spark: Spark's Java process on this machine has died;"
    )
    assert "KeyboardInterrupt" not in done.stderr
