"""`nst evaluate` as a user types it."""

import json
import shutil
import subprocess
import sys
import time

import pytest
from conftest import TINY, picture, write_tiny_recipe
from nst_cli.evaluation_tables import print_results
from nst_cli.main import app
from typer.testing import CliRunner
from wording import mentions

from nst_data.sources import open_source
from nst_data.store.metrics import Metrics
from nst_data.store.store import Store
from nst_train.evaluation_settings import EvaluateSettings, result_name
from nst_train.settings import RunSettings, TrainSettings
from nst_train.training.train import train

pytestmark = pytest.mark.usefixtures("drawn")

CLASSES = ["ant", "bee", "cat"]
SETTINGS = TINY | {"image_size": 32, "epochs": 30}


def write_images(folder, per_class, first=0):
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(first, first + per_class):
            picture(label, index, 32).save(folder / name / f"{index:03d}.png")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(store, test folder) with a barely trained gen-0 and a gen-1 that has learned."""
    top = tmp_path_factory.mktemp("evaluated")
    labeled, test = write_images(top / "labeled", 4), write_images(top / "test", 5, first=50)
    store = Store(top / "store")
    for number, epochs in enumerate((1, 30)):
        settings = TrainSettings(**SETTINGS | {"epochs": epochs, "seed": number})
        train(store, "net", open_source(str(labeled), labeled=True), settings, generation=number, run=RunSettings(workers=0))
    return store, test


@pytest.fixture
def copied(trained, tmp_path):
    """The same, to write to."""
    shutil.copytree(trained[0].root, tmp_path / "store")
    return Store(tmp_path / "store"), trained[1]


def run_evaluate(status, copied, *arguments):
    store, test = copied
    command = ["evaluate", "net@gen-0", "net@gen-1", "--data", test, "--store", store.root, *arguments]
    result = CliRunner().invoke(app, [str(word) for word in command], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result.stdout if status == 0 else result.stderr.strip().splitlines()[-1]


def test_models_stand_side_by_side(copied):
    table = run_evaluate(0, copied)
    assert [line.split()[0] for line in table.splitlines()] == ["clean", "model", "net@gen-0", "net@gen-1"]
    found = json.loads(run_evaluate(0, copied, "--json"))
    assert list(found) == ["net@gen-0", "net@gen-1"]
    for model, result in found.items():
        line = next(line for line in table.splitlines() if model in line)
        assert f"{100 * result['top1']:.2f}%" in line
        assert f"{result['nll']:.4f}" in line
        assert f"{result['ece']:.4f}" in line
        assert sum(one["images"] for one in result["classes"].values()) == result["images"] == 15


def test_a_name_alone_is_the_newest_version_by_its_number(copied):
    store, test = copied
    words = ["evaluate", "net", "net@gen-1", "--data", str(test), "--store", str(store.root), "--json"]
    assert list(json.loads(CliRunner().invoke(app, words, catch_exceptions=False).stdout)) == ["net@gen-1"]


def test_one_model_alone_shows_its_worst_classes_and_mistakes(copied):
    store, test = copied
    words = ["evaluate", "net@gen-0", "--data", str(test), "--store", str(store.root)]
    shown = CliRunner().invoke(app, words, catch_exceptions=False).stdout
    assert "classes with the lowest accuracy" in shown
    assert "most frequent mistakes" in shown


def test_classes_without_a_mistake_are_not_listed_as_the_worst(capsys):
    classes = {"ant": {"top1": 1.0, "images": 2}, "bee": {"top1": 0.5, "images": 2}}
    of_all = {"top1": 0.75, "nll": 0.5, "ece": 0.1, "images": 4, "errors": 0, "confusions": []}
    print_results({"clean": {"net@gen-0": of_all | {"classes": classes}}})
    assert capsys.readouterr().out.split("lowest accuracy")[1].split() == ["class", "top-1", "images", "bee", "50.00%", "2"]
    print_results({"clean": {"net@gen-0": of_all | {"classes": {"ant": classes["ant"]}}}})
    assert "lowest accuracy" not in capsys.readouterr().out


@pytest.mark.slow
def test_every_suite_of_own_images_is_printed_recorded_and_drawn(copied, tmp_path):
    store, test = copied
    suites = [word for suite in ("clean", "corruptions", "fgsm", "pgd") for word in ("--suite", suite)]
    words = [
        *suites,
        "--epsilon",
        "2/255,8/255",
        "--steps",
        2,
        "--relative-to",
        "net@gen-0",
        "--record",
        "test",
        "--plots",
        tmp_path / "plots",
    ]
    table = run_evaluate(0, copied, *words, "--compare")
    assert "corruptions, 15 images: error relative to net@gen-0's, in %" in table
    assert next(line.split() for line in table.splitlines() if line.strip().startswith("mCE"))[1] == "100.0"
    assert "fgsm, 15 images: top-1 by epsilon" in table
    assert "  significant" in table
    drawn = {path.name for path in (tmp_path / "plots").iterdir()}
    assert drawn == {"clean-reliability.png", "corruptions.png", "fgsm-epsilon.png", "pgd-epsilon.png", "generations.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "plots").iterdir())
    for ref in ("net@gen-0", "net@gen-1"):
        version = store.open(ref)
        metrics = Metrics.read(version.folder).model_dump()
        assert list(metrics) == ["test", "test-corruptions", "test-fgsm", "test-pgd"]
        assert metrics["test"]["source"] == str(test)
        assert len(metrics["test-corruptions"]["error"]) == 15
        assert [point["epsilon"] for point in metrics["test-pgd"]["by_epsilon"]] == [0, 2 / 255, 8 / 255]
        assert "classes" not in metrics["test"]
        card = (version.folder / "README.md").read_text()
        assert "**test**: top-1" in card
        assert f"mCE {100 * metrics['test-corruptions']['mce']:.1f} relative to net@gen" in card
        assert "under an attack of 8/255" in card
        assert (version.folder / "test-corruptions.png").is_file()
        assert version.verify() == []


def test_models_with_long_names_are_told_apart_by_numbers(capsys):
    names = ["butterflies-teacher@gen-0", "butterflies-teacher@gen-1"]
    results = {name: {"top1": 0.5, "images": 2, "errors": 0, "by_epsilon": [{"epsilon": 0, "top1": 0.5}]} for name in names}
    print_results({"fgsm": results})
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["  (1) butterflies-teacher@gen-0", "  (2) butterflies-teacher@gen-1"]
    assert [line.split()[0] for line in lines[3:]] == ["model", "(1)", "(2)"]


def test_differences_are_those_of_the_two_tables(copied):
    found = json.loads(run_evaluate(0, copied, "--suite", "clean", "--suite", "fgsm", "--epsilon", "4/255", "--compare", "--json"))
    first, second = found["net@gen-0"], found["net@gen-1"]
    by_metric = {row["metric"]: row for row in second["differences"]}
    assert "differences" not in first
    assert by_metric["top1"]["mean"] == pytest.approx(second["top1"] - first["top1"])
    assert by_metric["top1 at 4/255"]["mean"] == pytest.approx(second["fgsm"]["top1"] - first["fgsm"]["top1"])
    for row in by_metric.values():
        assert row["low"] <= row["mean"] <= row["high"]
        assert row["larger_than_chance"] == (not row["low"] <= 0 <= row["high"])


def test_what_is_kept_is_not_measured_again(copied, monkeypatch):
    first = run_evaluate(0, copied, "--suite", "fgsm", "--json")
    monkeypatch.setattr("nst_train.evaluation.trials._Observation.__call__", None)
    assert run_evaluate(0, copied, "--suite", "fgsm", "--json") == first


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--suite", "blur"], "--suite: … clean, corruptions, extra-corruptions, fgsm, pgd, imagenet-a"),
        (["--epsilon", "1/255"], "--epsilon … fgsm or pgd; add it to --suite or remove"),
        (["--suite", "fgsm", "--steps", "3"], "--steps applies to the suite pgd"),
        (["--suite", "fgsm", "--epsilon", "1/0"], "--epsilon: … 2/255 or 0.01, … found 1/0"),
        (["--suite", "fgsm", "--epsilon", "2"], "--epsilon: … above 0, up to 1"),
        (["--relative-to", "net@gen-0"], "--relative-to applies to the suite corruptions"),
        (["--partial"], "--partial … imagenet-a or imagenet-r"),
        (["--suite", "imagenet-c", "--suite", "clean"], "--suite imagenet-c … evaluate the others separately"),
        (
            ["--suite", "imagenet-c", "--class-names", "names"],
            "--class-names … not … imagenet-c, … published folders",
        ),
        (["--suite", "imagenet-c", "--stream"], "--stream … not … imagenet-c, … published folders"),
        (["--record", "fgsm", "--suite", "clean", "--suite", "fgsm"], "--record fgsm: … clean and of fgsm … choose another name"),
        (["--record", "../test"], "name '../test': expected ASCII letters, digits"),
        (["--record", "test", "test_resnet"], "--record: test_resnet … not a teacher"),
    ],
)
def test_what_makes_no_sense_is_said(copied, words, said):
    assert mentions(run_evaluate(2, copied, *words), said)


def test_one_model_alone_cannot_be_compared(copied):
    store, test = copied
    words = ["evaluate", "net@gen-0", "--data", str(test), "--store", str(store.root), "--compare"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert mentions(result.stderr, "--compare: … two models, found only net@gen-0")


def test_a_folder_that_is_not_as_published_is_one_line(copied):
    assert mentions(run_evaluate(1, copied, "--suite", "imagenet-c"), "15 corruptions … 1 to 5, missing: gaussian_noise/1")
    assert mentions(run_evaluate(1, copied, "--suite", "imagenet-a", "--partial"), "'ant'; … imagenet-a's 200")


def test_the_defaults_in_the_help_are_those_of_the_settings():
    text = CliRunner().invoke(app, ["evaluate", "--help"], env={"COLUMNS": "200"}).stdout
    assert f"[default: {EvaluateSettings().steps}]" in text
    assert "[default: clean]" in text


@pytest.mark.slow
def test_a_recipe_evaluates_every_generation(tmp_path):
    write_images(tmp_path / "labeled", 4)
    write_images(tmp_path / "test", 2, first=50)
    write_images(tmp_path / "shifted", 2, first=70)
    (tmp_path / "pool").mkdir()
    for index in range(6):
        picture(index % 3, 100 + index, 32).save(tmp_path / "pool" / f"{index}.png")
    generation = SETTINGS | {"epochs": 2}
    evaluate = [
        {"suite": ["corruptions", "fgsm"], "relative_to": "bugs-teacher@gen-0", "epsilon": "4/255"},
        {"data": "shifted", "name": "shifted"},
    ]
    parts = {"select": {"min_confidence": 0, "per_class": 2}, "run": {"workers": 0}, "evaluate": evaluate}
    recipe = write_tiny_recipe(tmp_path, generations=[generation, generation], **parts)
    words = ["run", str(recipe), "--store", str(tmp_path / "store"), "--json"]
    rows = json.loads(CliRunner().invoke(app, words, catch_exceptions=False).stdout)["generations"]
    store = Store(tmp_path / "store")
    for row in rows:
        metrics = Metrics.read(store.open(row["teacher"]).folder).model_dump()
        assert list(metrics) == ["test", "test-corruptions", "test-fgsm", "shifted"]
        assert metrics["test-fgsm"]["by_epsilon"][0]["top1"] == metrics["test"]["top1"]
        assert metrics["shifted"]["source"] == str(tmp_path / "shifted")
        assert row["metrics"]["test-corruptions"]["mce"] == metrics["test-corruptions"]["mce"]
    assert rows[0]["metrics"]["test-corruptions"]["mce"] == pytest.approx(1)
    stamps = {path: path.stat().st_mtime_ns for path in store.root.rglob("*")}
    CliRunner().invoke(app, words, catch_exceptions=False)
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*")} == stamps


@pytest.mark.parametrize(
    ("evaluate", "said"),
    [
        ({"suite": ["imagenet-c"]}, "`suite` imagenet-c.*set it as `data`"),
        ({"suite": ["fgsm"], "data": "shifted"}, r"`name` is missing:.*`data`.*metrics\.json"),
        ({"suite": ["fgsm"], "data": "shifted", "name": "../x"}, "name '../x': expected ASCII letters, digits"),
        (
            {"suite": "imagenet-c", "data": {"source": "c", "image_column": "x"}},
            "`class_names`, `image_column` and `label_column`.*imagenet-c.*remove",
        ),
        ({"suite": ["fgsm"], "size": 3}, "size: unknown key; did you mean"),
    ],
)
def test_an_evaluation_that_a_recipe_cannot_mean_is_refused_with_its_line(tmp_path, evaluate, said):
    from nst_data.errors import UsageError
    from nst_train.recipes.reading import load_recipe

    recipe = write_tiny_recipe(tmp_path, generations=[TINY, TINY], evaluate=evaluate)
    lines = recipe.read_text().splitlines()
    line = 1 + next((lines.index(key) for key in ("  size: 3", "  name: ../x") if key in lines), lines.index("evaluate:"))
    with pytest.raises(UsageError, match=rf"line {line}: evaluate.*{said}"):
        load_recipe(recipe)


def test_published_suites_and_clean_results_have_names_of_their_own(tmp_path):
    from nst_train.recipes.reading import load_recipe

    evaluate = [{"suite": "imagenet-a", "data": "a"}, {"suite": "imagenet-c", "data": "c", "name": "small"}, {"suite": ["fgsm"]}]
    recipe = load_recipe(write_tiny_recipe(tmp_path, generations=[TINY, TINY], evaluate=evaluate))
    assert [one.result_name(one.suite[0]) for one in recipe.evaluate] == ["imagenet-a", "small-imagenet-c", "test-fgsm"]
    assert [result_name("test", suite) for suite in ("clean", "imagenet-c")] == ["test", "test-imagenet-c"]
    assert result_name("imagenet-c", "imagenet-c") == "imagenet-c"


@pytest.mark.parametrize(
    "evaluate",
    [
        [{"suite": "imagenet-a", "data": "a", "name": "x"}, {"suite": "imagenet-a", "data": "b", "name": "x"}],
        [{"suite": ["fgsm"]}, {"suite": ["pgd", "fgsm"]}],
        [{"suite": ["clean"]}],
        [{"suite": ["clean"], "data": "a", "name": "test"}],
    ],
)
def test_two_results_of_a_recipe_do_not_share_a_name(tmp_path, evaluate):
    from nst_data.errors import UsageError
    from nst_train.recipes.reading import load_recipe

    with pytest.raises(UsageError, match=r"`evaluate`.*'(x-imagenet-a|test-fgsm|test)' in metrics\.json.*`name`"):
        load_recipe(write_tiny_recipe(tmp_path, generations=[TINY, TINY], evaluate=evaluate))


@pytest.mark.parametrize(
    ("evaluate", "size", "said"),
    [
        ({"suite": "corruptions", "relative_to": "other-teacher@gen-0"}, 32, "other-teacher@gen-0"),
        ({"suite": "corruptions", "relative_to": "bugs-teacher@gen-1"}, 32, "bugs-teacher@gen-1"),
        (
            {"suite": "corruptions"},
            24,
            "generation 0: corruptions require images of 32 px or more, found 24; set a larger `test_size` or `image_size`",
        ),
    ],
)
def test_an_evaluation_that_would_fail_stops_the_recipe_before_any_training(tmp_path, evaluate, size, said):
    write_images(tmp_path / "labeled", 1)
    write_images(tmp_path / "test", 1, first=50)
    write_images(tmp_path / "pool", 1, first=70)
    generation = SETTINGS | {"image_size": size}
    recipe = write_tiny_recipe(tmp_path, generations=[generation, generation], evaluate=evaluate)
    result = CliRunner().invoke(app, ["run", str(recipe), "--store", str(tmp_path / "store")])
    assert result.exit_code != 0
    assert said in result.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "store" / "teachers").exists()


def test_an_evaluation_has_the_recipes_seed_where_it_names_none(tmp_path):
    from nst_train.recipes.reading import load_recipe

    evaluate = [{"suite": "corruptions"}, {"suite": "pgd", "random_start": True, "seed": 3}]
    recipe = load_recipe(write_tiny_recipe(tmp_path, generations=[TINY, TINY], evaluate=evaluate, seed=5))
    assert [one.seed for one in recipe.evaluate] == [5, 3]


NST = ["-c", "from nst_cli.main import run; run()"]
SUITES = ["--suite", "clean", "--suite", "corruptions", "--suite", "pgd", "--steps", "2", "--random-start", "--epsilon", "4/255"]


def run_json(*command):
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_two_processes_measure_what_one_measures(copied):
    store, test = copied
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29567", "--no-python", sys.executable]
    words = ["evaluate", "net@gen-0", "net@gen-1", "--data", test, *SUITES, "--record", "test", "--json", "--store", store.root]
    two = run_json(*launcher, *NST, *words)
    shutil.rmtree(store.root / "evaluations")
    assert run_json(*NST, *words) == two


def test_a_store_that_cannot_be_written_to_keeps_nothing_and_says_so_once(trained, tmp_path, monkeypatch):
    store, test = Store(tmp_path / "store"), trained[1]
    shutil.copytree(trained[0].root, store.root, ignore=shutil.ignore_patterns("evaluations"))
    there = sorted(store.root.rglob("*"))
    with monkeypatch.context() as sealed:
        sealed.setattr("nst_data.store.files.os.access", lambda *_: False)
        command = ["evaluate", "net@gen-0", "net@gen-1", "--data", str(test), "--store", str(store.root), "--json"]
        done = CliRunner().invoke(app, command, catch_exceptions=False)
        assert done.exit_code == 0
        assert done.stderr.count("evaluations cannot be written to: results are not cached for the next run") == 1
        sealed.setattr("nst_train.evaluation.measuring.observe", None)
        assert "gen-0 is not writable; remove --record" in run_evaluate(2, (store, test), "--record", "test")
    assert sorted(store.root.rglob("*")) == there
    assert run_evaluate(0, (store, test), "--json") == done.stdout
    monkeypatch.setattr("nst_data.store.files.os.access", lambda *_: False)
    monkeypatch.setattr("nst_train.evaluation.trials.predict", None)  # what was kept before is read
    assert run_evaluate(0, (store, test), "--json") == done.stdout


@pytest.mark.slow
def test_killed_and_run_again_it_finds_the_same(trained, tmp_path):
    many, killed = write_images(tmp_path / "many", 100, first=200), tmp_path / "killed"
    shutil.copytree(trained[0].root, killed, ignore=shutil.ignore_patterns("evaluations"))
    words = ["evaluate", "net@gen-1", "--data", many, *SUITES, "--json", "--store"]
    whole = run_json(*NST, *words, trained[0].root)
    process = subprocess.Popen([sys.executable, *map(str, [*NST, *words, killed])], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kept = killed / "evaluations"
    while process.poll() is None and len(list(kept.rglob("*.npy"))) < 2:
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in kept.rglob("*.npy")}
    assert before
    assert run_json(*NST, *words, killed) == whole
    assert {path: path.stat().st_mtime_ns for path in before} == before
