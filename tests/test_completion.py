"""What `nst` completes on a command line, asked as bash asks."""

import os
import subprocess
import sys

import pytest
import timm
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from nst_cli.completion import _networks, _trackers, complete_in_bash
from nst_cli.main import app
from sealed_labels import label_row, seal_edition, seal_generation
from typer.testing import CliRunner

from nst_data.store.store import Store


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("NST_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    there = Store(tmp_path / "store")
    rows = [label_row(row, row, row % 3, 0.9) for row in range(3)]
    seal_edition(there, seal_generation(there, rows), rows)
    (tmp_path / "store" / "teachers" / "bugs-teacher" / "gen-0").mkdir(parents=True)
    return there


def complete(*arguments):
    """What completes the last of some words, which bash has taken apart at `@` and `:`."""
    asked = {"_NST_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(["nst", *arguments]), "COMP_CWORD": str(len(arguments))}
    result = CliRunner().invoke(app, [], env=asked, prog_name="nst")
    return result.stdout.split()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["bal"], ["balance"]),
        (["show", "bugs"], ["bugs@gen-1", "bugs@gen-1.1", "bugs-teacher@gen-0"]),
        (["review", "freeze", "b"], ["bugs"]),
        (["balance", ""], ["bugs@gen-1", "bugs@gen-1.1"]),
        (["evaluate", "bugs-"], ["bugs-teacher@gen-0"]),
        (["train", "--name", ""], ["bugs-teacher"]),
        (["list", "bugs-"], ["bugs-teacher"]),
        (["train", "--loss", ""], ["concat", "sum", "code"]),
        (["balance", "x", "--per-class", ""], ["auto", "none"]),
        (["train", "--preset", "pretrained-"], ["pretrained-vit"]),
        (["train", "--tracker", "ml"], ["mlflow"]),
        (["evaluate", "x", "--suite", "corr"], ["corruptions"]),
        (["train", "--model", "test_resn"], ["test_resnet", "test_resnet.r160_in1k"]),
        (["label", "pool.csv", "--image-column", ""], ["path", "kind"]),
        (["label", "pool.csv", "--image-column", "k"], ["kind"]),
        (["train", "--no-pre"], ["--no-pretrained"]),
        (["run", "--se"], ["--set"]),
    ],
)
def test_words_are_completed(store, tmp_path, words, found):
    (tmp_path / "pool.csv").write_text("path,kind\na.png,ant\n")
    assert complete(*words) == found


def test_bash_gets_the_part_behind_an_at_sign(store, monkeypatch, capsys):
    for words, found in ((["show", "bugs", "@"], ["gen-1", "gen-1.1"]), (["show", "bugs", "@", "gen-1."], ["gen-1.1"])):
        monkeypatch.setenv("_NST_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", "\n".join(["nst", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        with pytest.raises(SystemExit):
            complete_in_bash(lambda: app(prog_name="nst"))
        assert capsys.readouterr().out.split() == found


def test_the_networks_are_those_of_timm():
    names = _networks(None)
    of_timm = {name for name in timm.list_models() if timm.models.model_entrypoint(name).__module__.startswith("timm.")}
    assert {name.partition(".")[0] for name in names} == of_timm
    assert "tf_efficientnet_b0.aa_in1k" in names


def test_completing_imports_no_network_library():
    asked = {"_NST_COMPLETE": "complete_bash", "COMP_WORDS": "nst\ntrain\n--model\ntest_resn", "COMP_CWORD": "3"}
    script = (
        "import atexit, sys; from nst_cli.main import run\n"
        "atexit.register(lambda: print({'torch', 'timm', 'polars'} & sys.modules.keys()))\nrun()"
    )
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | asked, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["test_resnet", "test_resnet.r160_in1k", "set()"]


def test_the_trackers_are_accelerates():
    assert set(_trackers(None)) == {*LOGGER_TYPE_TO_CLASS, "none"}
