"""A store on a file system without links, locks, permissions, file times or fsync of folders."""

import errno
import os
import sys
import tempfile

import pytest
from conftest import TINY
from file_systems import LACKING, without_links_locks_and_times, without_renames_of_folders
from hub import serving
from sealed_labels import COUNTS
from streamed import REF, process, publish, seal

from nst_data.errors import NstError
from nst_data.selection.editions import balance
from nst_data.settings import BalanceSettings
from nst_data.sharing.push import _link_or_copy
from nst_data.sources import open_source
from nst_data.store.files import fsync_tree, write_text
from nst_data.store.inputs import Input
from nst_data.store.manifest import GenerationRequest
from nst_data.store.store import Store
from nst_data.tables.shards import ShardPlan, Shards
from nst_train.labeling.label import label
from nst_train.settings import LabelSettings, RunSettings, TrainSettings
from nst_train.training.train import train

NST = "from nst_cli.main import run; run()"
MEMORY = "/dev/shm"  # a disk of its own on Linux
LACKS = "import sys; sys.path.insert(0, {tests!r}); from file_systems import *; import pytest; "
HOOKED = LACKS + "without_links_locks_and_times(pytest.MonkeyPatch(), {number}, {below!r}); "


def begin(store):
    request = GenerationRequest(settings={"seed": 0}, inputs={"pool": Input(ref="photos", digest="pool-digest")})
    return store.find_or_stage(request, "flowers")


@pytest.mark.parametrize("number", LACKING)
def test_versions_are_staged_settled_and_sealed(tmp_path, monkeypatch, number):
    without_links_locks_and_times(monkeypatch, number)
    staging = begin(Store(tmp_path / "store"))
    assert staging.get_or_store("machine", {"threads": 4}) == staging.get_or_store("machine", {"threads": 8}) == {"threads": 4}
    with staging.hold_ownership(print):
        (staging.build / "data").mkdir()
        files = {"data/a.txt": write_text(staging.build / "data" / "a.txt", "labels")}
        version = staging.seal(staging.build_manifest(files, ["ant"], COUNTS["generation"]))
    assert version.verify() == []
    assert begin(Store(tmp_path / "store")) == version


@pytest.mark.parametrize("number", LACKING)
def test_a_process_shows_life_where_file_times_cannot_be_set(tmp_path, monkeypatch, number):
    (tmp_path / "build").mkdir()
    (tmp_path / "work").mkdir()
    shards = Shards(tmp_path / "build", tmp_path / "work", ShardPlan(4, 2))
    without_links_locks_and_times(monkeypatch, number)
    (shard, *_) = shards.take()
    (claim,) = (path for path in (tmp_path / "work" / "claims").iterdir() if path.name.startswith(f"{shard:05d}"))
    before = claim.read_text()
    shards.refresh_claim(shard)
    assert claim.read_text() != before


def test_a_push_copies_files_where_there_are_no_links(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("labels")
    without_links_locks_and_times(monkeypatch, errno.EPERM)
    _link_or_copy(tmp_path / "b", tmp_path / "a")
    assert (tmp_path / "b").read_text() == "labels"
    assert not (tmp_path / "b").is_symlink()


@pytest.mark.parametrize("number", LACKING)
def test_what_cannot_rename_folders_is_said_at_once_and_nothing_is_left(tmp_path, monkeypatch, number):
    without_renames_of_folders(monkeypatch, number)
    store = Store(tmp_path / "store")
    with pytest.raises(NstError, match=r"store/runs/corpora/flowers:.*cannot rename folders.*`store`"):
        begin(store)
    assert store.unfinished() == []
    assert os.listdir(store.root / "runs" / "corpora" / "flowers") == []


def test_a_store_on_two_disks_that_no_look_shows_is_told_so(tmp_path, monkeypatch):
    """Such as two quotas of one file system, or two mounts of one disk."""
    staging = begin(Store(tmp_path / "store"))
    files = {"a.txt": write_text(staging.build / "a.txt", "labels")}
    without_renames_of_folders(monkeypatch, errno.EXDEV)
    with pytest.raises(NstError, match=r"store/corpora/flowers: .*another disk than .*store/runs/corpora/flowers/gen-1,.*keep all"):
        staging.seal(staging.build_manifest(files, ["ant"], COUNTS["generation"]))
    monkeypatch.undo()
    assert staging.seal(staging.build_manifest(files, ["ant"], COUNTS["generation"])).verify() == []


@pytest.mark.skipif(not os.path.isdir(MEMORY), reason="there is no other disk")
def test_a_store_on_two_disks_is_told_so_before_anything_is_made(tmp_path):
    with tempfile.TemporaryDirectory(dir=MEMORY) as elsewhere:
        (tmp_path / "store").mkdir()
        (tmp_path / "store" / "runs").symlink_to(elsewhere)
        with pytest.raises(NstError, match=r"store/corpora/flowers: .*another disk than .*store/runs/corpora/flowers,.*keep all"):
            begin(Store(tmp_path / "store"))
        assert os.listdir(elsewhere) == []


def test_a_disk_that_fails_is_not_taken_for_one_that_lacks_something(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("labels")

    def fails(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="Input/output error"):
        fsync_tree(tmp_path)
    with pytest.raises(OSError, match="Input/output error"):
        write_text(tmp_path / "b", "labels")


def test_a_file_is_replaced_where_the_file_system_replaces_none(tmp_path, monkeypatch):
    write_text(tmp_path / "a", "first")
    whole = os.replace

    def replace(source, target):
        if os.path.exists(target):
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), source, None, target)
        whole(source, target)

    monkeypatch.setattr(os, "replace", replace)
    write_text(tmp_path / "a", "second")
    assert (tmp_path / "a").read_text() == "second"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.slow
def test_pools_are_labeled_and_students_trained_there(tiny_store, monkeypatch):
    store, labeled_folder, pool_folder = tiny_store
    labeled, pool = open_source(str(labeled_folder), labeled=True), open_source(str(pool_folder))
    run = RunSettings(workers=1, decode_threads=1, tracker=["none"], checkpoint_minutes=0)
    without_links_locks_and_times(monkeypatch, errno.EPERM, str(store.root))
    corpus = label(store, "bare", "tiny-teacher", pool, LabelSettings(batch_size=4, rows_per_shard=6))
    edition = balance(store, corpus, BalanceSettings(min_confidence=0, per_class=20, embed_images=True))
    student = train(store, "student", labeled, TrainSettings(**TINY, ratio=1), pseudo=edition, run=run)
    assert [version.verify() for version in (corpus, edition, student)] == [[], [], []]
    assert store.unfinished() == []
    assert corpus.manifest.files == store.open("tiny@gen-1").manifest.files


@pytest.mark.slow
def test_an_edition_is_pulled_there(tmp_path):
    edition, _ = seal(tmp_path, shards=2)
    publish(tmp_path / "hub", edition)
    with serving(tmp_path / "hub") as (url, _):
        for number in LACKING:
            store = tmp_path / f"store-{number}"
            code = HOOKED.format(tests=os.path.dirname(__file__), number=number, below=str(store)) + NST
            process(url, tmp_path / "home", sys.executable, "-c", code, "pull", REF, "--store", store)
            pulled = Store(store).open("bugs@gen-1.1")
            assert pulled.verify() == []
            assert not list((store / "runs" / "pulls" / "bugs").iterdir())
