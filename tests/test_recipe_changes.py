"""`nst run --set`: a value in place of the recipe's, as if the file had said it."""

from pathlib import Path

import pytest
import yaml
from conftest import TINY, write_tiny_images, write_tiny_recipe
from nst_cli.main import app
from typer.testing import CliRunner
from wording import mentions

from nst_data.errors import UsageError
from nst_train.recipes.changes import parse_changes
from nst_train.recipes.reading import load_recipe, parse_recipe

RECIPE = """\
name: flowers
labeled: {source: /photos/labeled}
pool: {source: /photos/pool}
label:
generations:
  - &teacher {model: test_resnet, epochs: 3, noise: &noise {magnitude: 5}}
  - &student {<<: *teacher, ratio: 3}
  - *student
evaluate: {suite: fgsm, name: x, data: /photos/other}
reviews: {1: flowers@review-1}
"""
PLACE = Path("/recipes/flowers.yaml")


def parse(*arguments, text=RECIPE):
    return parse_recipe(text, PLACE, parse_changes(arguments))


@pytest.mark.parametrize(
    ("word", "line", "instead"),
    [
        ("generations.1.ratio=7", "ratio: 3", "ratio: 7"),
        ("name=daisies", "name: flowers", "name: daisies"),
        ("label.temperature=2", "label:", "label: {temperature: 2}"),
        ("select={per_class: none}", "label:", "select: {per_class: none}"),
        ("reviews.1=flowers@review-2", "review-1", "review-2"),
        ("evaluate.suite=[fgsm, pgd]", "suite: fgsm", "suite: [fgsm, pgd]"),
        ("evaluate.0.suite=[fgsm, pgd]", "suite: fgsm", "suite: [fgsm, pgd]"),
        ("generations.0.learning_rate=1e-3", "epochs: 3,", "epochs: 3, learning_rate: 1e-3,"),
    ],
)
def test_a_changed_recipe_is_the_one_that_a_file_with_the_value_makes(word, line, instead):
    text = RECIPE.replace("  - *student\n", "")
    changed = parse(word, text=text)
    if word.startswith("generations.0"):  # in the file the anchor would give it to the student too
        assert changed.generations[0].learning_rate == 1e-3
        assert changed.generations[1] == parse(text=text).generations[1]
        return
    assert changed == parse(text=text.replace(line, instead))
    assert changed != parse(text=text)


def test_what_an_anchor_shares_is_changed_in_the_named_place_alone():
    recipe = parse("generations.1.noise.magnitude=9", "generations.2.ratio=5", "generations.2.ratio=6")
    assert [one.noise.magnitude for one in recipe.generations] == [5, 9, 5]
    assert [one.ratio for one in recipe.generations] == [1, 3, 6]  # of one key the last word counts
    assert parse("evaluate=null", "test={source: /t}", "test=null") == parse("evaluate=[]")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("generations.1.ration=7", r"`changes` generations\.1\.ration:.*did you mean ratio\?"),
        ("generation.1.ratio=7", r"`changes` generation\.1\.ratio: generation:.*did you mean generations\?"),
        ("generations.1.noise={magnitud: 3}", r"`changes` generations\.1\.noise: magnitud:.*did you mean magnitude\?"),
        ("generations.1.ratio=0", r"`changes` generations\.1\.ratio:.*at least 1, found 0"),
        ("generations.1.ratio=seven", r"`changes` generations.1.ratio: .*found 'seven'"),
        ("generations.9.ratio=7", r"`changes` generations\.9\.ratio:.*0 to 2, found 9"),
        ("generations.one.ratio=7", r"`changes` generations\.one\.ratio:.*0 to 2, found one"),
        ("name.first=x", r"`changes` name\.first:.*'flowers'.*no keys.*name=VALUE"),
        ("evaluate.suite=fgms", r"`changes` evaluate.suite.*fgms"),
        ("generations.1.mixup=[", r"`changes` generations.1.mixup=\[: expected a value in YAML; a bracket is not closed, or"),
        ("generations.1.ratio", r"`changes` generations.1.ratio: expected KEY=VALUE"),
        ("seed=", r"`changes` seed=: expected KEY=VALUE.*null"),
        ("pool.label_column=x", r"`changes` pool\.label_column: has no effect.*remove it"),
        ("generations.0.start=teacher", r"^/recipes/flowers.yaml: the first generation .*\(with `changes` generations.0.start\)"),
        ("generations.1.steps=5", r"line 7: generations\.1: `steps` replaces `epochs`.*\(with `changes` generations\.1\.steps\)"),
    ],
)
def test_a_wrong_change_is_named(word, message):
    with pytest.raises(UsageError, match=message):
        parse(word)


