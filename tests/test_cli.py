"""Bad input: one clear line, a status, and nothing half-written."""

import errno
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from conftest import write_class_folders, write_pool
from labels import write_teacher
from nst_cli.commands import COMMANDS
from nst_cli.main import app
from typer.testing import CliRunner
from wording import is_line, mentions

from nst_data.store.files import hash_file
from nst_data.store.store import Store
from nst_train.waiting import wait_passively

NETWORK = ["--model", "test_resnet", "--image-size", "16", "--epochs", "1", "--batch-size", "4", "--workers", "0"]


def error_line(status, *arguments):
    """The command's one line on standard error."""
    result = CliRunner().invoke(app, [str(word) for word in arguments], catch_exceptions=False)
    assert result.exit_code == status, result.output
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("nst: ")
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


def files_in(folder):
    """But for what is kept of images, which no refusal makes wrong."""
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
    return [path for path in files if path.parent != folder / "runs" / "indexes"]


def label(pool, store, *arguments):
    return ["label", pool, "--teacher", "tiny-teacher", "--corpus", "wrong", "--store", store.root, *arguments]


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


@pytest.mark.parametrize(
    ("given", "policy", "turns"),
    [
        ({}, "passive", "1000"),
        ({"OMP_WAIT_POLICY": "active"}, "active", None),
        ({"GOMP_SPINCOUNT": "5"}, None, "5"),
        ({"KMP_BLOCKTIME": "0"}, None, None),
    ],
)
def test_threads_wait_passively_unless_the_user_says_how(monkeypatch, given, policy, turns):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "environ", dict(os.environ))  # what is set here does not stay
    wait_passively()
    assert (os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT")) == (policy, turns)


def test_no_such_folder(tiny_store, tmp_path):
    assert mentions(error_line(1, *label(tmp_path / "nowhere", tiny_store[0])), "nowhere: no such file …; … folder of images")


def test_a_slip_in_a_path_is_not_looked_for_on_the_hub(tiny_store, tmp_path, monkeypatch):
    write_class_folders(tmp_path / "photos" / "unlabeled", ["ant"], 1)
    monkeypatch.chdir(tmp_path)
    line = error_line(1, *label("photos/unlabelled", tiny_store[0]))
    assert is_line(line, "…photos/unlabelled: no such file …; did you mean photos/unlabeled?")
    line = error_line(1, *label("photos/pool", tiny_store[0]))
    assert is_line(line, f"…photos/pool: no such file …; {tmp_path}/photos has unlabeled. … Hub … photos/pool@main")


def test_what_is_no_teacher_is_answered_with_teachers(tiny_store):
    store, _, pool = tiny_store
    line = error_line(2, "label", pool, "--teacher", "tiny@gen-1", "--corpus", "new", "--store", store.root)
    assert "expected a teacher in the store" in line
    assert mentions(line, "expected a teacher …, found a generation; choose tiny-teacher@gen-0")


def test_a_folder_without_images(tiny_store, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    assert "expected images (.avif, .bmp" in error_line(1, *label(tmp_path, tiny_store[0]))


def test_a_labeled_set_with_one_class(tmp_path, store):
    write_class_folders(tmp_path / "labeled", ["ant"], 3)
    line = error_line(1, "train", "--labeled", tmp_path / "labeled", "--name", "one", *NETWORK, "--store", store)
    assert mentions(line, "two classes or more, found only 'ant'")
    assert files_in(store) == []


def test_other_classes_than_the_teachers_show_both(tiny_store, tmp_path):
    write_class_folders(tmp_path / "data", ["ant", "bee", "dog"], 1)
    line = error_line(1, "evaluate", "tiny-teacher", "--data", tmp_path / "data", "--store", tiny_store[0].root)
    assert mentions(line, "3 classes (ant, bee, cat), found 3 (ant, bee, dog); …: dog")
    assert "--class-names FILE" in line


def test_other_classes_than_the_pseudo_labels_are_refused_and_leave_nothing(tiny_store, tmp_path):
    write_class_folders(tmp_path / "data", ["ant", "bee", "dog"], 2)
    words = ["train", "--labeled", tmp_path / "data", "--pseudo", "tiny@gen-1.1", "--name", "other-classes", *NETWORK]
    line = error_line(1, *words, "--store", tiny_store[0].root)
    assert mentions(line, "3 classes (ant, bee, cat), found 3 (ant, bee, dog)")
    assert not any("other-classes" in ref for ref in tiny_store[0].unfinished())


def test_an_unknown_model_suggests_near_ones_and_leaves_nothing(tmp_path, store, labeled_folder):
    line = error_line(2, "train", "--labeled", labeled_folder, "--name", "new", *NETWORK, "--model", "efficientnet_b00", "--store", store)
    assert mentions(line, "efficientnet_b00: no network of timm and no teacher …; did you mean efficientnet_b")
    assert files_in(store) == []


def test_a_folder_in_place_of_a_network_is_told_how_to_be_named(tmp_path, store, labeled_folder, monkeypatch):
    write_teacher(tmp_path / "lite0", ["ant", "bee"])
    monkeypatch.chdir(tmp_path)
    line = error_line(2, "train", "--labeled", labeled_folder, "--name", "new", *NETWORK, "--model", "lite0", "--store", store)
    assert mentions(line, "lite0: no network of timm and no teacher …; for the folder, write local-dir:lite0")


def test_an_unknown_teacher_suggests_near_ones(tiny_store, pool_folder):
    words = ["label", pool_folder, "--teacher", "resnet500", "--corpus", "wrong", "--store", tiny_store[0].root]
    assert mentions(error_line(2, *words), "resnet500: no network of timm and no teacher …; did you mean resnet50")


def test_a_teacher_version_that_is_not_there_names_those_that_are(tiny_store, pool_folder):
    words = ["label", pool_folder, "--teacher", "tiny-teacher@gen-7", "--corpus", "wrong", "--store", tiny_store[0].root]
    assert "tiny-teacher@gen-7: expected a teacher in the store" in error_line(2, *words)
    assert "there is tiny-teacher@gen-0 (teacher)" in error_line(2, *words)


def test_a_number_taken_by_other_settings_names_them(tiny_store):
    words = ["balance", "tiny@gen-1", "--edition", "1", "--per-class", "9", "--min-confidence", "0", "--store", tiny_store[0].root]
    line = error_line(1, *words)
    assert mentions(line, "tiny@gen-1.1 … (per_class: 20 instead of 9)")
    assert "nst remove tiny@gen-1.1" in line


def test_a_store_written_by_a_newer_schema(tmp_path):
    folder = tmp_path / "corpora" / "future" / "gen-1"
    folder.mkdir(parents=True)
    (folder / "nst.json").write_text(json.dumps({"schema_version": 99}))
    line = error_line(1, "show", "future", "--store", tmp_path)
    assert mentions(line, "nst.json: … schema version 99, … up to 1; upgrade nst")


def test_nothing_confident_enough_says_what_was_dropped(tiny_store):
    line = error_line(1, "balance", "tiny@gen-1", "--min-confidence", "1", "--store", tiny_store[0].root)
    assert mentions(line, "tiny@gen-1: 0 images … of 15 (15 low confidence); lower --min-confidence")
    assert not any(ref.startswith("tiny@") for ref in tiny_store[0].unfinished())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["balance", "tiny@gen-1", "--per-class", "0"], "--per-class: … from 1, 'auto' or 'none', found 0"),
        (["balance", "tiny@gen-one"], "version 'gen-one': expected gen-N or gen-N.K"),
        (["balance", "tiny-teacher@gen-0"], "tiny-teacher@gen-0: expected a generation in the store"),
        (["show", "../tiny"], "name '../tiny': expected ASCII letters, digits"),
        (["show", "nothing"], "nothing called 'nothing', `nst list`"),
        (["train", "--labeled", "x", "--name", "n", "--model", "test_resnet", "--ratio", "3"], "add an edition with --pseudo"),
        (["train", "--labeled", "x", "--name", "n", "--model", "test_resnet", "--dropout", "2"], "--dropout: expected a number below 1"),
        (
            ["train", "--labeled", "x", "--name", "n", "--model", "test_resnet", "--augmentation", "rand-x9"],
            "--augmentation: … rand-m9-mstd0.5-inc1",
        ),
        (["run", "nowhere.yaml"], "nowhere.yaml: No such file …; … recipe"),
        (["run", "/usr"], "/usr: expected a recipe, found a folder; `nst init /usr` writes one for its images"),
        (["train", "--labeled", "LABELED", "--name", "n", "--model", "test_resnet", "--optimizer", "adamww"], "did you mean adamw"),
        (
            ["train", "--labeled", "x", "--name", "n", "--model", "test_resnet", "--epochs", "inf"],
            "--epochs: expected a finite number",
        ),
        (["label"], "nst label SOURCE --teacher MODEL --corpus NAME: SOURCE …"),
        (["lable"], "'lable'. Did you mean 'label'? see `nst --help`"),
        (["label", "--limt", "3"], "No such option: --limt"),
        (["balance"], "Missing argument 'CORPUS@gen-N'; see `nst balance --help`"),
        (["review", "freeze"], "Missing argument 'CORPUS'; see `nst review freeze --help`"),
        (["review", "frezze"], "'frezze'. Did you mean 'freeze'? see `nst review --help`"),
    ],
)
def test_wrong_use_is_status_2_with_one_line(tiny_store, words, message):
    extra = [] if words[0] == "lable" else ["--store", tiny_store[0].root]
    words = [tiny_store[1] if word == "LABELED" else word for word in words]
    assert mentions(error_line(2, *words, *extra), message)


