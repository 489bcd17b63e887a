import math

import numpy as np
import polars as pl
import pytest
import torch
from sealed_labels import NAMES
from sklearn.metrics import accuracy_score, confusion_matrix, precision_score

from nst_data.errors import NstError
from nst_data.inspection.quality import (
    ClassPrecision,
    ConfidenceBin,
    WrongPair,
    calibration_error,
    count_confusions,
    join_truth,
    measure_quality,
    reliability,
)
from nst_data.inspection.truth import Truth


def labels_of(rows):
    """From (id, label, confidence)."""
    return pl.LazyFrame(rows, schema={"id": pl.Int64, "label": pl.Int64, "confidence": pl.Float32}, orient="row")


def truth_of(classes):
    """From id to class."""
    table = pl.DataFrame({"id": list(classes), "truth": list(classes.values())}, schema={"id": pl.Int64, "truth": pl.Int64})
    return Truth("truth", "id", table, len(table))


SIX = labels_of([(0, 0, 0.95), (1, 0, 0.85), (2, 0, 0.85), (3, 1, 0.35), (4, 1, 0.95), (5, 2, 0.5)])
TRUTH = truth_of({0: 0, 1: 0, 2: 1, 3: 2, 4: 1, 9: 2})


def test_six_labels_are_measured_by_hand():
    quality = measure_quality(SIX, TRUTH, NAMES)
    assert (quality.labels, quality.joined, quality.accuracy) == (6, 5, 3 / 5)
    assert quality.wrong_pairs == [WrongPair("ant", "bee", 1), WrongPair("bee", "cat", 1)]
    assert quality.precision == [ClassPrecision("bee", 2, 1, 0.5), ClassPrecision("ant", 3, 2, 2 / 3)]
    by_bin = {round(row.low, 1): row for row in quality.by_confidence}
    assert [(low, row.images, row.accuracy) for low, row in by_bin.items() if row.images] == [(0.3, 1, 0.0), (0.8, 2, 0.5), (0.9, 2, 1.0)]
    assert by_bin[0.8].mean_confidence == pytest.approx(0.85)
    assert by_bin[0.0] == ConfidenceBin(0.0, 0.1, 0, None, None)
    assert quality.calibration_error == pytest.approx((2 * 0.05 + 2 * 0.35 + 0.35) / 5)  # no bin of 15 holds two of the three confidences


@pytest.fixture(scope="module")
def many():
    """(labels, truth, probabilities): 5,000 images of 7 classes."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(5000, 7)) * 2
    probs = torch.from_numpy(logits).softmax(dim=1).float()
    truth = np.where(rng.random(5000) < 0.6, probs.argmax(dim=1).numpy(), rng.integers(0, 7, 5000))
    return probs.argmax(dim=1).numpy(), truth, probs


@pytest.fixture(scope="module")
def measured(many):
    labels, truth, probs = many
    rows = [(row, int(label), float(top)) for row, (label, top) in enumerate(zip(labels, probs.amax(dim=1), strict=True))]
    return measure_quality(labels_of(rows), truth_of(dict(enumerate(truth.tolist()))), list("abcdefg"), pairs=100)


def test_accuracy_and_precision_are_those_of_scikit_learn(many, measured):
    labels, truth, _ = many
    assert measured.accuracy == pytest.approx(accuracy_score(truth, labels))
    expected = precision_score(truth, labels, average=None, labels=range(7))
    assert {row.name: row.precision for row in measured.precision} == pytest.approx(dict(zip("abcdefg", expected, strict=True)))
    assert [row.precision for row in measured.precision] == sorted(expected)


def test_wrong_pairs_are_those_of_scikit_learns_confusion_matrix(many, measured):
    matrix = confusion_matrix(many[1], many[0])  # rows: truth, columns: label
    for pair in measured.wrong_pairs:
        assert matrix["abcdefg".index(pair.truly), "abcdefg".index(pair.labeled)] == pair.images
    assert sum(pair.images for pair in measured.wrong_pairs) == matrix.sum() - np.trace(matrix)
    assert [pair.images for pair in measured.wrong_pairs] == sorted((pair.images for pair in measured.wrong_pairs), reverse=True)


def test_a_confidence_on_a_bound_falls_below_it():
    def error(bins):  # the first right, too unsure by 0.5, the second wrong, too sure by 0.75
        return calibration_error(
            reliability(join_truth(labels_of([(0, 0, 0.5), (1, 0, 0.75)]), truth_of({0: 0, 1: 1}).table.lazy(), "id"), bins).collect()
        )

    assert error(bins=1) == pytest.approx((0.75 - 0.5) / 2)  # one bin: they cancel
    assert error(bins=2) == pytest.approx((0.75 + 0.5) / 2)  # (0, 0.5] and (0.5, 1]


def test_bins_together_hold_all_images_and_give_the_accuracy(measured):
    assert sum(row.images for row in measured.by_confidence) == measured.joined == 5000
    assert math.fsum(row.images * (row.accuracy or 0) for row in measured.by_confidence) == pytest.approx(5000 * measured.accuracy)


def test_only_so_many_wrong_pairs_are_named_ties_in_the_order_of_the_classes():
    labels, truth = labels_of([(0, 2, 0.5), (1, 1, 0.5), (2, 0, 0.5)]), truth_of({0: 0, 1: 0, 2: 1})
    assert measure_quality(labels, truth, NAMES, pairs=2).wrong_pairs == [WrongPair("ant", "bee", 1), WrongPair("bee", "ant", 1)]


def test_a_confidence_that_is_no_number_counts_in_accuracy_and_in_no_bin():
    quality = measure_quality(labels_of([(0, 0, float("nan")), (1, 0, 0.5)]), truth_of({0: 0, 1: 1}), NAMES)
    assert quality.accuracy == 0.5
    assert sum(row.images for row in quality.by_confidence) == 1
    assert quality.calibration_error == 0.5


def test_the_steps_take_and_give_lazy_frames():
    judged = join_truth(SIX, TRUTH.table.lazy(), "id")
    assert isinstance(judged, pl.LazyFrame)
    assert judged.collect_schema().names() == ["id", "label", "confidence", "truth"]
    assert count_confusions(judged).filter(label=0).sort("truth").collect().rows() == [(0, 0, 2), (0, 1, 1)]
    assert reliability(judged, 1).collect().select("bin", "images", "correct").rows() == [(0, 5, 3)]


def test_a_truth_about_other_images_is_an_error():
    with pytest.raises(NstError, match=r"bugs@gen-1: none of its images.*joined by id; "):
        measure_quality(SIX, truth_of({77: 0}), NAMES, "bugs@gen-1")


def test_a_label_outside_the_classes_is_an_error():
    with pytest.raises(NstError, match=r"bugs@gen-1:.*0 to 2.*label 3"):
        measure_quality(labels_of([(0, 3, 0.5)]), truth_of({0: 0}), NAMES, "bugs@gen-1")
