"""Where all is pseudo: a student of an edition alone, and a loop without labeled images."""

import json

import pytest
import yaml
from conftest import TINY, write_class_folders, write_tiny_images
from image_text import write_clip
from labels import SETTINGS, write_teacher
from nst_cli.main import app
from typer.testing import CliRunner
from watched import RecordingProgress
from wording import mentions

from nst_data import Store, open_source
from nst_data.errors import NstError, UsageError
from nst_data.progress import Progress
from nst_data.store.metrics import Metrics
from nst_train import Recipe, RunSettings, TrainSettings, ZeroShot, evaluate, load_recipe, self_training, train
from nst_train.classifiers.teachers import load_classifier
from nst_train.starting.dry_run import dry_run

RUN = RunSettings(workers=0, decode_threads=1)
TEACHER = {"model": "local-dir:clip", "class_names": "names.yaml", "prompts": "prompts.txt"}
TEACHER_OF_OTHERS = {"model": "local-dir:clip", "class_names": "names.txt"}
STUDENT = TINY | {"ratio": 2}
PARTS = {"label": SETTINGS.model_dump(), "select": {"min_confidence": 0.0, "per_class": 8}, "run": {"workers": 0, "decode_threads": 1}}


def run(*arguments):
    return CliRunner().invoke(app, [str(word) for word in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def student(tiny_store):
    """(store, a student of the tiny edition alone)."""
    store = tiny_store[0]
    return store, train(store, "alone", None, TrainSettings(**TINY | {"ratio": 2}), pseudo="tiny@gen-1.1", run=RUN)


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


def test_what_is_said_before_the_steps_counts_no_labeled_images_where_these_are_left_out(tiny_store):
    store, labeled, pool = tiny_store
    settings, said = TrainSettings(**TINY | {"pseudo_only": True, "batch_size": 50, "epochs": 5}), RecordingProgress()
    images = {"labeled": open_source(str(labeled), labeled=True), "pool": open_source(str(pool))}
    train(store, "before", settings=settings, pseudo="tiny@gen-1.1", run=RUN, progress=said, **images)
    assert any(mentions(line, "before@gen-0 … 1 step over 20 pseudo-labeled entries") for line in said.lines)
    assert not [line for line in said.lines if "each step takes" in line]


def test_the_same_call_finds_it(student):
    store, version = student
    settings = TrainSettings(**TINY | {"ratio": 2, "pseudo_only": True, "loss": "sum"})  # which mean the same here
    assert train(store, "alone", None, settings, pseudo="tiny@gen-1.1", run=RUN).ref == version.ref


def test_its_card_says_what_it_was_trained_on(student):
    card = (student[1].folder / "README.md").read_text("utf-8")
    assert "as a student on pseudo-labeled images:" in card
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
        ({}, r"`labeled` is missing:.*teacher.*\(`pseudo`\)"),
        ({"edition": "tiny@gen-1.1", "class_weights": "balanced"}, "`labeled` is missing: `class_weights` needs labeled images"),
        ({"edition": "tiny@gen-1.1", "probe": True, "pretrained": True}, r"`labeled` is missing: `probe`|`probe` takes labeled images"),
    ],
)
def test_what_needs_labeled_images_says_so(tiny_store, given, says):
    settings = TINY | {name: value for name, value in given.items() if name != "edition"}
    with pytest.raises(UsageError, match=says):
        train(tiny_store[0], "none", None, TrainSettings(**settings), pseudo=given.get("edition"), run=RUN)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--name", "n"], "--labeled SOURCE is missing"),
        (["--pseudo", "tiny@gen-1.1"], "--name TEACHER is missing"),
        (["--pseudo", "tiny@gen-1.1", "--name", "n", "--label-column", "kind"], "--label-column … labeled images; add them with"),
    ],
)
def test_the_command_says_in_one_line_what_is_missing(tiny_store, words, says):
    result = run("train", "--model", "test_resnet", *words, "--store", tiny_store[0].root)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert mentions(result.stderr, says)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with a pool, test images, an image-text model and its words."""
    top = write_tiny_images(tmp_path_factory.mktemp("images"))
    write_clip(top / "clip")
    (top / "names.yaml").write_text("ant:\nbee: [bee, Biene]\ncat:\n", "utf-8")
    (top / "prompts.txt").write_text("a photo of a {}.\n", "utf-8")
    return top


def write_recipe(folder, labeled=None, **parts):
    content = {"name": "bugs", "pool": {"source": "pool"}, "test": {"source": "test"}}
    content |= {"teacher": TEACHER, "generations": [STUDENT], **PARTS} | parts
    content |= {"labeled": {"source": labeled}} if labeled else {}
    path = folder / "bugs.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.slow
def test_a_recipe_without_labels_trains_students_of_a_zero_shot_teacher_and_scores_them(images, tmp_path):
    path, store = write_recipe(images, generations=[STUDENT, STUDENT | {"start": "teacher"}]), Store(tmp_path / "store")
    planned = dry_run(store, load_recipe(path), progress=Progress())
    generations = self_training(store, load_recipe(path), progress=Progress())
    assert [one.teacher.ref for one in generations] == ["bugs-teacher@gen-1", "bugs-teacher@gen-2"]
    first, second = (one.teacher.manifest for one in generations)
    assert (first.counts.labeled, first.class_names) == (0, ["ant", "bee", "cat"])
    assert first.counts.steps == 2 * first.counts.entries / (4 * 2)
    assert next(one.steps for one in planned.stages if one.ref == "bugs-teacher@gen-1") == 2 * 3 * 8 / (4 * 2)  # at most
    assert second.request.inputs.initial_weights.ref == "bugs-teacher@gen-1"
    assert [Metrics.read(one.teacher.folder).root["test"].images for one in generations] == [6, 6]
    teacher = store.open("bugs@gen-1").manifest.request.inputs.teacher
    assert (teacher.texts.synonyms["bee"], teacher.texts.prompts) == (["bee", "Biene"], ["a photo of a {}."])
    assert {one.state for one in dry_run(store, load_recipe(path), progress=Progress()).stages} == {"done"}
    excluded = store.open("bugs@gen-1.1").manifest.request.inputs.excluded
    assert [one.digest for one in excluded.values()] == [open_source(str(images / "test"), labeled=True).images_fingerprint]
    before = [version.ref for version in store.versions()]
    self_training(store, load_recipe(path), progress=Progress())
    assert [version.ref for version in store.versions()] == before


@pytest.mark.slow
def test_a_zero_shot_teacher_stands_for_generation_0_beside_labeled_images_too(images, tmp_path):
    path, store = write_recipe(images, labeled="labeled", control=True), Store(tmp_path / "store")
    student, control = self_training(store, load_recipe(path), progress=Progress())
    assert (student.teacher.manifest.counts.labeled, student.teacher.manifest.counts.entries > 0) == (12, True)
    assert control.teacher.ref == "bugs-control@gen-0"


def test_the_words_of_a_recipe_lie_beside_it_or_in_it(images):
    teacher = load_recipe(write_recipe(images)).teacher.teacher_name
    assert teacher == ZeroShot(
        model=f"local-dir:{images / 'clip'}", class_names=str(images / "names.yaml"), prompts=str(images / "prompts.txt")
    )
    words = TEACHER | {"class_names": {"ant": None, "bee": ["bee", "Biene"]}, "prompts": ["{}"]}
    assert load_recipe(write_recipe(images, teacher=words)).teacher.teacher_name.texts("bee") == ["bee", "Biene"]
    spec = ZeroShot(model="owner/clip", class_names=["ant", "bee"])
    made = Recipe(name="bugs", pool={"source": "pool"}, teacher=spec, generations=[STUDENT])
    assert made.teacher.teacher_name == spec


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"teacher": None, "generations": [STUDENT, STUDENT]}, "`labeled` is missing: a teacher …"),
        ({"test": None, "holdout": 0.2}, "`holdout` … add a line `labeled: {source: ...}`, or remove it"),
        ({"control": True}, "`control` needs labeled images"),
        ({"reviews": "bugs@review-1"}, "`reviews` needs labeled images"),
        ({"generations": [STUDENT | {"finetune": {"epochs": 1}}]}, "`generations.0.finetune` needs labeled images"),
        ({"generations": [STUDENT | {"class_weights": "balanced"}]}, "`generations.0.class_weights` needs labeled images"),
        ({"generations": [STUDENT | {"start": "teacher"}]}, "`generations.0.start`: a student cannot start from the first teacher"),
        ({"teacher": {"model": "clip", "prompts": "prompts.txt"}}, "`prompts` apply to image-text models"),
        ({"teacher": {"model": "clip", "names": "names.txt"}}, "teacher.names: unknown key"),
        ({"teacher": {"model": "clip", "class_names": ["ant"]}}, "class_names: … at least two …, found 1"),
        ({"teacher": {"class_names": "names.yaml"}}, "teacher.model: missing"),
    ],
)
def test_what_a_recipe_without_labels_cannot_have_is_said_in_one_line(images, tmp_path, parts, says):
    parts = {"test": {"source": str(images / "test")}} | parts
    path = write_recipe(tmp_path, **parts)
    content = {key: value for key, value in yaml.safe_load(path.read_text()).items() if value is not None}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UsageError) as error:
        load_recipe(path)
    assert mentions(str(error.value), says)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"teacher": TEACHER_OF_OTHERS}, r"teacher: .*names\.txt: No such file or directory"),
        ({"teacher": {"model": "local-dir:net", "class_names": ["ant", "bee", "cat"]}}, "teacher: .*expected an image-text model"),
        ({"teacher": {"model": "local-dir:clip"}}, r"teacher: local-dir:.*image-text model.*`class_names` FILE"),
        ({"labeled": "labeled", "teacher": {"model": "local-dir:clip", "class_names": ["ant", "bee", "dog"]}}, "teacher: local-dir:.*clip"),
    ],
)
def test_what_stops_a_later_generation_is_said_before_the_first(images, tmp_path, parts, says):
    if not (images / "net").exists():
        write_teacher(images / "net", ["ant", "bee", "cat"])
    with pytest.raises(NstError, match=says):
        self_training(Store(tmp_path / "store"), load_recipe(write_recipe(images, **parts)), progress=Progress())
    assert not (tmp_path / "store").exists()
