"""How good a linear probe is on photographs, by the number of labeled images, and what the scale of the features has to do with it.

python benchmarks/linear_probe.py IMAGES MODEL [--per-class 1 2 5 20 50] [--seeds 0 1 2] [--image-size 64]
python benchmarks/linear_probe.py IMAGES MODEL --large [--image-size 64]

IMAGES is a folder with train.parquet and test.parquet (`image`, `label`), MODEL a name with published weights. With `--large` all labeled
images are fitted, as a large set is and as a small one is. One thread.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from nst_data import Store, open_source
from nst_data.progress import Progress
from nst_data.sources import labels_in
from nst_train import EmbedSettings, embed
from nst_train.features.linear_probe import MAX_FOLDED, STRENGTHS, fit
from nst_train.settings import ReadSettings


def features_of(store, model, file, image_size):
    source = open_source(file, labeled=True)
    before = time.process_time()
    features = embed(store, model, source, EmbedSettings(image_size=image_size), run=ReadSettings(decode_threads=1), progress=Progress())
    seconds = time.process_time() - before
    rows = features.rows()["id"].to_numpy()
    return features.matrix(), labels_in(source)[rows], len(source.class_names), seconds


def drawn(labels, per_class, seed):
    rng = np.random.default_rng(seed)
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return np.concatenate([rng.choice(class_rows, min(per_class, len(class_rows)), replace=False) for class_rows in classes])


def by_own_deviation(features, labels, test):
    """The same with each feature divided by its own deviation, at the best strength for the test images: an upper bound."""
    mean, std = features.mean(0), features.std(0)
    std[std == 0] = 1
    scores = []
    for strength in STRENGTHS[::2]:
        model = LogisticRegression(C=strength, max_iter=1000).fit((features - mean) / std, labels)
        scores.append((model.predict((test[0] - mean) / std) == test[1]).mean())
    return max(scores)


def all_of(train, test):
    print("| | CPU s | strength | accuracy |\n|---|---|---|---|")
    for name, sample in {"as a large set": MAX_FOLDED, "as a small set": None}.items():
        before = time.process_time()
        probe = fit(train[0], train[1], train[2], sample=sample)
        seconds = time.process_time() - before
        print(f"| {name} | {seconds:.0f} | {probe.strength:.2g} | {100 * (probe.probs(test[0]).argmax(1) == test[1]).mean():.2f}% |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("model")
    parser.add_argument("--per-class", type=int, nargs="+", default=[1, 2, 5, 20, 50])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--large", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        train = features_of(Store(folder), arguments.model, arguments.images / "train.parquet", arguments.image_size)
        test = features_of(Store(folder), arguments.model, arguments.images / "test.parquet", arguments.image_size)
    print(f"features: {1000 * train[3] / len(train[0]):.0f} ms of CPU time an image")
    if arguments.large:
        return all_of(train, test)
    print(
        "| labeled images a class | "
        + " | ".join(f"seed {seed}" for seed in arguments.seeds)
        + " | mean | own deviations, best strength | fit, CPU s |"
    )
    print("|---" * (len(arguments.seeds) + 4) + "|")
    for per_class in arguments.per_class:
        scores, own_deviation_scores, seconds = [], [], []
        for seed in arguments.seeds:
            rows = drawn(train[1], per_class, seed)
            before = time.process_time()
            probe = fit(train[0][rows], train[1][rows], train[2], seed)
            seconds.append(time.process_time() - before)
            scores.append(((test[0] @ probe.weight.T + probe.bias).argmax(1) == test[1]).mean())
            own_deviation_scores.append(by_own_deviation(train[0][rows], train[1][rows], test))
        cells = [f"{100 * score:.1f}%" for score in (*scores, np.mean(scores), np.mean(own_deviation_scores))]
        print(f"| {per_class} | " + " | ".join(cells) + f" | {np.mean(seconds):.1f} |")


if __name__ == "__main__":
    main()
