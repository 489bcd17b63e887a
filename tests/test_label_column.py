"""--label-column on every command that reads labels: a table whose `label` is not what it should be trained on."""

import json

import pyarrow as pa
import pytest
from conftest import TINY, write_pool
from nst_cli.main import app
from pictures import png, write_table
from typer.testing import CliRunner

from nst_data.progress import Progress
from nst_data.store.store import Store
from nst_train.noisy_student import self_training
from nst_train.recipes.reading import parse_recipe

NETWORK = ["--model", "test_resnet", "--image-size", "16", "--epochs", "1", "--batch-size", "4", "--workers", "0", "--name", "kinds"]
KINDS = ["ant", "bee", "cat"] * 3


@pytest.fixture
def table(tmp_path):
    """Images of three kinds; `label` is an id."""
    return write_kinds(tmp_path / "x.parquet", 0)


def write_kinds(path, first):
    images = [png(row % 3, first + row) for row in range(9)]
    return write_table(path, image=images, label=pa.array(range(10**9, 10**9 + 9)), kind=KINDS)


def nst(store, *arguments):
    result = CliRunner().invoke(app, [*map(str, arguments), "--store", str(store)], catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.slow
def test_every_command_that_reads_labels_takes_their_column(table, tmp_path):
    store, named = tmp_path / "store", ["--label-column", "kind"]
    status, _, said = nst(store, "train", "--labeled", table, *NETWORK)
    assert (status, "pass --class-names FILE" in said) == (1, True)
    assert nst(store, "train", "--labeled", table, "--validation", table, *NETWORK, *named)[0] == 0
    teacher = Store(store).open("kinds@gen-0", "teacher")
    assert teacher.manifest.class_names == ["ant", "bee", "cat"]
    inputs = teacher.manifest.request.inputs
    assert (inputs.labeled.label_column, inputs.validation.label_column) == ("kind", "kind")
    assert "--label-column kind" in (teacher.folder / "README.md").read_text()
    assert json.loads(nst(store, "evaluate", "kinds", "--data", table, *named, "--json")[1])["kinds@gen-0"]["images"] == 9
    pool = write_pool(tmp_path / "pool", 3, 2)
    others = write_kinds(tmp_path / "others.parquet", 20)
    assert nst(store, "label", pool, "--teacher", "kinds", "--corpus", "bugs", "--calibrate", others, *named)[0] == 0
    generation = Store(store).open("bugs@gen-1", "generation")
    assert generation.manifest.request.inputs.calibration.label_column == "kind"
    assert "--label-column kind" in (generation.folder / "README.md").read_text()
    nst(store, "label", table, "--teacher", "kinds", "--corpus", "same")
    shown = json.loads(nst(store, "show", "same@gen-1", "--truth", table, *named, "--json")[1])
    assert (shown["quality"]["joined"], shown["quality"]["joined_by"]) == (9, "key")


@pytest.mark.slow
def test_a_recipe_names_the_column_of_each_source(table, tmp_path):
    write_pool(tmp_path / "pool", 3, 2)
    source = {"source": table, "label_column": "kind"}
    generation = {**TINY, "epochs": 1}
    text = json.dumps(
        {
            "name": "bugs",
            "labeled": source,
            "test": source,
            "pool": {"source": str(tmp_path / "pool")},
            "select": {"min_confidence": 0},
            "generations": [generation, generation],
            "run": {"workers": 0},
        }
    )
    store = Store(tmp_path / "store")
    made = list(self_training(store, parse_recipe(text, tmp_path / "x.yaml"), progress=Progress()))
    assert [one.teacher.manifest.class_names for one in made] == [["ant", "bee", "cat"]] * 2
    assert {one.teacher.manifest.request.inputs.labeled.label_column for one in made} == {"kind"}
