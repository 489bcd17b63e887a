"""Metrics over outcomes, against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, recall_score, top_k_accuracy_score

from nst_data.errors import NstError
from nst_train.evaluation.metrics import by_class, confusions, reliability, summary
from nst_train.evaluation.outcomes import compute_outcomes

CLASSES = [f"class {index}" for index in range(7)]


@pytest.fixture(scope="module")
def answers():
    """(probabilities, labels, outcomes) of 500 images, some of them surely right."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 7, (500,), generator=draw)
    logits = 2 * torch.randn(500, 7, generator=draw) + 2 * torch.nn.functional.one_hot(labels, 7)
    log_probs = logits.log_softmax(dim=1)
    return log_probs.exp().double().numpy(), labels.numpy(), compute_outcomes(log_probs, labels)


def test_accuracy_and_likelihood_are_those_of_scikit_learn(answers):
    probs, labels, outcomes = answers
    found = summary(outcomes, classes=7)
    assert found["top1"] == accuracy_score(labels, probs.argmax(axis=1))
    assert found["top5"] == pytest.approx(top_k_accuracy_score(labels, probs, k=5))
    assert found["nll"] == pytest.approx(log_loss(labels, probs / probs.sum(axis=1, keepdims=True)), rel=1e-6)
    assert (found["images"], found["errors"]) == (500, 0)


def test_classes_and_mistakes_are_the_rows_of_scikit_learns_confusion_matrix(answers):
    probs, labels, outcomes = answers
    matrix = confusion_matrix(labels, probs.argmax(axis=1))
    found = np.zeros((7, 7), dtype=int)
    for pair in confusions(outcomes, CLASSES):
        found[CLASSES.index(pair["truth"]), CLASSES.index(pair["predicted"])] = pair["images"]
    of_classes = by_class(outcomes, CLASSES)
    found[range(7), range(7)] = [round(of_classes[name]["top1"] * of_classes[name]["images"]) for name in CLASSES]
    assert (found == matrix).all()
    assert [of_classes[name]["top1"] for name in CLASSES] == pytest.approx(list(recall_score(labels, probs.argmax(axis=1), average=None)))
    counts = [pair["images"] for pair in confusions(outcomes, CLASSES)]
    assert counts == sorted(counts, reverse=True)
    assert len(confusions(outcomes, CLASSES, limit=3)) == 3


def test_the_reliability_diagram_is_scikit_learns_calibration_curve(answers):
    probs, labels, outcomes = answers
    confidence, right = probs.max(axis=1).astype(np.float32), probs.argmax(axis=1) == labels
    accuracy, mean_confidence = calibration_curve(right, confidence.astype(np.float64), n_bins=15)
    rows = [row for row in reliability(outcomes) if row["images"]]
    assert [row["accuracy"] for row in rows] == pytest.approx(list(accuracy))
    assert [row["confidence"] for row in rows] == pytest.approx(list(mean_confidence), rel=1e-6)
    assert len(reliability(outcomes)) == 15
    error = sum(row["images"] * abs(row["accuracy"] - row["confidence"]) for row in rows) / 500
    assert summary(outcomes, 7)["ece"] == pytest.approx(error)


def test_uniform_probabilities_cost_the_logarithm_of_the_classes():
    log_probs, labels = torch.full((4, 8), 1 / 8).log(), torch.tensor([0, 3, 5, 7])
    assert summary(compute_outcomes(log_probs, labels), 8)["nll"] == pytest.approx(np.log(8))


def test_five_classes_have_no_top_5():
    assert "top5" not in summary(compute_outcomes(torch.eye(5).log_softmax(dim=1), torch.arange(5)), 5)


def test_what_cannot_be_read_is_counted_apart():
    log_probs = torch.tensor([[3.0, 0.0], [0.0, 3.0]]).log_softmax(dim=1)
    outcomes = compute_outcomes(log_probs, torch.tensor([0, 0]), readable=[0, 2], images=4)
    found = summary(outcomes, 2)
    assert (found["top1"], found["images"], found["errors"]) == (0.5, 2, 2)
    assert by_class(outcomes, ["ant", "bee"]) == {"ant": {"images": 2, "top1": 0.5}}
    assert confusions(outcomes, ["ant", "bee"]) == [{"truth": "ant", "predicted": "bee", "images": 1}]


def test_probabilities_that_are_no_numbers_are_refused():
    with pytest.raises(NstError, match=r"not finite for 2 of 2 images.*retrain"):
        compute_outcomes(torch.full((2, 3), torch.nan), torch.tensor([0, 1]))
