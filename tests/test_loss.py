import math

import numpy as np
import torch

from nst_train.loss import concatenated, cross_entropies, renormalized, smoothed


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
