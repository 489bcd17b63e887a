import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from conftest import TINY
from nst_cli.main import app
from typer.testing import CliRunner

from nst_data.errors import NstError, UsageError
from nst_data.progress import Progress
from nst_train.interruption import Interrupted
from nst_train.settings import TrainSettings
from nst_train.training.schedule import Schedule
from nst_train.training.trackers import Trackers, resolve_trackers
from nst_train.training.training_log import TrainingLog

TENSORBOARD_X = """
import json, pathlib
class SummaryWriter:
    def __init__(self, logdir, purge_step=None):
        self.file = pathlib.Path(logdir, "events.jsonl")
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.write({"purge_step": purge_step})
    def write(self, row):
        with self.file.open("a") as file:
            file.write(json.dumps(row) + chr(10))
    def add_scalar(self, name, value, global_step):
        self.write({"name": name, "value": value, "step": global_step})
    def flush(self):
        pass
    def close(self):
        self.write({"closed": True})
"""


DIGEST = "0123456789abcdef" * 4


class RecordingProgress(Progress):
    """What a person would read."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


class Kept(GeneralTracker):
    """A tracker of one's own, as Accelerate's documentation shows."""

    name = "kept"
    requires_logging_directory = False

    def __init__(self):
        super().__init__()
        self.points, self.finished = [], False

    @property
    def tracker(self):
        return self.points

    def log(self, values, step=None, **_):
        self.points.append((step, values))

    def finish(self):
        self.finished = True


def test_trackers_get_the_numbers_of_the_log_at_its_steps(tmp_path):
    import torch

    kept = Kept()
    with Trackers([kept]) as trackers:
        log = TrainingLog(tmp_path, Schedule.of(TrainSettings(model="x", epochs=1, batch_size=1), 40), 2, 0, {}, trackers)
        for step in range(1, 41):
            log.add(step, torch.tensor([1.0]), torch.tensor([2.0]))
        log.log_validation(40, {"top1": 0.5, "nll": 0.25})
    assert kept.finished
    assert [step for step, _ in kept.points] == [20, 40, 40]
    first, _, scores = (values for _, values in kept.points)
    assert first.keys() == {"loss/labeled", "loss/pseudo", "learning_rate", "images_per_second", "epoch"}
    assert (first["loss/labeled"], first["loss/pseudo"], first["epoch"]) == (1.0, 2.0, 0.5)
    assert scores == {"validation/top1": 0.5, "validation/nll": 0.25}


def test_one_that_is_not_installed_is_one_line_and_nothing_is_begun(tiny_store):
    store, labeled, _ = tiny_store
    words = ["train", "--labeled", labeled, "--name", "tracked", "--model", "test_resnet", "--tracker", "aim", "--store", store.root]
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("nst: --tracker aim: its package is not installed; install it, or use one of those installed: ")
    assert store.stagings("tracked") == []


def test_a_service_that_refuses_is_one_line(monkeypatch, tmp_path):
    class Refusing(Kept):
        def __init__(self, project):
            super().__init__()

        def start(self):
            raise RuntimeError("no account\nlog in first")

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "refusing", Refusing)
    with pytest.raises(NstError, match=r"^`tracker` refusing:.*\(no account\).*`tracker` none$"):
        Trackers.start(["refusing"], "net@gen-0", DIGEST, {}, TrainSettings(model="x"), tmp_path, 0)


def test_of_a_networks_folder_a_tracker_gets_the_name_alone(monkeypatch, tmp_path):
    told = {}

    class Told(Kept):
        def __init__(self, project):
            super().__init__()
            told["project"] = project

        def start(self):
            pass

        def store_init_configuration(self, values):
            told.update(values)

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "told", Told)
    settings = TrainSettings(model="local-dir:/home/someone/secret/net")
    Trackers.start(["told"], "net@gen-0", DIGEST, {}, settings, tmp_path, 0)
    assert (told["project"], told["model"], told["magnitude"], told["epochs"]) == ("net", "net", 27, 350)
    assert "someone" not in str(told)


def service(name, made):
    """A class of trackers that has no run "gone"; each one made is added to `made`."""

    class Service(Kept):
        def __init__(self, project, **asked):
            super().__init__()
            self.name, self.asked = name, asked
            made.append(self)

        @property
        def tracker(self):
            return SimpleNamespace(info=SimpleNamespace(run_id=self.asked.get("run_id", "new")))

        def start(self):
            if "gone" in (self.asked.get("run_id"), self.asked.get("id")):
                raise RuntimeError("run gone not found\nmore")

        def store_init_configuration(self, values):
            if self.asked.get("run_id"):
                raise RuntimeError("Changing param values is not allowed")
            self.values = values

    return Service


def resumed(name, runs, folder, said=None, begun=40):
    return Trackers.start([name], "net@gen-0", DIGEST, runs, TrainSettings(model="x"), folder, begun, said)


def test_a_reopened_run_of_mlflow_keeps_its_parameters(monkeypatch, tmp_path):
    asked, said = [], RecordingProgress()
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "mlflow", service("mlflow", asked))
    assert resumed("mlflow", {"run": "a", "mlflow": "kept"}, tmp_path, said).runs == {"run": "a", "mlflow": "kept"}
    assert [one.asked for one in asked] == [{"run_id": "kept"}]
    assert said.lines == []


def test_a_run_of_mlflow_that_cannot_be_reopened_is_one_line_and_a_new_run(monkeypatch, tmp_path):
    asked, said = [], RecordingProgress()
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "mlflow", service("mlflow", asked))
    assert resumed("mlflow", {"run": "a", "mlflow": "gone"}, tmp_path, said).runs == {"run": "a", "mlflow": "new"}
    assert [one.asked for one in asked] == [{"run_id": "gone"}, {"run_name": "net@gen-0"}]
    assert asked[1].values["epochs"] == 350
    (line,) = said.lines
    assert line.startswith("`tracker` mlflow: cannot reopen")
    assert "(run gone not found)" in line
    assert "new run" in line


def test_a_run_of_weights_and_biases_that_was_deleted_is_one_line_and_a_new_run_for_it_alone(monkeypatch, tmp_path):
    asked, said = [], RecordingProgress()
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", service("wandb", asked))
    runs = resumed("wandb", {"run": "gone"}, tmp_path, said).runs
    assert runs["run"] == "gone"
    assert runs["wandb"] != "gone"
    assert [one.asked["id"] for one in asked] == ["gone", runs["wandb"]]
    assert len(said.lines) == 1
    assert resumed("wandb", runs, tmp_path, said).runs == runs
    assert asked[-1].asked["id"] == runs["wandb"]
    assert len(said.lines) == 1


def test_a_training_that_an_earlier_nst_began_goes_on_in_the_run_it_named_by_its_digest(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", service("wandb", asked))
    assert resumed("wandb", {}, tmp_path).runs == {"run": DIGEST[:16]}
    assert asked[-1].asked == {"name": "net@gen-0", "id": DIGEST[:16], "resume": "allow"}
    assert resumed("wandb", {}, tmp_path, begun=0).runs["run"] != DIGEST[:16]


def test_where_a_second_tracker_cannot_be_started_the_first_is_finished(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", service("wandb", asked))

    class Refusing(Kept):
        def __init__(self, project, **_):
            raise RuntimeError("no account")

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "mlflow", Refusing)
    with pytest.raises(NstError, match=r"^`tracker` mlflow: .*no account"):
        Trackers.start(["wandb", "mlflow"], "net@gen-0", DIGEST, {}, TrainSettings(model="x"), tmp_path, 0)
    assert [one.finished for one in asked] == [True]


class Unreachable(Kept):
    name = "unreachable"

    def log(self, values, step=None, **_):
        self.points.append((step, values))
        raise ConnectionError("no route\nto the server")

    def finish(self):
        raise ConnectionError("no route")


def test_an_unreachable_tracker_is_one_line_and_ends_nothing():
    said, kept = RecordingProgress(), Kept()

    def stopped_training():
        with Trackers([Unreachable(), kept], progress=said) as trackers:
            trackers.log({"loss": 1.0}, 20)
            trackers.log({"loss": 0.5}, 40)
            raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted) as stop:
        stopped_training()
    assert stop.value.status == 143
    assert kept.finished
    assert [step for step, _ in kept.points] == [20, 40]
    (line,) = said.lines
    assert line.startswith("`tracker` unreachable: failed (no route)")
    assert "metrics.jsonl" in line


def test_a_tracker_that_waits_long_for_its_server_is_asked_less_often(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("nst_train.training.trackers.time", SimpleNamespace(monotonic=lambda: clock[0]))

    class Slow(Unreachable):
        def log(self, values, step=None, **_):
            clock[0] += 61
            super().log(values, step)

    slow = Slow()
    trackers = Trackers([slow])
    for step in range(1, 5):
        trackers.log({"loss": 1.0}, step)
        clock[0] += 500
    assert [step for step, _ in slow.points] == [1, 4]


def test_an_unknown_one_shows_those_that_there_are():
    with pytest.raises(UsageError, match=r"`tracker` wandbb:.*aim.*tensorboard.*wandb.*, or none"):
        resolve_trackers(["wandbb"])


def test_none_asks_for_none():
    assert resolve_trackers(["none"]) == []


TRAIN = """
import os, signal, sys
from nst_data.progress import Progress
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_train.interruption import Interrupted
from nst_train.settings import RunSettings, TrainSettings
from nst_train.training.train import train
from contextlib import contextmanager
import json
class Stop(Progress):
    left = int(sys.argv[4])
    def advance(self, amount, note=""):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
    @contextmanager
    def task(self, *_):
        yield self
