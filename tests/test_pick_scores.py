"""What makes an image worth a look: scores from labels and features, by hand."""

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression

from nst_data.review.distinct_images import DistinctImages, image_numbers, iter_soft_labels
from nst_data.review.feature_scores import mixed_scores, outliers, outliers_within, suspicion_by_neighbors
from nst_data.review.label_errors import confident_joint, estimate_errors, suspicion_of_labels
from nst_data.review.label_scores import churn_scores, ensemble_suspicion
from nst_data.review.neighbors import outlier_scores
from nst_data.review.spreading import l2_normalize, max_per_class, sample_images, select_candidates, select_diverse
from nst_data.review.uncertainty import uncertainty
from nst_train.features import linear_probe
from nst_train.features.linear_probe import cross_validated_probs, fit


def array(*rows):
    return np.array(rows, np.float32)


def images(labels, confidences=None):
    labels = np.array(labels)
    return DistinctImages(np.arange(len(labels), dtype=np.uint64), labels, np.array(confidences or [0.5] * len(labels), np.float32))


class InMemory:
    """Features that lie in no file."""

    def __init__(self, matrix, is_here=None):
        self.matrix = np.asarray(matrix, np.float32)
        self.has_features = np.ones(len(matrix), bool) if is_here is None else np.array(is_here)

    def batches(self, center=0):
        for places in np.array_split(np.flatnonzero(self.has_features), 2):
            yield places, l2_normalize(self.matrix[places] - np.float32(center))

    def gather(self, places, center=0):
        return l2_normalize(self.matrix[places] - np.float32(center))

    def sample(self, limit, seed):
        return np.flatnonzero(self.has_features)[:limit]


def test_uncertainty_is_as_its_formulas_say():
    probs = array([0.7, 0.2, 0.1], [0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3], [1, 0, 0])
    np.testing.assert_allclose(uncertainty("margin", probs), [0.5, 1, 1, 0], atol=1e-6)
    np.testing.assert_allclose(uncertainty("confidence", probs), [0.3, 0.5, 2 / 3, 0], atol=1e-6)
    entropy = -(0.7 * np.log(0.7) + 0.2 * np.log(0.2) + 0.1 * np.log(0.1)) / np.log(3)
    np.testing.assert_allclose(uncertainty("entropy", probs), [entropy, np.log(2) / np.log(3), 1, 0], atol=1e-6)


def test_churn_counts_changes_and_breaks_ties_by_confidence():
    now = images([0, 0, 1, 2], [0.9, 0.6, 0.8, 0.5])
    first, second = images([0, 1, 0, 0]), images([0, 0, 1])  # the second generation lacks the last image
    found = churn_scores(now, [first, second])
    np.testing.assert_allclose(found, [(0 + 0.1) / 3, (1 + 0.4) / 3, (1 + 0.2) / 3, (1 + 0.5) / 2], atol=1e-6)


def test_suspicion_of_several_generations_is_what_they_do_not_give_to_the_label():
    now, numbers = images([0, 1]), np.array([1, 0, 7], np.uint64)  # in another order, with an image that is not looked at
    first = [(numbers, array([0.2, 0.8], [0.6, 0.4], [1, 0]))]
    second = [(np.array([0, 1], np.uint64), array([0.8, 0.2], [0.5, 0.5]))]
    np.testing.assert_allclose(ensemble_suspicion(now, [first, second]), [1 - 0.7, 1 - 0.65], atol=1e-6)


def test_suspicion_of_one_generation_is_what_neighbors_say_of_the_label():
    features = [[1, 0.01 * number] for number in range(12)] + [[0.01 * number, 1] for number in range(12)]
    labels = images([0] * 11 + [1] * 13)  # the twelfth lies among those of class 0
    probs = np.where(np.arange(2) == labels.labels[:, None], np.float32(0.9), np.float32(0.1))
    found = suspicion_by_neighbors(labels, iter([(labels.numbers, probs)]), 2, InMemory(features), 0)
    assert found.argmax() == 11
    assert found[11] == pytest.approx(0.9)  # ten neighbors give 0.1 each
    assert found[20] == pytest.approx(0.1)


