"""A store at `s3://…`, on a real server: the bytes of a folder, whoever is killed and whoever comes second."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import object_store
import pytest
from conftest import TINY as TINY_RECIPE
from conftest import write_class_folders, write_pool, write_tiny_recipe
from labels import write_teacher
from nst_cli.main import app
from typer.testing import CliRunner
from watched import InterruptAfter, RecordingProgress

from nst_data import BalanceSettings, balance, open_source
from nst_data.errors import NstError, UsageError
from nst_data.progress import Progress
from nst_data.self_contained.remote import StreamedEdition
from nst_data.sharing.copy import copy
from nst_data.store.file_tree import FileTree, StoredFile
from nst_data.store.store import Store
from nst_train import EmbedSettings, EvaluateSettings, LabelSettings, RunSettings, TrainSettings, embed, evaluate, label, label_like, train
from nst_train.noisy_student import self_training
from nst_train.recipes.reading import load_recipe

pytestmark = pytest.mark.slow
NST = [sys.executable, "-c", "from nst_cli.main import run; run()"]
QUIET = Progress()
RUN = RunSettings(workers=0, checkpoint_minutes=0)
TINY = TrainSettings(model="test_resnet", image_size=16, batch_size=4, epochs=2, warmup_steps=1)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with object_store.serving(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture(autouse=True)
def _here(server, tmp_path, monkeypatch):
    """This process, and those that it starts, read and write on the server."""
    for name, value in object_store.settings(server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NST_MIRRORS", str(tmp_path / "mirrors"))


@pytest.fixture
def address(tmp_path):
    return f"s3://nst/{tmp_path.name}"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """To be another machine from now on: what this one has shares nothing with it but the server."""
    return lambda number: monkeypatch.setenv("NST_MIRRORS", str(tmp_path / f"mirrors-{number}"))


@contextmanager
def started(mirrors, call, *arguments):
    """A process that does nothing but this, as a machine with these mirrors; it is killed in the end."""
    context = multiprocessing.get_context("forkserver")  # of one that has imported all, and computed nothing: it forks at once
    context.set_forkserver_preload(["nst_train.labeling.make", "nst_train.training.train", "timm"])
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")} | {"NST_MIRRORS": str(mirrors)}
    process = context.Process(target=_run, args=(environment, call, arguments))
    process.start()
    try:
        yield process
    finally:
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()


def _run(environment, call, arguments):
    os.environ.update(environment)
    call(*arguments)


def label_there(place, teacher, pool, settings):
    try:
        label(Store(place), "c", teacher, open_source(pool), settings, progress=QUIET)
    except NstError as error:
        if "was just created by another command" not in str(error):
            raise


def embed_there(place, teacher, pool):
    return embed(Store(place), teacher, open_source(pool), EmbedSettings(batch_size=4, rows_per_shard=4), progress=QUIET)


def train_there(place, labeled, settings):
    train(Store(place), "t", open_source(labeled, labeled=True), settings, run=RUN, progress=QUIET)


def nst(*arguments):
    done = subprocess.run([*NST, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert object_store.SECRET not in done.stdout + done.stderr
    return done


def output_of(*arguments):
    """What a command says to a person, in this process."""
    done = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "300"}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def names(address, part=""):
    return [one.name for one in FileTree.parse(address).files() if part in one.name]


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def contents(store, ref):
    """The sealed files of a version, and its digest."""
    version = Store(store).open(ref)
    return version.manifest.digest, {name: (version.folder / name).read_bytes() for name in version.manifest.files}


def loop(place, folder):
    """A teacher, its labels, an edition, a student."""
    store, labeled, pool = Store(place), open_source(folder / "labeled", labeled=True), open_source(folder / "pool")
    teacher = train(store, "t", labeled, TINY, generation=0, run=RUN, progress=QUIET)
    labels = label(store, "c", teacher, pool, LabelSettings(rows_per_shard=7), progress=QUIET)
    edition = balance(store, labels, BalanceSettings(per_class=5), progress=QUIET)
    start = TINY.model_copy(update={"start": teacher.ref})
    return train(store, "t", labeled, start, pseudo=edition, pool=pool, generation=1, run=RUN, progress=QUIET)


@pytest.mark.parametrize("size", [10, 70 * 2**20])
def test_an_upload_in_one_part_or_several_overwrites_nothing(address, tmp_path, size):
    tree = FileTree.parse(address)
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * size)
    assert tree.upload_new(tmp_path / "a", "x")
    assert not tree.upload_new(tmp_path / "b", "x")
    assert tree.sha256(tree.stat("x")) == hashlib.sha256(b"a" * size).hexdigest()


def test_the_loop_on_s3_has_the_bytes_of_the_loop_in_a_folder_and_another_machine_finds_it_done(tmp_path, address, machine):
    labeled = write_class_folders(tmp_path / "labeled", ["ant", "bee", "cat"], 4)
    write_pool(tmp_path / "pool", 3, 6)
    loop(tmp_path / "local", tmp_path)
    loop(address, tmp_path)
    for ref in ("t@gen-0", "c@gen-1", "c@gen-1.1", "t@gen-1"):
        assert contents(address, ref) == contents(tmp_path / "local", ref)
    written = names(address)
    assert not names(address, "runs/")
    machine(2)
    loop(address, tmp_path)
    assert names(address) == written
    evaluate(Store(address), "t@gen-1", open_source(labeled, labeled=True), EvaluateSettings(), record="test", progress=QUIET)
    assert names(address, "teachers/t/gen-1/metrics.json")
    machine(3)
    assert "test top-1" in nst("list", "--store", address).stdout
    everything = b"".join(FileTree.parse(address).read(name) for name in names(address))
    assert object_store.SECRET.encode() not in everything
    assert object_store.KEY.encode() not in everything


def test_a_recipe_under_another_name_reuses_what_another_machine_made(tmp_path, address, machine):
    write_class_folders(tmp_path / "labeled", ["ant", "bee", "cat"], 4)
    write_class_folders(tmp_path / "test", ["ant", "bee", "cat"], 3, first=50)
    write_pool(tmp_path / "pool", 3, 5)
    parts = {"select": {"min_confidence": 0.0, "per_class": 8}, "run": {"workers": 0, "decode_threads": 1}}
    path = write_tiny_recipe(tmp_path, generations=[TINY_RECIPE, TINY_RECIPE | {"ratio": 2, "start": "teacher"}], **parts)
    self_training(Store(address), load_recipe(path), progress=QUIET)
    machine(2)
    lines = RecordingProgress()
    self_training(Store(address), load_recipe(path, changes={"name": "wasps", "select.per_class": 4}), progress=lines)
    refs = {"wasps-teacher@gen-0": "bugs-teacher@gen-0", "wasps@gen-1": "bugs@gen-1"}
    assert [line.partition(":")[0] for line in lines.lines if "reused" in line] == [f"{a} is reused from {b}" for a, b in refs.items()]
    machine(3)
    for after, before in refs.items():
        assert contents(address, after) == contents(address, before)
        assert Store(address).open(after).verify() == []
    assert not names(address, "runs/")


def test_labeling_killed_again_and_again_on_two_machines_ends_with_the_bytes_of_an_undisturbed_one(tmp_path, address, machine):
    teacher, pool = write_teacher(tmp_path / "teacher", ["ant", "bee", "cat"]), write_pool(tmp_path / "pool", 3, 30)
    settings = LabelSettings(rows_per_shard=5, batch_size=4)
    label_there(tmp_path / "local", teacher, pool, settings)
    for kill in range(4):
        noted = len(names(address, "/shards/"))
        with started(tmp_path / f"mirrors-{kill % 2}", label_there, address, teacher, pool, settings) as process:
            wait_for(lambda noted=noted, process=process: len(names(address, "/shards/")) > noted + 1 or not process.is_alive())
    assert Store(address).unfinished() == ["c@gen-1"]
    with started(tmp_path / "mirrors-0", label_there, address, teacher, pool, settings) as other:
        machine(1)
        label_there(address, teacher, pool, settings)
        other.join(120)
        assert other.exitcode == 0
    assert contents(address, "c@gen-1") == contents(tmp_path / "local", "c@gen-1")
    assert not names(address, "runs/")


def test_an_edition_labeled_again_on_two_machines_counts_the_copies_of_all(tmp_path, address, machine):
    teacher, pool = write_teacher(tmp_path / "teacher", ["ant", "bee", "cat"]), open_source(write_pool(tmp_path / "pool", 3, 5))
    store, settings = Store(address), LabelSettings(rows_per_shard=4, batch_size=4)
    edition = balance(store, label(store, "c", teacher, pool, settings, progress=QUIET), BalanceSettings(min_confidence=0), progress=QUIET)
    other = write_teacher(tmp_path / "other", ["ant", "bee", "cat"], seed=1)
    with pytest.raises(KeyboardInterrupt):
        label_like(store, edition, other, pool, settings, progress=InterruptAfter(7))
    machine(1)
    again = label_like(Store(address), edition.ref, other, pool, settings, progress=QUIET)
    assert again.manifest.counts.copies == edition.manifest.counts.copies


def test_a_training_goes_on_on_another_machine_from_the_last_checkpoint(tmp_path, address, machine):
    labeled = write_class_folders(tmp_path / "labeled", ["ant", "bee", "cat"], 4)
    settings = TINY.model_copy(update={"epochs": 12})
    train_there(tmp_path / "local", labeled, settings)
    with started(tmp_path / "mirrors-0", train_there, address, labeled, settings) as first:
        wait_for(lambda: names(address, "position.json"))
        os.kill(first.pid, signal.SIGSTOP)
        machine(2)
        with pytest.raises(NstError, match=f"t@gen-0: in use by process {first.pid} on"):
            train_there(address, labeled, settings)
    said = []
    progress = Progress()
    progress.say = said.append
    train(Store(address), "t", open_source(labeled, labeled=True), settings, run=RUN, progress=progress)
    assert any("resumes after step" in line for line in said)
    assert contents(address, "t@gen-0") == contents(tmp_path / "local", "t@gen-0")


def test_features_of_a_killed_process_go_on_on_another_machine_and_a_third_finds_lists_and_removes_them(tmp_path, address, machine):
    teacher, pool = write_teacher(tmp_path / "teacher", ["ant", "bee", "cat"]), write_pool(tmp_path / "pool", 3, 30)
    local = embed_there(tmp_path / "local", teacher, pool)
    with started(tmp_path / "mirrors-0", embed_there, address, teacher, pool) as first:
        wait_for(lambda: len(names(address, "/shards/")) > 2)
        os.kill(first.pid, signal.SIGKILL)
    done = names(address, "/shards/")
    assert 2 < len(done) < 23
    machine(1)
    ref = f"features@{local.place.name[:12]}"
    assert f"{ref}  unfinished   {len(done)} shards" in output_of("list", "--unfinished", "--store", address)
    assert embed_there(address, teacher, pool).about.files == local.about.files
    assert not names(address, "runs/")
    machine(2)
    shown = output_of("embed", pool, "--model", teacher, "--batch-size", 4, "--rows-per-shard", 4, "--store", address)
    assert f"features of 90 images are there already: {address}/features/" in shown
    assert f"{address}/features/{local.place.name}/features/*.parquet" in shown
    assert embed_there(address, teacher, pool).matrix().tobytes() == local.matrix().tobytes()
    assert f"{ref}  features    " in output_of("list", "--store", address)
    assert output_of("remove", ref, "--store", address) == f"removed {ref} from {address}\n"
    assert not names(address)


def test_an_edition_with_images_is_streamed_from_its_address_with_the_weights_of_one_on_this_disk(tmp_path, address, machine):
    labeled = open_source(write_class_folders(tmp_path / "labeled", ["ant", "bee"], 4), labeled=True)
    teacher, pool = write_teacher(tmp_path / "teacher", ["ant", "bee"]), open_source(write_pool(tmp_path / "pool", 2, 20))
    settings, weights = BalanceSettings(embed_images=True), []
    for place in (tmp_path / "local", address):
        store = Store(place)
        generation = label(store, "c", teacher, pool, progress=QUIET)
        edition = balance(store, generation, settings, progress=QUIET)
        if place == address:
            machine(2)
            store, edition = Store(place), StreamedEdition.open(f"{address}/corpora/c/gen-1.1")
        student = train(store, "s", labeled, TINY, pseudo=edition, run=RUN, progress=QUIET)
        weights.append((student.manifest.digest, (student.folder / "model.safetensors").read_bytes()))
    assert weights[0] == weights[1]
    assert not list((Store(address).root / "corpora").glob("*/*/balanced"))  # its shards came and went
    with pytest.raises(UsageError, match="expected an edition, found a generation"):
        StreamedEdition.open(f"{address}/corpora/c/gen-1")


def test_what_a_killed_writer_left_is_named_and_removed_and_two_requests_get_two_numbers(tmp_path, address, machine):
    teacher, pool = write_teacher(tmp_path / "teacher", ["ant", "bee"]), open_source(write_pool(tmp_path / "pool", 2, 4))
    for number in (1, 2):
        machine(number)
        label(Store(address), "c", teacher, pool, LabelSettings(rows_per_shard=2 + number), progress=QUIET)
    assert [version.ref for version in Store(address).versions("c")] == ["c@gen-1", "c@gen-2"]
    FileTree.parse(address).write("runs/corpora/c/gen-2/work/shards/00000.json", b"late")
    assert Store(address).leftovers() == {"c@gen-2": (1, 4)}
    Store(address).remove("c@gen-2")  # what came late alone
    assert [version.ref for version in Store(address).versions("c")] == ["c@gen-1", "c@gen-2"]
    FileTree.parse(address).write("corpora/c/gen-9/pseudo_labels/train-00000-of-00001.parquet", b"half")
    listed = nst("list", "--unfinished", "--store", address).stdout
    assert "c@gen-9" in listed
    assert "1 file, 0.0 MB; nst remove c@gen-9" in listed
    Store(address).remove("c@gen-9")
    machine(1)
    Store(address).remove("c@gen-1")
    assert not [name for name in names(address) if "/gen-2/" not in name]
    machine(2)
    assert [version.ref for version in Store(address).versions()] == ["c@gen-2"]


def test_a_number_is_taken_by_one_of_two_machines(tmp_path, address, machine):
    teacher, pool = write_teacher(tmp_path / "teacher", ["ant", "bee"]), write_pool(tmp_path / "pool", 2, 4)
    with started(tmp_path / "mirrors-1", label_there, address, teacher, pool, LabelSettings(rows_per_shard=3)) as first:
        machine(2)
        label_there(address, teacher, pool, LabelSettings(rows_per_shard=4))
        first.join(120)
        assert first.exitcode == 0
    machine(3)
    requests = [version.manifest.request.settings["rows_per_shard"] for version in Store(address).versions("c")]
    assert requests in ([3], [4], [3, 4], [4, 3])


def test_a_version_is_copied_between_a_folder_and_s3_and_what_is_damaged_there_is_not_used(tmp_path, address):
    teacher, pool = write_teacher(tmp_path / "teacher", ["ant", "bee"]), open_source(write_pool(tmp_path / "pool", 2, 4))
    local = tmp_path / "local"
    label(Store(local), "c", teacher, pool, progress=QUIET)
    copied = nst("copy", "c@gen-1", address, "--store", local, "--json")
    assert copied.returncode == 0, copied.stderr
    assert json.loads(copied.stdout)["folder"] == f"{address}/corpora/c/gen-1"
    assert copy(Store(local), "c", Store(address), progress=QUIET).ref == "c@gen-1"  # there already
    back = copy(Store(address), "c@gen-1", Store(tmp_path / "back"), progress=QUIET)
    assert back.verify() == []
    assert contents(tmp_path / "back", "c@gen-1") == contents(local, "c@gen-1")
    (local / "corpora/c/gen-1/errors/train-00000-of-00001.parquet").unlink()
    with pytest.raises(NstError, match=r"c@gen-1: errors/train-00000-of-00001\.parquet.*manifest; nothing was kept.*copy again"):
        copy(Store(local), "c", Store(tmp_path / "third"), progress=QUIET)
    assert Store(tmp_path / "third").versions() == Store(tmp_path / "third").unfinished() == []
    shard = "corpora/c/gen-1/pseudo_labels/train-00000-of-00001.parquet"
    FileTree.parse(address).write(shard, b"x" * len(FileTree.parse(address).read(shard)))
    shutil.rmtree(tmp_path / "mirrors")
    with pytest.raises(NstError, match=r"pseudo_labels/train-00000-of-00001\.parquet.*manifest: damaged on the server.*try again"):
        _ = Store(address).open("c@gen-1").folder


def test_a_number_that_was_removed_and_taken_by_another_request_keeps_nothing_of_the_first(tmp_path, address, machine):
    pool = open_source(write_pool(tmp_path / "pool", 2, 6))
    first, second = (write_teacher(tmp_path / str(seed), ["ant", "bee"], seed) for seed in (0, 1))
    settings, tree = LabelSettings(rows_per_shard=3), FileTree.parse(address)
    machine(1)
    label(Store(address), "c", first, pool, settings, progress=QUIET)
    kept = {name: tree.read(name) for name in names(address, "corpora/c/gen-1/")}
    machine(2)
    Store(address).remove("c@gen-1")
    for name, content in kept.items():  # of a removal that was killed after the manifest was gone, and of a late worker
        if not name.endswith("nst.json"):
            tree.write(name, content)
    tree.write("runs/corpora/c/gen-1/work/shards/00000.json", b"{}")
    label(Store(address), "c", second, pool, settings, progress=QUIET)
    label(Store(tmp_path / "local"), "c", second, pool, settings, progress=QUIET)
    machine(1)
    assert contents(address, "c@gen-1") == contents(tmp_path / "local", "c@gen-1")
    assert Store(address).open("c@gen-1").verify() == []
    tree.write("corpora/c/gen-1/errors/train-00000-of-00001.parquet", b"x")
    assert "other content" in Store(address).open("c@gen-1").verify()[0]


def test_a_version_at_an_address_is_verified_there_each_file_read_once_and_none_brought_here(tmp_path, address, machine, monkeypatch):
    teacher, pool = write_teacher(tmp_path / "teacher", ["ant", "bee"]), open_source(write_pool(tmp_path / "pool", 2, 4))
    machine(1)
    label(Store(address), "c", teacher, pool, progress=QUIET)
    machine(2)
    tree, version, read = FileTree.parse(address), Store(address).open("c@gen-1"), []
    whole, before = FileTree.read, set(version.local_folder.rglob("*"))
    monkeypatch.setattr(FileTree, "read", lambda tree, name, *piece: read.append(name) or whole(tree, name, *piece))
    assert version.verify() == []
    sealed = {f"corpora/c/gen-1/{name}" for name, one in version.manifest.files.items() if one.bytes}
    assert sorted(read) == sorted(sealed)
    assert set(version.local_folder.rglob("*")) == before
    tree.write("corpora/c/gen-1/pseudo_labels/stray.parquet", b"x")
    tree.write("corpora/c/gen-1/pseudo_labels/._stray.parquet", b"x")  # of macOS, and of no table
    assert version.verify() == ["pseudo_labels/stray.parquet: was not there when the version was sealed"]
    shard = next(iter(version.manifest.files))
    tree.remove([f"corpora/c/gen-1/{shard}"])
    assert f"{shard} is missing at {address}/corpora/c/gen-1" in version.verify()


def test_a_copy_on_this_machine_that_was_changed_is_seen_too(tmp_path, address):
    teacher, pool = write_teacher(tmp_path / "teacher", ["ant", "bee"]), open_source(write_pool(tmp_path / "pool", 2, 4))
    label(Store(address), "c", teacher, pool, progress=QUIET)
    version = Store(address).open("c@gen-1")
    shard = next(iter(version.manifest.files))
    (version.folder / shard).write_bytes(b"x")
    (problem,) = version.verify()
    assert problem.startswith(f"{shard}: sha256 ")
    assert problem.endswith(f"in the copy on this machine, {version.local_folder}, which may be deleted")
    shutil.rmtree(version.local_folder)
    assert Store(address).open("c@gen-1").verify() == []


def test_a_file_that_is_gone_from_the_copy_on_this_machine_is_brought_again(tmp_path, address):
    """Clusters delete files from scratch disks one by one, those first that nobody has read for long."""
    teacher, pool = write_teacher(tmp_path / "teacher", ["ant", "bee"]), open_source(write_pool(tmp_path / "pool", 2, 4))
    label(Store(address), "c", teacher, pool, progress=QUIET)
    version = Store(address).open("c@gen-1")
    shard = next(iter(version.manifest.files))
    (version.folder / shard).unlink()
    edition = balance(Store(address), "c@gen-1", BalanceSettings(min_confidence=0, per_class=3), progress=QUIET)
    assert edition.verify() == []
    assert (version.local_folder / shard).is_file()


def test_what_killed_downloads_of_any_machine_left_goes_after_a_day(tmp_path, address, machine):
    teacher, pool = write_teacher(tmp_path / "teacher", ["ant", "bee"]), open_source(write_pool(tmp_path / "pool", 2, 4))
    machine(1)
    label(Store(address), "c", teacher, pool, progress=QUIET)
    machine(2)
    version = Store(address).open("c@gen-1")
    table = version.local_folder / "pseudo_labels"
    table.mkdir()
    old, young = table / ".x.parquet.0123abcd.pod-7.8.tmp", table / ".x.parquet.0123abcd.pod-8.8.tmp"
    for path in (old, young):
        path.touch()
    os.utime(old, (time.time() - 90_000,) * 2)
    assert version.folder == version.local_folder
    assert (old.exists(), young.exists()) == (False, True)
    assert version.verify() == []


def test_names_that_lead_out_of_the_copy_are_not_brought(tmp_path, address, monkeypatch):
    teacher, pool = write_teacher(tmp_path / "teacher", ["ant", "bee"]), open_source(write_pool(tmp_path / "pool", 2, 4))
    label(Store(address), "c", teacher, pool, progress=QUIET)
    shutil.rmtree(tmp_path / "mirrors")
    children, files = FileTree.children, FileTree.files  # Amazon's server takes keys such as these, this one does not
    monkeypatch.setattr(FileTree, "children", lambda tree, prefix="": ([*children(tree, prefix)[0], ".."], children(tree, prefix)[1]))
    stranger = StoredFile("corpora/c/gen-1/../../../../../out/x", 1, "")
    monkeypatch.setattr(FileTree, "files", lambda tree, prefix="": [*files(tree, prefix), *[stranger] * prefix.endswith("gen-1")])
    assert Store(address).open("c@gen-1").verify() == []
    assert Store(address).open("c@gen-1").folder.is_dir()  # now all of it is here
    assert [version.ref for version in Store(address).versions()] == ["c@gen-1"]
    (mirror,) = (tmp_path / "mirrors").iterdir()
    assert {path.name for path in mirror.iterdir()} <= {"corpora", "runs", ".etags"}
    assert not list(tmp_path.rglob("out"))


def test_a_store_that_cannot_be_is_refused_in_one_line(monkeypatch):
    with pytest.raises(UsageError, match=r"gs://bucket/store:.*folder or on s3://"):
        Store("gs://bucket/store")
    with pytest.raises(UsageError, match="s3://bucket/store: expected an address without credentials"):
        Store("s3://me:secret@bucket/store")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert "access denied (403); check the credentials" in nst("list", "--store", "s3://nst/denied").stderr
