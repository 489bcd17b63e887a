"""The paired bootstrap on cases whose answer is known."""

import numpy as np
import pytest

from nst_train.evaluation.chance import paired_bootstrap


def right(*runs):
    """1 and 0 in runs: right(30, 70) is thirty images right and seventy wrong."""
    return np.concatenate([np.full(length, 1.0 - place % 2) for place, length in enumerate(runs)])


def test_the_interval_is_the_normal_one_where_there_are_many_images():
    first, second = right(5000, 5000), right(5200, 4800)  # 200 images turned right, none wrong
    found = paired_bootstrap(first, second)
    spread = np.std(second - first) / np.sqrt(10_000)
    assert found.mean == pytest.approx(0.02)
    assert found.low == pytest.approx(0.02 - 1.96 * spread, abs=2e-4)
    assert found.high == pytest.approx(0.02 + 1.96 * spread, abs=2e-4)
    assert found.is_larger_than_chance


def test_pairs_tell_apart_what_separate_samples_would_not():
    draw = np.random.default_rng(0)
    first = (draw.random(1000) < 0.5).astype(float)
    second = first.copy()
    second[np.flatnonzero(first == 0)[:12]] = 1  # 1.2 points better; the accuracy of either is known to 1.6 points
    assert paired_bootstrap(first, second).is_larger_than_chance


def test_as_many_images_won_as_lost_may_be_chance():
    found = paired_bootstrap(right(40, 60), np.roll(right(40, 60), 10))
    assert found.mean == 0
    assert not found.is_larger_than_chance


def test_equal_models_do_not_differ():
    found = paired_bootstrap(right(3, 7), right(3, 7))
    assert (found.mean, found.low, found.high, found.is_larger_than_chance) == (0, 0, 0, False)


def test_of_five_images_no_difference_is_larger_than_chance():
    assert not paired_bootstrap(np.zeros(5), np.ones(5)).is_larger_than_chance
    assert paired_bootstrap(np.zeros(6), np.ones(6)).is_larger_than_chance


def test_an_image_that_one_of_them_could_not_read_is_left_out():
    found = paired_bootstrap(np.array([0, 0, np.nan, 1.0]), np.array([1, 1, 1, np.nan]))
    assert (found.mean, found.low, found.high, found.images) == (1, 1, 1, 2)


def test_the_same_seed_draws_the_same_images():
    first, second = right(300_000, 700_000), right(310_000, 690_000)
    assert paired_bootstrap(first, second, seed=3) == paired_bootstrap(first, second, seed=3)
    assert paired_bootstrap(first, second, seed=3) != paired_bootstrap(first, second, seed=4)


def test_many_different_values_are_drawn_image_by_image_to_the_same_interval():
    draw = np.random.default_rng(0)
    fine = draw.normal(0.1, 1, 2000)  # more different values than are drawn by counts
    coarse = fine.round(1)
    one, other = (paired_bootstrap(np.zeros(2000), values) for values in (fine, coarse))
    assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=5e-3)


def test_19_of_20_intervals_hold_the_true_difference():
    draw = np.random.default_rng(1)
    held = [paired_bootstrap(np.zeros(200), draw.choice([-1.0, 0, 1], 200, p=[0.1, 0.6, 0.3]), seed) for seed in range(200)]
    assert 0.9 <= np.mean([one.low <= 0.2 <= one.high for one in held]) <= 0.99