def test_confident_learning_is_the_published_formula():
    """Northcutt et al. 2021, equations 1 to 3, with thresholds 0.6 (mean of 0.9, 0.7, 0.2) and 0.7 (mean of 0.8, 0.6)."""
    probs = array([0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.2, 0.8], [0.4, 0.6])
    labels = np.array([0, 0, 0, 1, 1])
    joint = confident_joint(probs, labels)
    assert joint.tolist() == [[2, 1], [0, 1]]  # the last image reaches neither threshold
    assert estimate_errors(joint, labels) == pytest.approx(3 * 1 / 3 + 0)
    np.testing.assert_allclose(suspicion_of_labels(probs, labels), [0.1, 0.3, 0.8, 0.2, 0.4], atol=1e-6)


def test_of_several_classes_above_their_thresholds_the_most_probable_is_the_true_one():
    probs = array([0.6, 0.4, 0.0], [0.1, 0.9, 0.0], [0.35, 0.25, 0.4])
    labels = np.array([0, 1, 2])  # thresholds 0.6, 0.9 and 0.4
    assert confident_joint(probs, labels).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    again = confident_joint(array([0.6, 0.4], [0.3, 0.7], [0.55, 0.45]), np.array([0, 0, 1]))  # thresholds 0.45 and 0.45
    assert again.tolist() == [[1, 1], [1, 0]]


def two_blobs(images_per_class=20, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], images_per_class)
    return (rng.normal(size=(len(labels), 4)) + 4 * labels[:, None]).astype(np.float32), labels.astype(np.int64)


def test_cross_validated_probabilities_do_not_know_the_label_and_show_which_is_wrong():
    features, labels = two_blobs()
    labels[3] = 1
    probs = cross_validated_probs(features, labels, 2)
    np.testing.assert_allclose(probs.sum(1), 1, atol=1e-5)
    assert suspicion_of_labels(probs, labels).argmax() == 3
    assert suspicion_of_labels(probs, labels)[3] > 0.9
    assert estimate_errors(confident_joint(probs, labels), labels) == pytest.approx(1, abs=0.6)


def test_the_only_image_of_a_class_is_not_suspected():
    features, labels = two_blobs(6)
    probs = cross_validated_probs(np.concatenate([features, features[:1] + 50]), np.append(labels, 2), 3)
    assert np.isnan(probs[-1]).all()
    assert np.isfinite(probs[:-1]).all()


def test_where_all_but_one_image_are_of_a_class_none_of_them_is_suspected():
    features, labels = two_blobs(6)
    probs = cross_validated_probs(features[:7], labels[:7], 2)
    assert np.isnan(probs[-1]).all()
    assert (probs[:-1, 0] > 0.5).all()
    assert np.isnan(cross_validated_probs(features[5:7], labels[5:7], 2)).all()  # one image a class
    assert (cross_validated_probs(features[:6], labels[:6], 2)[:, 0] > 0.999).all()  # one class


def test_a_sample_that_is_fitted_has_images_of_each_class(monkeypatch):
    monkeypatch.setattr(linear_probe, "MAX_FITTED", 40)
    rng, sizes = np.random.default_rng(0), [200, *[5] * 8]
    labels = np.repeat(np.arange(9), sizes)
    features = (5 * np.eye(9)[labels] + rng.normal(scale=0.3, size=(len(labels), 9))).astype(np.float32)
    assert suspicion_of_labels(cross_validated_probs(features, labels, 9), labels).max() < 0.5


def test_a_probe_of_a_given_strength_has_the_probabilities_of_scikit_learns():
    features, labels = two_blobs()
    probe = fit(features, labels, 2, strength=0.3)
    scaled = (features - features.mean(0)) / np.sqrt(features.var(0).mean())
    expected = LogisticRegression(C=0.3, max_iter=1000).fit(scaled, labels).predict_proba(scaled)
    assert (probe.strength, probe.folds) == (0.3, 0)
    np.testing.assert_allclose(probe.probs(features), expected, atol=1e-4)


def test_outliers_are_far_from_everything_labeled():
    labeled = array([1, 0], [1, 0.1], [0, 1], [0.1, 1])
    pool = array([1, 0.05], [0.05, 1], [-1, -1])
    found = outliers(InMemory(pool), labeled, 0)
    assert found.argmax() == 2
    assert ((found >= 0) & (found <= 1)).all()
    own = outlier_scores(l2_normalize(labeled), l2_normalize(labeled), np.arange(4))
    np.testing.assert_allclose(outliers_within(InMemory(labeled), 0), own, atol=1e-6)
    assert (own > 0.01).all()  # no image is its own neighbor


