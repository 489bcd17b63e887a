"""Images selected by one model, labeled by another: the paper's selection (sections 3.1 and A.4)."""

import shutil

import pytest
import yaml
from conftest import TINY, write_tiny_images, write_tiny_recipe
from labels import RUN, SETTINGS, table_rows, write_teacher

from nst_data.errors import NstError, UsageError
from nst_data.progress import Progress
from nst_data.selection.editions import balance
from nst_data.settings import BalanceSettings
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_train.labeling.label import label, label_like
from nst_train.noisy_student import self_training
from nst_train.recipes.reading import load_recipe, parse_recipe
from nst_train.settings import LabelSettings

CLASSES = ["ant", "bee", "cat"]
SELECT = {"min_confidence": 0.5, "per_class": 4, "by": "local-dir:small", "when": "once"}
LABEL = SETTINGS.model_dump() | {"temperature": 2.0}
SHORT = TINY | {"epochs": 1}
STUDENT = SHORT | {"ratio": 2}
PARTS = {"label": LABEL, "run": {"workers": 0, "decode_threads": 1}, "generations": [SHORT, STUDENT, STUDENT]}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with labeled and test images, a pool and a trained model, whose classes have another order."""
    top = write_tiny_images(tmp_path_factory.mktemp("images"))
    write_teacher(top / "small", CLASSES[::-1], seed=0)  # sees two of the classes
    return top


@pytest.fixture(scope="module")
def finished(images):
    """The store of a recipe of two students whose images `small` selected, and its generations."""
    store = Store(images / "store")
    return store, self_training(store, load_recipe(write_tiny_recipe(images, select=SELECT, **PARTS)), progress=Progress())


def test_one_model_selects_once_and_each_teacher_labels_what_was_selected(images, finished):
    store, generations = finished
    corpus = [version for version in store.versions("bugs") if version.manifest.kind != "teacher"]
    assert [version.ref for version in corpus] == ["bugs@gen-0", "bugs@gen-0.1", "bugs@gen-1.1", "bugs@gen-2.1"]
    selection, edition, first, second = (version.manifest.request for version in corpus)
    assert selection.inputs.teacher.ref == f"local-dir:{images / 'small'}"
    assert edition.inputs.generation.ref == "bugs@gen-0"
    assert [one.inputs.teacher.ref for one in (first, second)] == ["bugs-teacher@gen-0", "bugs-teacher@gen-1"]
    assert [one.edition and one.edition.ref for one in generations] == [None, "bugs@gen-1.1", "bugs@gen-2.1"]
    assert [one.corpus and one.corpus.ref for one in generations] == [None, "bugs@gen-0", None]
    assert (selection.settings["temperature"], first.settings["temperature"]) == (1.0, 2.0)


def test_the_selection_is_the_one_computed_by_hand(images, finished, tmp_path):
    """Of each class of the selecting model the four surest images above 0.5, four entries; soft labels are the teacher's."""
    store, pool = finished[0], open_source(str(images / "pool"))
    of_small = table_rows(label(Store(tmp_path), "small", f"local-dir:{images / 'small'}", pool, SETTINGS, run=RUN))
    teacher = finished[0].open("bugs-teacher@gen-0")
    of_teacher = label(store, "whole", teacher, pool, LabelSettings(**LABEL), run=RUN)
    expected = {}
    for number in {row["label"] for row in of_small}:
        sure = sorted((row["confidence"], row["key"]) for row in of_small if row["label"] == number and row["confidence"] > 0.5)
        expected[number] = {key for _, key in sure[-4:]}
    assert sorted(map(len, expected.values())) == [2, 4], "one class has fewer images than entries, the other more"
    assert min(row["confidence"] for row in of_small) < 0.5, "some are not sure enough"
    by_key, classes_of_small = {row["key"]: row for row in table_rows(of_teacher)}, {row["key"]: row["label"] for row in of_small}
    trained_on = table_rows(store.open("bugs@gen-1.1"), "balanced")
    assert {row["key"] for row in trained_on} == set().union(*expected.values())
    for number, keys in expected.items():
        copies = [row["copies"] for row in trained_on if row["key"] in keys]
        assert (sum(copies), max(copies, default=0) - min(copies, default=0) <= 1) == (4 if keys else 0, True)
        assert all(classes_of_small[key] == number for key in keys)
    for row in trained_on:
        assert row["label"] == by_key[row["key"]]["label"]
        assert row["probs"] == pytest.approx(by_key[row["key"]]["probs"], abs=1e-3)
    names = store.open("bugs@gen-0").manifest.class_names, of_teacher.manifest.class_names
    assert [names[0][classes_of_small[row["key"]]] for row in trained_on] != [names[1][row["label"]] for row in trained_on]