def test_a_damaged_version_is_named_by_verify(tiny_store, tmp_path):
    shutil.copytree(tiny_store[0].root, tmp_path / "store")
    weights = tmp_path / "store" / "teachers" / "tiny-teacher" / "gen-0" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert "tiny-teacher@gen-0 is damaged: model.safetensors: sha256" in error_line(
        1, "verify", "tiny-teacher", "--store", tmp_path / "store"
    )


def test_each_of_several_versions_is_verified(tiny_store, tmp_path):
    """Also after one that is damaged, and after one whose manifest cannot be read."""
    shutil.copytree(tiny_store[0].root, tmp_path / "store")
    for name in ("damaged", "unreadable"):
        shutil.copytree(tmp_path / "store" / "teachers" / "tiny-teacher", tmp_path / "store" / "teachers" / name)
    (tmp_path / "store" / "teachers" / "damaged" / "gen-0" / "model.safetensors").write_bytes(b"")
    (tmp_path / "store" / "teachers" / "unreadable" / "gen-0" / "nst.json").write_bytes(b"")
    refs = ["damaged@gen-0", "unreadable", "tiny-teacher"]
    result = CliRunner().invoke(app, ["verify", *refs, "--store", str(tmp_path / "store")])
    assert result.exit_code == 1
    damaged, unreadable, sound = result.stdout.splitlines()
    assert is_line(damaged, "damaged@gen-0 is damaged: model.safetensors: sha256 … pull it again")
    assert mentions(unreadable, "unreadable/gen-0/nst.json")
    assert is_line(sound, "tiny-teacher@gen-0: … verified")
    assert is_line(result.stderr.strip(), "nst: 2 of 3 versions …: damaged@gen-0, unreadable@gen-0")
    as_json = json.loads(CliRunner().invoke(app, ["verify", *refs, "--json", "--store", str(tmp_path / "store")]).stdout)
    assert [(one["ref"], one["sound"]) for one in as_json] == [
        ("damaged@gen-0", False),
        ("unreadable@gen-0", False),
        ("tiny-teacher@gen-0", True),
    ]
    assert "nothing called 'nowhere'" in error_line(2, "verify", "tiny-teacher", "nowhere", "--store", tmp_path / "store")


