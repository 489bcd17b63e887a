"""The paper's studies on scikit-learn's digits: the same comparisons, arm by arm, and whether they come out with the same sign.

python benchmarks/studies.py FOLDER [--seeds 0 1 2 3 4] [--studies noise iterations ...] [--epochs 40] [--processes 2]

Prints a table in Markdown: the paper's difference, ours with its 95% interval (bootstrap over seeds and, within each, over test images) and
whether it has the paper's sign. About an hour on two cores; what was stopped goes on by the same command. FOLDER keeps everything.

100 labeled digits, 1,197 unlabeled, 500 for the test, drawn anew by each seed. The networks are timm's test_resnet (0.4 million weights)
and, where a small one is wanted, test_efficientnet (0.1), trained like those of `nst demo` for half as many epochs.
"""

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from nst_data import BalanceSettings, Store, Version, balance, open_source
from nst_data.digits import write_digits
from nst_data.progress import Progress
from nst_train import EvaluateSettings, LabelSettings, Noise, RunSettings, TrainSettings, label, train
from nst_train.evaluation.evaluate import measure_all

RESAMPLES = 10_000
UNNOISED = {"operations": 0, "dropout": 0, "stochastic_depth": 0}
NOISED = {"crop_scale_min": 0.8, "noise": Noise(magnitude=9, operations=2, dropout=0.2, stochastic_depth=0)}


class Digits:
    """What all arms of a seed share. Every method finds what is in the store already."""

    def __init__(self, folder: Path, seed: int, epochs: float = 40, min_confidence: float = 0.3) -> None:
        self.seed, self.epochs, self.min_confidence = seed, epochs, min_confidence
        self.store = Store(folder / f"store-{seed}")
        images = folder / f"digits-{seed}"
        write_digits(images, seed)
        self.labeled, self.test = (open_source(images / part, labeled=True) for part in ("labeled", "test"))
        self.pool = open_source(images / "pool")
        self.run = RunSettings(workers=0)

    def network(self, **changes: Any) -> dict[str, Any]:
        """Settings of a training, as examples/digits.yaml has them."""
        settings = {"model": "test_resnet", "image_size": 32, "crop_pct": 1.0, "compute_threads": 1, "channels_last": False}
        settings |= {
            "epochs": self.epochs,
            "batch_size": 20,
            "optimizer": "adamw",
            "learning_rate": 0.04,
            "warmup_epochs": 5 * self.epochs / 80,
        }
        settings |= {"weight_decay": 0.02, "weight_decay_on": "weights", "ema_decay": 0.99, "flip": 0, "seed": self.seed}
        return settings | changes

    def teacher(self, name: str, **changes: Any) -> Version:
        """On labeled images only, without noise."""
        settings = TrainSettings(**self.network(**{"crop_scale_min": 1.0, "noise": Noise(**UNNOISED)} | changes))
        return train(self.store, name, self.labeled, settings, run=self.run, progress=Progress())

    def edition(self, teacher: Version, noise: bool = False, **select: Any) -> Version:
        """A training set from the teacher's labels of the pool."""
        corpus = f"by-{teacher.manifest.name}" + "-noised" * noise
        labels = label(self.store, corpus, teacher, self.pool, LabelSettings(noise=noise, seed=self.seed), progress=Progress())
        settings = BalanceSettings(**({"min_confidence": self.min_confidence, "per_class": 120, "seed": self.seed} | select))
        return balance(self.store, labels, settings, exclude=[self.labeled, self.test], progress=Progress())

    def student(self, name: str, edition: Version, **changes: Any) -> Version:
        """Noised, on labeled and pseudo-labeled images."""
        settings = TrainSettings(**self.network(**{"ratio": 9} | NOISED | changes))
        return train(self.store, name, self.labeled, settings, pseudo=edition, pool=self.pool, run=self.run, progress=Progress())


def teacher(digits: Digits) -> Version:
    return digits.teacher("teacher")


def small_teacher(digits: Digits) -> Version:
    return digits.teacher("small-teacher", model="test_efficientnet")


def student(digits: Digits) -> Version:
    return digits.student("student", digits.edition(teacher(digits)))


def of_noised_teacher(name: str, noise: bool, digits: Digits) -> Version:
    """A student of a teacher that was trained with noise, and labels with it or not: a teacher has no other noise than its own."""
    return digits.student(name, digits.edition(digits.teacher("noised-teacher", **NOISED), noise))


