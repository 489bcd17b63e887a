"""The whole loop, as a user runs it."""

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import TINY, write_class_folders, write_pool, write_tiny_recipe
from labels import write_teacher
from nst_cli.main import app
from nst_cli.run_recipe import _best_network, _comparison_lines
from typer.testing import CliRunner
from wording import mentions

from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_train.evaluation.chance import Difference
from nst_train.noisy_student import self_training
from nst_train.recipes.reading import load_recipe
from nst_train.training.train import train

EXAMPLES = Path(__file__).parent.parent / "examples"
CLASSES = ["ant", "bee", "cat"]
RUN = {"workers": 0, "decode_threads": 1}


def nst(*arguments):
    result = CliRunner().invoke(app, [str(word) for word in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def write_images(folder):
    write_class_folders(folder / "labeled", CLASSES, 4)
    write_class_folders(folder / "test", CLASSES, 3, first=50)
    write_pool(folder / "unlabeled", 3, 5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A recipe that ran from end to end: (recipe's path, store, the command's JSON)."""
    top = tmp_path_factory.mktemp("loop")
    write_images(top / "photos")
    student = TINY | {"ratio": 2, "epochs": 3}
    path = write_tiny_recipe(
        top / "photos",
        pool="unlabeled",
        label={"batch_size": 4, "rows_per_shard": 6},
        select={"min_confidence": 0.0, "per_class": 8},
        generations=[TINY, student, student],
        control=True,
        run=RUN,
    )
    output = nst("run", path, "--store", top / "store", "--json")
    return path, Store(top / "store"), json.loads(output.stdout)


def test_the_loop_makes_teachers_corpora_and_editions_and_a_control(finished):
    _, store, _ = finished
    assert [version.ref for version in store.versions()] == [
        *("bugs@gen-1", "bugs@gen-1.1", "bugs@gen-2", "bugs@gen-2.1"),
        *("bugs-control@gen-0", "bugs-teacher@gen-0", "bugs-teacher@gen-1", "bugs-teacher@gen-2"),
    ]
    assert all(version.verify() == [] for version in store.versions())
    assert store.unfinished() == []


def test_each_student_teaches_the_next(finished):
    _, store, _ = finished
    assert store.open("bugs@gen-2").manifest.request.inputs.teacher.ref == "bugs-teacher@gen-1"
    assert store.open("bugs-teacher@gen-2").manifest.request.inputs.edition.ref == "bugs@gen-2.1"


def test_the_table_has_a_row_per_generation(finished):
    _, _, result = finished
    rows = result["generations"]
    assert [row["teacher"] for row in rows] == ["bugs-teacher@gen-0", "bugs-teacher@gen-1", "bugs-teacher@gen-2", "bugs-control@gen-0"]
    assert [row["images_labeled"] for row in rows] == [None, 15, 15, None]
    assert all(0 <= row["test_top1"] <= 1 for row in rows)
    assert all(row["unique"] <= row["kept"] <= 15 and row["copies"] >= row["unique"] for row in rows[1:3])


def test_the_control_has_the_last_students_steps_and_noise_and_no_pseudo_labels(finished):
    _, store, _ = finished
    control, student = (store.open(ref).manifest for ref in ("bugs-control@gen-0", "bugs-teacher@gen-2"))
    assert control.counts.steps == student.counts.steps
    assert control.request.settings == student.request.settings | {"ratio": 1}
    assert control.counts.entries == 0


@pytest.mark.slow
def test_a_control_starts_from_the_first_teacher_whose_weights_know_no_pseudo_labels(tmp_path):
    write_images(tmp_path)
    student = TINY | {"ratio": 2, "epochs": 0.1, "start": "teacher"}
    select, teacher = {"min_confidence": 0.0, "per_class": "none"}, TINY | {"epochs": 0.1}
    path = write_tiny_recipe(tmp_path, "unlabeled", generations=[teacher, student, student], select=select, control=True, run=RUN)
    recipe = load_recipe(path)
    store = Store(tmp_path / "store")
    *_, control = self_training(store, recipe)
    assert control.teacher.manifest.request.settings["start"] == "bugs-teacher@gen-0"
    store.remove(control.teacher.ref)
    # as an earlier version made it: its result stays
    settings = recipe.generations[-1].first_training.model_copy(update={"start": "bugs-teacher@gen-1"})
    earlier = train(store, "bugs-control", open_source(str(tmp_path / "labeled"), labeled=True), settings, generation=0, run=recipe.run)
    *_, control = self_training(store, recipe)
    assert control.teacher.manifest.request == earlier.manifest.request


def test_run_again_it_does_nothing(finished):
    path, store, before = finished
    stamps = {file: file.stat().st_mtime_ns for file in store.root.rglob("*")}
    again = nst("run", path, "--store", store.root, "--json")
    assert json.loads(again.stdout) == before
    assert {file: file.stat().st_mtime_ns for file in store.root.rglob("*")} == stamps


def test_the_single_commands_give_the_bytes_of_the_recipe(finished, tmp_path):
    path, store, _ = finished
    photos = path.parent
    options = {key: value for key, value in TINY.items() if key != "noise"} | TINY["noise"]
    network = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", value)]
    here = ["--store", tmp_path / "store"]
    nst("train", "--labeled", photos / "labeled", "--name", "bugs-teacher", *network, "--workers", 0, *here)
    nst("label", photos / "unlabeled", "--teacher", "bugs-teacher", "--corpus", "bugs", "--batch-size", 4, "--rows-per-shard", 6, *here)
    held_out = ["--exclude", photos / "labeled", "--exclude", photos / "test"]
    nst("balance", "bugs@gen-1", "--min-confidence", 0, "--per-class", 8, *held_out, *here)
    student = [*network, "--epochs", 3, "--ratio", 2, "--workers", 0]
    nst("train", "--labeled", photos / "labeled", "--pseudo", "bugs", "--name", "bugs-teacher", *student, *here)
    other = Store(tmp_path / "store")
    for ref in ("bugs-teacher@gen-0", "bugs@gen-1", "bugs@gen-1.1", "bugs-teacher@gen-1"):
        assert other.open(ref).manifest.digest == store.open(ref).manifest.digest, ref
    metrics = json.loads(nst("evaluate", "bugs-teacher@gen-1", "--data", photos / "test", "--json", *here).stdout)
    recorded = json.loads((store.open("bugs-teacher@gen-1").folder / "metrics.json").read_text())["test"]
    assert metrics["bugs-teacher@gen-1"]["top1"] == recorded["top1"]


def test_list_show_and_verify_read_the_store(finished):
    _, store, _ = finished
    listed = nst("list", "--store", store.root).stdout
    assert all(version.ref in listed for version in store.versions())
    assert "test top-1" in next(line for line in listed.splitlines() if line.startswith("bugs-teacher@gen-2"))
    shown = nst("show", "bugs@gen-1.1", "--store", store.root).stdout
    assert "bugs@gen-1" in shown
    assert "min_confidence" in shown
    assert json.loads(nst("show", "bugs", "--json", "--store", store.root).stdout)["version"] == "gen-2.1"
    assert " verified" in nst("verify", "bugs-teacher@gen-2", "--store", store.root).stdout


def test_a_card_tells_a_teachers_accuracy_and_lineage(finished):
    _, store, _ = finished
    card = (store.open("bugs-teacher@gen-2").folder / "README.md").read_text()
    assert "**test**: top-1" in card
    assert "bugs@gen" in card


@pytest.mark.slow
def test_the_recipe_for_image_folders_runs_on_generated_folders(tmp_path):
    """The file that users copy, with the few lines changed that make it small."""
    write_images(tmp_path / "photos")
    recipe = yaml.safe_load((EXAMPLES / "image_folder.yaml").read_text())
    first, *students = recipe["generations"]
    small = {"model": write_teacher(tmp_path / "net", CLASSES), "image_size": 16, "test_size": 16, "steps": 2, "batch_size": 6}
    recipe["generations"] = [first | {"model": small["model"]}, *(settings | small for settings in students)]
    recipe["select"] = {"min_confidence": 0.3, "per_class": 5}
    recipe["run"] = RUN
    (tmp_path / "flowers.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "photos/unlabeled/broken.png").write_bytes(b"no image")
    (tmp_path / "photos/test" / CLASSES[0] / "broken.png").write_bytes(b"no image")
    output = nst("run", tmp_path / "flowers.yaml", "--store", tmp_path / "store").stdout
    header, last = (next(line for line in output.splitlines() if name in line) for name in ("network ", "flowers-teacher@gen-2"))
    assert "test top-1" in header
    assert re.search(r" \d+\.\d% ", last)
    for number in (1, 2):
        assert re.search(rf"flowers@gen-{number}: \d+ of \d+ images labeled, 1 could not be read\n  no label: broken.png: ", output)
    assert re.search(r"1 of \d+ test images could not be read", output)
    assert str(tmp_path / "net") not in output  # the last part of a path is what the table has room for


def measured(name, top1, difference=None, pseudo=True, errors=0):
    metrics = {"test": {"images": 400, "errors": errors}}
    to_newest = difference and asdict(difference) | {"larger_than_chance": difference.is_larger_than_chance}
    return {"teacher": name, "pseudo": pseudo, "test_top1": top1, "metrics": metrics, "to_newest": to_newest}


def test_a_network_is_called_better_only_where_the_test_images_tell():
    first = measured("a", 0.80, Difference(0.05, 0.021, 0.079, 400), pseudo=False)
    student, newest = measured("b", 0.86, Difference(-0.01, -0.03, 0.01, 400), errors=2), measured("c", 0.85, errors=2)
    rows = [first, student, newest]
    assert list(_comparison_lines(rows, newest)) == [
        "2 of 402 test images could not be read",
        "c on 400 test images, with 95% bootstrap intervals:",
        "  +5.0 points (+2.1 to +7.9) vs. a",
        "  -1.0 points (-3.0 to +1.0) vs. b, perhaps by chance",
    ]
    assert _best_network(rows, newest) is newest
    student, worse = measured("b", 0.86, Difference(-0.05, -0.08, -0.02, 400)), measured("c", 0.81)
    assert _best_network([first, student, worse], worse) is student
    untested = measured("c", None)
    assert list(_comparison_lines([first, student, untested], untested)) == []
    assert _best_network([first, student, untested], untested) is untested


def test_the_differences_are_those_of_a_comparison(finished):
    path, store, result = finished
    rows = result["generations"]
    refs = [row["teacher"] for row in rows]
    output = nst("evaluate", *refs, "--data", path.parent / "test", "--compare", "--store", store.root, "--json").stdout
    differences = json.loads(output)[refs[2]]["differences"]
    assert rows[2]["to_newest"] is None
    for row, ref in zip(rows[:2], refs[:2], strict=True):
        (difference,) = (one for one in differences if one["from"] == ref and one["metric"] == "top1")
        assert {name: difference[name] for name in row["to_newest"]} == row["to_newest"]
    assert rows[3]["to_newest"]["mean"] == pytest.approx(rows[2]["test_top1"] - rows[3]["test_top1"])


@pytest.mark.slow
def test_validation_images_choose_the_weights_and_are_held_out_of_the_pool(tmp_path):
    photos = tmp_path / "photos"
    write_images(photos)
    validation = write_class_folders(photos / "validation", CLASSES, 2, first=70)
    for label, name in enumerate(CLASSES):  # the pool holds a copy of each
        shutil.copy(validation / name / "070.png", photos / "unlabeled" / f"copy-{label}-070.png")
        shutil.copy(validation / name / "071.png", photos / "unlabeled" / f"copy-{label}-071.png")
    parts = {"label": {"batch_size": 4}, "select": {"min_confidence": 0.0, "per_class": 8}, "run": RUN, "control": True}
    path = write_tiny_recipe(
        photos, pool="unlabeled", validation={"source": "validation"}, generations=[TINY, TINY | {"validate_every": 0.5}], **parts
    )
    nst("run", path, "--store", tmp_path / "store")
    store = Store(tmp_path / "store")
    kept = pq.read_table(store.open("bugs@gen-1.1").folder / "balanced")["key"].to_pylist()
    assert kept
    assert not [key for key in kept if key.startswith("copy")]
    assert store.open("bugs@gen-1").manifest.counts.labeled == 21
    for ref in ("bugs-teacher@gen-0", "bugs-teacher@gen-1", "bugs-control@gen-0"):
        version = store.open(ref)
        assert version.manifest.request.inputs.validation.ref.endswith("photos/validation")
        metrics = json.loads((version.folder / "metrics.json").read_text())
        assert metrics["validation"]["images"] == 6
        assert metrics["test"]["images"] == 9
        assert metrics["validation"]["step"] == version.manifest.counts.best_step


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": {"source": "other"}}, "3 classes (ant, bee, cat), found 2 (bee, dog)"),
        ({"validation": {"source": "other"}}, "3 classes (ant, bee, cat), found 2 (bee, dog)"),
        ({"generations": [TINY, TINY | {"validate_every": 1}]}, "`validate_every` … add a line `validation:"),
        ({"generations": [TINY, TINY | {"model": "test_resnett"}]}, "test_resnett: no network of timm"),
        ({"run": RUN | {"tracker": ["aim"]}}, "`run.tracker` aim: its package is not installed"),
    ],
)
def test_what_would_stop_a_later_generation_stops_the_loop_before_its_first(tmp_path, change, message):
    write_images(tmp_path / "photos")
    write_class_folders(tmp_path / "photos" / "other", ["bee", "dog"], 1)
    path = write_tiny_recipe(tmp_path / "photos", pool="unlabeled", **{"generations": [TINY, TINY], "run": RUN} | change)
    result = CliRunner().invoke(app, ["run", str(path), "--store", str(tmp_path / "store")])
    assert result.exit_code in (1, 2)
    assert mentions(result.stderr, message)
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_images_that_evaluate_names_are_held_out_of_the_pool_and_an_edition_that_was_made_before_stays(tmp_path):
    photos = tmp_path / "photos"
    write_images(photos)
    write_pool(photos / "unlabeled", 1, 2, first=90)
    write_class_folders(photos / "more", CLASSES, 1, first=90)  # one of these is in the pool
    parts = {"label": {"batch_size": 4}, "select": {"min_confidence": 0.0, "per_class": "none"}, "run": RUN, "generations": [TINY, TINY]}
    more = [{"name": "more", "data": {"source": "more"}}, {"name": "again", "data": {"source": "test"}}]

    def keys_and_excluded(**also):
        done = nst("run", write_tiny_recipe(photos, pool="unlabeled", **parts, **also), "--store", tmp_path / "store")
        edition = Store(tmp_path / "store").open(f"{also.get('name', 'bugs')}@gen-1.1")
        excluded = [Path(entry.ref).name for entry in edition.manifest.request.inputs.excluded.values()]
        return set(pq.read_table(edition.folder / "balanced")["key"].to_pylist()), sorted(excluded), done.stderr

    keys, excluded, _ = keys_and_excluded()
    assert {"0-090.png", "0-091.png"} <= keys
    assert excluded == ["labeled", "test"]
    named = keys_and_excluded(evaluate=more)
    assert named[:2] == (keys, excluded), "students were trained on it"
    assert mentions(named[2], f"warning: bugs@gen-1.1 … without excluding {photos / 'more'}, …")
    fresh, excluded, said = keys_and_excluded(evaluate=more, name="fresh")
    assert fresh & {"0-090.png", "0-091.png"} == {"0-091.png"}
    assert excluded == ["labeled", "more", "test"], "the test images are named once"
    assert "without excluding" not in said
