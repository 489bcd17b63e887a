"""macOS and small Linux: what Linux alone has is taken away; names that some file systems take for one are told apart."""

import json
import pickle
import platform
import runpy
import shutil
import signal
import sys
import tarfile
import types
import unicodedata
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bare_system import sitecustomize
from conftest import TINY
from hub import serving
from sealed_labels import COUNTS
from streamed import REF, process, publish, seal

import nst_train.interruption
from nst_data.errors import NstError, UsageError
from nst_data.review.answers import AnswerLog
from nst_data.review.queues import save_queue
from nst_data.safe_names import find_lookalike, fold_name, folder_names
from nst_data.sharing.pull import find_existing
from nst_data.sources import open_source
from nst_data.store.files import write_text
from nst_data.store.inputs import Input
from nst_data.store.manifest import GenerationRequest
from nst_data.store.store import Store
from nst_train.labeling.label import label
from nst_train.settings import LabelSettings, RunSettings, TrainSettings
from nst_train.training.train import train

REQUEST = GenerationRequest(settings={"seed": 0}, inputs={"pool": Input(ref="photos", digest="pool-digest")})
COMPOSED, DECOMPOSED = unicodedata.normalize("NFC", "Orchidée"), unicodedata.normalize("NFD", "Orchidée")
WORK = """
import json, multiprocessing, sys
from nst_data.sharing.pull import pull
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_train.labeling.label import label
from nst_train.settings import LabelSettings, RunSettings, TrainSettings
from nst_train.training.train import train

if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    store, settings = Store(given["store"]), TrainSettings(**given["settings"])
    labeled, pool = open_source(given["labeled"], labeled=True), open_source(given["pool"])
    made = [label(store, "bare", "tiny-teacher@gen-0", pool, LabelSettings(batch_size=4, rows_per_shard=6))]
    run = RunSettings(workers=1, decode_threads=1, tracker=["none"])
    made.append(train(store, "student", labeled, settings, pseudo=store.open("tiny@gen-1.1"), run=run))
    made.append(pull(store, given["ref"]))
    multiprocessing.set_start_method("forkserver", force=True)  # Linux's own from Python 3.14 on
    made.append(train(store, "other", None, settings.model_copy(update={"preset": None}), pseudo=made[-1], run=run))
    assert store.unfinished() == []
    print(json.dumps([{name: sealed.sha256 for name, sealed in one.manifest.files.items()} for one in made]))
"""


def test_a_pool_is_labeled_and_a_student_trained_without_what_linux_alone_has(tiny_store, monkeypatch):
    store, labeled, pool = tiny_store
    sitecustomize.take_away(monkeypatch.delattr)
    corpus = label(store, "bare", "tiny-teacher@gen-0", open_source(str(pool)), LabelSettings(batch_size=4, rows_per_shard=6))
    assert corpus.manifest.files == store.open("tiny@gen-1").manifest.files
    run, settings = RunSettings(workers=0, decode_threads=1), TrainSettings(**TINY | {"epochs": 1})
    assert train(store, "bare-student", open_source(str(labeled), labeled=True), settings, run=run).verify() == []


@pytest.mark.slow
def test_pool_student_and_pull_are_the_same_without_them_and_with_workers_that_are_not_forked(tiny_store, tmp_path):
    store, labeled, pool = tiny_store
    edition, _ = seal(tmp_path, shards=2)
    publish(tmp_path / "hub", edition)
    settings = TINY | {"epochs": 1, "ratio": 1}
    mine = [store.open("tiny@gen-1")]
    run = RunSettings(workers=0, decode_threads=1, tracker=["none"])
    source = open_source(str(labeled), labeled=True)
    mine.append(train(store, "forked", source, TrainSettings(**settings), pseudo=store.open("tiny@gen-1.1"), run=run))
    program = tmp_path / "work.py"
    program.write_text(WORK)
    bare_store = shutil.copytree(store.root, tmp_path / "store")
    given = {"store": str(bare_store), "labeled": str(labeled), "pool": str(pool), "ref": REF, "settings": settings}
    with serving(tmp_path / "hub") as (url, _):
        bare = {"PYTHONPATH": str(Path(sitecustomize.__file__).parent), "START_METHOD": "spawn"}
        done = process(url, tmp_path / "home", sys.executable, program, json.dumps(given), **bare)
    made = json.loads(done.stdout.splitlines()[-1])
    wanted = [{name: sealed.sha256 for name, sealed in one.manifest.files.items()} for one in (*mine, edition)]
    assert made[0] == wanted[0]
    assert made[1]["model.safetensors"] == wanted[1]["model.safetensors"]
    assert made[2] == wanted[2]


