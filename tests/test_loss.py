import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from nst_train.training.loss import (
    balanced_weights,
    cross_entropies,
    joint_cross_entropies,
    renormalize,
    smooth_labels,
    top_k_cross_entropies,
    weighted_loss,
)

WEIGHINGS = ["concat", "sum", "code"]


def dense(top_labels, top_probs, classes):
    """The reference: a soft label of k classes with a value for each class, what is left to 1 even over the others."""
    top_probs = top_probs.float()
    rest = (1 - top_probs.sum(dim=1, keepdim=True)).clamp(min=0)
    others = max(1, classes - top_probs.shape[1])
    return (rest / others).repeat(1, classes).scatter(1, top_labels.long(), top_probs)


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

    losses = joint_cross_entropies(torch.from_numpy(logits), torch.from_numpy(labels), {"probs": torch.from_numpy(stored)}, smoothing)
    assert math.isclose(float(weighted_loss(losses[:2], losses[2:], "concat", 1.5)), expected, rel_tol=1e-6)


def test_soft_labels_stay_soft_and_sum_to_one():
    stored = torch.tensor([[0.5, 0.25, 0.2495]], dtype=torch.float16)
    probs = renormalize(stored)
    assert torch.isclose(probs.sum(), torch.tensor(1.0))
    assert probs.max() < 0.51


def test_smoothing_of_zero_is_one_hot():
    assert smooth_labels(torch.tensor([1]), 3, 0.0).tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize("weighing", WEIGHINGS)
def test_uniform_logits_weigh_each_part_by_its_factor(weighing):
    uniform = torch.full((6,), math.log(3))
    factor = {"concat": 1, "sum": 2, "code": 1 + 2}[weighing]
    assert math.isclose(float(weighted_loss(uniform[:2], uniform[2:], weighing, 2)), factor * math.log(3), rel_tol=1e-6)


def test_each_weighing_is_its_formula():
    labeled, pseudo = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0, 7.0, 9.0])
    losses = [float(weighted_loss(labeled, pseudo, weighing, 2)) for weighing in WEIGHINGS]
    assert losses == [27 / 6, 1.5 + 6, 1.5 + 2 * 6]


def test_with_parts_of_equal_size_sum_and_code_are_twice_concat():
    labeled, pseudo = torch.rand(2, 4, generator=torch.Generator().manual_seed(0))
    concat, total, code = (weighted_loss(labeled, pseudo, weighing, 1) for weighing in WEIGHINGS)
    assert torch.isclose(total, 2 * concat)
    assert torch.equal(code, total)


def test_with_ratio_times_as_many_pseudo_labels_code_is_one_plus_ratio_times_concat():
    losses = torch.rand(2 + 6, generator=torch.Generator().manual_seed(0))
    concat, _, code = (weighted_loss(losses[:2], losses[2:], weighing, 3) for weighing in WEIGHINGS)
    assert torch.isclose(code, 4 * concat)


@pytest.mark.parametrize("weighing", WEIGHINGS)
def test_without_pseudo_labels_the_loss_is_the_mean_over_labeled_images(weighing):
    losses = torch.tensor([1.0, 4.0], requires_grad=True)
    loss = weighted_loss(losses[:2], losses[2:], weighing, 3)
    loss.backward()
    assert (loss.item(), losses.grad.tolist()) == (2.5, [0.5, 0.5])


@pytest.mark.parametrize("weighing", WEIGHINGS)
def test_the_mean_over_processes_with_equal_shares_is_the_loss_of_the_whole_step(weighing):
    labeled, pseudo = torch.rand(4, generator=torch.Generator().manual_seed(0)), torch.rand(8, generator=torch.Generator().manual_seed(1))
    shares = [weighted_loss(labeled[:2], pseudo[:4], weighing, 2), weighted_loss(labeled[2:], pseudo[4:], weighing, 2)]
    assert torch.isclose(torch.stack(shares).mean(), weighted_loss(labeled, pseudo, weighing, 2))


LOGITS = torch.tensor([[0.3, -1.0, 2.0], [1.0, 0.0, -2.0], [0.5, 0.4, -0.1]])
SOFT = torch.tensor([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1]], dtype=torch.float16)
ONE = torch.tensor([1])


def test_smoothing_is_for_labeled_images_and_hard_pseudo_labels_and_not_for_soft_ones():
    hard = joint_cross_entropies(LOGITS, ONE, {"label": torch.tensor([2, 0])}, 0.1)
    assert torch.equal(hard, torch.nn.functional.cross_entropy(LOGITS, smooth_labels(torch.tensor([1, 2, 0]), 3, 0.1), reduction="none"))
    top_probs, top_labels = SOFT.topk(2, dim=1)
    for soft in ({"probs": SOFT}, {"top_labels": top_labels, "top_probs": top_probs}):
        smooth, plain = (joint_cross_entropies(LOGITS, ONE, soft, smoothing) for smoothing in (0.1, 0.0))
        assert torch.equal(smooth[1:], plain[1:])
        assert smooth[0] == hard[0] != plain[0]


