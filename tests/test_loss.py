import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nst_train.loss import concatenated, cross_entropies, dense, renormalized, smoothed


def test_uniform_logits_cost_ln_of_the_number_of_classes():
    targets = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    assert torch.allclose(cross_entropies(torch.zeros(2, 3), targets), torch.full((2,), math.log(3)))


def test_the_loss_is_section_3_1s_average_over_the_concatenated_batch():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 4))
    stored = rng.dirichlet(np.ones(4), size=3).astype(np.float16)
    labels, smoothing = np.array([2, 0]), 0.1
    log_softmax = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    hard = np.eye(4)[labels] * (1 - smoothing) + smoothing / 4
    soft = stored.astype(np.float64) / stored.astype(np.float64).sum(axis=1, keepdims=True)
    expected = -(np.concatenate([hard, soft]) * log_softmax).sum() / 5

    targets = torch.cat([smoothed(torch.from_numpy(labels), 4, smoothing), renormalized(torch.from_numpy(stored))])
    assert math.isclose(float(concatenated(cross_entropies(torch.from_numpy(logits), targets))), expected, rel_tol=1e-6)


def test_soft_labels_stay_soft_and_sum_to_one():
    stored = torch.tensor([[0.5, 0.25, 0.2495]], dtype=torch.float16)
    probs = renormalized(stored)
    assert torch.isclose(probs.sum(), torch.tensor(1.0))
    assert probs.max() < 0.51


def test_smoothing_of_zero_is_one_hot():
    assert smoothed(torch.tensor([1]), 3, 0.0).tolist() == [[0.0, 1.0, 0.0]]


def test_what_is_left_to_1_is_even_over_the_classes_that_are_not_named():
    probs = dense(torch.tensor([[3, 0]], dtype=torch.int32), torch.tensor([[0.5, 0.25]], dtype=torch.float16), 6)
    assert probs.tolist() == [[0.25, 0.0625, 0.0625, 0.5, 0.0625, 0.0625]]
    assert probs.dtype == torch.float32


def test_rounding_that_leaves_less_than_nothing_leaves_0():
    top_probs = torch.tensor([[0.6665, 0.3335, 0.0002]], dtype=torch.float16)
    assert top_probs.double().sum() > 1
    probs = dense(torch.tensor([[0, 1, 2]]), top_probs, 5)
    assert probs[0, 3:].tolist() == [0.0, 0.0]
    assert torch.isclose(renormalized(probs).sum(), torch.tensor(1.0))


@st.composite
def soft_labels(draw):
    """Distributions over some classes in float16, and how many of the most probable are kept."""
    classes = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sharpness = draw(st.sampled_from([0.01, 0.3, 1.0, 100.0]))
    return torch.from_numpy(rng.dirichlet(np.full(classes, sharpness), size=3).astype(np.float16)), draw(st.integers(1, classes))


@given(soft_labels())
@settings(deadline=None)
def test_a_dense_soft_label_is_a_distribution_that_keeps_what_is_named(case):
    stored, k = case
    top_probs, top_labels = stored.topk(k, dim=1)
    probs = dense(top_labels.int(), top_probs, stored.shape[1])
    assert torch.equal(probs.gather(1, top_labels), top_probs.float())
    assert (probs >= 0).all()
    for row, named in zip(probs, top_labels, strict=True):
        others = row[[label for label in range(len(row)) if label not in named]]
        assert len(others.unique()) <= 1
    assert torch.allclose(renormalized(probs).sum(dim=1), torch.ones(3))
    if k < stored.shape[1]:
        assert torch.all(probs.sum(dim=1) >= 1 - 1e-6)
    else:
        assert torch.equal(probs, stored.float())
