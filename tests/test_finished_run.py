"""A recipe that ran to its end is answered from what the store keeps of that, as long as nothing of it has changed."""

import json
import os
import shutil
import subprocess
import sys

import hub
import pytest
import timm
from conftest import TINY, write_pool, write_tiny_images, write_tiny_recipe
from image_text import write_clip
from safetensors.torch import save
from watched import RecordingProgress
from wording import mentions

from nst_data.store.store import Store
from nst_train.noisy_student import self_training
from nst_train.recipes.finished_run import FinishedRun
from nst_train.recipes.opened_sources import OpenedSources
from nst_train.recipes.reading import load_recipe

RECIPE = {
    "label": {"batch_size": 4, "rows_per_shard": 100},
    "select": {"min_confidence": 0.0, "per_class": 8},
    "generations": [TINY | {"epochs": 1}, TINY | {"ratio": 2, "epochs": 1}],
    "run": {"workers": 0, "decode_threads": 1},
}
NETWORKS = {"torch", "torchvision", "timm", "transformers", "accelerate"}
COMMAND = """
import json, sys
from nst_cli.main import run
try:
    run()
except SystemExit as end:
    assert not end.code
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(recipe, store, what the run gave)."""
    folder = write_tiny_images(tmp_path_factory.mktemp("finished"))
    path, store = write_tiny_recipe(folder, **RECIPE), Store(folder / "store")
    return path, store, self_training(store, load_recipe(path), progress=RecordingProgress())


@pytest.fixture
def copied(finished, tmp_path):
    """The same in a folder of its own, where it may be changed."""
    path, _, _ = finished
    folder = shutil.copytree(path.parent, tmp_path / "copy")
    recipe, store = load_recipe(folder / path.name), Store(folder / "store")
    sources = OpenedSources.open(recipe, store, RecordingProgress())
    run = FinishedRun(store, recipe, sources)
    kept = json.loads((store.root / "runs" / "finished" / "bugs.json").read_text("utf-8"))
    kept["asked"] = run.current_dependencies({}).digest  # copies have other times
    (store.root / "runs" / "finished" / "bugs.json").write_text(json.dumps(kept))
    return folder, store


def answer(folder, store, **changes):
    """What a run of the recipe is answered with at once; None where it must look."""
    recipe = load_recipe(write_tiny_recipe(folder, **RECIPE | changes))
    return FinishedRun(store, recipe, OpenedSources.open(recipe, store, RecordingProgress())).load_generations(RecordingProgress())


def run_alone(recipe, store, environment=None):
    """`nst run` in a process of its own: the teachers of its table, the packages that it imported, and what it said."""
    command = [sys.executable, "-c", COMMAND, "run", str(recipe), "--store", str(store), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    *table, modules = done.stdout.strip().splitlines()
    return [row["teacher"] for row in json.loads("\n".join(table))["generations"]], set(json.loads(modules)), done.stderr


def test_it_has_the_same_generations(finished, copied):
    def described(generations):
        versions = [(one.teacher, one.corpus, one.edition) for one in generations]
        return [[version and version.ref for version in each] for each in versions], [one.to_newest for one in generations]

    refs, differences = described(finished[2])
    assert refs == [["bugs-teacher@gen-0", None, None], ["bugs-teacher@gen-1", "bugs@gen-1", "bugs@gen-1.1"]]
    assert differences[0].images == 6
    assert differences[1] is None
    assert described(answer(*copied)) == (refs, differences)


def test_the_command_imports_no_network_library_and_says_the_same(finished):
    path, store, made = finished
    before = {file: file.stat().st_mtime_ns for file in store.root.rglob("*")}
    teachers, modules, told = run_alone(path, store.root)
    assert modules & {*NETWORKS, "huggingface_hub", "datasets"} == set()
    assert teachers == [one.teacher.ref for one in made]
    assert mentions(told, "bugs is finished: …")
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


@pytest.mark.parametrize("file", ["names.txt", "clip/config.json"])
def test_words_and_weights_that_somebody_wrote_to_are_looked_at(copied, file):
    folder, store = copied
    (folder / "clip").mkdir()
    for name in ("names.txt", "clip/config.json"):
        (folder / name).write_text("ant\nbee\ncat\n")
    teacher = {"model": f"local-dir:{folder / 'clip'}", "class_names": "names.txt"}
    recipe = load_recipe(write_tiny_recipe(folder, **RECIPE | {"teacher": teacher, "generations": RECIPE["generations"][1:]}))
    run = FinishedRun(store, recipe, OpenedSources.open(recipe, store, RecordingProgress()))
    before = run.current_dependencies({})
    assert run.current_dependencies({}) == before
    os.utime(folder / file, ns=(0, 0))
    assert run.current_dependencies({}) != before


@pytest.mark.slow
def test_weights_of_the_hub_and_a_zero_shot_teacher_are_known_again_without_loading_them(tmp_path):
    folder, place = write_tiny_images(tmp_path / "photos"), tmp_path / "hub"
    write_clip(folder / "clip")
    (folder / "names.txt").write_text("ant\nbee\ncat\n")
    teacher = {"model": f"local-dir:{folder / 'clip'}", "class_names": "names.txt"}
    student = TINY | {"ratio": 2, "epochs": 1, "pretrained": True}
    path = write_tiny_recipe(folder, **RECIPE | {"teacher": teacher, "generations": [student]})
    weights = [save(timm.create_model("test_resnet").state_dict()) for _ in range(2)]
    old, new = (hub.commit(place, "timm/test_resnet.r160_in1k", {"model.safetensors": one}, "models") for one in weights)
    main = place / "models/timm/test_resnet.r160_in1k/.git/refs/heads/main"
    with hub.serving(place) as (url, _):
        environment = hub.environment(url, tmp_path / "home") | {"OMP_NUM_THREADS": "1"}
        assert "torch" in run_alone(path, tmp_path / "store", environment)[1]
        store = Store(tmp_path / "store")
        made = {version.ref: version.manifest.digest for version in store.versions()}
        teachers, modules, told = run_alone(path, store.root, environment)
        assert (teachers, modules & NETWORKS) == (["bugs-teacher@gen-1"], set())
        assert "bugs is finished" in told
        assert {version.ref: version.manifest.digest for version in store.versions()} == made
        assert main.read_text().strip() == new
        main.write_text(old)  # the branch gets another commit: other weights, which is another training
        command = [sys.executable, "-m", "nst_cli", "run", str(path), "--store", str(store.root)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert "bugs-teacher@gen-1 exists with other settings (initial_weights: " in done.stderr
