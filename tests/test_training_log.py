import csv
import json

import pytest
import torch

from nst_train.settings import TrainSettings
from nst_train.training.schedule import Schedule
from nst_train.training.trackers import Trackers
from nst_train.training.training_log import SUMMARY_COLUMNS, TrainingLog


def schedule(epochs=2.0, images=100, batch_size=4):
    """25 steps an epoch."""
    return Schedule.of(TrainSettings(model="x", epochs=epochs, batch_size=batch_size), images)


def log_in(folder, begun=0, notes=None, **changes):
    return TrainingLog(folder, schedule(**changes), 12, begun, notes or {}, Trackers())


def losses(step):
    return torch.tensor([float(step), step + 1.0]), torch.tensor([2.0 * step])


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def summary(folder):
    with (folder / "summary.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_row_has_the_means_since_the_row_before_and_the_losses_apart(tmp_path):
    log = log_in(tmp_path)
    for step in range(1, 51):
        assert log.add(step, *losses(step)) is None
    first, second, last = metrics(tmp_path)
    assert (first["step"], first["epoch"], second["step"], last["step"]) == (20, 0.8, 40, 50)
    assert first["loss_labeled"] == pytest.approx(sum(step + 0.5 for step in range(1, 21)) / 20)
    assert second["loss_pseudo"] == pytest.approx(sum(2 * step for step in range(21, 41)) / 20)
    assert last["loss_pseudo"] == pytest.approx(sum(2 * step for step in range(41, 51)) / 10)
    assert last["learning_rate"] == schedule().learning_rate(49)
    assert list(first) == ["step", "epoch", "learning_rate", "loss_labeled", "loss_pseudo", "images_per_second"]
    assert log.note == f"loss {last['loss_labeled']:.3f}, pseudo {last['loss_pseudo']:.3f}, lr {last['learning_rate']:.3g}"


def test_without_pseudo_labels_their_loss_is_left_open(tmp_path):
    log = log_in(tmp_path)
    for step in range(1, 21):
        log.add(step, torch.tensor([1.0]), torch.tensor([]))
    assert metrics(tmp_path)[0]["loss_pseudo"] is None
    assert log.note == f"loss 1.000, lr {schedule().learning_rate(19):.3g}"


def test_the_summary_has_a_row_per_epoch_and_scores_where_there_are_some(tmp_path):
    log = log_in(tmp_path)
    for step in range(1, 51):
        log.add(step, *losses(step))
        if step == 30:
            log.log_validation(step, {"top1": 0.25, "nll": 1.5, "images": 4, "errors": 0})
        if step == 30 or log.is_row_due(step):
            log.write_row(step, 10.0 * step)
    assert log.note.endswith(", validation 25.0%")
    rows = summary(tmp_path)
    assert tuple(rows[0]) == SUMMARY_COLUMNS
    assert [(row["step"], row["epoch"], row["validation_top1"], row["seconds"]) for row in rows] == [
        *(("25", "1.0", "", "250.0"), ("30", "1.2", "0.25", "300.0"), ("50", "2.0", "", "500.0")),
    ]
    means = [sum(step + 0.5 for step in steps) / len(steps) for steps in (range(1, 26), range(26, 31), range(31, 51))]
    assert [float(row["loss_labeled"]) for row in rows] == pytest.approx(means)
    assert [row for row in metrics(tmp_path) if "validation_top1" in row] == [
        {"step": 30, "epoch": 1.2, "validation_top1": 0.25, "validation_nll": 1.5}
    ]


def test_short_epochs_share_a_row_of_the_summary(tmp_path):
    log = log_in(tmp_path, epochs=10, images=24)  # 6 steps an epoch
    due = [step for step in range(1, 61) if log.is_row_due(step) and log.write_row(step, 0.0) is None]
    assert due == [24, 48, 60]


@pytest.mark.parametrize("bad", [1, 27, 40])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", [0, 1])
def test_the_first_step_whose_loss_is_no_finite_number_is_named(tmp_path, bad, value, part):
    log, found = log_in(tmp_path), []
    for step in range(1, 41):
        parts = list(losses(step))
        if step >= bad:
            parts[part] = torch.full_like(parts[part], value)
        found.append(log.add(step, *parts))
        assert log.is_finite == (step < bad or found[-1] is not None)
        if found[-1] is not None:
            break
    assert found[-1] == bad
    assert len(found) == -(-bad // 20) * 20
    assert [row["step"] for row in metrics(tmp_path)] == list(range(20, bad, 20))


@pytest.mark.parametrize("stopped", [0, 7, 20, 25, 33, 50])
def test_a_resumed_log_has_the_rows_of_one_that_never_stopped(tmp_path, stopped):
    def write(log, steps):
        for step in steps:
            log.add(step, *losses(step))
            if log.is_row_due(step):
                log.write_row(step, 0.0)
        return json.loads(json.dumps({"log": log.notes}))

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    write(log_in(whole), range(1, 51))
    notes = write(log := log_in(broken), range(1, stopped + 1))
    write(log, range(stopped + 1, 51))  # what was logged after the checkpoint and before the kill
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7')
    with (broken / "summary.csv").open("a") as file:
        file.write("2.0,5")
    write(log_in(broken, stopped, notes), range(stopped + 1, 51))
    assert (broken / "summary.csv").read_text() == (whole / "summary.csv").read_text()
    rows = [[row | {"images_per_second": None} for row in metrics(folder)] for folder in (whole, broken)]
    assert rows[0] == rows[1]
