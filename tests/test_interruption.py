"""Stop signals: the step is finished, a checkpoint written, and the same call goes on."""

import csv
import json
import os
import queue
import signal
import time
from contextlib import contextmanager

import pytest
from conftest import TINY, write_class_folders
from watched import RecordingProgress
from wording import pattern

from nst_data.progress import Progress
from nst_data.sources import Source, open_source
from nst_data.store.store import Staging, Store
from nst_train.interruption import Interrupted, StopRequests, should_stop_on, stop_at_once
from nst_train.settings import RunSettings, TrainSettings
from nst_train.training.train import train

STEPS = 24
SETTINGS = TrainSettings(**TINY | {"epochs": 8, "validate_every": 1.5})
TIMES = ("images_per_second", "seconds")


class SignalAt(Progress):
    """Sends this process a signal after some steps, as a scheduler would."""

    def __init__(self, steps, number):
        self.left, self.number = steps, number

    def advance(self, amount, note=""):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)

    @contextmanager
    def task(self, name, total, unit, done=0):
        yield self


def train_in(folder, progress=None, shown=lambda source: source):
    """12 labeled images, 6 for validation, 3 steps an epoch. `shown` is what the validation source is taken through."""
    labeled = write_class_folders(folder / "labeled", ["ant", "bee", "cat"], 4)
    validation = write_class_folders(folder / "validation", ["ant", "bee", "cat"], 2, first=50)
    sources = [open_source(str(where), labeled=True) for where in (labeled, validation)]
    run = RunSettings(workers=0, decode_threads=1, keep_checkpoints=3)
    return train(Store(folder / "store"), "net", sources[0], SETTINGS, run=run, progress=progress, validation=shown(sources[1]))


