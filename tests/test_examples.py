"""The programs in examples/ run as their first lines say."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import write_class_folders, write_pool
from PIL import Image
from sealed_labels import NAMES, label_row, seal_generation

from nst_data.store.store import Store

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def generation(tmp_path):
    """Row 1 is the image of row 0, row 2 is unsure, row 4 a class of its own."""
    labels = [("a", 0, 0.9), ("a", 0, 0.9), ("b", 0, 0.2), ("c", 0, 0.8), ("d", 1, 0.7)]
    rows = [label_row(row, *of_row) for row, of_row in enumerate(labels)]
    return seal_generation(Store(tmp_path / "store"), rows).folder


def run(name, *arguments):
    done = subprocess.run([sys.executable, EXAMPLES / name, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"python examples/{name}" in (EXAMPLES / name).read_text()
    return done.stdout


@pytest.mark.parametrize(
    "path", [path for path in sorted(EXAMPLES.glob("*.py")) if "sys.argv[" in path.read_text()], ids=lambda path: path.name
)
def test_a_program_without_its_arguments_says_how_it_is_used(path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(path)])
    with pytest.raises(SystemExit, match=rf"    python examples/{path.name} \w+"):
        runpy.run_path(str(path), run_name="__main__")


def test_the_selection_in_steps_says_what_happened_and_writes_what_is_left(generation, tmp_path):
    said = run("select_pseudo_labels.py", generation, tmp_path / "selected.parquet")
    assert said == "selected: 3\nduplicate: 1\nlow_confidence: 1\n"
    table = pl.read_parquet(tmp_path / "selected.parquet")
    assert table.select("id", "label", "duplicates", "copies").rows() == [(0, 0, 2, 500), (3, 0, 1, 500), (4, 1, 1, 1000)]
    np.testing.assert_allclose(table["probs"].to_numpy(), np.full((3, len(NAMES)), 1 / len(NAMES)), atol=1e-3)


def test_a_filter_of_ones_own_drops_small_images_and_none_of_unknown_size(generation, tmp_path):
    (tmp_path / "sides.csv").write_text("key,side_px\n000.png,40\n001.png,64\n002.png,10\n003.png,500\n")
    said = run("add_a_filter.py", generation, tmp_path / "sides.csv", tmp_path / "selected.parquet")
    assert said == "selected: 3\ntoo_small: 2\n"
    assert pl.read_parquet(tmp_path / "selected.parquet")["id"].to_list() == [1, 3, 4]


@pytest.fixture
def here(monkeypatch, capsys):
    """Runs an example in this process, as a notebook does; what it printed."""

    def run_here(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name))
        assert f"python examples/{name}" in (EXAMPLES / name).read_text()
        return capsys.readouterr().out

    return run_here


@pytest.mark.slow
def test_a_teacher_labels_a_pool_and_a_student_is_trained_on_the_balanced_labels_and_measured(here, tmp_path):
    folders = [write_class_folders(tmp_path / name, ["ant", "bee"], 4, first) for name, first in (("labeled", 0), ("test", 50))]
    store, (labeled, test), pool = tmp_path / "store", folders, write_pool(tmp_path / "pool", 2, 6)
    assert here("train_a_teacher.py", store, "net", labeled).startswith("net@gen-0: 10 steps, its weights are in ")
    said = here("label_a_pool.py", store, "net@gen-0", pool, "bugs")
    assert said.startswith("bugs@gen-1: 12 images labeled, 0 could not be read\nshape: (3, 3)")
    assert re.match(r"bugs@gen-1.1: \d+ entries from \d+ of 12 images\n", here("balance_labels.py", store, "bugs@gen-1", test))
    Image.new("RGB", (16, 16)).save(pool / "black.png")
    here("label_a_pool.py", store, "net@gen-0", pool, "more")
    assert here("leave_images_out.py", store, "more@gen-1", pool).endswith(" images, 1 dark ones are left out\n")
    assert here("train_a_teacher.py", store, "net", labeled, "bugs@gen-1.1").startswith("net@gen-1: 10 steps")
    said = here("evaluate_a_model.py", store, "net@gen-1", test)
    share = r"\d+\.\d%"
    attacked = "".join(rf"  a change of {size}/255: {share}\n" for size in (0, 1, 4))
    assert re.fullmatch(rf"net@gen-1: top-1 {share}, calibration error 0\.\d+, 8 images\n{attacked}", said)


@pytest.mark.slow
def test_the_loop_on_the_digits_trains_two_students_and_a_second_run_does_nothing(here, tmp_path):
    said = here("digits_loop.py", tmp_path, "8")
    assert re.fullmatch(r"digits-teacher@gen-0: .+%.*\ndigits-teacher@gen-1: .+%\ndigits-teacher@gen-2: .+%\n", said)
    assert here("digits_loop.py", tmp_path, "8") == said
    assert len(Store(tmp_path / "store").versions()) == 7


@pytest.mark.slow
def test_a_network_of_ones_own_is_teacher_and_student_and_a_second_run_does_nothing(tmp_path):
    folders = [write_class_folders(tmp_path / name, ["ant", "bee"], 4, first) for name, first in (("labeled", 0), ("test", 50))]
    folders.insert(1, write_pool(tmp_path / "pool", 2, 6))
    said = run("train_my_own_network.py", *folders, tmp_path / "store", "2")
    assert re.fullmatch(r"my-teacher@gen-0: top-1 \d+.\d%\nmy-teacher@gen-1: top-1 \d+.\d%\n", said)
    assert run("train_my_own_network.py", *folders, tmp_path / "store", "2") == said
    assert len(Store(tmp_path / "store").versions()) == 4
