"""Wrong use of `nst label`: one line that says what was expected, exit status 2, nothing written."""

import re

import pytest
from conftest import write_class_folders, write_pool
from labels import table_rows
from nst_cli.main import app
from typer.testing import CliRunner
from wording import mentions

from nst_data.store.store import Store


def run(*arguments):
    return CliRunner().invoke(app, [str(word) for word in arguments], catch_exceptions=False)


def error_line(*arguments):
    """The one line of a command that is wrong."""
    result = run("label", *arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("nst: ")
    assert result.stdout == ""
    return line.removeprefix("nst: ")


@pytest.fixture
def known(tiny_store):
    """A store whose versions may be named, and the words that name it."""
    return "--store", tiny_store[0].root


@pytest.fixture
def nothing_new(tiny_store):
    """Checks that the store holds the versions it held before."""
    store = tiny_store[0]
    before = [version.ref for version in store.versions()], store.unfinished()
    yield
    assert ([version.ref for version in store.versions()], store.unfinished()) == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "SOURCE is missing"),
        (("POOL",), "--teacher MODEL is missing"),
        (("POOL", "--teacher", "tiny-teacher"), "--corpus NAME is missing"),
        (("--teacher", "tiny-teacher", "--corpus", "wrong"), "SOURCE is missing"),
        (("POOL", "--like", "tiny@gen-1.1"), "--teacher MODEL is missing"),
    ],
)
@pytest.mark.usefixtures("nothing_new")
def test_what_is_missing_is_named(known, pool_folder, words, says):
    line = error_line(*(pool_folder if word == "POOL" else word for word in words), *known)
    assert line == f"nst label SOURCE --teacher MODEL --corpus NAME: {says}"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--extend", "tiny@gen-1", "--like", "tiny@gen-1.1"), "--extend and --like … give one of them"),
        (
            ("--extend", "tiny@gen-1", "--top-k", "2"),
            "--extend tiny@gen-1 … give only SOURCE",
        ),
        (("--extend", "tiny@gen-1", "--teacher", "tiny-teacher"), "--extend tiny@gen-1 … give only SOURCE"),
        (("--extend", "tiny@gen-1", "--corpus", "other"), "--extend tiny@gen-1 … give only SOURCE"),
        (("--extend", "tiny@gen-1", "--generation", "2"), "--extend tiny@gen-1 … give only SOURCE"),
        (("--extend", "tiny@gen-1.1"), "tiny@gen-1.1: expected a generation in the store"),
        (("--extend", "nothing@gen-1"), "nothing@gen-1: expected a generation in the store"),
        (("--like", "tiny@gen-1.1", "--teacher", "tiny-teacher", "--corpus", "x"), "--like tiny@gen-1.1: remove --corpus"),
        (("--like", "tiny@gen-1", "--teacher", "tiny-teacher"), "tiny@gen-1: expected an edition in the store"),
        (("--like", "tiny@1", "--teacher", "tiny-teacher"), "version '1': expected gen-N or gen-N.K"),
    ],
)
@pytest.mark.usefixtures("nothing_new")
def test_what_was_labeled_before_is_named_alone(known, pool_folder, words, says):
    assert mentions(error_line(pool_folder, *words, *known), says)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--worker", "2/2"), "worker 2/2: … 0/2 to 1/2"),
        (("--worker", "one"), "--worker: expected i/n, such as 0/4"),
        (("--worker", "0/0"), "--worker: expected i/n, such as 0/4"),
        (("--stream",), "is not a Hub dataset; remove --stream"),
        (("--temperature", "0"), "--temperature: … above 0, found 0"),
        (("--temperature", "nan"), "--temperature: … finite number, found nan"),
        (("--batch-size", "-1"), "--batch-size: … at least 0, found -1"),
        (("--rows-per-shard", "0"), "--rows-per-shard: … at least 1, found 0"),
        (("--top-k", "0"), "--top-k: … at least 1, found 0"),
        (("--limit", "0"), "--limit: … at least 1, found 0"),
        (("--decode-threads", "0"), "--decode-threads: … at least 1, found 0"),
        (("--class-names", "names.txt"), "--class-names names.txt: … image-text models"),
        (("--label-column", "kind"), "--label-column applies to --calibrate SOURCE"),
        (("--image-column", "image"), "image files, …; remove --image-column"),
        (("--corpus", "../outside"), "name '../outside': expected ASCII letters, digits"),
        (("--teacher", "tiny-techer"), "tiny-techer: no network of timm and no teacher … did you mean tiny-teacher"),
        (("--teacher", "tiny-teacher@gen-9"), "tiny-teacher@gen-9: expected a teacher in the store"),
        (("--corpus", "tiny-teacher"), "tiny-teacher"),
    ],
)
@pytest.mark.usefixtures("nothing_new")
def test_a_wrong_value_is_named(known, pool_folder, words, says):
    given = {"--teacher": "tiny-teacher", "--corpus": "wrong"} | ({words[0]: words[1]} if len(words) > 1 else {})
    options = [word for pair in given.items() for word in pair]
    result = run("label", pool_folder, *options, *(words if len(words) == 1 else ()), *known)
    (line,) = result.stderr.splitlines()
    assert mentions(line, says)
    assert result.exit_code == (1 if "--corpus" in words and "outside" not in words[1] else 2)


@pytest.mark.usefixtures("nothing_new")
def test_a_temperature_that_is_fitted_is_not_given(known, pool_folder, tmp_path):
    data = write_class_folders(tmp_path / "data", ["ant", "bee", "cat"], 2, first=300)
    words = ["--teacher", "tiny-teacher", "--corpus", "wrong", "--calibrate", data, "--temperature", "2"]
    assert "--calibrate fits the temperature; remove --temperature" in error_line(pool_folder, *words, *known)


def test_every_option_of_the_help_stands_whole_at_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 80)  # its variable is read once, for all tests that follow
    text = run("label", "--help").stdout
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for option in ("--teacher", "--extend", "--like", "--calibrate", "--retry-errors", "--exact-transform", "--worker", "--temperature"):
        assert re.search(rf"{option}\b", text)


def test_the_commands_of_the_help_work(tmp_path, known, tiny_store):
    pool = write_pool(tmp_path / "pool", 2, 3)
    data = write_class_folders(tmp_path / "data", ["ant", "bee", "cat"], 2, first=300)
    first = run("label", pool, "--teacher", "tiny-teacher", "--corpus", "used", "--calibrate", data, *known)
    assert first.exit_code == 0, first.output
    assert "used@gen-1: 6 of 6 images labeled, 0 could not be read" in first.stdout
    assert re.search(r"\n  temperature [\d.]+: expected calibration error [\d.]+%, [\d.]+% with it\n", first.stdout)
    write_pool(pool, 2, 4)
    extended = run("label", pool, "--extend", "used@gen-1", "--worker", "0/1", "--retry-errors", *known)
    assert extended.exit_code == 0, extended.output
    assert "used@gen-2: 8 of 8 images labeled" in extended.stdout
    balanced = run("balance", "used@gen-2", "--min-confidence", "0", "--per-class", "5", *known)
    assert balanced.exit_code == 0, balanced.output
    again = run("label", "--like", "used@gen-2.1", "--teacher", "tiny-teacher", "--temperature", "2", *known)
    assert again.exit_code == 0, again.output
    chosen = table_rows(Store(tiny_store[0].root).open("used@gen-3.1"), "balanced")
    assert f"used@gen-3.1: {len(chosen)} images labeled again, {sum(row['copies'] for row in chosen)} entries" in again.stdout