def test_a_corrupt_image_among_good_ones_goes_to_errors_and_the_command_succeeds(tiny_store, tmp_path):
    pool = write_pool(tmp_path / "pool", 2, 1)
    (pool / "broken.jpg").write_bytes(b"\xff\xd8 not a jpeg")
    result = CliRunner().invoke(app, [str(word) for word in label(pool, tiny_store[0])])
    assert result.exit_code == 0
    assert "2 of 3 images labeled, 1 could not be read" in result.stdout


def test_results_go_to_standard_output_and_progress_to_standard_error(tiny_store, tmp_path):
    pool = write_pool(tmp_path / "pool", 1, 2)
    words = ["label", pool, "--teacher", "tiny-teacher", "--corpus", "streams", "--json", "--store", tiny_store[0].root]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert json.loads(result.stdout)["counts"]["labeled"] == 2
    assert "2/2 images" in result.stderr


def test_the_environment_names_the_store(tiny_store, monkeypatch):
    monkeypatch.setenv("NST_STORE", str(tiny_store[0].root))
    assert "tiny-teacher@gen-0" in CliRunner().invoke(app, ["list"]).stdout


def test_the_help_lists_every_command_once_in_its_group():
    lines = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "100"}).stdout.splitlines()
    found = [line.split()[1] for line in lines if line.startswith("│ ") and line[2].isalpha()]
    assert found == list(COMMANDS)
    titles = [line.strip("╭─╮ ") for line in lines if line.startswith("╭")]
    assert titles == ["Options", "Run the loop", "Single steps", "Inspect and correct labels", "The store", "Share and exchange"]


