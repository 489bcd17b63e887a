import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.calibration import calibration_curve

from nst_data.errors import NstError
from nst_train.classifiers.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    calibrate,
    fit_temperature,
    negative_log_likelihood,
)


def problem(seed, temperature=1.0, images=200, classes=5):
    """Logits that are `temperature` times too large for the labels that were drawn from them."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(images, classes))
    labels = [rng.choice(classes, p=np.exp(row)) for row in log_softmax(logits, axis=1)]
    return torch.from_numpy(temperature * logits), torch.tensor(labels)


def reference_nll(logits, labels, temperature):
    return -log_softmax(logits.numpy() / temperature, axis=1)[np.arange(len(labels)), labels.numpy()].mean()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("temperature", [0.1, 1.0, 2.5, 20.0])
def test_the_temperature_is_scipys(seed, temperature):
    logits, labels = problem(seed, temperature)
    bounds = (math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE))
    found = minimize_scalar(lambda x: reference_nll(logits, labels, math.exp(x)), bounds=bounds, method="bounded", options={"xatol": 1e-9})
    assert fit_temperature(logits, labels) == pytest.approx(math.exp(found.x), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.05, 2.5, 50.0])
def test_ten_passes_over_the_images_are_enough(monkeypatch, temperature):
    logits, labels = problem(0, temperature)
    found = fit_temperature(logits, labels)
    monkeypatch.setattr("nst_train.classifiers.calibration._MAX_PASSES", 10)
    assert fit_temperature(logits, labels) == found


@given(st.integers(0, 10_000), st.floats(0.2, 8), st.integers(2, 6), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_at_the_temperature_the_expected_logit_is_the_labels(seed, temperature, classes, images):
    logits, labels = problem(seed, temperature, images, classes)
    fitted = fit_temperature(logits, labels)
    expected = float(((logits / fitted).softmax(dim=1) * logits).sum(dim=1).mean())
    seen = float(logits[range(images), labels].mean())
    if fitted == MIN_TEMPERATURE:
        assert expected <= seen + 1e-6  # more certain still
    elif fitted == MAX_TEMPERATURE:
        assert expected >= seen
    else:
        assert expected == pytest.approx(seen, abs=1e-6)


@pytest.mark.parametrize("factor", [0.2, 3.0, 7.5])
def test_logits_times_a_factor_give_the_temperature_times_it(factor):
    logits, labels = problem(0, 2.0)
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor * fit_temperature(logits, labels), rel=1e-9)


def test_what_is_added_to_a_whole_row_changes_nothing():
    logits, labels = problem(1, 2.0)
    moved = logits + torch.linspace(-500, 500, len(logits))[:, None]
    assert fit_temperature(moved, labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-9)
    assert fit_temperature(logits.log_softmax(dim=1), labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-9)


def test_many_chunks_give_what_one_gives(monkeypatch):
    logits, labels = problem(2, 3.0)
    whole = calibrate(logits, labels)
    monkeypatch.setattr("nst_train.classifiers.calibration._CHUNK_VALUES", 7 * 5)
    assert dataclasses.asdict(calibrate(logits, labels)) == pytest.approx(dataclasses.asdict(whole), rel=1e-9)


def test_uniform_logits_cost_ln_of_the_number_of_classes_and_stay_as_they_are():
    result = calibrate(torch.full((8, 4), 3.0), torch.arange(8) % 4)
    assert (result.temperature, result.at_edge) == (1.0, False)
    assert result.nll_before == result.nll_after == pytest.approx(math.log(4))
    assert result.ece_before == result.ece_after == 0.0  # a quarter sure, right a quarter of the time


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_labels_that_fit_perfectly_ask_for_the_lowest_temperature(scale):
    logits = scale * torch.eye(3, dtype=torch.float64)
    result = calibrate(logits, torch.arange(3))
    assert (result.temperature, result.at_edge) == (MIN_TEMPERATURE, True)


def test_labels_that_never_fit_ask_for_the_highest_temperature():
    result = calibrate(torch.eye(3), (torch.arange(3) + 1) % 3)
    assert (result.temperature, result.at_edge) == (MAX_TEMPERATURE, True)


def test_a_class_of_probability_0_changes_nothing():
    logits, labels = problem(3, 2.0)
    with_impossible = torch.cat([logits, torch.full((len(logits), 1), -math.inf)], dim=1)
    assert dataclasses.asdict(calibrate(with_impossible, labels)) == pytest.approx(dataclasses.asdict(calibrate(logits, labels)), rel=1e-12)


def test_a_label_of_probability_0_counts_as_the_smallest_float32():
    logits, labels = problem(4)
    tiny = logits.log_softmax(dim=1) - logits.log_softmax(dim=1).amax(dim=1, keepdim=True)
    tiny[0, labels[0]] = math.log(torch.finfo(torch.float32).tiny)
    zero = tiny.clone()
    zero[0, labels[0]] = -math.inf
    tiny[0] -= tiny[0].amax()
    found, expected = (dataclasses.asdict(calibrate(one, labels)) for one in (zero, tiny))
    assert found == pytest.approx(expected, rel=1e-12)  # how a vector's end is summed depends on where it lies in memory
    assert math.isfinite(calibrate(zero, labels).nll_before)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_likelihood_is_scipys(temperature):
    logits, labels = problem(5)
    assert negative_log_likelihood(logits, labels, temperature) == pytest.approx(reference_nll(logits, labels, temperature), rel=1e-12)


def curve_error(logits, labels):
    """The calibration error by scikit-learn's curve."""
    probs = logits.softmax(dim=1).numpy()
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == labels.numpy()
    accuracy, mean_confidence = calibration_curve(right, confidence, n_bins=15)
    images = np.histogram(confidence, bins=15, range=(0, 1))[0]
    return (images[images > 0] * np.abs(accuracy - mean_confidence)).sum() / len(labels)


@pytest.mark.parametrize("seed", range(4))
def test_the_calibration_error_is_that_of_scikit_learns_curve(seed):
    logits, labels = problem(seed, 3.0)
    result = calibrate(logits, labels)
    assert result.ece_before == pytest.approx(curve_error(logits, labels), rel=1e-9)
    assert result.ece_after == pytest.approx(curve_error(logits / result.temperature, labels), rel=1e-9)


def test_calibrating_lowers_the_cost_of_overconfident_logits_and_says_by_how_much():
    logits, labels = problem(6, 4.0, images=2000)
    result = calibrate(logits, labels)
    assert result.temperature == pytest.approx(4, rel=0.1)
    assert (result.images, result.at_edge) == (2000, False)
    assert result.nll_before == negative_log_likelihood(logits, labels)
    assert result.nll_after == negative_log_likelihood(logits, labels, result.temperature) < result.nll_before
    assert result.ece_after < 0.05 < result.ece_before
    assert json.loads(json.dumps(dataclasses.asdict(result))) == dataclasses.asdict(result)


def test_no_images_are_refused():
    with pytest.raises(NstError, match=r"no labeled image.*`calibration`"):
        calibrate(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))


@pytest.mark.parametrize("row", [[math.nan, 0.0], [math.inf, 0.0], [-math.inf, -math.inf]])
def test_logits_that_are_no_numbers_are_refused(row):
    with pytest.raises(NstError, match=r"NaN.*weights are damaged; retrain"):
        calibrate(torch.tensor([[0.0, 1.0], row]), torch.tensor([0, 1]))