def logs(version):
    """Both logs, without times."""
    rows = [json.loads(line) for line in (version.folder / "metrics.jsonl").read_text().splitlines()]
    with (version.folder / "summary.csv").open() as file:
        rows += list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return train_in(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def hangups_heeded():
    """Also where the tests run under `nohup`, which has SIGHUP ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


_ALSO = [pytest.param(steps, number, marks=pytest.mark.slow) for steps, number in ((5, signal.SIGTERM), (19, signal.SIGINT))]


@pytest.mark.parametrize(("steps", "number"), [(1, signal.SIGTERM), (13, signal.SIGHUP), (20, signal.SIGUSR1), *_ALSO])
def test_a_training_stopped_at_any_step_goes_on_to_equal_weights_scores_and_logs(undisturbed, tmp_path, number, steps, hangups_heeded):
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with pytest.raises(Interrupted, match=rf"step {steps + 1} of net@gen-0.*the same command resumes") as stop:
        train_in(tmp_path, SignalAt(steps, number))
    assert stop.value.status == 128 + number
    assert before == [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    assert [path.name for path in tmp_path.glob("store/runs/teachers/net/gen-0/work/checkpoints/*")] == [f"step-{steps + 1:09d}"]
    resumed = train_in(tmp_path)
    assert resumed.manifest.files == undisturbed.manifest.files
    assert resumed.manifest.counts == undisturbed.manifest.counts
    assert logs(resumed) == logs(undisturbed)


def test_a_finetuning_stopped_after_every_second_step_ends_with_equal_weights_and_logs(tiny_store, tmp_path):
    """All that shapes it by the step: cosine with warm-up, layer decay, mixup and cutmix, class weights, averaged weights."""
    store, _, pool = tiny_store
    unbalanced = write_class_folders(write_class_folders(tmp_path / "labeled", ["ant", "bee", "cat"], 2), ["bee"], 5, first=20)
    settings = TrainSettings(
        **{"preset": "pretrained", "model": "test_resnet", "start": "tiny-teacher@gen-0", "image_size": 16, "batch_size": 4, "ratio": 1},
        **{"steps": 5, "warmup_steps": 2, "mixup": 0.4, "cutmix": 1.0, "class_weights": "balanced"},
    )

    def finetuned(name, progress=None):
        sources = {"pseudo": store.open("tiny@gen-1.1"), "pool": open_source(str(pool))}
        run = RunSettings(workers=0, decode_threads=1)
        return train(store, name, open_source(str(unbalanced), labeled=True), settings, run=run, progress=progress, **sources)

    whole, stops = finetuned("whole"), 0
    while not store.versions("stopped"):
        try:
            finetuned("stopped", SignalAt(1, signal.SIGUSR1))
        except Interrupted:
            stops += 1
            assert stops <= 5
    stopped = store.open("stopped@gen-0")
    assert stops == 2
    assert stopped.manifest.files == whole.manifest.files
    assert logs(stopped) == logs(whole)
    assert stopped.manifest.files["model.safetensors"] != store.open("tiny-teacher").manifest.files["model.safetensors"]


def test_a_signal_in_the_last_step_is_heeded_and_what_is_left_is_sealing(undisturbed, tmp_path):
    with pytest.raises(Interrupted, match=f"by SIGTERM after step {STEPS} of net@gen-0"):
        train_in(tmp_path, SignalAt(STEPS - 1, signal.SIGTERM))
    resumed = train_in(tmp_path)
    assert resumed.manifest.files == undisturbed.manifest.files
    assert logs(resumed) == logs(undisturbed)


def test_a_training_interrupted_while_it_is_sealed_repeats_no_step(undisturbed, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Staging, "seal", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_in(tmp_path)
    said = RecordingProgress()
    resumed = train_in(tmp_path, said)
    assert f"net@gen-0: resumes after step {STEPS}" in said.lines
    assert resumed.manifest.files == undisturbed.manifest.files
    assert logs(resumed) == logs(undisturbed)


def test_a_second_ctrl_c_does_not_wait_for_the_step():
    with StopRequests() as stops:
        signal.raise_signal(signal.SIGINT)
        assert stops.agreed_signal(1) == signal.SIGINT
        with pytest.raises(Interrupted, match=r"^interrupted; finished work"):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("number", "told"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_where_a_step_takes_long_a_line_says_what_is_waited_for(number, told, monkeypatch):
    monkeypatch.setattr("nst_train.interruption.EXPLAIN_AFTER_SECONDS", 0.01)
    said = queue.SimpleQueue()
    with StopRequests(report=said.put) as stops:
        signal.raise_signal(number)
        line = said.get(timeout=10)
        assert stops.agreed_signal(1) == number
    assert line.startswith("stopping after this step and a checkpoint")
    assert ("Ctrl-C again" in line) == told


def test_where_a_step_ends_at_once_nothing_is_said():
    said = queue.SimpleQueue()
    with StopRequests(report=said.put) as stops:
        signal.raise_signal(signal.SIGINT)
        explanation = stops._explanation
    explanation.join(10)
    assert said.empty()


def test_of_several_signals_the_first_decides_the_exit_status():
    with StopRequests() as stops:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):  # SLURM warns first
            signal.raise_signal(number)
        assert stops.agreed_signal(1) == signal.SIGUSR1


def test_a_signal_to_another_process_stops_this_one():
    stops = StopRequests(lambda own: [max(own[0], float(signal.SIGTERM)), own[1]])
    assert stops.agreed_signal(1) == signal.SIGTERM


def test_processes_ask_each_other_about_once_a_second_by_the_slowest():
    asked = []

    def maximum(own):
        asked.append(own)
        steps = 1 if len(asked) == 1 else 10
        return [0.0, 0.1 * steps]  # the slowest takes a tenth of a second for a step

    stops = StopRequests(maximum)
    when = []
    for step in range(1, 32):
        before = len(asked)
        assert stops.agreed_signal(step) == 0
        when += [step] * (len(asked) - before)
    assert when == [1, 11, 21, 31]


def test_slow_steps_are_asked_after_each():
    asked = []
    stops = StopRequests(lambda own: asked.append(own) or [0.0, 7.0])
    assert [stops.agreed_signal(step) for step in range(1, 6)] == [0] * 5
    assert len(asked) == 5


@pytest.mark.parametrize(
    ("number", "status", "line"),
    [
        (signal.SIGINT, 130, "interrupted; … the same command resumes"),
        (signal.SIGTERM, 143, "interrupted by SIGTERM; … the same command resumes"),
        (signal.SIGUSR1, 138, "interrupted by SIGUSR1; … the same command resumes"),
        (signal.SIGHUP, 129, "interrupted by SIGHUP; … the same command resumes"),
    ],
)
def test_outside_of_training_a_signal_ends_the_command_at_once_with_a_status_of_its_own(number, status, line):
    with pytest.raises(Interrupted, match=f"^{pattern(line)}$") as stop:
        stop_at_once(number, None)
    assert stop.value.status == status


def test_steps_from_before_do_not_count_when_processes_agree_how_often_to_ask():
    stops = StopRequests(lambda own: [own[0], 1.0], start_step=10_000)
    assert stops.agreed_signal(10_001) == 0
    assert stops._next == 10_002


class TellsToStop:
    """A source that sends this process a signal at one of its rows, and then lets itself be waited for."""

    def __init__(self, source, read):
        self._source, self._left = source, read

    __class__ = Source  # for isinstance

    def __getattr__(self, name):
        return getattr(self._source, name)

    def __len__(self):
        return len(self._source)

    def rows(self, wanted):
        for row in self._source.rows(wanted):
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.5)
            yield row


@pytest.mark.parametrize(("read", "step"), [(9, 9), (5 * 6 + 2, STEPS)])
def test_a_training_stopped_within_a_validation_does_it_again_and_ends_with_equal_weights_scores_and_logs(
    undisturbed, tmp_path, read, step
):
    with pytest.raises(Interrupted, match=f"by SIGTERM after step {step} of net@gen-0"):
        train_in(tmp_path, shown=lambda source: TellsToStop(source, read))
    assert (tmp_path / "store/runs/teachers/net/gen-0/work/checkpoints" / f"step-{step:09d}").is_dir()
    resumed = train_in(tmp_path)
    assert resumed.manifest.files == undisturbed.manifest.files
    assert resumed.manifest.counts == undisturbed.manifest.counts
    assert logs(resumed) == logs(undisturbed)


def test_under_nohup_a_lost_terminal_stops_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert not should_stop_on(signal.SIGHUP)
        with StopRequests() as stops:
            signal.raise_signal(signal.SIGHUP)
            assert stops.agreed_signal(1) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
