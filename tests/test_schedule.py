import re
from pathlib import Path

import pytest
import torch
import yaml
from timm.scheduler import CosineLRScheduler

from nst_data.errors import UsageError
from nst_train.recipes.recipe import GenerationSettings
from nst_train.settings import TrainSettings
from nst_train.training.schedule import Schedule


def settings(**changes):
    return TrainSettings(model="efficientnet_b0", **changes)


def test_the_papers_350_epochs_of_imagenet_are_218750_steps_and_start_at_0128():
    schedule = Schedule.of(settings(warmup_epochs=0), labeled_images=1_280_000)
    assert schedule.steps == 218_750
    assert schedule.learning_rate(0) == pytest.approx(0.128)


def test_the_docs_shortened_warm_start_is_the_end_of_the_papers_schedule():
    """Study 8: "training starts at different learning rates so that the learning rate is decayed to the same value"."""
    page = (Path(__file__).parent.parent / "docs" / "training.md").read_text("utf-8")
    shown = yaml.safe_load(re.search(r"\{start: teacher, epochs[^}]*\}", page)[0])
    whole, short = (Schedule.of(settings(**changes), labeled_images=1_281_167) for changes in ({}, shown))
    assert short.max_learning_rate == short.learning_rate(0) == pytest.approx(0.128 * 0.97 ** (210 // 2.4))
    assert short.learning_rate(short.steps - 1) == pytest.approx(0.128 * 0.97 ** (350 // 2.4))
    skipped = whole.steps - short.steps
    assert [short.learning_rate(step) for step in range(0, short.steps, 999)] == [
        whole.learning_rate(skipped + step) for step in range(0, short.steps, 999)
    ]


@pytest.mark.parametrize("preset", ["efficientnet-l2", "efficientnet-b0"])
def test_a_finetuning_is_at_the_last_rate_of_the_training_before_it(preset):
    """Of 350 epochs with a step down every 2.4, or 700 and 4.8, the last 1.5 follow the 145th step."""
    generation = GenerationSettings.model_validate({"preset": preset, "finetune": {"epochs": 1.5, "image_size": 800}})
    finetuning = Schedule.of(generation.finetune, labeled_images=1_281_167)
    assert finetuning.steps == 938  # of 2048 images
    (rate,) = {finetuning.learning_rate(step) for step in range(938)} | {finetuning.max_learning_rate}
    assert rate == pytest.approx(0.128 * 0.97**145)
    assert rate == pytest.approx(0.00155, abs=5e-6)


def test_the_end_of_a_schedule_may_begin_in_its_warm_up():
    """Ten steps an epoch; ten epochs, two of them warm-up, halved each: the last nine begin halfway up."""
    end = settings(epochs=9, schedule_epochs=10, batch_size=256, learning_rate=1.0, warmup_epochs=2, decay_rate=0.5, decay_epochs=1)
    schedule = Schedule.of(end, 2560)
    assert [schedule.learning_rate(step) for step in (0, 5, 10, 89)] == pytest.approx([0.5, 0.75, 0.5**2, 0.5**9])
    assert (schedule.steps, schedule.max_learning_rate) == (90, 1.0)


@pytest.mark.parametrize(("epochs", "decay_epochs"), [(350, 2.4), (700, 4.8), (35, 0.24)])
def test_the_staircase_keeps_the_papers_proportion(epochs, decay_epochs):
    assert settings(epochs=epochs).staircase_epochs == pytest.approx(decay_epochs)


def test_the_learning_rate_warms_up_linearly_and_falls_in_steps_counted_from_0():
    schedule = Schedule.of(settings(epochs=10, batch_size=256, learning_rate=1.0, warmup_epochs=2, decay_rate=0.5, decay_epochs=1), 2560)
    # ten steps an epoch
    assert [schedule.learning_rate(step) for step in (0, 5, 10)] == pytest.approx([0.0, 0.25, 0.5])
    assert [schedule.learning_rate(step) for step in (20, 29, 30, 99)] == pytest.approx([0.5**2, 0.5**2, 0.5**3, 0.5**9])


@pytest.mark.parametrize("warmup_epochs", [0, 2])
def test_the_cosine_is_timms_step_by_step(warmup_epochs):
    values = {"epochs": 10, "batch_size": 256, "learning_rate": 0.3, "warmup_epochs": warmup_epochs}
    schedule = Schedule.of(settings(**values, schedule="cosine"), 2560)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    warm = {"warmup_t": 10 * warmup_epochs, "warmup_lr_init": 0, "warmup_prefix": True}
    timms = CosineLRScheduler(optimizer, t_initial=100 - 10 * warmup_epochs, t_in_epochs=False, **warm)
    for step in range(100):
        timms.step_update(step)
        assert schedule.learning_rate(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-12), step
    end = Schedule.of(settings(**values | {"epochs": 3}, schedule="cosine", schedule_epochs=10), 2560)
    assert [end.learning_rate(step) for step in range(30)] == [schedule.learning_rate(step) for step in range(70, 100)]


def test_steps_stand_in_place_of_epochs():
    schedule = Schedule.of(settings(steps=700, batch_size=50, warmup_epochs=2), 100)
    assert (schedule.steps, schedule.steps_per_epoch, schedule.warmup_steps, schedule.decay_steps) == (700, 2, 4, 700 * 2.4 / 350)
    assert Schedule.of(settings(steps=700, batch_size=50, decay_epochs=3), 100).decay_steps == 6
    assert Schedule.of(settings(preset="efficientnet-b0", steps=700), 2048).decay_steps == 700 * 2.4 / 350
    for other in ({"epochs": 3}, {"schedule_epochs": 700}):
        with pytest.raises(UsageError, match=r"`steps` replaces `epochs` and `schedule_epochs`.*one"):
            settings(steps=5, **other)


def test_warmup_steps_stand_in_place_of_warmup_epochs():
    assert Schedule.of(settings(steps=70, batch_size=50, warmup_steps=7), 100).warmup_steps == 7
    assert Schedule.of(settings(preset="efficientnet-b0", warmup_steps=0), 2048).warmup_steps == 0
    with pytest.raises(UsageError, match="`warmup_steps` replaces `warmup_epochs`; give one of them"):
        settings(warmup_steps=7, warmup_epochs=1)
    first = {"model": "x", "steps": 70, "warmup_steps": 7, "image_size": 64, "test_size": 80}
    for own, expected in (
        ({"steps": 5}, (0, None, 64, None)),
        ({"steps": 5, "transform": "training"}, (0, None, 64, 80)),
        ({"warmup_steps": 2, "test_size": 72}, (5, 2, 64, 72)),
        ({"warmup_epochs": 3}, (3, None, 64, None)),
        ({"image_size": 96}, (0, None, 96, None)),
    ):
        second = GenerationSettings.model_validate(first | {"finetune": own}).finetune
        assert (second.warmup_epochs, second.warmup_steps, second.image_size, second.test_size) == expected
    second = GenerationSettings.model_validate({"model": "x", "finetune": {"warmup_steps": 2, "learning_rate": 0.1}}).finetune
    assert second.warmup_steps == 2


def test_a_finetuning_has_the_length_that_it_names_and_a_schedule_of_its_own_beside_steps():
    first = {"model": "x", "steps": 70, "batch_size": 4}
    by_epochs = GenerationSettings.model_validate(first | {"finetune": {"epochs": 2}}).finetune
    assert (by_epochs.steps, by_epochs.epochs, by_epochs.schedule_epochs, by_epochs.warmup_epochs) == (None, 2, None, 0)
    by_steps = GenerationSettings.model_validate({"model": "x", "epochs": 9, "finetune": {"steps": 5}}).finetune
    assert (by_steps.steps, by_steps.schedule_epochs) == (5, None)
    assert GenerationSettings.model_validate(first | {"finetune": {"image_size": 64}}).finetune.steps == 70


def test_a_finetuning_with_a_preset_of_its_own_has_its_values_and_its_schedule():
    first = {"model": "x", "epochs": 100, "warmup_epochs": 3, "learning_rate": 0.1, "optimizer": "momentum", "batch_size": 256, "flip": 0}
    second = GenerationSettings.model_validate(first | {"finetune": {"preset": "pretrained", "epochs": 2}}).finetune
    assert (second.epochs, second.schedule_epochs, second.warmup_steps, second.steps) == (2, None, 12, None)
    assert (second.learning_rate, second.optimizer, second.batch_size) == (0.032, "adamw", 16)
    assert second.flip == 0.5  # the preset has it too
    assert (second.pretrained, second.start) == (False, "the first training")


def test_what_a_cosine_does_not_read_is_refused_and_a_preset_leaves_it_out():
    with pytest.raises(UsageError, match=r"`decay_rate` and `decay_epochs`.*`schedule` staircase, not cosine; remove"):
        settings(schedule="cosine", decay_epochs=2)
    assert settings(preset="efficientnet-b7", schedule="cosine").decay_epochs is None


def test_the_learning_rate_grows_with_the_batch():
    small, large = (Schedule.of(settings(batch_size=size, warmup_epochs=0), 10_000) for size in (256, 512))
    assert large.learning_rate(0) == 2 * small.learning_rate(0)


def test_a_training_has_at_least_one_step():
    assert Schedule.of(settings(epochs=0.001), 100).steps == 1