def changed(name: str, digits: Digits, *, select: dict[str, Any] | None = None, **changes: Any) -> Version:
    """The student with one switch set otherwise: of its training, or of the selection."""
    return digits.student(name, digits.edition(teacher(digits), **select or {}), **changes)


def later(generation: int, digits: Digits) -> Version:
    """A student taught by the student of the generation before."""
    return digits.student(f"student-{generation}", digits.edition(student(digits) if generation == 2 else later(generation - 1, digits)))


def small_student(name: str, taught_by: Callable[[Digits], Version], model: str, digits: Digits) -> Version:
    return digits.student(name, digits.edition(taught_by(digits)), model=model)


def finetuned(digits: Digits) -> Version:
    """Trained on pseudo-labeled images only, then finetuned on labeled ones for a fifth of the epochs at a tenth of the rate."""
    pretrained = changed("pretrained", digits, pseudo_only=True)
    rate = {"learning_rate": 0.004, "epochs": digits.epochs / 5, "warmup_epochs": 0}
    settings = TrainSettings(**digits.network(**NOISED | rate))
    settings = settings.model_copy(update={"start": pretrained.ref})
    return train(digits.store, "finetuned", digits.labeled, settings, run=digits.run, progress=Progress())


def warm(share: float, digits: Digits) -> Version:
    """Started from its teacher and trained for a share of the epochs, at the end of the same schedule."""
    length = {"epochs": share * digits.epochs, "schedule_epochs": digits.epochs, "warmup_epochs": 0}
    return changed(f"warm-{share:g}", digits, start=teacher(digits).ref, **length)


UNAUGMENTED = {"pseudo_noise": {"operations": 0, "crop_scale_min": 1}}
LOW, HIGH = {"confidence_range": (0.3, 0.7)}, {"confidence_range": (0.7, 1.0)}
ARMS: dict[str, Callable[[Digits], Version]] = {
    "teacher": teacher,
    "student": student,
    "student, unlabeled images not augmented": partial(changed, "unaugmented", **UNAUGMENTED),
    "student, no noise on unlabeled images": partial(changed, "unnoised", pseudo_noise=UNAUGMENTED["pseudo_noise"] | {"dropout": 0}),
    "student of a teacher trained with noise": partial(of_noised_teacher, "of-noised", False),
    "student of the same, noised while it labels": partial(of_noised_teacher, "of-noised-labels", True),
    "second student": partial(later, 2),
    "third student": partial(later, 3),
    "small student of a small teacher": partial(small_student, "small-of-small", small_teacher, "test_efficientnet"),
    "small student of the student": partial(small_student, "small-of-student", student, "test_efficientnet"),
    "larger student of a small teacher": partial(small_student, "large-of-small", small_teacher, "test_resnet"),
    "1/4 of the pool": partial(changed, "quarter", select={"fraction": 1 / 4}),
    "1/16 of the pool": partial(changed, "sixteenth", select={"fraction": 1 / 16}),
    "soft, confidence 0.3 to 0.7": partial(changed, "soft-low", select=LOW),
    "hard, confidence 0.3 to 0.7": partial(changed, "hard-low", select=LOW, hard=True),
    "soft, confidence above 0.7": partial(changed, "soft-high", select=HIGH),
    "hard, confidence above 0.7": partial(changed, "hard-high", select=HIGH, hard=True),
    "not balanced": partial(changed, "unbalanced", select={"per_class": "none"}),
    "pretrained on pseudo-labels, then finetuned": finetuned,
    "ratio 1": partial(changed, "ratio-1", ratio=1),
    "warm start, 1/5 of the epochs": partial(warm, 0.2),
    "warm start, 4/5 of the epochs": partial(warm, 0.8),
}


@dataclass(frozen=True)
class Comparison:
    """`arm` minus `other` in points; the paper's is positive, or None where it is a figure without numbers, or 0 where it found none."""

    study: str
    where: str
    arm: str
    other: str
    paper: float | None


