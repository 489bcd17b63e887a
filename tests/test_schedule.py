import re
from pathlib import Path

import pytest
import yaml

from nst_train.recipe_settings import GenerationSettings
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
    assert short.highest == short.learning_rate(0) == pytest.approx(0.128 * 0.97 ** (210 // 2.4))
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
    (rate,) = {finetuning.learning_rate(step) for step in range(938)} | {finetuning.highest}
    assert rate == pytest.approx(0.128 * 0.97**145)
    assert rate == pytest.approx(0.00155, abs=5e-6)


def test_the_end_of_a_schedule_may_begin_in_its_warm_up():
    """Ten steps an epoch; ten epochs, two of them warm-up, halved each: the last nine begin halfway up."""
    end = settings(epochs=9, schedule_epochs=10, batch_size=256, learning_rate=1.0, warmup_epochs=2, decay_rate=0.5, decay_epochs=1)
    schedule = Schedule.of(end, 2560)
    assert [schedule.learning_rate(step) for step in (0, 5, 10, 89)] == pytest.approx([0.5, 0.75, 0.5**2, 0.5**9])
    assert (schedule.steps, schedule.highest) == (90, 1.0)


@pytest.mark.parametrize(("epochs", "decay_epochs"), [(350, 2.4), (700, 4.8), (35, 0.24)])
def test_the_staircase_keeps_the_papers_proportion(epochs, decay_epochs):
    assert settings(epochs=epochs).staircase_epochs == pytest.approx(decay_epochs)


def test_the_learning_rate_warms_up_linearly_and_falls_in_steps_counted_from_0():
    schedule = Schedule.of(settings(epochs=10, batch_size=256, learning_rate=1.0, warmup_epochs=2, decay_rate=0.5, decay_epochs=1), 2560)
    # ten steps an epoch
    assert [schedule.learning_rate(step) for step in (0, 5, 10)] == pytest.approx([0.0, 0.25, 0.5])
    assert [schedule.learning_rate(step) for step in (20, 29, 30, 99)] == pytest.approx([0.5**2, 0.5**2, 0.5**3, 0.5**9])


def test_the_learning_rate_grows_with_the_batch():
    small, large = (Schedule.of(settings(batch_size=size, warmup_epochs=0), 10_000) for size in (256, 512))
    assert large.learning_rate(0) == 2 * small.learning_rate(0)


def test_a_training_has_at_least_one_step():
    assert Schedule.of(settings(epochs=0.001), 100).steps == 1
