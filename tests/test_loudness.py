"""`--quiet` and `--verbose`, `nst ls`, `--no-...`: how much a command says, and in which words it is asked."""

import json
import logging

import pytest
from nst_cli import commands
from nst_cli.main import app
from sealed_labels import label_row, seal_generation
from typer.testing import CliRunner
from wording import is_line

from nst_data.progress import set_silent
from nst_data.store.store import Store


@pytest.fixture(autouse=True)
def as_before():
    yield
    set_silent(False)
    for name in ("nst_data", "nst_train"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True


def nst(*arguments, **options):
    return CliRunner().invoke(app, [str(word) for word in arguments], **options)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("NST_STORE", str(tmp_path / "store"))
    there = Store(tmp_path / "store")
    seal_generation(there, [label_row(row, row, row % 3, 0.9) for row in range(6)])
    return there


def test_quiet_and_verbose_stand_before_or_behind_the_command(store):
    balance = ["balance", store.versions()[0].ref, "--min-confidence", "0"]
    seeds = iter([0])

    def said(*before, behind=()):
        done = nst(*before, *balance, "--seed", next(seeds), *behind)
        assert done.exit_code == 0, done.output
        assert "gen-1." in done.stdout
        return done.stderr

    said()
    seeds = iter([0, 0, 0, *range(1, 9)])
    assert "already exists" in said()
    assert said("-q") == said(behind=["--quiet"]) == ""
    for words in (said("--verbose"), said(behind=["-v"])):
        assert "is new: request" in words
        assert "seed" in words  # in what the newest of the others differs
    assert "is new" not in said()  # the next command is as loud as it says itself
    both = nst("-q", *balance, "-v")
    assert both.exit_code == 2
    assert "--quiet and --verbose" in both.stderr


def test_errors_are_said_to_the_quiet_too(store):
    done = nst("-q", "show", "nobody@gen-3")
    assert done.exit_code == 2
    assert done.stderr.startswith("nst: ")


def test_an_unexpected_error_is_a_line_and_its_traceback_is_kept(store, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(Store, "versions", lambda *_: {}["missing"])
    done = nst("list")
    assert done.exit_code == 1
    (kept,) = tmp_path.glob("nst-*.txt")
    assert done.stderr.splitlines() == [f"nst: unexpected KeyError: 'missing', this is a bug in nst; the traceback is in {kept}"]
    assert "Traceback" in kept.read_text()
    loud = nst("list", "-v")
    assert loud.exit_code == 1
    assert "Traceback" in loud.stderr
    assert len(list(tmp_path.glob("nst-*.txt"))) == 1


def test_ls_is_list(store):
    assert nst("ls").stdout == nst("list").stdout != ""
    assert json.loads(nst("ls", "--json").stdout)["versions"]
    assert nst("lss").exit_code == 2


def test_a_flag_that_a_preset_sets_can_be_switched_off():
    words = ["train", "--preset", "pretrained", "--model", "test_resnet", "--show-settings", "--json"]
    flags = ["--no-pretrained", "--no-freeze-batch-norm"]
    by_preset, off = (json.loads(nst(*words, *more).stdout)["settings"] for more in ([], flags))
    for name in ("pretrained", "freeze_batch_norm"):
        assert (by_preset[name]["value"], off[name]["value"]) == (True, False)
        assert off[name]["source"] == f"--no-{name.replace('_', '-')}"


def test_the_words_of_an_option_name_no_number_where_it_takes_none():
    options = {one.name: one.metavar for one in commands.load_command("train").params}
    assert options["class_weights"] == "balanced"
    assert {one.name: one.metavar for one in commands.load_command("balance").params}["per_class"] == "N|auto|none"


def test_before_the_command_too_a_contradiction_and_an_unknown_option_are_one_line(store):
    for words, says in ((["-q", "-v", "ls"], "--quiet and --verbose … pass only one"), (["--loud", "ls"], "--loud … `nst --help`")):
        done = nst(*words)
        assert (done.exit_code, done.stdout) == (2, "")
        assert is_line(done.stderr.strip(), f"nst: … {says} …")


def test_quiet_stands_between_a_group_and_its_command_too(store):
    corpus = store.versions()[0].name
    within, behind = nst("review", "-q", "freeze", corpus), nst("review", "freeze", corpus, "-q")
    assert (within.exit_code, within.stderr) == (behind.exit_code, behind.stderr)
    assert "No such option" not in within.stderr
    assert "--verbose" in nst("review", "-q", "freeze", corpus, "-v").stderr