def test_help_shows_the_papers_defaults():
    text = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).stdout
    for option, default in (("--epochs", "350"), ("--batch-size", "2048"), ("--magnitude", "27"), ("--optimizer", "rmsproptf")):
        assert re.search(rf"{option}.*?\[default: {default}", text, re.DOTALL), option


def test_a_test_set_with_some_of_the_classes_is_scored(tiny_store, tmp_path):
    write_class_folders(tmp_path / "data", ["cat"], 2)
    words = ["evaluate", "tiny-teacher", "--data", str(tmp_path / "data"), "--json", "--store", str(tiny_store[0].root)]
    assert json.loads(CliRunner().invoke(app, words).stdout)["tiny-teacher@gen-0"]["images"] == 2


def test_class_names_are_for_labels_that_have_none(tiny_store, tmp_path):
    (tmp_path / "names.txt").write_text("cat\nbee\nant\n")
    words = ["evaluate", "tiny-teacher", "--data", tiny_store[1], "--class-names", tmp_path / "names.txt", "--store", tiny_store[0].root]
    assert mentions(error_line(2, *words), "class names of its own (3 (ant, bee, cat))")


@pytest.mark.parametrize(("path", "shown"), [("/s/corpora/c/.gen-1.x7f", "/s/corpora/c"), ("/s/runs", "/s/runs"), (".part", ".part")])
def test_a_folder_that_cannot_be_written_is_shown_without_our_temporary_names(monkeypatch, path, shown):
    def refused(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr("nst_cli.versions.open_store", refused)
    assert error_line(1, "list") == f"nst: {shown}: Permission denied"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.EIO, os.strerror(errno.EIO)), "nst: a disk or network folder: Input/output error; check …"),
        (
            OSError(errno.ESTALE, os.strerror(errno.ESTALE), "/nfs/s/runs"),
            "nst: /nfs/s/runs: … file handle; check … rerun the same command",
        ),
        (OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN), "/mnt/s"), "nst: /mnt/s: … not connected; check … rerun the same command"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/s/a.parquet"), "nst: too many open files; … `ulimit -n 4096` …"),
        (OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), "/s/aaa"), "nst: /s/aaa: File name too long"),
    ],
    ids=["disk", "NFS", "mount", "limit", "name"],
)
def test_what_the_system_refuses_is_no_bug_of_ours(monkeypatch, error, line):
    def fails_there(*_):
        raise error

    monkeypatch.setattr("nst_cli.versions.open_store", fails_there)
    assert is_line(error_line(1, "list"), line)


