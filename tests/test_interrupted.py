"""Kills, interrupts, full disks and several processes: nothing lost, nothing twice, the same bytes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import TINY, write_class_folders, write_pool, write_tiny_recipe
from labels import write_teacher

from nst_data.store.store import Store
from nst_train.noisy_student import self_training
from nst_train.recipes.reading import load_recipe

pytestmark = pytest.mark.slow

NST = [sys.executable, "-c", "from nst_cli.main import run; run()"]
CLASSES = ["ant", "bee", "cat"]
GOES_ON = r"( after step [\d,]+ of [\w@-]+)?; finished work is kept; the same command resumes"
STUDENT = TINY | {"ratio": 2, "epochs": 3}


def nst(*arguments, **options):
    return subprocess.run([*NST, *map(str, arguments)], capture_output=True, text=True, timeout=300, **options)


def write_recipe(folder):
    write_class_folders(folder / "labeled", CLASSES, 4)
    write_class_folders(folder / "test", CLASSES, 2, first=50)
    write_pool(folder / "pool", 3, 8)
    return write_tiny_recipe(
        folder,
        pool="pool",
        label={"batch_size": 4, "rows_per_shard": 5},
        select={"min_confidence": 0.0, "per_class": 10},
        generations=[TINY | {"epochs": 3}, STUDENT, STUDENT],
        run={"workers": 1, "decode_threads": 2, "checkpoint_minutes": 0},
    )


def contents(store):
    """Digest of every version: settings, inputs and the sha256 of all data files and weights."""
    versions = Store(store).versions()
    assert all(version.verify() == [] for version in versions)
    return {version.ref: version.manifest.digest for version in versions}


def killed_when(store, pattern, *arguments):
    """Run a command and kill it with SIGKILL as soon as a file that matches appears; whether it was killed."""
    with subprocess.Popen(
        [*NST, *map(str, arguments)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and not any(store.glob(pattern)):
            assert time.monotonic() < deadline, pattern
            time.sleep(0.002)
        alive = process.poll() is None
        if alive:
            os.killpg(process.pid, signal.SIGKILL)
    return alive


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(recipe, contents) of a run that was never killed."""
    top = tmp_path_factory.mktemp("undisturbed")
    recipe = write_recipe(top)
    done = nst("run", recipe, "--store", top / "store")
    assert done.returncode == 0, done.stderr
    return recipe, contents(top / "store")


def test_a_recipe_killed_at_many_points_ends_with_the_bytes_of_one_that_was_not(undisturbed, tmp_path):
    recipe, expected = undisturbed
    store = tmp_path / "store"
    points = [
        "runs/teachers/bugs-teacher/gen-0/request.json",
        "runs/teachers/bugs-teacher/gen-0/work/checkpoints/step-000000004",
        "teachers/bugs-teacher/gen-0/nst.json",
        "runs/corpora/bugs/gen-1/work/shards/00001.json",
        "corpora/bugs/gen-1/nst.json",
        "runs/teachers/bugs-teacher/gen-1/work/edition-*",
        "runs/teachers/bugs-teacher/gen-1/work/checkpoints/step-000000002",
        "runs/teachers/bugs-teacher/gen-1/build/model.safetensors",
        "runs/corpora/bugs/gen-2/work/shards/00002.json",
        "runs/teachers/bugs-teacher/gen-2/work/checkpoints/step-000000007",
    ]
    kills = sum(killed_when(store, point, "run", recipe, "--store", store) for point in points)
    assert kills >= 7
    done = nst("run", recipe, "--store", store)
    assert done.returncode == 0, done.stderr
    assert contents(store) == expected
    assert not list((store / "runs").glob("*/*/gen-*"))


