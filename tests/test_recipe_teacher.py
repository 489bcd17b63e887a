"""A recipe that starts from a trained teacher in place of generation 0."""

import shutil

import pytest
import yaml
from conftest import TINY, write_tiny_images, write_tiny_recipe
from labels import SETTINGS, write_teacher
from watched import RecordingProgress

from nst_data.errors import NstError, UsageError
from nst_data.progress import Progress
from nst_data.selection.editions import balance
from nst_data.settings import BalanceSettings
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_train.labeling.label import label
from nst_train.noisy_student import self_training
from nst_train.recipes.checks import resolve_model
from nst_train.recipes.reading import load_recipe, parse_recipe
from nst_train.settings import RunSettings, TrainSettings
from nst_train.training.train import train

CLASSES = ["ant", "bee", "cat"]
STUDENT = TINY | {"ratio": 2, "start": "teacher"}
PARTS = {"label": SETTINGS.model_dump(), "select": {"min_confidence": 0.0, "per_class": 8}, "run": {"workers": 0, "decode_threads": 1}}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with labeled and test images, a pool and a trained model, whose classes have another order."""
    top = write_tiny_images(tmp_path_factory.mktemp("images"))
    write_teacher(top / "large", CLASSES[::-1])
    return top


@pytest.fixture(scope="module")
def finished(images):
    """What a recipe that starts from this model made: (store, its generations)."""
    path = write_tiny_recipe(images, teacher="local-dir:large", generations=[STUDENT], control=True, **PARTS)
    store = Store(images / "store")
    return store, self_training(store, load_recipe(path), progress=Progress())


def test_the_first_student_is_taught_by_the_model_that_the_recipe_names(images, finished):
    store, generations = finished
    assert [one.teacher.ref for one in generations] == ["bugs-teacher@gen-1", "bugs-control@gen-0"]
    assert [version.ref for version in store.versions()] == ["bugs@gen-1", "bugs@gen-1.1", "bugs-control@gen-0", "bugs-teacher@gen-1"]
    teacher = f"local-dir:{images / 'large'}"
    assert store.open("bugs@gen-1").manifest.request.inputs.teacher.ref == teacher
    for one in generations:  # `start: teacher`
        assert one.teacher.manifest.request.inputs.initial_weights.ref == teacher


@pytest.mark.slow
def test_the_single_steps_give_the_same_bytes(images, finished, tmp_path):
    store, teacher = Store(tmp_path / "store"), f"local-dir:{images / 'large'}"
    labeled, test = (open_source(str(images / role), labeled=True) for role in ("labeled", "test"))
    corpus = label(store, "bugs", teacher, open_source(str(images / "pool")), SETTINGS)
    edition = balance(store, corpus, BalanceSettings(min_confidence=0, per_class=8), exclude=[labeled, test])
    student = train(
        store, "bugs-teacher", labeled, TrainSettings(**STUDENT | {"start": teacher}), pseudo=edition, run=RunSettings(workers=0)
    )
    made = [finished[0].open(ref).manifest.digest for ref in ("bugs@gen-1", "bugs@gen-1.1", "bugs-teacher@gen-1")]
    assert made == [one.manifest.digest for one in (corpus, edition, student)]


def test_a_teacher_of_the_store_is_meant_with_its_newest_version(tiny_store):
    store, _, _ = tiny_store
    assert resolve_model("teacher", "tiny-teacher", store, CLASSES) == ("tiny-teacher@gen-0", CLASSES)


@pytest.mark.parametrize(
    ("teacher", "says"),
    [
        ("local-dir:other", r"^teacher: local-dir:.*other:.*3 classes \(ant, bee, cat\), found 2 \(bee, dog\).*Name a model"),
        ("local-dir:none", r"^teacher: local-dir:.*none:.*config\.json and model\.safetensors"),
        ("test_resnett", r"^teacher: test_resnett: no network.*no teacher.*test_resnet "),
        ("mine@gen-3", r"^teacher: mine@gen-3:.*/store, which has no versions; name another with `store`"),
    ],
)
def test_a_teacher_that_cannot_teach_these_classes_stops_the_loop_before_any_work(images, teacher, says, tmp_path):
    shutil.copytree(images, tmp_path / "images", ignore=shutil.ignore_patterns("store"))
    write_teacher(tmp_path / "images" / "other", ["bee", "dog"])
    path = write_tiny_recipe(tmp_path / "images", teacher=teacher, generations=[STUDENT], **PARTS)
    with pytest.raises(NstError, match=says):
        self_training(Store(tmp_path / "store"), load_recipe(path), progress=Progress())
    assert not (tmp_path / "store").exists()


def test_an_optimizer_of_a_student_that_cannot_be_used_stops_the_loop_before_any_work(images, tmp_path):
    shutil.copytree(images, tmp_path / "images", ignore=shutil.ignore_patterns("store"))
    path = write_tiny_recipe(tmp_path / "images", generations=[TINY, TINY | {"optimizer": "adahessian"}], **PARTS)
    with pytest.raises(NstError, match="optimizer adahessian: cannot be used here"):
        self_training(Store(tmp_path / "store"), load_recipe(path), progress=Progress())
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"teacher": "x", "generations": []}, r"`teacher` has no student; add one"),
        ({"generations": [TINY]}, r"`generations`:.*student or more, found 1.*`teacher: MODEL`"),
        ({"teacher": "bugs-teacher", "generations": [TINY]}, r"`teacher` bugs-teacher:.*another `name`"),
        ({"teacher": "bugs-teacher@gen-1", "generations": [TINY]}, r"`teacher` bugs-teacher@gen-1:.*another `name`"),
        ({"teacher": {"model": ["clip"]}, "generations": [TINY]}, r"line \d+: teacher.model: expected text"),
        ({"teacher": ["clip"], "generations": [TINY]}, r"line \d+: teacher: expected `{model: ...}`"),
        (
            {"teacher": "x", "generations": [TINY], "evaluate": {"suite": "corruptions", "relative_to": "bugs-teacher@gen-0"}},
            r"`relative_to` bugs-teacher@gen-0:.*`teacher`; write x",
        ),
    ],
)
def test_what_cannot_be_beside_a_teacher_is_one_line(tmp_path, parts, says):
    sources = {role: {"source": f"/{role}"} for role in ("labeled", "test", "pool")}
    with pytest.raises(UsageError, match=says):
        parse_recipe(yaml.safe_dump({"name": "bugs", **sources, **parts}), tmp_path / "bugs.yaml")


def test_its_own_first_teacher_may_teach_on(tmp_path):
    sources = {role: {"source": f"/{role}"} for role in ("labeled", "pool")}
    text = yaml.safe_dump({"name": "bugs", **sources, "teacher": "bugs-teacher@gen-0", "generations": [STUDENT | {"ratio": 3}]})
    recipe = parse_recipe(text, tmp_path / "bugs.yaml")
    assert [(one.generation, one.settings.ratio, one.key) for one in recipe.networks] == [(1, 3, "generations.0")]


def test_a_run_names_the_classes_of_which_its_student_has_no_pseudo_labels(images, tmp_path):
    select = PARTS["select"] | {"class_min_confidence": {"ant": 1.0}, "exclude_class": ["cat"]}
    path = write_tiny_recipe(
        images, teacher="local-dir:large", generations=[TINY | {"epochs": 1, "ratio": 2}], **PARTS | {"select": select}
    )
    said = RecordingProgress()
    self_training(Store(tmp_path), load_recipe(path), progress=said)
    (line,) = [line for line in said.lines if "has no images of" in line]
    assert line == "warning: bugs@gen-1.1 has no images of 1 of 3 classes: ant; its student sees labeled images of it only"