def test_a_damaged_manifest_stops_neither_list_nor_remove(tiny_store, tmp_path):
    root = tmp_path / "store"
    shutil.copytree(tiny_store[0].root, root)
    (root / "corpora" / "tiny" / "gen-1.1" / "nst.json").write_text("{")
    listed = CliRunner().invoke(app, ["list", "--store", str(root)])
    assert listed.exit_code == 0
    assert "tiny-teacher@gen-0" in listed.stdout
    assert "unreadable" in listed.stdout
    assert CliRunner().invoke(app, ["remove", "tiny@gen-1.1", "--store", str(root)]).exit_code == 0
    assert "tiny@gen-1.1" not in CliRunner().invoke(app, ["list", "--store", str(root)]).stdout


def test_damaged_metrics_of_a_teacher_stop_neither_list_nor_show_nor_lineage(tiny_store, tmp_path):
    root = tmp_path / "store"
    shutil.copytree(tiny_store[0].root, root)
    (root / "teachers" / "tiny-teacher" / "gen-0" / "metrics.json").write_text("{")
    for words in (["list"], ["show", "tiny-teacher"]):
        shown = CliRunner().invoke(app, [*words, "--store", str(root)])
        assert shown.exit_code == 0
        assert "metrics.json is damaged; delete it and evaluate again" in shown.stdout
    assert CliRunner().invoke(app, ["lineage", "tiny@gen-1", "--store", str(root)]).exit_code == 0


def test_of_several_versions_one_that_may_not_be_read_stops_no_other(tiny_store, tmp_path, monkeypatch):
    root, whole = tmp_path / "store", hash_file
    shutil.copytree(tiny_store[0].root, root)

    def refused(path):
        if path.suffix == ".safetensors":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return whole(path)

    monkeypatch.setattr("nst_data.store.version.hash_file", refused)
    result = CliRunner().invoke(app, ["verify", "tiny-teacher", "tiny@gen-1", "--store", str(root)])
    assert result.exit_code == 1
    private, sound = result.stdout.splitlines()
    assert is_line(private, "tiny-teacher@gen-0: … model.safetensors: Permission denied")
    assert is_line(sound, "tiny@gen-1: … verified")


def test_what_macos_puts_beside_files_on_other_disks_and_into_archives_changes_nothing(tiny_store, tmp_path):
    root, pool = tmp_path / "store", tmp_path / "pool"
    shutil.copytree(tiny_store[0].root, root)
    shutil.copytree(tiny_store[2], pool)

    def spoil():
        for path in [path for path in root.rglob("*") if path.name[0] != "."]:
            path.with_name(".DS_Store" if path.is_dir() else f"._{path.name}").write_bytes(b"\0\5\26\7")

    spoil()
    (root / "corpora" / ".DS_Store").write_bytes(b"")
    for words in (
        ["list"],
        ["verify", "tiny@gen-1", "tiny@gen-1.1", "tiny-teacher"],
        ["diff", "tiny@gen-1", "tiny@gen-1.1"],
        ["show", "tiny@gen-1"],
        ["balance", "tiny@gen-1", "--per-class", "3"],
        ["balance", "tiny@gen-1", "--per-class", "3", "--embed-images"],
        ["export", "tiny@gen-1", tmp_path / "out", "--to", "csv"],
        ["label", pool, "--teacher", "tiny-teacher", "--corpus", "more"],
        ["label", "--like", "more@gen-1.1", "--teacher", "tiny-teacher"],
    ):
        if "more@gen-1.1" in words:
            run = CliRunner().invoke(app, ["balance", "more@gen-1", "--per-class", "3", "--store", str(root)])
            assert run.exit_code == 0, run.output
            spoil()
        run = CliRunner().invoke(app, [*map(str, words), "--store", str(root)])
        assert run.exit_code == 0, run.output


