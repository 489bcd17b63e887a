"""Whether picking pays: accuracy after 50 more labels by each method; wrong labels, and images of unknown classes, that it finds.

OMP_NUM_THREADS=1 python benchmarks/pick.py CLOTHING MODEL [--store FOLDER] [--seeds 10] [--whole-seeds 3]

CLOTHING is a folder with train.parquet, validation.parquet and test.parquet (`image`, `label`), MODEL a name with published weights, whose
features are computed once and kept in the store. The digits are scikit-learn's, their features the 64 pixels. Trainings are linear probes.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import t as student
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from nst_data import Store, open_source
from nst_data.progress import Progress
from nst_data.review.distinct_images import DistinctImages
from nst_data.review.feature_scores import mixed_scores, outliers, suspicion_by_neighbors
from nst_data.review.label_errors import confident_joint, estimate_errors, suspicion_of_labels
from nst_data.review.label_scores import churn_scores
from nst_data.review.spreading import l2_normalize, select_candidates, select_diverse
from nst_data.review.uncertainty import uncertainty
from nst_data.sources import labels_in
from nst_train import EmbedSettings, embed
from nst_train.features.linear_probe import cross_validated_probs, fit
from nst_train.features.picking import candidates_per_pick
from nst_train.settings import ReadSettings

NUMBER, DRAWS, CLASSES = 50, 5, 10
METHODS = ["margin", "entropy", "confidence", "churn", "suspicion", "outlier", "mixed"]


@dataclass
class Data:
    """Features and true labels; `split` gives the rows that are labeled, in the pool and tested, by a seed."""

    name: str
    features: np.ndarray
    truth: np.ndarray
    split: object


class InMemory:
    """What `FeaturedImages` offers, of a matrix."""

    def __init__(self, matrix):
        self.matrix, self.is_here = matrix, np.ones(len(matrix), bool)

    def batches(self, center=0):
        yield np.arange(len(self.matrix)), l2_normalize(self.matrix - np.float32(center))

    def of(self, places, center=0):
        return l2_normalize(self.matrix[places] - np.float32(center))

    def sample(self, most, seed):
        return np.arange(min(most, len(self.matrix)))


def digits():
    data = load_digits()

    def split(seed):  # as nst_data/digits.py
        order = np.random.default_rng(seed).permutation(len(data.target))
        test, rest = order[:500], order[500:]
        labeled = np.concatenate([rest[data.target[rest] == digit][:10] for digit in range(CLASSES)])
        return labeled, np.setdiff1d(rest, labeled), test

    return Data("digits", data.data.astype(np.float32), data.target.astype(np.int64), split)


def clothing(folder, model, store):
    parts = []
    for name in ("train", "validation", "test"):
        source = open_source(folder / f"{name}.parquet", labeled=True)
        features = embed(store, model, source, EmbedSettings(), run=ReadSettings(decode_threads=1), progress=Progress())
        parts.append((features.matrix(), labels_in(source)[features.rows()["id"].to_numpy()].astype(np.int64)))
    truth, train = np.concatenate([labels for _, labels in parts]), len(parts[0][1])

    def split(seed):
        rng = np.random.default_rng(seed)
        of_class = (np.flatnonzero(truth[:train] == label) for label in range(CLASSES))
        labeled = np.concatenate([rng.choice(rows, 20, replace=False) for rows in of_class])
        return labeled, np.setdiff1d(np.arange(train), labeled), np.arange(train, len(truth))

    return Data("clothing", np.concatenate([matrix for matrix, _ in parts]), truth, split)


def images_of(probs):
    return DistinctImages(np.arange(len(probs), dtype=np.uint64), probs.argmax(1), probs.max(1))


def scores_of(by, probs, student_probs, features, labeled_features):
    """As `nst pick` has them; churn is from the teacher to a second probe, on the teacher's labels."""
    images, featured = images_of(probs), InMemory(features)
    if by == "churn":
        return churn_scores(images_of(student_probs), [images])
    if by == "suspicion":
        return suspicion_by_neighbors(images, iter([(images.numbers, probs)]), CLASSES, featured, 0)
    if by == "outlier":
        return outliers(featured, labeled_features, 0)
    if by == "mixed":
        return mixed_scores(uncertainty("margin", probs), featured, 0)
    return uncertainty(by, probs)