def test_stop_signals_are_those_that_the_system_has(monkeypatch):
    few = types.SimpleNamespace(Signals=[signal.SIGINT, signal.SIGTERM])
    monkeypatch.setitem(sys.modules, "signal", few)
    assert runpy.run_path(nst_train.interruption.__file__)["STOP_SIGNALS"] == {signal.SIGINT, signal.SIGTERM}


def test_windows_is_told_at_once_where_nst_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    with pytest.raises(NstError, match=r"Linux and macOS.*WSL"):
        Store(tmp_path)


def test_names_that_differ_in_case_or_in_how_an_accent_is_encoded_are_one():
    assert COMPOSED != DECOMPOSED
    assert fold_name(COMPOSED) == fold_name(DECOMPOSED.upper())
    assert find_lookalike("Bugs", ["ants", "bugs"]) == "bugs"
    assert find_lookalike("Bugs", ["Bugs", "bugs"]) is None  # a store that has both already
    assert find_lookalike("bugs", ["bugs-2"]) is None


@pytest.mark.parametrize("names", [["a-2", "a", "A"], [COMPOSED, DECOMPOSED], ["x/y", "x_y", "X_Y-1"], ["Straße", "STRASSE"]])
def test_classes_have_folders_that_every_file_system_tells_apart(names):
    assert len({fold_name(name) for name in folder_names(names)}) == len(names)


def test_a_name_that_differs_in_case_alone_is_refused_and_opens_nothing(tmp_path, monkeypatch):
    store = Store(tmp_path)
    staging = store.find_or_stage(REQUEST, "bugs")
    with pytest.raises(NstError, match=r"'Bugs' and 'bugs'.*use 'bugs'"):
        store.find_or_stage(REQUEST, "Bugs")
    version = staging.seal(staging.build_manifest({"a": write_text(staging.build / "a", "labels")}, ["ant"], COUNTS["generation"]))
    assert store.find_or_stage(REQUEST, "bugs") == version
    with pytest.raises(NstError, match="'BUGS' and 'bugs'"):
        find_existing(store, "BUGS", version.manifest)
    (tmp_path / "corpora" / "Bugs").symlink_to("bugs")  # what a path of another spelling is where case does not count
    monkeypatch.setattr(Path, "glob", lambda self, pattern, whole=Path.glob: (one for one in whole(self, pattern) if one.name != "Bugs"))
    with pytest.raises(UsageError, match="nothing called 'Bugs'"):
        store.open("Bugs@gen-1")


def test_reviewers_and_queues_are_told_apart(tmp_path):
    store = Store(tmp_path)
    AnswerLog(store, "bugs", "ann").append("aa", "1.jpg", class_name="ant")
    AnswerLog(store, "bugs", "ann")
    with pytest.raises(UsageError, match="'Ann': 'ann' has answered"):
        AnswerLog(store, "bugs", "Ann")
    picks = pl.DataFrame({"image_hash": ["aa"], "key": ["1.jpg"], "label": ["ant"], "confidence": [0.5], "by": ["random"], "score": [1.0]})
    save_queue(store, "bugs", picks, "hard")
    with pytest.raises(UsageError, match=r"queue 'Hard': bugs has 'hard'.*`queue`"):
        save_queue(store, "bugs", picks, "Hard")


@pytest.mark.parametrize("kind", ["labeled", "list.txt", "table.csv", "images.tar", "images.parquet"])
def test_a_source_reads_the_same_in_a_process_that_is_not_forked(labeled_folder, kind):
    place, images = labeled_folder.parent / kind, sorted(labeled_folder.rglob("*.png"))
    if kind == "list.txt":
        place.write_text("".join(f"{image}\n" for image in images))
    elif kind == "table.csv":
        place.write_text("path,label\n" + "".join(f"{image},{image.parent.name}\n" for image in images))
    elif kind == "images.tar":
        with tarfile.open(place, "w") as tar:
            tar.add(labeled_folder, "images")
    elif kind == "images.parquet":
        pq.write_table(pa.table({"image": [{"bytes": image.read_bytes(), "path": image.name} for image in images]}), place)
    source = open_source(str(place), labeled=kind in ("labeled", "table.csv"))
    other = pickle.loads(pickle.dumps(source))
    assert [other.read(row) for row in range(len(other))] == [image.read_bytes() for image in images]
    assert (other.fingerprint, other.class_names) == (source.fingerprint, source.class_names)