def test_several_versions_are_removed_in_one_command_whatever_their_order(tiny_store, tmp_path):
    root = shutil.copytree(tiny_store[0].root, tmp_path / "store")
    done = CliRunner().invoke(app, ["remove", "tiny@gen-1", "tiny@gen-7", "tiny@gen-1.1", "--store", str(root)])
    assert [Path(line.removeprefix("removed ")).name for line in done.stdout.splitlines()] == ["gen-1.1", "gen-1"]
    assert (done.exit_code, mentions(done.stderr, "nst: tiny@gen-7: …")) == (2, True)
    assert Store(root).versions("tiny") == []


def test_a_pool_that_moved_is_asked_for(tiny_store, tmp_path):
    shutil.copytree(tiny_store[2], tmp_path / "pool")
    here = ["--store", tiny_store[0].root]
    labeled = ["label", tmp_path / "pool", "--teacher", "tiny-teacher", "--corpus", "moved", *here]
    for words in (labeled, ["balance", "moved@gen-1", "--min-confidence", "0", *here]):
        assert CliRunner().invoke(app, [str(word) for word in words]).exit_code == 0
    (tmp_path / "pool").rename(tmp_path / "elsewhere")
    words = ["train", "--labeled", tiny_store[1], "--pseudo", "moved@gen-1.1", "--name", "after-move", *NETWORK, *here]
    assert mentions(error_line(1, *words), "moved@gen-1.1 was built from it; … --pool")


def test_a_missing_pool_is_not_mistaken_for_its_neighbors(tiny_store, tmp_path):
    shutil.copytree(tiny_store[2], tmp_path / "photos" / "unlabeled")
    shutil.copytree(tiny_store[1], tmp_path / "photos" / "labeled")
    here = ["--store", tiny_store[0].root]
    labeled = ["label", tmp_path / "photos" / "unlabeled", "--teacher", "tiny-teacher", "--corpus", "lost", *here]
    assert CliRunner().invoke(app, [str(word) for word in labeled]).exit_code == 0
    shutil.rmtree(tmp_path / "photos" / "unlabeled")
    line = error_line(1, "label", "--extend", "lost@gen-1", *here)
    assert is_line(line, f"nst: {tmp_path}/photos/unlabeled: no such file or folder. lost@gen-1 was made from it; … SOURCE")


def test_a_name_without_versions_is_answered_with_the_names_there_are(tiny_store, tmp_path):
    def said(name, store=tiny_store[0].root):
        done = CliRunner().invoke(app, ["list", name, "--store", str(store)])
        assert done.exit_code == 0
        return done.stdout.strip()

    assert is_line(said("tiny-techer"), "…: no versions called tiny-techer; did you mean tiny-teacher?")
    assert is_line(said("photographs"), "…: no versions called photographs; the store has … tiny, tiny-teacher…")
    assert is_line(
        said("photographs", tmp_path / "new"), "…: no versions called photographs yet in …; `nst demo` or `nst run RECIPE.yaml` makes …"
    )


def test_a_store_that_is_a_file_is_one_line(tmp_path, labeled_folder):
    (tmp_path / "store").write_text("")
    for words in (["train", "--labeled", labeled_folder, "--name", "new", *NETWORK], ["list"], ["show", "new"]):
        line = error_line(2, *words, "--store", tmp_path / "store")
        assert mentions(line, f"{tmp_path / 'store'}: expected the folder of a store or s3://BUCKET/PREFIX, found a file")


def test_labeling_names_the_first_images_that_have_no_label(tiny_store, tmp_path):
    store, *_ = tiny_store
    pool = write_pool(tmp_path / "pool", 1, 2)
    for number in range(5):
        (pool / f"z{number}.png").write_bytes(b"text")
    result = CliRunner().invoke(app, list(map(str, label(pool, store, "--max-unreadable", 1))))
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line for line in lines if "no label" in line] == [
        f"  no label: z{number}.png: not an image in a known format" for number in range(3)
    ]
    assert any(mentions(line, "  2 more in … errors") for line in lines)