def test_a_recipe_of_several_students_on_images_that_another_model_selected_goes_on_too(tmp_path):
    path = write_recipe(tmp_path)
    for seed, name in enumerate(("small", "large")):
        write_teacher(tmp_path / name, CLASSES, seed)
    students = [TINY | {"ratio": 2, "name": "slim"}, TINY | {"ratio": 3, "name": "wide"}]
    select = {"min_confidence": 0.0, "per_class": 10, "by": "local-dir:small", "when": "once"}
    parts = {"teacher": "local-dir:large", "generations": [], "students": students, "select": select}
    parts |= {"run": {"workers": 0, "decode_threads": 2, "checkpoint_minutes": 0}}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | parts))
    points = ["corpora/bugs/gen-1.1/work/shards/00001.json", "teachers/bugs-teacher-wide/gen-1/work/checkpoints/step-000000002"]
    kills = [killed_when(tmp_path / "killed", f"runs/{point}", "run", path, "--store", tmp_path / "killed") for point in points]
    assert kills[0]
    for store in ("killed", "whole"):
        self_training(Store(tmp_path / store), load_recipe(path))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert {"bugs@gen-1.1", "bugs-teacher-slim@gen-1", "bugs-teacher-wide@gen-1"} <= contents(tmp_path / "whole").keys()