def picked(by, how, scores, labels, features, per_pick=None):
    places = select_candidates(scores, labels, NUMBER, per_pick or candidates_per_pick(by))
    return places[select_diverse(how, l2_normalize(features[places]), labels[places], scores[places], NUMBER, 0)]


def one_seed(data, seed):
    """Test accuracy after each way of picking."""
    labeled, pool, test = data.split(seed)
    first = fit(data.features[labeled], data.truth[labeled], CLASSES, seed)

    def accuracy(rows):
        rows = np.concatenate([labeled, rows])
        probe = fit(data.features[rows], data.truth[rows], CLASSES, seed, strength=first.strength)
        return (probe.probs(data.features[test]).argmax(1) == data.truth[test]).mean()

    probs, features = first.probs(data.features[pool]), data.features[pool]
    all_labels = np.concatenate([data.truth[labeled], probs.argmax(1)])
    second = fit(data.features[np.concatenate([labeled, pool])], all_labels, CLASSES, seed, strength=first.strength).probs(features)
    rng = np.random.default_rng(seed)
    results = {
        "none": accuracy(pool[:0]),
        "random": np.mean([accuracy(rng.choice(pool, NUMBER, replace=False)) for _ in range(DRAWS)]),
    }
    for by in METHODS:
        current = second if by == "churn" else probs
        scores = scores_of(by, probs, second, features, data.features[labeled])
        results[by] = accuracy(pool[picked(by, "k-means", scores, current.argmax(1), features)])
        if by == "margin":
            for method in ("k-center", "classes"):
                results[f"{by}, spread {method}"] = accuracy(pool[picked(by, method, scores, current.argmax(1), features)])
            results["margin, highest alone"] = accuracy(pool[np.argsort(-scores, kind="stable")[:NUMBER]])
    return results


def interval(values):
    """Mean and half of its 95% interval over seeds, by Student's t."""
    values = np.asarray(values, float)
    return values.mean(), student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))


def accuracies(data, seeds):
    runs = [one_seed(data, seed) for seed in range(seeds)]
    print(f"\n### {data.name}, {seeds} seeds\n\n| picked by | accuracy | against random | against none | seeds above random |")
    print("|---|---|---|---|---|")
    for way in runs[0]:
        mean, _ = interval([run[way] for run in runs])
        random, none = ([run[way] - run[baseline] for run in runs] for baseline in ("random", "none"))
        cells = [f"{100 * mean:+.2f} ± {100 * half:.2f}" for mean, half in (interval(random), interval(none))]
        print(f"| {way} | {100 * mean:.2f}% | {cells[0]} | {cells[1]} | {sum(difference > 0 for difference in random)} |", flush=True)


def wrong_labels(data, rows_of, seeds, what):
    """5% of the labels are replaced by another class each; as many are then suspected."""
    precisions, aucs, estimates = [], [], []
    for seed in range(seeds):
        rows = rows_of(seed)
        labels, is_wrong = changed(data, rows, seed)
        probs = cross_validated_probs(data.features[rows], labels, CLASSES, seed)
        suspicion = suspicion_of_labels(probs, labels)
        precisions.append(is_wrong[np.argsort(-suspicion, kind="stable")[: is_wrong.sum()]].mean())
        aucs.append(roc_auc_score(is_wrong, suspicion))
        estimates.append(estimate_errors(confident_joint(probs, labels), labels))
    cells = [f"{100 * mean:.0f}% ± {100 * half:.0f}" for mean, half in (interval(precisions),)]
    auc = "{:.3f} ± {:.3f}".format(*interval(aucs))
    print(f"| {what} | {len(rows):,} | {is_wrong.sum()} | {seeds} | {cells[0]} | {auc} | {np.mean(estimates):.0f} |", flush=True)