def test_labeled_images_without_any_class_folder_are_one_line(tmp_path):
    pool = write_pool(tmp_path / "pool", 1, 3)
    line = error_line(1, "train", "--labeled", pool, "--name", "new", *NETWORK, "--store", tmp_path / "store")
    assert mentions(line, "pool: expected one folder per class with its labeled images, found no folders and 3 images")


@pytest.mark.parametrize("words", [["--batch-size", 1], ["--batch-size", 4, "--accumulate", 4]])
def test_too_few_images_at_once_for_batch_norm_are_refused_and_leave_nothing(tmp_path, store, labeled_folder, words):
    line = error_line(1, "train", "--labeled", labeled_folder, "--name", "one", *NETWORK, *words, "--store", store)
    assert mentions(line, "test_resnet … one image of 16 px … (Expected more than 1 value …--batch-size or --image-size, … --accumulate")
    assert files_in(store) == []


def test_weights_that_a_network_does_not_have_name_those_that_it_has(tmp_path, store, labeled_folder):
    words = ["--labeled", labeled_folder, "--name", "tagged", *NETWORK, "--model", "test_resnet.none_of_timm"]
    assert mentions(error_line(2, "train", *words, "--store", store), "test_resnet … no weights …; … r160_in1k")
    assert files_in(store) == []


def test_a_batch_larger_than_the_machine_is_refused_and_leaves_nothing(tmp_path, store, labeled_folder):
    words = ["--labeled", labeled_folder, "--name", "large", *NETWORK, "--image-size", 512, "--batch-size", 10_000_000]
    assert "10,000,000 images of 512 px needs" in error_line(1, "train", *words, "--store", store)
    assert files_in(store) == []


def test_the_former_name_of_start_from_is_understood(tmp_path, store, labeled_folder):
    words = ["--labeled", labeled_folder, "--name", "started", *NETWORK, "--start", "test_resnett", "--store", store]
    assert mentions(error_line(2, "train", *words), "test_resnett: no network of timm and no teacher")
    assert mentions(error_line(2, "train", *words, "--start-from", "other"), "--start … --start-from; pass only one")


def test_a_momentum_that_the_optimizer_has_not_is_said(tmp_path, store, labeled_folder):
    words = ["train", "--labeled", labeled_folder, "--name", "net", *NETWORK, "--momentum", 0.5, "--batch-size", 1, "--store", store]
    for optimizer, is_said in (("adamw", True), ("sgd", False)):
        result = CliRunner().invoke(app, [str(word) for word in [*words, "--optimizer", optimizer]])
        assert ("--momentum has no effect: adamw" in result.stderr) == is_said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--image-size", 10**9], "--image-size: … at most 8,192"),
        (["--workers", 10**6], "--workers: … at most 1,024"),
        (["--compute-threads", 10**6], "--compute-threads: … at most 1,024"),
        (["--decode-threads", 10**6], "--decode-threads: … at most 1,024"),
        (["--learning-rate", 1e300], "--learning-rate: … at most 1,000,000,000"),
        (["--weight-decay", 1e300], "--weight-decay: … at most 1,000,000,000"),
        (["--epochs", 1e300], "--epochs: … at most 1,000,000,000"),
    ],
)
def test_numbers_that_no_machine_takes_are_refused(store, labeled_folder, words, said):
    line = error_line(2, "train", "--labeled", labeled_folder, "--name", "net", *NETWORK, *words, "--store", store)
    assert mentions(line, said)
    assert files_in(store) == []


@pytest.mark.parametrize("option", ["--labeled", "--start-from", "--validation"])
def test_an_empty_value_is_refused_and_not_taken_for_the_current_folder_or_for_none(store, labeled_folder, option):
    line = error_line(2, "train", "--labeled", labeled_folder, "--name", "net", *NETWORK, option, "", "--store", store)
    assert mentions(line, f"{option}: … value, found an empty one")