def test_the_single_steps_give_the_same_bytes(images, finished, tmp_path):
    store = Store(tmp_path / "store")
    shutil.copytree(finished[0].open("bugs-teacher@gen-0").folder, store.root / "teachers" / "bugs-teacher" / "gen-0")
    labeled, test = (open_source(str(images / role), labeled=True) for role in ("labeled", "test"))
    corpus = label(store, "bugs", f"local-dir:{images / 'small'}", open_source(str(images / "pool")), SETTINGS)
    selected = balance(store, corpus, BalanceSettings(min_confidence=0.5, per_class=4), exclude=[labeled, test])
    again = label_like(store, selected, "bugs-teacher@gen-0", settings=LabelSettings(**LABEL))
    assert (corpus.ref, selected.ref, again.ref) == ("bugs@gen-1", "bugs@gen-1.1", "bugs@gen-2.1")
    made = [finished[0].open(ref).manifest.digest for ref in ("bugs@gen-0", "bugs@gen-0.1", "bugs@gen-1.1")]
    assert made == [one.manifest.digest for one in (corpus, selected, again)]


def test_a_store_in_which_the_recipe_selected_by_its_own_teacher_is_not_mixed_with_it(images, tmp_path):
    store = Store(tmp_path / "store")
    label(store, "bugs", f"local-dir:{images / 'small'}", open_source(str(images / "pool")), SETTINGS, run=RUN)
    recipe = load_recipe(write_tiny_recipe(images, select=SELECT, **PARTS))
    with pytest.raises(NstError, match=r"`select\.by`.*/small:.*bugs.*\(bugs@gen-1\).*`name`, or remove `by`"):
        self_training(store, recipe, progress=Progress())
    assert [version.ref for version in store.versions()] == ["bugs@gen-1"]


@pytest.mark.parametrize(
    ("by", "says"),
    [
        ("local-dir:other", r"^select\.by: local-dir:.*other:.*3 classes \(ant, bee, cat\), found 2 \(bee, dog\).*Name a model"),
        ("test_resnett", r"^select\.by: test_resnett: no network.*no teacher.*test_resnet "),
    ],
)
def test_a_model_that_cannot_select_stops_the_loop_before_any_work(images, by, says, tmp_path):
    shutil.copytree(images, tmp_path / "images", ignore=shutil.ignore_patterns("store"))
    write_teacher(tmp_path / "images" / "other", ["bee", "dog"])
    path = write_tiny_recipe(tmp_path / "images", select=SELECT | {"by": by}, **PARTS)
    with pytest.raises(NstError, match=says):
        self_training(Store(tmp_path / "store"), load_recipe(path), progress=Progress())
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"select": {"by": "x"}}, r"line \d+: select: `by` x.*`when: once`, or remove `by`"),
        (
            {"select": {"by": "bugs-teacher@gen-0", "when": "once"}},
            r"`select\.by` bugs-teacher@gen-0.*another model, or remove `by`",
        ),
        ({"select": {"by": "x", "when": "once"}, "teacher": "x"}, r"`select\.by` x is the teacher.*another model, or remove `by`"),
    ],
)
def test_what_cannot_be_beside_another_selecting_model_is_one_line(tmp_path, parts, says):
    sources = {role: {"source": f"/{role}"} for role in ("labeled", "pool")}
    with pytest.raises(UsageError, match=says):
        parse_recipe(yaml.safe_dump({"name": "bugs", **sources, "generations": [TINY, TINY], **parts}), tmp_path / "bugs.yaml")
