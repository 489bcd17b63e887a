"""A recipe under another name reuses what one before made of the same settings and images, and makes only the rest."""

import os
import shutil
from pathlib import Path

import pytest
from conftest import TINY, write_class_folders, write_pool, write_tiny_recipe
from watched import RecordingProgress

from nst_data.progress import Progress
from nst_data.sources import open_source
from nst_data.store.places import Place, record_place
from nst_data.store.store import Store
from nst_train.noisy_student import self_training
from nst_train.recipes.reading import load_recipe
from nst_train.starting.dry_run import dry_run
from nst_train.training.train import train

STUDENT = TINY | {"ratio": 2, "epochs": 1, "start": "teacher"}
REFS = ["bugs@gen-1", "bugs@gen-1.1", "bugs-teacher@gen-0", "bugs-teacher@gen-1", "bugs-control@gen-0"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The recipe, and a store in which it ran."""
    top = tmp_path_factory.mktemp("made")
    write_class_folders(top / "labeled", ["ant", "bee", "cat"], 4)
    write_class_folders(top / "test", ["ant", "bee", "cat"], 3, first=50)
    write_pool(top / "unlabeled", 3, 5)
    path = write_tiny_recipe(
        top,
        pool="unlabeled",
        label={"batch_size": 4, "rows_per_shard": 6},
        select={"min_confidence": 0.0, "per_class": 8},
        generations=[TINY, STUDENT],
        control=True,
        run={"workers": 0, "decode_threads": 1},
    )
    store = Store(top / "store")
    self_training(store, load_recipe(path), progress=Progress())
    return path, store


@pytest.fixture
def its_own(made, tmp_path):
    """The same in a folder of the test's own."""
    path, store = made
    shutil.copytree(path.parent, tmp_path / "own", symlinks=True)
    return tmp_path / "own" / path.name, Store(tmp_path / "own" / store.root.name)


def run(path, store, **changes):
    """Run the recipe under another name; what was said."""
    said = RecordingProgress()
    self_training(store, load_recipe(path, changes={"name": "wasps", **changes}), progress=said)
    return said.lines


def reused(lines):
    return sorted(line.partition(" is reused")[0] for line in lines if " is reused from bugs" in line)


def other(ref):
    return ref.replace("bugs", "wasps")


def files(version):
    return {path.relative_to(version.folder).as_posix(): path for path in version.folder.rglob("*") if path.is_file()}


def test_the_same_recipe_under_another_name_makes_nothing_anew(its_own):
    path, store = its_own
    lines = run(path, store)
    assert reused(lines) == sorted(map(other, REFS))
    assert not any(" already exists" in line for line in lines)
    for ref in REFS:
        before, after = store.open(ref), store.open(other(ref))
        assert after.verify() == []
        assert {name: sealed.sha256 for name, sealed in after.manifest.files.items()} == {
            name: sealed.sha256 for name, sealed in before.manifest.files.items()
        }
        assert files(after).keys() == files(before).keys()
        assert all(os.path.samefile(files(before)[name], files(after)[name]) for name in after.manifest.files)  # no second copy on disk
        assert (after.manifest.name, after.manifest.counts) == ("wasps" + before.name.removeprefix("bugs"), before.manifest.counts)
        card = (after.folder / "README.md").read_text()
        assert after.name in card
        assert before.ref not in card
    assert store.unfinished() == []
    assert not list((store.root / "runs").glob("pulls/*/*"))


def test_what_is_reused_is_made_from_versions_of_the_new_name(its_own):
    path, store = its_own
    run(path, store)
    student = store.open("wasps-teacher@gen-1").manifest.request
    assert student.settings["start"] == "wasps-teacher@gen-0"
    entries = [entry for ref in REFS for entry in store.open(other(ref)).manifest.request.inputs.by_role.values()]
    versions = [entry for entry in entries if "@gen-" in entry.ref]
    assert len(versions) == 5
    assert all(store.open(entry.ref).manifest.digest == entry.digest and entry.ref.startswith("wasps") for entry in versions)


def test_the_first_name_can_be_removed_and_the_second_run_goes_on_without_it(its_own):
    path, store = its_own
    run(path, store)
    for ref in ("bugs-control@gen-0", "bugs-teacher@gen-1", "bugs@gen-1.1", "bugs@gen-1", "bugs-teacher@gen-0"):
        store.remove(ref)
    assert all(store.open(other(ref)).verify() == [] for ref in REFS)
    assert any("is finished" in line for line in run(path, store))


def test_only_what_follows_from_a_changed_value_is_made(its_own):
    path, store = its_own
    lines = run(path, store, **{"select.per_class": 4})
    assert reused(lines) == ["wasps-control@gen-0", "wasps-teacher@gen-0", "wasps@gen-1"]
    assert store.open("wasps@gen-1.1").manifest.counts.unique == 4 != store.open("bugs@gen-1.1").manifest.counts.unique


def test_a_student_made_again_has_the_weights_that_it_has_without_anything_to_reuse(its_own, tmp_path):
    path, store = its_own
    run(path, store, **{"select.per_class": 4})
    alone = Store(tmp_path / "alone")
    assert reused(run(path, alone, **{"select.per_class": 4})) == []
    weights = [one.open("wasps-teacher@gen-1").manifest.files["model.safetensors"] for one in (store, alone)]
    assert weights[0] == weights[1]
    digests = [{ref: one.open(ref).manifest.digest for ref in map(other, REFS)} for one in (store, alone)]
    assert digests[0] == digests[1]


def test_the_dry_run_says_what_will_be_reused_and_writes_nothing(made):
    path, store = made
    before = {file: file.stat().st_mtime_ns for file in store.root.rglob("*")}

    def states(**changes):
        found = dry_run(store, load_recipe(path, changes={"name": "wasps", **changes}), progress=Progress())
        return {stage.ref: stage.state for stage in found.stages}, found.bytes_on_disk

    assert states() == (dict.fromkeys(map(other, REFS), "reused"), 0)
    changed, needed = states(**{"generations.1.epochs": 2})
    assert changed == dict.fromkeys(map(other, REFS), "reused") | {"wasps-teacher@gen-1": "to do", "wasps-control@gen-0": "to do"}
    assert needed > 0
    # labels by another teacher are others, whatever settings they have in common
    assert states(**{"generations.0.seed": 5})[0] == dict.fromkeys(map(other, REFS), "to do")
    assert {file: file.stat().st_mtime_ns for file in store.root.rglob("*")} == before


def test_a_damaged_version_is_made_again(its_own):
    path, store = its_own
    damaged = store.open("bugs-teacher@gen-0").folder / "model.safetensors"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    lines = run(path, store)
    assert "warning: bugs-teacher@gen-0 is damaged, so wasps-teacher@gen-0 is made again" in lines
    assert store.open("wasps-teacher@gen-0").verify() == []
    assert (store.open("wasps-teacher@gen-0").folder / "model.safetensors").read_bytes() == content
    assert "wasps@gen-1" in reused(lines)  # the network made again is the same
    assert not list((store.root / "runs").glob("pulls/*/*"))


def test_a_version_of_the_hub_is_not_reused(its_own):
    path, store = its_own
    version = store.open("bugs-teacher@gen-0")
    record_place(version.local_folder, Place("someone/bugs", "gen-0", "0" * 40, version.manifest.digest, pulled=True))
    assert "wasps-teacher@gen-0" not in reused(run(path, store))


def test_images_that_changed_since_are_not_taken_for_those_of_before(its_own):
    path, store = its_own
    image = min((path.parent / "unlabeled").rglob("*.png"))
    pixels = bytearray(image.read_bytes())
    pixels[-20] ^= 1  # as many bytes at the same name, and no image any more
    image.write_bytes(pixels)
    os.utime(image, ns=(1, 1))
    lines = run(path, store, **{"run.max_unreadable": 0.5})
    assert "wasps-teacher@gen-0" in reused(lines)
    assert "wasps@gen-1" not in reused(lines)
    assert "wasps@gen-1 is not reused from bugs@gen-1, whose images have changed since" in lines


def test_a_training_of_its_own_is_never_reused(its_own):
    path, store = its_own
    settings = load_recipe(path).generations[0].first_training
    said = RecordingProgress()
    images = open_source(str(path.parent / "labeled"), labeled=True)
    again = train(store, "again", images, settings, generation=0, run=load_recipe(path).run, progress=said)
    assert not any("reused" in line for line in said.lines)
    assert again.manifest.files == store.open("bugs-teacher@gen-0").manifest.files
    assert not os.path.samefile(*(Path(one.folder) / "model.safetensors" for one in (again, store.open("bugs-teacher@gen-0"))))