try:
    train(Store(sys.argv[1]), "tracked", open_source(sys.argv[2], labeled=True), TrainSettings(**json.loads(sys.argv[3])),
          run=RunSettings(workers=0, decode_threads=1, tracker=tuple(sys.argv[5:])), progress=Stop())
except Interrupted:
    pass
"""


@pytest.mark.slow
def test_tensorboard_is_written_by_default_where_it_is_installed_and_resumed_without_duplicates(tiny_store, tmp_path):
    """In processes of their own, that find a package which keeps what Accelerate's TensorBoard tracker hands it."""
    _, labeled, _ = tiny_store
    (tmp_path / "packages" / "tensorboardX-2.6.dist-info").mkdir(parents=True)
    (tmp_path / "packages" / "tensorboardX-2.6.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: tensorboardX\nVersion: 2.6\n"
    )
    (tmp_path / "packages" / "tensorboardX.py").write_text(TENSORBOARD_X)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "packages"), *filter(None, sys.path)])}
    settings = json.dumps(TINY | {"epochs": 20})
    for stop in (45, 0):  # of 60 steps
        words = [sys.executable, "-c", TRAIN, str(tmp_path / "store"), str(labeled), settings, str(stop)]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    (events,) = Path(tmp_path, "store", "teachers", "tracked", "gen-0").rglob("events.jsonl")
    rows = [json.loads(line) for line in events.read_text().splitlines()]
    assert [row["purge_step"] for row in rows if "purge_step" in row] == [None, 47]
    assert [row["step"] for row in rows if row.get("name") == "loss/labeled"] == [20, 40, 60]
    assert str(tmp_path) not in events.read_text()


