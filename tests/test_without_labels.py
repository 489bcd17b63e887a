"""Where all is pseudo: a student of an edition alone, and a loop without labeled images."""

import json

import pytest
from conftest import TINY, write_class_folders
from nst_cli.main import app
from typer.testing import CliRunner

from nst_data.errors import UsageError
from nst_train import RunSettings, TrainSettings, evaluate, train
from nst_train.classifiers.teachers import load_classifier

RUN = RunSettings(workers=0, decode_threads=1)


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


@pytest.fixture(scope="module")
def student(tiny_store):
    """(store, a student of the tiny edition alone)."""
    store = tiny_store[0]
    return store, train(store, "alone", None, TrainSettings(**TINY | {"ratio": 2}), edition="tiny@gen-1.1", run=RUN)


def test_a_student_is_trained_on_the_edition_alone_whose_classes_are_its_own(student):
    store, version = student
    edition = store.open("tiny@gen-1.1").manifest
    counts = version.manifest.counts
    assert version.manifest.class_names == edition.class_names == ["ant", "bee", "cat"]
    assert (counts.labeled, counts.entries, counts.pseudo_labeled) == (0, edition.counts.copies, edition.counts.unique)
    assert "labeled" not in version.manifest.request.inputs.by_role
    assert version.manifest.request.settings["pseudo_only"] is True
    assert load_classifier(version.ref, store)[0].class_names == ["ant", "bee", "cat"]


def test_an_epoch_passes_each_entry_once(student):
    """Two epochs of 20 entries in steps of 4 x 2 images."""
    store, version = student
    assert store.open("tiny@gen-1.1").manifest.counts.copies == 20
    assert version.manifest.counts.steps == 2 * 20 / (4 * 2)


def test_the_same_call_finds_it(student):
    store, version = student
    settings = TrainSettings(**TINY | {"ratio": 2, "pseudo_only": True, "loss": "sum"})  # which mean the same here
    assert train(store, "alone", None, settings, edition="tiny@gen-1.1", run=RUN).ref == version.ref


def test_its_card_says_what_it_was_trained_on(student):
    card = (student[1].folder / "README.md").read_text("utf-8")
    assert "as a noised student on pseudo-labeled images:" in card
    assert "trained on 20 pseudo-labeled entries" in card
    assert "labeled images" not in card.replace("pseudo-labeled images", "").partition("```")[0]
    command = next(block for block in card.split("```") if "nst train" in block)
    assert "--pseudo tiny@gen-1.1" in command
    assert "--labeled" not in command


def test_it_is_scored_where_a_test_set_is_given(student, tmp_path):
    store, version = student
    scored = write_class_folders(tmp_path / "scored", ["ant", "bee", "cat"], 3, first=50)
    assert evaluate(store, version, str(scored))["images"] == 9


def test_the_command_trains_without_labeled_images(tiny_store, tmp_path):
    words = ["--batch-size", 4, "--epochs", 1, "--image-size", 16, "--workers", 0, "--store", tiny_store[0].root]
    scored = write_class_folders(tmp_path / "scored", ["ant", "bee", "cat"], 2, first=50)
    options = ["--pseudo", "tiny@gen-1.1", "--name", "by-command", "--model", "test_resnet", "--validation", scored, *words]
    result = run("train", *options, "--json")
    assert result.exit_code == 0, result.output
    assert "by-command@gen-0: 5 steps over 20 pseudo-labeled entries" in result.stderr
    counts = json.loads(result.stdout)["counts"]
    assert (counts["labeled"], counts["steps"], counts["best_step"] is None) == (0, 5, False)
    shown = json.loads(run("train", *options, "--show-settings", "--json").stdout)["derived"]
    assert (shown["steps"], shown["labeled_images_per_step"], shown["images_per_step"], shown["classes"]) == (5, 0, 4, 3)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "`labeled` is missing: a teacher, which has no pseudo-labels"),
        ({"edition": "tiny@gen-1.1", "class_weights": "balanced"}, "`labeled` is missing: `class_weights` needs labeled images"),
        ({"edition": "tiny@gen-1.1", "probe": True, "pretrained": True}, "`probe` takes labeled images alone|`probe` needs labeled images"),
    ],
)
def test_what_needs_labeled_images_says_so(tiny_store, given, says):
    settings = TINY | {name: value for name, value in given.items() if name != "edition"}
    with pytest.raises(UsageError, match=says):
        train(tiny_store[0], "none", None, TrainSettings(**settings), edition=given.get("edition"), run=RUN)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--name", "n"], "--labeled SOURCE is missing"),
        (["--pseudo", "tiny@gen-1.1"], "--name TEACHER is missing"),
        (["--pseudo", "tiny@gen-1.1", "--name", "n", "--label-column", "kind"], "--label-column applies to labeled images; add them with"),
    ],
)
def test_the_command_says_in_one_line_what_is_missing(tiny_store, words, says):
    result = run("train", "--model", "test_resnet", *words, "--store", tiny_store[0].root)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert says in result.stderr
