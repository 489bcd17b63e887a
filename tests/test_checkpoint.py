import os

import pytest
import torch
from conftest import TINY
from test_train import step_and_batch

from nst_data.errors import NstError
from nst_data.sources import open_source
from nst_train.settings import RunSettings, TrainSettings
from nst_train.training.checkpoint import CheckpointClock, is_finite, last_checkpoint_step, load_checkpoint, save_checkpoint
from nst_train.training.train import train


def save(folder, done, step, **more):
    save_checkpoint(folder, done, step.network, step.averaged.module, step.optimizer.optimizer, **more)


def load(folder, step, report=lambda _: None):
    return load_checkpoint(folder, step.network, step.averaged.module, step.optimizer.optimizer, report)


@pytest.mark.parametrize("optimizer", ["rmsproptf", "adamw", "sgd", "lamb"])
def test_a_checkpoint_carries_on_to_the_same_weights(tmp_path, optimizer):
    def after(steps, step, batch):
        for index in steps:
            step(index, batch)
        return step.network.state_dict(), step.averaged.module.state_dict()

    whole = after(range(6), *step_and_batch(optimizer=optimizer))
    step, batch = step_and_batch(optimizer=optimizer)
    after(range(3), step, batch)
    save(tmp_path, 3, step)
    other, batch = step_and_batch(optimizer=optimizer)
    assert load(tmp_path, other).step == 3
    resumed = after(range(3, 6), other, batch)
    for expected, found in zip(whole, resumed, strict=True):
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000003"]


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("optimizer", ["adamw", "momentum"])
def test_what_an_optimizer_keeps_of_a_weight_is_in_its_order_in_memory_after_a_resume_too(tmp_path, optimizer, channels_last):
    step, batch = step_and_batch(optimizer=optimizer, channels_last=channels_last)
    step(0, batch)
    save(tmp_path, 1, step)
    other, _ = step_and_batch(optimizer=optimizer, channels_last=channels_last)
    load(tmp_path, other)
    order = torch.channels_last if channels_last else torch.contiguous_format
    kept = [value for state in other.optimizer.optimizer.state.values() for value in state.values() if value.ndim == 4]
    assert len(kept) > 10
    assert all(value.is_contiguous(memory_format=order) for value in kept)


def test_the_last_checkpoints_are_kept_and_older_ones_dropped(tmp_path):
    step, _ = step_and_batch()
    for done in (1, 2, 3, 4):
        save(tmp_path, done, step, max_checkpoints=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000003", "step-000000004"]
    assert last_checkpoint_step(tmp_path) == 4


def test_what_a_kill_left_of_a_checkpoint_is_gone_with_the_next_one(tmp_path):
    step, _ = step_and_batch()
    left = tmp_path / ".step-000000001.4194305"
    left.mkdir()
    (left / "network.safetensors").write_bytes(bytes(9))
    save(tmp_path, 2, step)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000002"]


@pytest.mark.parametrize(
    "file", ["network.safetensors", "averaged.safetensors", "optimizer.safetensors", "best.safetensors", "position.json"]
)
@pytest.mark.parametrize("left", [0, 0.5, None])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_with_one_line(tmp_path, file, left):
    step, batch = step_and_batch()
    save(tmp_path, 1, step, notes={"is": "first"}, best_weights=step.averaged.module.state_dict(), max_checkpoints=2)
    expected = step.network.fc.weight.detach().clone()
    step(0, batch)
    save(tmp_path, 2, step, best_weights=step.averaged.module.state_dict(), max_checkpoints=2)
    damaged = tmp_path / "step-000000002" / file
    if left is None:
        damaged.unlink()
    else:
        os.truncate(damaged, int(left * damaged.stat().st_size))
    other, said = step_and_batch()[0], []
    resumed = load(tmp_path, other, said.append)
    assert (resumed.step, resumed.notes) == (1, {"is": "first"})
    assert torch.equal(other.network.fc.weight, expected)
    (line,) = said
    assert line.startswith("the checkpoint step-000000002 is damaged (")
    assert line.endswith("resuming from the previous one, or from the start")
    assert last_checkpoint_step(tmp_path) == 1


def test_where_all_checkpoints_are_damaged_training_begins_anew(tmp_path):
    step, _ = step_and_batch()
    save(tmp_path, 1, step)
    (tmp_path / "step-000000001" / "position.json").write_text("{")
    assert load(tmp_path, step).step == 0


def test_the_best_weights_travel_with_a_checkpoint(tmp_path):
    step, batch = step_and_batch()
    best = {name: value.clone() for name, value in step.averaged.module.state_dict().items()}
    step(0, batch)
    save(tmp_path, 1, step, best_weights=best)
    found = load(tmp_path, step).best_weights
    assert found.keys() == best.keys()
    assert all(torch.equal(found[name], best[name]) for name in best)


def test_a_checkpoint_of_another_network_is_one_line_that_names_a_weight(tmp_path):
    step, _ = step_and_batch()
    save(tmp_path, 3, step)
    other, _ = step_and_batch(model="test_efficientnet")
    with pytest.raises(
        NstError,
        match=r"^checkpoint step-000000003.*missing \d+ tensors.*unexpected.*timm version.*`store\.remove",
    ):
        load(tmp_path, other)


def test_a_checkpoint_is_due_after_its_minutes_and_at_an_epochs_end_after_one(monkeypatch):
    now = 1000.0
    monkeypatch.setattr("nst_train.training.checkpoint.time.monotonic", lambda: now)
    clock = CheckpointClock(minutes=5)
    for now, at_epoch_end, elsewhere in ((1059, False, False), (1060, True, False), (1299, True, False), (1300, True, True)):
        assert (clock.is_due(ends_epoch=True), clock.is_due(ends_epoch=False)) == (at_epoch_end, elsewhere), now
    clock.restart()
    assert not clock.is_due(ends_epoch=True)
    assert CheckpointClock(minutes=0).is_due(ends_epoch=False)


def test_numbers_that_are_not_finite_are_found_in_weights_and_in_statistics():
    network = step_and_batch()[0].network
    assert is_finite(network)
    network.fc.weight.data[0, 0] = float("inf")
    assert not is_finite(network)
    network.fc.weight.data[0, 0] = 0.0
    network.bn1.running_var[0] = float("nan")
    assert not is_finite(network)


def test_a_training_that_diverges_names_its_last_good_checkpoint_which_is_finite(tiny_store):
    store, labeled, _ = tiny_store
    # the learning rate rises without end: the first steps are sound
    changes = {"learning_rate": 1e30, "epochs": 40, "warmup_epochs": 1e7, "optimizer": "sgd"}
    run = RunSettings(workers=0, decode_threads=1, checkpoint_minutes=0)
    with pytest.raises(
        NstError, match=r"^late@gen-0.*step (\d+):.*step \d+\..*`learning_rate`.*`warmup_epochs`.*`store\.remove\('late@gen-0'\)`"
    ) as error:
        train(store, "late", open_source(str(labeled), labeled=True), TrainSettings(**TINY | changes), run=run)
    (staging,) = store.stagings("late")
    last = last_checkpoint_step(staging.work / "checkpoints")
    assert f"that of step {last}." in str(error.value)
    step, _ = step_and_batch(**changes)
    assert load(staging.work / "checkpoints", step).step == last
    assert is_finite(step.network, step.averaged.module)