def test_a_recipe_of_a_probe_and_a_finetuned_student_killed_in_both_ends_with_the_bytes_of_one_that_was_not(tmp_path):
    path = write_recipe(tmp_path)
    write_class_folders(tmp_path / "labeled", CLASSES[:1], 5, first=30)
    model = write_teacher(tmp_path / "net", ["x", "y"])
    student = {"preset": "pretrained", "model": model, "image_size": 16, "start": "teacher", "steps": 9, "warmup_steps": 3, "batch_size": 4}
    student |= {"mixup": 0.4, "cutmix": 1.0, "class_weights": "balanced"}
    parts = {"generations": [{"preset": "pretrained", "model": model, "probe": True, "image_size": 16}, student]}
    parts |= {"run": {"workers": 1, "decode_threads": 2, "checkpoint_minutes": 0}}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | parts))
    points = [
        "runs/teachers/bugs-teacher/gen-0/request.json",
        *(f"runs/teachers/bugs-teacher/gen-1/work/checkpoints/step-{step:09d}" for step in (1, 5)),
    ]
    kills = sum(killed_when(tmp_path / "killed", point, "run", path, "--store", tmp_path / "killed") for point in points)
    assert kills >= 2
    for store in ("killed", "whole"):
        self_training(Store(tmp_path / store), load_recipe(path))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_training_along_shards_that_is_killed_between_steps_ends_with_the_weights_of_one_that_was_not(undisturbed, tmp_path):
    recipe, _ = undisturbed
    store = tmp_path / "store"
    shutil.copytree(recipe.parent / "store", store)
    balanced = ["balance", "bugs@gen-1", "--embed-images", "--min-confidence", "0", "--per-class", "10", "--json", "--store", store]
    edition = json.loads(nst(*balanced).stdout)["ref"]
    flat = {name: value for name, value in STUDENT.items() if name != "noise"} | STUDENT["noise"] | {"workers": 1, "checkpoint-minutes": 0}
    options = [word for name, value in flat.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    words = ["train", "--labeled", recipe.parent / "labeled", "--pseudo", edition, *options, "--store", store]
    assert nst(*words, "--name", "whole").returncode == 0
    points = [f"runs/teachers/killed/gen-0/work/checkpoints/step-{step:09d}" for step in (1, 5)]
    kills = [killed_when(store, point, *words, "--name", "killed") for point in points]
    assert any(kills)
    assert nst(*words, "--name", "killed").returncode == 0
    whole, killed = (Store(store).open(f"{name}@gen-0").manifest.files["model.safetensors"] for name in ("whole", "killed"))
    assert whole == killed


def test_work_done_before_a_kill_is_not_done_again(undisturbed, tmp_path):
    recipe, _ = undisturbed
    store = tmp_path / "store"
    shards = store / "runs" / "corpora" / "bugs" / "gen-1" / "build" / "pseudo_labels"
    assert killed_when(store, "runs/corpora/bugs/gen-1/work/shards/00002.json", "run", recipe, "--store", store)
    before = {path.name: path.stat().st_ino for path in shards.glob("train-0000[012]-*.parquet")}
    assert nst("run", recipe, "--store", store).returncode == 0
    sealed = store / "corpora" / "bugs" / "gen-1" / "pseudo_labels"
    assert len(before) == 3
    assert {name: (sealed / name).stat().st_ino for name in before} == before


@pytest.mark.parametrize(
    ("number", "trained", "status", "said"),
    [(signal.SIGINT, "gen-0", 130, "interrupted"), (signal.SIGTERM, "gen-1", 143, "interrupted by SIGTERM")],
)
def test_a_signal_to_all_processes_is_one_line_with_a_status_of_its_own_and_the_same_command_goes_on(
    undisturbed, tmp_path, number, trained, status, said
):
    recipe, expected = undisturbed
    store = tmp_path / "store"
    command = [*NST, "run", str(recipe), "--store", str(store)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        while not any(store.glob(f"runs/teachers/bugs-teacher/{trained}/work/checkpoints/step-*")):
            assert process.poll() is None
            time.sleep(0.002)
        os.killpg(process.pid, number)  # as a terminal and a scheduler do: workers get it too
        _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert re.fullmatch(f"nst: {said}{GOES_ON}", errors.strip().splitlines()[-1])
    assert "Traceback" not in errors
    assert nst("run", recipe, "--store", store).returncode == 0
    assert contents(store) == expected


LONG = ["--model", "test_resnet", "--image-size", 16, "--epochs", 100, "--batch-size", 4, "--workers", 1, "--tracker", "none"]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_training_that_is_told_to_stop_writes_a_checkpoint_between_those_that_are_due(tmp_path, number):
    labeled = write_class_folders(tmp_path / "labeled", CLASSES, 4)
    store = tmp_path / "store"
    words = [str(word) for word in ("train", "--labeled", labeled, "--name", "net", *LONG, "--checkpoint-minutes", 60, "--store", store)]
    heard = [sys.executable, "-c", "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL); from nst_cli.main import run; run()"]
    with subprocess.Popen([*heard, *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # also under nohup
        wait_for_rows(store, process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    step = re.search(rf"nst: interrupted by {number.name} after step ([\d,]+) of net@gen-0; finished work is kept", errors)
    assert [path.name for path in store.glob("runs/teachers/net/gen-0/work/checkpoints/step-*")] == [f"step-{int(step[1]):09d}"]


def wait_for_rows(store, process):
    """Until the training has logged a row."""
    log = store / "runs" / "teachers" / "net" / "gen-0" / "build" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.stat().st_size):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_finished_recipe_costs_little_more_than_the_imports(undisturbed):
    recipe, expected = undisturbed
    imports = seconds_of_cpu([sys.executable, "-c", "import nst_train.noisy_student"])
    assert seconds_of_cpu([*NST, "run", str(recipe), "--store", str(recipe.parent / "store")]) < 1.5 * imports + 1
    assert contents(recipe.parent / "store") == expected


def seconds_of_cpu(words):
    """What a command and the processes that it starts compute, however busy the machine is."""
    before = os.times()
    subprocess.run(words, capture_output=True, check=True, timeout=300)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_a_full_disk_is_one_line_and_after_making_room_the_same_command_goes_on(undisturbed, tmp_path):
    recipe, expected = undisturbed
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", str(disk)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a small disk: {mounted.stderr.strip()}")
    try:
        full = nst("run", recipe, "--store", disk / "store")
        assert full.returncode == 1
        line = full.stderr.strip().splitlines()[-1]
        assert line == "nst: the disk is full; free some space and rerun the same command, which resumes"
        sound = contents(disk / "store")
        assert sound.items() <= expected.items()
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        done = nst("run", recipe, "--store", disk / "store")
        assert done.returncode == 0, done.stderr
        assert contents(disk / "store") == expected
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_store_that_may_not_be_written_is_one_line(undisturbed, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(disk)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a read-only disk: {mounted.stderr.strip()}")
    try:
        refused = nst("run", undisturbed[0], "--store", disk / "store")
        assert refused.returncode == 1
        assert re.fullmatch(r"nst: .*: Read-only file system", refused.stderr.strip())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29555", "--no-python"]
    return subprocess.run([*command, *NST, *map(str, arguments)], capture_output=True, text=True, timeout=300)


def test_two_processes_label_with_the_bytes_of_one_and_train_together(undisturbed, tmp_path):
    recipe, expected = undisturbed
    store = tmp_path / "store"
    shutil.copytree(recipe.parent / "store" / "teachers", store / "teachers")
    words = ["--batch-size", 4, "--rows-per-shard", 5, "--store", store]
    labeled = torchrun("label", recipe.parent / "pool", "--teacher", "bugs-teacher@gen-0", "--corpus", "bugs", *words)
    assert labeled.returncode == 0, labeled.stderr
    assert labeled.stdout.count("images labeled") == 1
    assert Store(store).open("bugs@gen-1").manifest.digest == expected["bugs@gen-1"]
    assert nst("balance", "bugs@gen-1", "--min-confidence", 0, "--per-class", 10, "--store", store).returncode == 0
    network = ["--model", "test_resnet", "--image-size", 16, "--epochs", 2, "--batch-size", 4, "--ratio", 2, "--workers", 0]
    trained = torchrun(
        *("train", "--labeled", recipe.parent / "labeled", "--pseudo", "bugs@gen-1.1", "--name", "pair", *network, "--store", store)
    )
    assert trained.returncode == 0, trained.stderr
    version = Store(store).open("pair@gen-0")
    assert version.verify() == []
    assert version.manifest.counts.steps == 6


def process_of_rank(rank, parent):
    """The id of the process that torchrun started with a rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_child = f"PPid:\t{parent}\n" in (folder / "status").read_text()
            if is_child and f"RANK={rank}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
        except OSError:  # it has ended
            continue
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.parametrize("told", ["one process", "torchrun"])
def test_of_two_processes_all_stop_at_one_step_whoever_is_told(tmp_path, told):
    labeled = write_class_folders(tmp_path / "labeled", CLASSES, 4)
    validation = write_class_folders(tmp_path / "validation", CLASSES, 3, first=50)
    store = tmp_path / "store"
    words = [
        "train",
        "--labeled",
        labeled,
        "--validation",
        validation,
        "--name",
        "net",
        *LONG,
        "--checkpoint-minutes",
        60,
        "--store",
        store,
    ]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29556", "--no-python"]
    with subprocess.Popen([*command, *NST, *map(str, words)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        wait_for_rows(store, process)
        os.kill(process_of_rank(1, process.pid) if told == "one process" else process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    steps = set(re.findall(r"nst: interrupted by SIGTERM after step ([\d,]+) of net@gen-0; finished work is kept", errors))
    assert len(steps) == 1, errors
    (checkpoint,) = store.glob("runs/teachers/net/gen-0/work/checkpoints/step-*")
    assert checkpoint.name == f"step-{int(steps.pop().replace(',', '')):09d}"
    done = torchrun(*words)
    assert done.returncode == 0, done.stderr
    version = Store(store).open("net@gen-0")
    assert version.verify() == []
    rows = [json.loads(line) for line in (version.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss_labeled" in row] == list(range(20, 301, 20))
    recorded = json.loads((version.folder / "metrics.json").read_text())["validation"]
    assert recorded["images"] == 9
    alone = nst("evaluate", "net@gen-0", "--data", validation, "--json", "--store", store)
    assert json.loads(alone.stdout)["net@gen-0"]["top1"] == recorded["top1"]