RUNS = """
import json, mlflow, sys
client = mlflow.MlflowClient()
for experiment in client.search_experiments(filter_string="name = 'tracked'"):
    for run in client.search_runs([experiment.experiment_id]):
        points = client.get_metric_history(run.info.run_id, "loss/labeled")
        print(json.dumps(["mlflow", run.info.run_name, run.data.params["model"], [one.step for one in points]]))
        kept = run.info.run_id
if "trackio" in sys.argv:
    import trackio
    for run in trackio.Api().runs("tracked"):
        rows = trackio.SQLiteStorage.get_logs("tracked", run.name)
        print(json.dumps(["trackio", run.name, run.config["model"], [row["step"] for row in rows if "loss/labeled" in row]]))

from pathlib import Path
from nst_data.progress import LineProgress
from nst_train.settings import TrainSettings
from nst_train.training.trackers import Trackers
client.delete_run(kept)
runs = {"run": "a", "mlflow": kept}
with Trackers.start(["mlflow"], "tracked@gen-0", "", runs, TrainSettings(model="x"), Path(), 40, LineProgress()) as trackers:
    trackers.log({"loss/labeled": 1.0}, 60)
new = client.get_run(trackers.runs["mlflow"])
print(json.dumps(["new", new.info.run_name, new.data.params["model"], [new.data.metrics["loss/labeled"]], new.info.run_id != kept]))
"""


@pytest.mark.slow
def test_a_resumed_training_goes_on_in_its_runs_of_mlflow_and_trackio(tiny_store, tmp_path):
    _, labeled, _ = tiny_store
    names = ["mlflow", *["trackio"] * (importlib.util.find_spec("trackio") is not None)]  # which wants an old Pillow
    own = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}", "TRACKIO_DIR": str(tmp_path / "trackio")}
    settings = json.dumps(TINY | {"epochs": 20})

    def python(script, *arguments):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], env=os.environ | own, cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    for stop in ("45", "0"):  # of 60 steps
        assert python(TRAIN, str(tmp_path / "store"), str(labeled), settings, stop, *names) == ""
    runs = [json.loads(line) for line in python(RUNS, *names).splitlines()]
    assert [(tracker, name.startswith("tracked@gen-0"), *more) for tracker, name, *more in runs] == [
        *[(name, True, "test_resnet", [20, 40, 60]) for name in names],
        ("new", True, "x", [1.0], True),  # after a person deleted the first
    ]
