"""`nst schema`: editors complete and check recipes by it."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from nst_cli.main import app
from typer.testing import CliRunner

from nst_data.errors import UsageError
from nst_train.recipes.reading import parse_recipe
from nst_train.recipes.schema import MODELINE, SCHEMA_FILE, recipe_schema, schema_text, write_schema

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
RECIPE = """\
name: flowers
labeled: {source: photos/labeled}
pool: {source: photos/pool}
holdout: 0.2
select: {per_class: 100, exclude_class: [7, rose]}
evaluate: {suite: [fgsm], epsilon: 2/255}
run:
reviews: {1: flowers@review-1}
generations:
  - &first {model: test_resnet, epochs: 3, noise: {magnitude: 5}}
  - {<<: *first, ratio: 3, loss: sum, finetune: {epochs: 1.5}}
  - {preset: efficientnet-b0, start: teacher}
"""


@pytest.fixture(scope="module")
def validator():
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def faults(validator, text):
    return [fault.message for fault in validator.iter_errors(yaml.safe_load(text))]


def test_the_published_schema_is_the_one_of_the_command():
    result = CliRunner().invoke(app, ["schema"])
    assert (ROOT / "docs" / SCHEMA_FILE).read_text() == result.stdout == schema_text(), f"nst schema > docs/{SCHEMA_FILE}"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_names_the_schema_in_its_first_line_and_keeps_to_it(path, validator):
    assert path.read_text().splitlines()[0] == MODELINE
    assert (path.parent / MODELINE.partition("=")[2]).read_text() == schema_text()
    assert faults(validator, path.read_text()) == []


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        ("holdout: 0.2", "holdout: 0.2"),
        ("run:", "teacher: other@gen-1"),
        ("run:", "teacher: {model: clip, class_names: [ant, bee]}"),
        ("evaluate: {suite: [fgsm], epsilon: 2/255}", "evaluate: [{suite: clean, name: more, data: other}]"),
        ("reviews: {1: flowers@review-1}", "reviews: flowers@review-1"),
        ("per_class: 100", "per_class: none"),
        ("loss: sum", "class_weights: null"),
    ],
)
def test_what_a_recipe_may_say_in_several_ways_keeps_to_the_schema(given, instead, validator):
    assert given in RECIPE
    text = RECIPE.replace(given, instead)
    parse_recipe(text.replace("holdout: 0.2", "test: {source: t}"), Path("/recipes/a.yaml"))
    assert faults(validator, text) == []


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        ("holdout: 0.2", "hold_out: 0.2"),
        ("holdout: 0.2", "holdout: 2"),
        ("labeled: {source", "labeled: {sources"),
        ("name: flowers\n", ""),
        ("per_class: 100", "per_class: 0"),
        ("per_class: 100", "per_class: all"),
        ("suite: [fgsm]", "suite: [fgms]"),
        ("epochs: 3", "epochs: three"),
        ("epochs: 3", "epochs: 0"),
        ("ratio: 3", "ratio: [3]"),
        ("ratio: 3", "ration: 3"),
        ("loss: sum", "loss: summ"),
        ("magnitude: 5", "magnitude: 101"),
        ("magnitude: 5", "magnitud: 5"),
        ("finetune: {epochs: 1.5}", "finetune: {epoch: 1.5}"),
        ("finetune: {epochs: 1.5}", "finetune: true"),
        ("efficientnet-b0", "efficientnet-b9"),
        ("start: teacher", "pretrained: maybe"),
    ],
)
def test_a_recipe_that_nst_refuses_does_not_keep_to_the_schema(given, instead, validator):
    assert given in RECIPE
    text = RECIPE.replace(given, instead)
    with pytest.raises(UsageError):
        parse_recipe(text, Path("/recipes/a.yaml"))
    assert faults(validator, text) != []


def test_every_key_of_the_schema_says_what_it_is():
    schema = recipe_schema()
    places = {"recipe": schema["properties"]} | {name: one["properties"] for name, one in schema["$defs"].items()}
    assert [(name, key) for name, keys in places.items() for key, one in keys.items() if not one.get("description")] == []


def test_the_schema_beside_a_recipe_is_renewed_and_no_file_of_anothers_is(tmp_path):
    write_schema(tmp_path)
    path = tmp_path / SCHEMA_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"properties": {}}))
    write_schema(tmp_path)
    assert path.read_text() == schema_text()
    path.write_text("{}")
    assert not write_schema(tmp_path)
    assert path.read_text() == "{}"
    path.unlink()
    path.mkdir()
    assert not write_schema(tmp_path)


@pytest.mark.parametrize("value", ["1e-3", "1E-3", "1e3", "2.5e-1", "+1e-2"])
def test_a_number_with_an_exponent_is_taken_by_schema_and_reader(value, validator):
    text = RECIPE.replace("epochs: 3,", f"epochs: 3, learning_rate: {value}, momentum: 5e-1,")
    assert faults(validator, text) == []
    assert parse_recipe(text, Path("flowers.yaml")).generations[0].learning_rate == float(value)


@pytest.mark.parametrize("value", ["slow", "e-3", "1e", "-1.0", "'1e-3 '", "[1e-3]", "0"])
def test_what_is_no_learning_rate_is_a_fault(value, validator):
    assert faults(validator, RECIPE.replace("epochs: 3,", f"epochs: 3, learning_rate: {value},"))
