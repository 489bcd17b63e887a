"""Several students of one teacher in a recipe: the paper's study 1 (table 9)."""

import json

import pytest
import yaml
from conftest import TINY, write_tiny_images, write_tiny_recipe
from labels import SETTINGS, write_teacher
from nst_cli.main import app
from typer.testing import CliRunner

from nst_data.errors import UsageError
from nst_data.store.metrics import Metrics
from nst_data.store.store import Store
from nst_train.recipes.reading import parse_recipe

CLASSES = ["ant", "bee", "cat"]
SHORT = TINY | {"epochs": 1}
STUDENTS = [SHORT | {"name": "slim", "ratio": 2}, SHORT | {"name": "wide", "ratio": 3, "model": "test_efficientnet"}]
PARTS = {"label": SETTINGS.model_dump(), "run": {"workers": 0, "decode_threads": 1}, "students": STUDENTS, "control": True}
ONCE = {"min_confidence": 0.0, "per_class": 4, "by": "local-dir:small", "when": "once"}


def nst(*arguments):
    result = CliRunner().invoke(app, [str(word) for word in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The path of a recipe in which one trained model teaches two students, on images that another model selected."""
    top = write_tiny_images(tmp_path_factory.mktemp("study"))
    write_teacher(top / "large", CLASSES)
    write_teacher(top / "small", CLASSES, seed=3)
    return write_tiny_recipe(top, teacher="local-dir:large", select=ONCE, **PARTS)


@pytest.fixture(scope="module")
def finished(recipe):
    """(store, the table of the recipe's run)."""
    root = recipe.parent / "store"
    return Store(root), nst("run", recipe, "--store", root)


def test_one_teacher_labels_once_for_all_of_its_students(finished):
    store, _ = finished
    assert [version.ref for version in store.versions()] == [
        *("bugs@gen-0", "bugs@gen-0.1", "bugs@gen-1.1", "bugs-control-slim@gen-0", "bugs-control-wide@gen-0"),
        *("bugs-teacher-slim@gen-1", "bugs-teacher-wide@gen-1"),
    ]
    students = [store.open(f"bugs-teacher-{name}@gen-1").manifest.request for name in ("slim", "wide")]
    assert [one.inputs.edition.ref for one in students] == ["bugs@gen-1.1"] * 2
    assert [(one.model, one.settings["ratio"]) for one in students] == [("test_resnet", 2), ("test_efficientnet", 3)]
    assert "name" not in students[0].settings


def test_the_last_table_and_the_list_have_a_line_with_the_score_of_each(recipe, finished):
    store, table = finished
    lines = table.splitlines(), nst("list", "--store", store.root).splitlines()
    rows = json.loads(nst("run", recipe, "--store", store.root, "--json"))["generations"]
    names = ["bugs-teacher-slim@gen-1", "bugs-teacher-wide@gen-1", "bugs-control-slim@gen-0", "bugs-control-wide@gen-0"]
    assert [(row["teacher"], row["pseudo"]) for row in rows] == [(name, index < 2) for index, name in enumerate(names)]
    for name, row in zip(names, rows, strict=True):
        top1 = Metrics.read(store.open(name).folder).test_top1
        assert row["test_top1"] == top1
        assert all(f"{100 * top1:.1f}%" in next(line for line in of if line.lstrip().startswith(name)) for of in lines)
    seconds = {ref: store.open(ref).manifest.seconds for ref in (*names, "bugs@gen-0", "bugs@gen-1.1")}
    shared = seconds["bugs@gen-0"] + seconds["bugs@gen-1.1"]
    assert [row["seconds"] for row in rows[:2]] == pytest.approx([seconds[names[0]] + shared, seconds[names[1]]], abs=0.0501)


def test_the_settings_of_each_student_are_shown(recipe):
    found = json.loads(nst("run", recipe, "--show-settings", "--json"))
    assert [one["network"] for one in found] == ["generation 1, student slim", "generation 1, student wide"]
    assert [one["settings"]["ratio"] for one in found] == [{"value": ratio, "source": "recipe"} for ratio in (2, 3)]
    assert found[0]["settings"]["select.by"]["source"] == "recipe"
    text = nst("run", recipe, "--show-settings")
    assert text.startswith(f"generation 0, the teacher: local-dir:{recipe.parent / 'large'}, already trained\n")
    assert "generation 1, student wide\n" in text


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (
            {"generations": [TINY], "students": [STUDENTS[0], STUDENTS[0]]},
            r"`students`: two are called slim; give one",
        ),
        ({"generations": [TINY], "students": [SHORT | {"name": "B0"}, SHORT | {"name": "b0"}]}, r"`students`: two are called B0; give one"),
        (
            {"generations": [TINY], "students": [STUDENTS[0] | {"finetune": {"epochs": 1}}, SHORT | {"name": "slim-before-finetuning"}]},
            r"`students`: two.*slim-before-finetuning.*another `name`",
        ),
        ({"generations": [TINY], "students": [SHORT | {"name": "../x"}]}, r"name 'bugs-teacher-\.\./x': expected ASCII letters, digits"),
        ({"students": STUDENTS}, r"`generations`:.*student or more, found 0.*`teacher: MODEL`"),
        ({"teacher": "bugs-teacher-wide", "students": STUDENTS}, r"`teacher` bugs-teacher-wide:.*another `name`"),
        ({"generations": [TINY], "students": [STUDENTS[0] | {"validate_every": 1}]}, r"`validate_every` needs validation images"),
    ],
)
def test_what_students_of_one_teacher_cannot_be_is_one_line(tmp_path, parts, says):
    sources = {role: {"source": f"/{role}"} for role in ("labeled", "pool")}
    with pytest.raises(UsageError, match=says):
        parse_recipe(yaml.safe_dump({"name": "bugs", **sources, **parts}), tmp_path / "bugs.yaml")


def test_students_come_after_the_last_generation_and_have_the_recipes_seed(tmp_path):
    sources = {role: {"source": f"/{role}"} for role in ("labeled", "pool")}
    content = {"name": "bugs", **sources, "seed": 5, "generations": [TINY, TINY], "students": [STUDENTS[0], STUDENTS[1] | {"seed": 7}]}
    networks = parse_recipe(yaml.safe_dump(content), tmp_path / "bugs.yaml").networks
    assert [(one.generation, one.store_name("bugs"), one.settings.seed) for one in networks] == [
        *((0, "bugs-teacher", 5), (1, "bugs-teacher", 5), (2, "bugs-teacher-slim", 5), (2, "bugs-teacher-wide", 7)),
    ]