COMPARISONS = (
    Comparison("noise", "Table 6", "student", "teacher", 1.1),
    Comparison("noise", "Table 6", "student", "student, unlabeled images not augmented", 0.5),
    Comparison("noise", "Table 6", "student", "student, no noise on unlabeled images", 0.8),
    Comparison("noise", "Table 6", "student of a teacher trained with noise", "student of the same, noised while it labels", 0.7),
    Comparison("iterations", "Table 7", "second student", "student", 0.5),
    Comparison("iterations", "Table 7", "third student", "second student", 0.3),
    Comparison("teacher-size", "Table 9", "small student of the student", "small student of a small teacher", 0.7),
    Comparison("data-size", "Table 10", "student", "1/4 of the pool", 0.2),
    Comparison("data-size", "Table 10", "student", "1/16 of the pool", 0.1),
    Comparison("soft-hard", "Figure 5", "soft, confidence 0.3 to 0.7", "hard, confidence 0.3 to 0.7", None),
    Comparison("soft-hard", "Figure 5", "soft, confidence above 0.7", "hard, confidence above 0.7", 0.0),
    Comparison("student-size", "Table 11", "larger student of a small teacher", "small student of a small teacher", 1.6),
    Comparison("balancing", "Table 12", "student", "not balanced", 0.3),
    Comparison("joint", "Table 13", "student", "pretrained on pseudo-labels, then finetuned", 0.4),
    Comparison("ratio", "Table 14", "student", "ratio 1", 0.7),
    Comparison("warm-start", "Table 15", "student", "warm start, 1/5 of the epochs", 0.4),
    Comparison("warm-start", "Table 15", "student", "warm start, 4/5 of the epochs", 0.1),
)
STUDIES = tuple(dict.fromkeys(one.study for one in COMPARISONS))


def arms_of(studies: list[str]) -> list[str]:
    """The arms that these studies compare, in the order in which they are made."""
    needed = {arm for comparison in COMPARISONS if comparison.study in studies for arm in (comparison.arm, comparison.other)}
    return [arm for arm in ARMS if arm in needed]


def versions(folder: Path, seed: int, studies: list[str], **settings: float) -> dict[str, Version]:
    """The trained network of each arm."""
    digits = Digits(folder, seed, **settings)
    return {arm: ARMS[arm](digits) for arm in arms_of(studies)}


def right(folder: Path, seed: int, studies: list[str], **settings: float) -> dict[str, np.ndarray]:
    """Of each arm which test images it gets right, 0 or 1."""
    versions_by_arm, digits = versions(folder, seed, studies, **settings), Digits(folder, seed, **settings)
    measured = measure_all(
        digits.store, [one.ref for one in versions_by_arm.values()], digits.test, EvaluateSettings(), progress=Progress()
    )["clean"]
    return {arm: measured[version.ref].by_image["top1"] for arm, version in versions_by_arm.items()}


def interval(differences: list[np.ndarray]) -> tuple[float, float]:
    """95% of the mean difference over seeds drawn with replacement and, of each, images drawn with replacement."""
    draw, means = np.random.default_rng(0), []
    for of_seed in differences:
        values, counts = np.unique(of_seed, return_counts=True)
        weights = draw.multinomial(len(of_seed), counts / len(of_seed), size=(RESAMPLES, len(differences)))
        means.append(weights @ values / len(of_seed))
    choices = draw.integers(0, len(differences), (RESAMPLES, len(differences)))
    low, high = np.quantile(np.choose(choices, means).mean(axis=1), (0.025, 0.975))
    return 100 * float(low), 100 * float(high)


def verdict(paper: float | None, low: float, high: float) -> str:
    if low <= 0 <= high:
        return "undecided"
    if paper == 0:
        return "the paper: about equal"
    return "same sign" if low > 0 else "**other sign**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--epochs", type=float, default=40)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    of_seed = partial(right, arguments.folder, studies=arguments.studies, epochs=arguments.epochs)
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(of_seed, arguments.seeds))
    print(f"| arm | {' | '.join(f'seed {seed}' for seed in arguments.seeds)} | mean |\n|---|{'---|' * (len(arguments.seeds) + 1)}")
    for arm in arms_of(arguments.studies):
        shares = [100 * one[arm].mean() for one in results]
        print(f"| {arm} | {' | '.join(f'{share:.1f}' for share in shares)} | {np.mean(shares):.1f} |")
    print("\n| study | in the paper | A | B | A - B, paper | A - B, digits | 95% interval | |\n|---|---|---|---|---|---|---|---|")
    for one in COMPARISONS:
        if one.study in arguments.studies:
            differences = [arms[one.arm] - arms[one.other] for arms in results]
            low, high = interval(differences)
            mean = 100 * float(np.mean([difference.mean() for difference in differences]))
            paper = "+" if one.paper is None else f"{one.paper:+.1f}"
            conclusion = verdict(one.paper, low, high)
            print(
                f"| {one.study} | {one.where} | {one.arm} | {one.other} | {paper} | {mean:+.1f} | {low:+.1f} to {high:+.1f} | "
                f"{conclusion} |"
            )


if __name__ == "__main__":
    main()