def test_a_hard_target_is_the_one_hot_soft_one_and_what_a_small_temperature_makes_of_a_soft_one():
    hard = joint_cross_entropies(LOGITS, ONE, {"label": torch.tensor([2, 0])}, 0.0)
    one_hot = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float16)
    top_probs, top_labels = SOFT.topk(2, dim=1)
    assert torch.equal(hard, joint_cross_entropies(LOGITS, ONE, {"probs": one_hot}, 0.0))
    assert torch.equal(hard, joint_cross_entropies(LOGITS, ONE, {"probs": SOFT}, 0.0, temperature=1e-3))
    cold = joint_cross_entropies(LOGITS, ONE, {"top_labels": top_labels, "top_probs": top_probs}, 0.0, temperature=1e-3)
    assert torch.allclose(hard, cold, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_temperature_on_probabilities_is_one_on_the_logits_that_made_them(temperature):
    assert torch.allclose(renormalize(LOGITS.softmax(dim=1), temperature), (LOGITS / temperature).softmax(dim=1))


def test_a_temperature_of_1_leaves_a_label_to_the_bit_and_a_high_one_makes_it_even():
    assert torch.equal(renormalize(SOFT, 1.0), SOFT.float() / SOFT.float().sum(dim=1, keepdim=True))
    assert torch.allclose(renormalize(SOFT, 1e6), torch.full((2, 3), 1 / 3))


def test_rounding_that_leaves_less_than_nothing_leaves_0():
    top_probs = torch.tensor([[0.6665, 0.3335, 0.0002]], dtype=torch.float16)
    assert top_probs.double().sum() > 1
    logits = torch.tensor([[1.0, 2.0, 3.0, 50.0, -50.0]])
    changed = torch.tensor([[1.0, 2.0, 3.0, -50.0, 50.0]])
    first, second = (top_k_cross_entropies(one, torch.tensor([[0, 1, 2]]), top_probs) for one in (logits, changed))
    assert torch.equal(first, second)


@st.composite
def soft_labels(draw):
    """Distributions over some classes in float16, and how many of the most probable are kept."""
    classes = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sharpness = draw(st.sampled_from([0.01, 0.3, 1.0, 100.0]))
    return torch.from_numpy(rng.dirichlet(np.full(classes, sharpness), size=3).astype(np.float16)), draw(st.integers(1, classes))


def with_gradients(loss_of, logits):
    logits = logits.clone().requires_grad_()
    losses = loss_of(logits)
    losses.sum().backward()
    return losses.detach(), logits.grad


def assert_the_twins_agree(logits, top_labels, top_probs, temperature):
    targets = renormalize(dense(top_labels, top_probs, logits.shape[1]), temperature)
    expected = with_gradients(lambda one: cross_entropies(one, targets), logits)
    found = with_gradients(lambda one: top_k_cross_entropies(one, top_labels, top_probs, temperature), logits)
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)


@given(soft_labels(), st.sampled_from([0.01, 0.5, 1.0, 2.0, 30.0]), st.sampled_from([0.0, 1.0, 5.0]))
@settings(deadline=None)
def test_soft_labels_of_k_classes_cost_what_their_dense_twins_cost_with_their_gradients(case, temperature, spread):
    stored, k = case
    top_probs, top_labels = stored.topk(k, dim=1)
    logits = spread * torch.randn(stored.shape, generator=torch.Generator().manual_seed(k))
    assert_the_twins_agree(logits, top_labels.int(), top_probs, temperature)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("classes", "k"), [(21_000, 100), (1_000, 1_000)])
def test_the_twins_agree_with_many_classes(classes, k, temperature):
    logits = 3 * torch.randn(2, classes, generator=torch.Generator().manual_seed(0))
    top_probs, top_labels = (logits / 2).softmax(dim=1).half().topk(k, dim=1)
    assert_the_twins_agree(logits.flip(0), top_labels.int(), top_probs, temperature)


def test_uniform_logits_cost_ln_of_the_number_of_classes_with_k_of_them_too():
    losses = top_k_cross_entropies(torch.zeros(1, 6), torch.tensor([[3, 0]]), torch.tensor([[0.5, 0.25]]))
    assert torch.allclose(losses, torch.tensor([math.log(6)]))


def test_with_balanced_weights_each_class_with_images_counts_the_same():
    """Six, three and one of ten images: 10 / 3 by each count, scikit-learn's; a fourth class has none."""
    labels = np.array([0] * 6 + [1] * 3 + [3])
    weights = balanced_weights(labels, 4)
    assert weights.tolist() == pytest.approx([10 / 18, 10 / 9, 0, 10 / 3])
    classes = np.unique(labels)
    assert weights[classes].tolist() == pytest.approx(compute_class_weight("balanced", classes=classes, y=labels))
    assert weights[torch.from_numpy(labels)].mean() == pytest.approx(1)
    assert balanced_weights(np.array([1, 0, 1, 0]), 2).tolist() == [1, 1]


def test_class_weights_are_of_labeled_images_alone():
    logits = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    labels, pseudo, weights = torch.tensor([1, 0]), {"label": torch.tensor([0])}, torch.tensor([0.5, 3.0])
    plain = joint_cross_entropies(logits, labels, pseudo, 0.1)
    weighed_by_class = joint_cross_entropies(logits, labels, pseudo, 0.1, class_weights=weights)
    assert plain[0] == pytest.approx(math.log(2))
    torch.testing.assert_close(weighed_by_class, plain * torch.tensor([3.0, 0.5, 1.0]))
