"""examples/cifar10.py: all comparisons over a few generated images."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from conftest import png

from nst_data.store.store import Store

PROGRAM = Path(__file__).parent.parent / "examples" / "cifar10.py"
OPTIONS = ["--epochs", "2", "--seeds", "0"]


@pytest.fixture(scope="module")
def cifar10():
    specification = importlib.util.spec_from_file_location("cifar10", PROGRAM)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three classes: a network that learned nothing is surer of one of them than 0.3."""
    folder = tmp_path_factory.mktemp("data")
    for first, (name, each) in enumerate([("labeled", 4), ("test", 3), ("unlabeled", 10)]):
        labels = [0, 1, 2] * each
        images = [{"bytes": png(label, 100 * first + number), "path": None} for number, label in enumerate(labels)]
        columns = {"image": images} | ({} if name == "unlabeled" else {"label": labels})
        pl.DataFrame(columns).write_parquet(folder / f"{name}.parquet")
    pl.DataFrame({"label": labels}).write_parquet(folder / "unlabeled_truth.parquet")
    return folder


@pytest.fixture(scope="module")
def page(data, tmp_path_factory):
    """(page, store) of the five comparisons that need no third round."""
    store = tmp_path_factory.mktemp("store")
    command = [sys.executable, "-W", "error::UserWarning", PROGRAM, data, "--store", store, *OPTIONS, "--out", store / "page.md"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (store / "page.md").read_text() == done.stdout
    return done.stdout, store


@pytest.mark.slow
def test_each_comparison_has_its_table_with_scores_by_seed_mean_and_difference(page):
    tables = {part.partition("`")[0]: part.splitlines()[2:] for part in page[0].split("## `")[1:]}
    assert list(tables) == ["student", "noise", "hard", "balance", "joint"]
    for lines in tables.values():
        assert lines[0] == "| test top-1, % | seed 0 | mean | sd |"
        (first, one), (second, other), *_, (name, difference) = [line.split(" | ")[:2] for line in lines[2:] if line]
        assert name == f"| **{first[2:]} minus {second[2:]}**"
        assert float(difference) == pytest.approx(float(one) - float(other), abs=0.011)


@pytest.mark.slow
def test_run_again_it_trains_nothing(page, data, cifar10, capsys, monkeypatch):
    before = sorted(version.ref for version in Store(page[1]).versions())
    monkeypatch.setattr(sys, "argv", ["cifar10.py", str(data), "--store", str(page[1]), *OPTIONS])
    cifar10.main()
    said = capsys.readouterr()
    assert said.out.partition("\n## ")[2] == page[0].partition("\n## ")[2]
    assert "steps over" not in said.err
    assert sorted(version.ref for version in Store(page[1]).versions()) == before


@pytest.mark.slow
def test_a_comparison_that_turns_more_than_its_switch_is_refused(page, data, cifar10):
    lab = cifar10.Lab(data, Store(page[1]), cifar10.TrainSettings(**cifar10.SCALES["cpu"] | {"epochs": 2}, seed=0))
    students = {"soft": (cifar10.Lab.student, set()), "hard": (lambda lab: lab.student("hard", hard=True), {"noise.dropout"})}
    with pytest.raises(AssertionError, match=r"cifar10-seed-0-hard@gen-0: \['hard'\] differ, not \['noise.dropout'\] alone"):
        cifar10.scores(lab, students)


@pytest.mark.slow
def test_the_unbalanced_pool_keeps_all_of_one_class_and_a_tenth_of_another(page, data):
    pool = pl.read_parquet(page[1] / "unbalanced" / "pool.parquet").select(pl.col("image").struct.field("bytes"))
    truth = (
        pl.read_parquet(data / "unlabeled.parquet")
        .select(pl.col("image").struct.field("bytes"))
        .with_columns(pl.read_parquet(data / "unlabeled_truth.parquet")["label"])
    )
    assert sorted(pool.join(truth, on="bytes")["label"].value_counts()["count"]) == [1, 3, 10]


def test_the_table_of_two_seeds_has_means_and_spreads_by_hand(cifar10):
    assert cifar10.table(["a", "b"], [0, 1], [[60.0, 50.0], [64.0, 58.0]])[2:] == [
        "| a | 60.00 | 64.00 | 62.00 | 2.83 |",
        "| b | 50.00 | 58.00 | 54.00 | 5.66 |",
        "| **a minus b** | 10.00 | 6.00 | 8.00 | 2.83 |",
    ]


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_the_settings_of_each_scale_are_known_and_turn_all_noise_between_teacher_and_student(cifar10, scale):
    settings = cifar10.TrainSettings(**cifar10.SCALES[scale])
    noise = settings.noise.model_dump()
    assert settings.ratio > 1
    assert all(noise[name] != cifar10.MILD[name] and noise[name] for name in cifar10.STRONG)
    assert not any(noise[name] for name in noise.keys() - cifar10.STRONG.keys() - {"amounts"})  # which at 32 pixels are the same