def test_a_fault_of_the_file_keeps_its_line_beside_a_change():
    with pytest.raises(UsageError, match=r"line 7: generations\.1\.ration:.*did you mean ratio\?$"):
        parse("generations.0.epochs=4", text=RECIPE.replace("ratio: 3", "ration: 3"))


def run(*arguments):
    return CliRunner().invoke(app, ["run", *map(str, arguments)])


def test_a_run_takes_changes_as_its_dry_run_and_its_settings_do(tmp_path, monkeypatch):
    monkeypatch.setenv("NST_STORE", str(tmp_path / "store"))
    write_tiny_images(tmp_path)
    path = write_tiny_recipe(tmp_path, generations=[TINY, TINY])
    shown = run(path, "--show-settings", "--set", "generations.1.noise.magnitude=9", "--set", "select.per_class=7").stdout
    lines = [line.split() for line in shown.splitlines()]
    assert [line for line in lines if line[:1] == ["noise.magnitude"]] == [
        ["noise.magnitude", str(load_recipe(path).generations[0].noise.magnitude), *lines_from(path)],
        ["noise.magnitude", "9", "--set"],
    ]
    assert ["select.per_class", "7", "--set"] in lines
    wrong = run(path, "--dry-run", "--set", "generations.1.epoch=9")
    assert wrong.exit_code == 2
    assert mentions(wrong.stderr, "--set generations.1.epoch: … did you mean epochs?")
    assert load_recipe(path, changes={"generations.1.epochs": 9}).generations[1].epochs == 9


def lines_from(path):
    written = yaml.safe_load(path.read_text())["generations"][0].get("noise", {})
    return ["recipe"] if "magnitude" in written else ["default", "(section", "3.1)"]


def test_the_first_entry_of_a_list_may_be_set_where_there_is_none_yet():
    text = RECIPE.replace("evaluate:", "test: {source: /photos/test}\n#")
    assert [one.suite for one in parse("evaluate.0.suite=[pgd]", text=text).evaluate] == [("pgd",)]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("evaluate.1.suite=pgd", ["evaluate.1.suite", "entry 0", "found 1", "such as evaluate.0.suite"]),
        ("generations.5.ratio=3", ["entries 0 to 2", "found 5", "such as generations.0.ratio"]),
        ("generations.ratio=3", ["entries 0 to 2", "found ratio", "such as generations.0.ratio"]),
        ("generations.-1.ratio=3", ["entries 0 to 2", "found -1", r"such as generations\.0$"]),
        ("generations.-1=3", ["found -1", r"such as generations\.0$"]),
        ("generations.=3", ["expected words between the dots"]),
        ("evaluate.0.suite=robustness", ["evaluate.0.suite", "corruptions", "robustness"]),
    ],
)
def test_a_place_that_does_not_exist_is_refused_with_those_that_do(word, said):
    with pytest.raises(UsageError, match=".*".join(said)):
        parse(word)


def test_an_empty_list_takes_its_first_entry_where_a_missing_one_does():
    given = "evaluate: {suite: fgsm, name: x, data: /photos/other}"
    changes = ("evaluate.0.suite=fgsm", "evaluate.0.name=x", "evaluate.0.data=/photos/other")
    assert parse(*changes, text=RECIPE.replace(given, "evaluate: []")) == parse()
    with pytest.raises(UsageError, match=r"reviews has no entries; .*reviews=\[VALUE\]"):
        parse("reviews.0=flowers@review-1", text=RECIPE.replace("{1: flowers@review-1}", "[]"))