def spreads(data, seeds):
    """How many of the wrong labels are among the picks, and how many picks of a pool are wrong, by the way they are spread."""

    def chosen(how, scores, labels, features, number):
        if how == "none":
            return np.argsort(-scores, kind="stable")[:number]
        places = select_candidates(scores, labels, number, candidates_per_pick("suspicion"))
        return places[select_diverse(how, l2_normalize(features[places]), labels[places], scores[places], number, 0)]

    results = {}
    for seed in range(seeds):
        labeled, pool, _ = data.split(seed)
        labels, is_wrong = changed(data, labeled, seed)
        suspicion = suspicion_of_labels(cross_validated_probs(data.features[labeled], labels, CLASSES, seed), labels)
        probs = fit(data.features[labeled], data.truth[labeled], CLASSES, seed).probs(data.features[pool])
        predicted, of_pool = probs.argmax(1), scores_of("suspicion", probs, None, data.features[pool], None)
        for how in ("none", "classes", "k-means"):
            for times in (1, 2, 4):
                picks = chosen(how, suspicion, labels, data.features[labeled], times * is_wrong.sum())
                results.setdefault(how, {}).setdefault(f"{times}", []).append(is_wrong[picks].sum() / is_wrong.sum())
            for number in (20, 50, 100):
                picks = chosen(how, of_pool, predicted, data.features[pool], number)
                results[how].setdefault(f"pool {number}", []).append((predicted != data.truth[pool])[picks].mean())
    for how, values in results.items():
        print(f"| {data.name} | {how} | " + " | ".join(f"{100 * np.mean(shares):.0f}%" for shares in values.values()) + " |", flush=True)


def changed(data, rows, seed):
    """Labels of which 5% are replaced by another class, and which these are."""
    rng = np.random.default_rng(seed)
    labels, wrong = data.truth[rows].copy(), rng.choice(len(rows), round(0.05 * len(rows)), replace=False)
    labels[wrong] = (labels[wrong] + rng.integers(1, CLASSES, len(wrong))) % CLASSES
    return labels, np.isin(np.arange(len(rows)), wrong)


def unknown_classes(data, seeds):
    """Two classes are not labeled and stay in the pool: how well a score tells their images from the others."""
    aucs_by_score = {"outlier": [], "confidence": [], "entropy": [], "margin": []}
    for seed in range(seeds):
        labeled, pool, _ = data.split(seed)
        unknown = np.random.default_rng(seed).choice(CLASSES, 2, replace=False)
        labeled = labeled[~np.isin(data.truth[labeled], unknown)]
        labels = np.unique(data.truth[labeled], return_inverse=True)[1].astype(np.int64)
        probs = fit(data.features[labeled], labels, CLASSES - 2, seed).probs(data.features[pool])
        for by, aucs in aucs_by_score.items():
            scores = outliers(InMemory(data.features[pool]), data.features[labeled], 0) if by == "outlier" else uncertainty(by, probs)
            aucs.append(roc_auc_score(np.isin(data.truth[pool], unknown), scores))
    for by, aucs in aucs_by_score.items():
        cells = ["{:.3f} ± {:.3f}".format(*interval(values)) for values in (aucs, np.subtract(aucs, aucs_by_score["confidence"]))]
        print(f"| {data.name} | {seeds} | {by} | {cells[0]} | {'' if by == 'confidence' else cells[1]} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clothing", type=Path)
    parser.add_argument("model")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--whole-seeds", type=int, default=3)
    arguments = parser.parse_args()
    since = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        datasets = digits(), clothing(arguments.clothing, arguments.model, Store(arguments.store or folder))
    print(f"## {NUMBER} labels")
    for data in datasets:
        accuracies(data, arguments.seeds)
    print("\n## Wrong labels\n\n| labeled | images | wrong | seeds | precision and recall at 5% | AUC | estimated |")
    print("|---|---|---|---|---|---|---|")
    for data in datasets:
        wrong_labels(data, lambda seed, data=data: data.split(seed)[0], arguments.seeds, data.name)
    print("\n## Wrong labels, by the way picks are spread\n")
    print("| data | `--spread` | as many picks as are wrong | twice | four times | pool: 20 | 50 | 100 |")
    print("|---|---|---|---|---|---|---|---|")
    for data in datasets:
        spreads(data, arguments.seeds)
    print("\n## Unknown classes\n\n| pool | seeds | by | AUC | against confidence |\n|---|---|---|---|---|")
    for data in datasets:
        unknown_classes(data, arguments.seeds)
    print("\n## Wrong labels, of all that is not tested\n")
    for data in datasets:
        wrong_labels(data, lambda seed, data=data: np.concatenate(data.split(seed)[:2]), arguments.whole_seeds, f"{data.name}, all")
    print(f"\n{time.process_time() - since:.0f} s of CPU time")


if __name__ == "__main__":
    main()
