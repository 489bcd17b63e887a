"""A recipe that ran to its end is answered from what the store keeps of that, as long as nothing of it has changed."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import TINY, write_pool, write_tiny_images, write_tiny_recipe
from watched import Said

from nst_data.store.store import Store
from nst_train.finished_run import FinishedRun
from nst_train.noisy_student import self_training
from nst_train.opened_sources import OpenedSources
from nst_train.recipe import load_recipe

RECIPE = {
    "label": {"batch_size": 4, "rows_per_shard": 100},
    "select": {"min_confidence": 0.0, "per_class": 8},
    "generations": [TINY | {"epochs": 1}, TINY | {"ratio": 2, "epochs": 1}],
    "run": {"workers": 0, "decode_threads": 1},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(recipe, store, what the run gave)."""
    folder = write_tiny_images(tmp_path_factory.mktemp("finished"))
    path, store = write_tiny_recipe(folder, **RECIPE), Store(folder / "store")
    return path, store, self_training(store, load_recipe(path), progress=Said())


@pytest.fixture
def copied(finished, tmp_path):
    """The same in a folder of its own, where it may be changed."""
    path, _, _ = finished
    folder = shutil.copytree(path.parent, tmp_path / "copy")
    recipe, store = load_recipe(folder / path.name), Store(folder / "store")
    sources = OpenedSources.open(recipe, store, Said())
    run = FinishedRun(store, recipe, sources)
    kept = json.loads((store.root / "runs" / "finished" / "bugs.json").read_text("utf-8"))
    kept["asked"] = run.asked({}).digest  # copies have other times
    (store.root / "runs" / "finished" / "bugs.json").write_text(json.dumps(kept))
    return folder, store


def answer(folder, store, **changes):
    """What a run of the recipe is answered with at once; None where it must look."""
    recipe = load_recipe(write_tiny_recipe(folder, **RECIPE | changes))
    return FinishedRun(store, recipe, OpenedSources.open(recipe, store, Said())).generations(Said())


def test_it_has_the_same_generations(finished, copied):
    refs = [[version and version.ref for version in vars(one).values()] for one in finished[2]]
    assert refs == [["bugs-teacher@gen-0", None, None], ["bugs-teacher@gen-1", "bugs@gen-1", "bugs@gen-1.1"]]
    assert [[version and version.ref for version in vars(one).values()] for one in answer(*copied)] == refs


def test_the_command_imports_no_network_library_and_says_the_same(finished):
    path, store, made = finished
    code = (
        "import json, sys\nfrom nst_cli.main import run\n"
        f"sys.argv = ['nst', 'run', {str(path)!r}, '--store', {str(store.root)!r}, '--json']\n"
        "try:\n    run()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    before = {file: file.stat().st_mtime_ns for file in store.root.rglob("*")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *told, modules = done.stdout.strip().splitlines()
    assert "nst_train" in json.loads(modules)
    assert {"torch", "torchvision", "timm", "transformers", "accelerate", "huggingface_hub", "datasets"} & set(json.loads(modules)) == set()
    assert [row["teacher"] for row in json.loads("\n".join(told))["generations"]] == [one.teacher.ref for one in made]
    assert "bugs is finished: same recipe, images and models" in done.stderr
    assert {file: file.stat().st_mtime_ns for file in store.root.rglob("*")} == before


def test_another_setting_is_another_run(copied):
    assert answer(*copied, seed=1) is None
    assert answer(*copied, control=True) is None


def test_one_of_several_processes_waits_for_its_peers(copied, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert answer(*copied) is None


@pytest.mark.parametrize("role", ["labeled", "test", "pool"])
def test_images_that_somebody_wrote_to_are_looked_at(copied, role):
    folder, store = copied
    picture = next(path for path in (folder / role).rglob("*.png"))
    os.utime(picture, ns=(0, 0))
    assert answer(folder, store) is None


def test_images_that_are_new_are_labeled(copied):
    folder, store = copied
    write_pool(folder / "pool", 1, 1, first=900)
    assert answer(folder, store) is None


def test_what_is_gone_is_made_again(copied):
    folder, store = copied
    shutil.rmtree(store.open("bugs@gen-1.1").folder)
    assert answer(folder, store) is None


def test_a_version_of_another_digest_is_another_one(copied):
    folder, store = copied
    version = store.open("bugs-teacher@gen-1")
    manifest = json.loads((version.folder / "nst.json").read_text("utf-8"))
    (version.folder / "nst.json").write_text(json.dumps(manifest | {"digest": "0" * 64}))
    assert answer(folder, store) is None


def test_a_score_that_is_missing_is_measured_and_one_more_is_nothing_new(copied):
    folder, store = copied
    metrics = store.open("bugs-teacher@gen-1").folder / "metrics.json"
    kept = json.loads(metrics.read_text("utf-8"))
    metrics.write_text(json.dumps(kept | {"mine": kept["test"]}))
    assert answer(folder, store)
    metrics.write_text(json.dumps({}))
    assert answer(folder, store) is None


def test_a_damaged_record_is_looked_past(copied):
    folder, store = copied
    (store.root / "runs" / "finished" / "bugs.json").write_text("{")
    assert answer(folder, store) is None