def test_of_images_as_far_from_everything_labeled_those_that_are_many_come_first():
    crowd, alone = [[-1, 0.01 * number, 0] for number in range(22)], [-1, 0, 3]
    labeled = array([1, 0, 0], [1, 0.1, 0], [0.9, 0, 0])
    found = outliers(InMemory([*crowd, [1, 0.05, 0], alone]), labeled, 0)
    assert found[:22].min() > found[23] > found[22]


def test_mixed_prefers_the_typical_among_equally_unsure_images_and_leaves_out_what_has_no_features():
    crowd = [[1, 0.01 * number] for number in range(21)]
    scores = mixed_scores(np.full(23, 0.5, np.float32), InMemory([*crowd, [-1, 0], [1, 0]], [True] * 22 + [False]), 0)
    assert scores[21] < scores[10]
    assert scores[22] == -np.inf


def test_candidates_are_the_highest_scores_and_not_all_of_a_class():
    scores = np.array([9, 8, 7, 6, 5, 4, np.nan, -np.inf], np.float32)
    assert select_candidates(scores, np.array([0, 0, 0, 0, 1, 1, 1, 1]), 2, 1).tolist() == [0, 1]
    labels = np.array([0] * 6 + [1, 2, 3, 4])
    assert max_per_class(labels, 5) == 2
    assert select_candidates(np.arange(10, 0, -1, dtype=np.float32), labels, 5, 1).tolist() == [0, 1, 6, 7, 8]


@pytest.mark.parametrize("how", ["k-means", "k-center"])
def test_picks_are_not_the_same_picture(how):
    rng = np.random.default_rng(0)
    directions = np.repeat(np.eye(6), 10, axis=0)
    features = l2_normalize((directions + 0.01 * rng.normal(size=directions.shape)).astype(np.float32))
    scores = np.linspace(1, 0.5, 60, dtype=np.float32)
    places = select_diverse(how, features, np.arange(60) % 3, scores, 6, 0)
    assert sorted(places // 10) == list(range(6))
    assert (select_diverse(how, features, np.arange(60) % 3, scores, 6, 0) == places).all()
    assert select_diverse(how, features, np.arange(60) % 3, scores, 60, 0).tolist() != []


def test_without_features_the_highest_are_taken_with_two_even_shares_of_a_class_at_most():
    labels, scores = np.array([0, 0, 0, 0, 1, 2]), np.linspace(1, 0, 6, dtype=np.float32)
    assert select_diverse("classes", None, labels, scores, 3, 0).tolist() == [0, 1, 4]
    assert select_diverse("classes", None, labels, scores, 6, 0).tolist() == [0, 1, 2, 3, 4, 5]
    same = l2_normalize(np.ones((6, 2), np.float32))
    assert len(set(select_diverse("k-means", same, labels, scores, 4, 0).tolist())) == 4  # fewer different images than picks


def test_a_random_draw_is_even_and_stays_when_images_are_added():
    numbers = np.random.default_rng(1).integers(2**64, size=2_000, dtype=np.uint64)
    taken = np.concatenate([sample_images(np.sort(numbers), 100, seed) for seed in range(200)])
    counts = np.bincount(taken, minlength=2_000)
    assert counts.sum() == 20_000
    assert abs(counts.var() - 10 * 0.95) < 1.5  # of 200 draws of a twentieth, each on its own
    few, more = sample_images(numbers[:1_000], 50, 3), sample_images(numbers, 100, 3)
    assert len(set(more.tolist()) & set(few.tolist())) > 25


def test_the_number_of_an_image_is_half_of_its_hash():
    assert image_numbers(pl.Series(["00000000000000ff" + 16 * "a", 32 * "f"])).tolist() == [255, 2**64 - 1]


def test_soft_labels_of_a_version_are_dense_and_in_the_order_of_the_classes_asked_for(tmp_path):
    from sealed_labels import label_row, seal_generation

    from nst_data.store.store import Store

    row = label_row(0, "a", 1, 0.6) | {"probs": [0.1, 0.6, 0.3]}
    version = seal_generation(Store(tmp_path), [row, label_row(1, "a", 1, 0.6)])
    ((numbers, probs),) = iter_soft_labels(version, ["cat", "bee", "ant"])
    np.testing.assert_allclose(probs[0], [0.3, 0.6, 0.1], atol=1e-3)
    assert len(DistinctImages.from_version(version)) == 1  # both rows have the same bytes
    assert DistinctImages.from_version(version, ["bee", "ant", "cat"]).labels.tolist() == [0]
    assert numbers[0] == numbers[1]
