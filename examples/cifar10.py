"""The paper's main comparisons on CIFAR-10 with 4,000 labels: each turns one switch and is scored over seeds.

    python examples/cifar10.py DATA --store FOLDER --out benchmarks/results/cifar10.md        # for 2 CPU cores
    python examples/cifar10.py DATA --store FOLDER --compare student noise --seeds 0 1
    python examples/cifar10.py DATA --store FOLDER --scale gpu --compare student noise hard balance joint rounds

DATA holds labeled.parquet (image, label), unlabeled.parquet (image), test.parquet (image, label) and unlabeled_truth.parquet (label, row by
row), from which the unbalanced pool of `balance` is drawn; nothing else uses the truth. Results that are in the store are not computed
again: killed and run again, the same command resumes, and more comparisons or seeds add to them.
"""

import argparse
import shlex
import statistics
import sys
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from nst_data import BalanceSettings, Store, Version, balance, open_source
from nst_data.prefetch import cpus_of_this_process
from nst_train import LabelSettings, RunSettings, TrainSettings, evaluate, label, train
from nst_train.device import this_device
from nst_train.training.schedule import Schedule

MILD = {"magnitude": 5, "operations": 1, "dropout": 0.1, "stochastic_depth": 0}  # noise of the first teacher
STRONG = {"magnitude": 9, "operations": 2, "dropout": 0.2, "stochastic_depth": 0.1}
SMALL = {"model": "test_resnet", "image_size": 32, "crop_pct": 1.0, "compute_threads": 1, "batch_size": 128, "epochs": 25}
ADAM = {"optimizer": "adamw", "learning_rate": 0.002, "warmup_epochs": 3, "weight_decay": 0.05, "weight_decay_on": "weights"}
ADAM |= {"ema_decay": 0.995}
CROPS = {"crop_scale_min": 0.6, "flip": 0.5}
SCALES = {
    "cpu": SMALL | ADAM | CROPS | {"noise": STRONG, "ratio": 3},
    "gpu": {
        "preset": "svhn",
        "flip": 0.5,
        "noise": STRONG | {"cutout": 0},
        "ratio": 7,
    },  # the paper's network for 32 x 32 pixels, crops and schedule
}


class Lab:
    """The data and, for one seed, all trainings. Each takes what the store has and makes what it lacks."""

    def __init__(self, data: Path, store: Store, students: TrainSettings) -> None:
        self.data, self.store, self.settings, self.name = data, store, students, f"cifar10-seed-{students.seed}"
        self.labeled, self.test = (open_source(str(data / f"{part}.parquet"), labeled=True) for part in ("labeled", "test"))
        self.run = RunSettings(workers=cpus_of_this_process())

    def supervised(self, name: str = "supervised", **switch: Any) -> Version:  # noqa: ANN401 - of any setting
        """A network on labeled images only, with the settings of students but for the switch."""
        settings = TrainSettings.model_validate(self.settings.model_dump() | switch)
        return train(self.store, f"{self.name}-{name}", self.labeled, settings, run=self.run)

    def teacher(self) -> Version:
        """The first teacher."""
        return self.supervised("teacher", noise=MILD)

    def student(self, name: str = "student", teacher: Version | None = None, pool: Path | None = None, **switch: Any) -> Version:  # noqa: ANN401
        """A student: the teacher labels the pool, it is filtered and balanced (section 3.1), and both parts are trained on."""
        images, teacher = open_source(str(pool or self.data / "unlabeled.parquet")), teacher or self.teacher()
        labels = label(self.store, self.name + ("-unbalanced" if pool else ""), teacher, images, switch.pop("labels", None))
        quota = switch.pop("per_class", len(images) // len(labels.manifest.class_names))
        selection = BalanceSettings(min_confidence=0.3, per_class=quota, seed=self.settings.seed)
        edition = balance(self.store, labels, selection, exclude=[self.labeled, self.test], pool=images)
        settings = TrainSettings.model_validate(self.settings.model_dump() | switch)
        return train(self.store, f"{self.name}-{name}", self.labeled, settings, pseudo=edition, run=self.run)

    def round(self, number: int) -> Version:
        """The student of a round, taught by the one before."""
        return self.student(f"round-{number}", self.round(number - 1)) if number > 1 else self.student()

    def pretrained(self) -> Version:
        """On pseudo-labeled images only, in as many steps."""
        return self.student("pretrained", pseudo_only=True)

    def finetuned(self) -> Version:
        """Pretrained, then as many steps on labeled images at a tenth of the learning rate: each image is seen as often as jointly."""
        rate = self.settings.learning_rate / 10
        return self.supervised("finetuned", start=self.pretrained().ref, learning_rate=rate, warmup_epochs=0)

    def unbalanced_pool(self) -> Path:
        """All images of one class, a tenth of another's, the other classes between; one draw for all seeds."""
        path, draw = self.store.root / "unbalanced" / "pool.parquet", np.random.default_rng(0)
        if not path.exists():
            truth = pl.read_parquet(self.data / "unlabeled_truth.parquet")["label"].to_numpy()
            classes, selected = draw.permutation(np.unique(truth)), []
            for share, class_label in zip(np.geomspace(1, 0.1, len(classes)), classes, strict=True):
                rows = np.flatnonzero(truth == class_label)
                selected.append(draw.choice(rows, round(share * len(rows)), replace=False))
            path.parent.mkdir(parents=True, exist_ok=True)
            images = pl.read_parquet(self.data / "unlabeled.parquet")[np.sort(np.concatenate(selected))]
            images.write_parquet(path.with_suffix(".part"), row_group_size=500)
            path.with_suffix(".part").rename(path)
        return path

    def score(self, network: Version) -> float:
        """Top-1 on the test images, in percent."""
        return 100 * float(evaluate(self.store, network, self.test, record="test", run=self.run)["top1"])

    def made_of(self, version: Version) -> dict[str, Any]:
        """The settings and inputs of a training as the store recorded them, those of its edition inside."""
        request = version.manifest.request
        inputs: dict[str, Any] = {role: item.digest for role, item in request.inputs.by_role.items()}
        if edition := request.inputs.by_role.get("edition"):
            inputs["edition"] = self.made_of(self.store.open(edition.ref))
        return request.settings | inputs


Row = tuple[Callable[[Lab], Version], Set[str]]  # a way to train, and all that it changes of the first row's
NOISE = {f"noise.{name}" for name in STRONG}
NO_AUGMENTATION, NO_DROPPING = {"transform": "evaluation"}, {"dropout": 0, "stochastic_depth": 0}  # of pseudo-labeled images
UNNOISED = {f"pseudo_noise.{name}" for name in NO_AUGMENTATION | NO_DROPPING}
LABELED_ALONE = {"edition", "pool", "ratio"}  # without pseudo-labels there is no ratio
FINETUNED = LABELED_ALONE | {"initial_weights", "start", "learning_rate", "warmup_epochs"}
COMPARISONS: dict[str, tuple[str, dict[str, Row]]] = {
    "student": (
        "a student against a supervised network of equal steps and equal noise (figure 2)",
        {"student": (Lab.student, set()), "supervised": (Lab.supervised, LABELED_ALONE), "teacher": (Lab.teacher, LABELED_ALONE | NOISE)},
    ),
    "noise": (
        "noise of pseudo-labeled images against none, that of labeled ones stays; a noised teacher against the clean one (table 6)",
        {
            "noise": (Lab.student, set()),
            "no noise": (lambda lab: lab.student("no-noise", pseudo_noise=NO_AUGMENTATION | NO_DROPPING), UNNOISED),
            "no augmentation": (lambda lab: lab.student("no-augmentation", pseudo_noise=NO_AUGMENTATION), {"pseudo_noise.transform"}),
            "noised teacher": (lambda lab: lab.student("noised-teacher", labels=LabelSettings(noise=True)), {"edition.generation"}),
        },
    ),
    "hard": (
        "soft pseudo-labels against hard ones (figure 5)",
        {"soft": (Lab.student, set()), "hard": (lambda lab: lab.student("hard", hard=True), {"hard"})},
    ),
    "balance": (
        "balanced classes against none, on a pool with all images of one class and a tenth of another's (table 12)",
        {
            "balanced": (lambda lab: lab.student("balanced", pool=lab.unbalanced_pool()), set()),
            "as it is": (lambda lab: lab.student("as-it-is", pool=lab.unbalanced_pool(), per_class="none"), {"edition.per_class"}),
        },
    ),
    "joint": (
        "joint training against pretraining on pseudo-labels and finetuning on labeled images (table 13)",
        {"joint": (Lab.student, set()), "finetuned": (Lab.finetuned, FINETUNED), "pretrained": (Lab.pretrained, {"pseudo_only"})},
    ),
    "rounds": (
        "the student of the third round against that of the first (table 7)",
        {"third": (lambda lab: lab.round(3), set()), "first": (Lab.student, {"edition.generation"})},
    ),
}


def unlike(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """The keys in which two nested dictionaries differ, with a dot between those of different depth."""
    differing = {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}
    nested = {name for name in differing if isinstance(one.get(name), dict) and isinstance(other.get(name), dict)}
    return differing - nested | {f"{name}.{inner}" for name in nested for inner in unlike(one[name], other[name])}


def scores(lab: Lab, rows: dict[str, Row]) -> list[float]:
    """Train what is missing; the test score of each row. Fails where a row differs from the first in more than its switch, or in less."""
    networks = [way(lab) for way, _ in rows.values()]
    for network, (_, switch) in zip(networks, rows.values(), strict=True):
        turned = unlike(lab.made_of(networks[0]), lab.made_of(network))
        assert turned == switch, f"{network.ref}: {sorted(turned)} differ, not {sorted(switch)} alone"
    return [lab.score(network) for network in networks]


def table(names: list[str], seeds: list[int], by_seed: list[list[float]]) -> list[str]:
    """Scores by row and seed as a Markdown table, with means and standard deviations, and the first row minus the second likewise."""
    rows = [list(row) for row in zip(*by_seed, strict=True)]
    rows.append([first - second for first, second in zip(rows[0], rows[1], strict=True)])
    lines = [["test top-1, %", *(f"seed {seed}" for seed in seeds), "mean", "sd"], ["---"] * (len(seeds) + 3)]
    for name, row in zip([*names, f"**{names[0]} minus {names[1]}**"], rows, strict=True):
        spread = f"{statistics.stdev(row):.2f}" if len(row) > 1 else ""
        lines.append([name, *(f"{score:.2f}" for score in [*row, statistics.mean(row)]), spread])
    return [f"| {' | '.join(cells)} |" for cells in lines]


def report(asked: list[str], labs: list[Lab]) -> str:
    """The page. Seed by seed, so that what is killed leaves whole seeds."""
    results = [{name: scores(lab, COMPARISONS[name][1]) for name in asked} for lab in labs]
    settings, labeled = labs[0].settings, len(labs[0].labeled)
    steps = f"{Schedule.of(settings, labeled).steps:,} steps of {settings.batch_size} labeled and {settings.ratio} times as many"
    noise = ", ".join(f"{name.replace('_', ' ')} {getattr(settings.noise, name):g}" for name in STRONG)
    page = [f"# CIFAR-10, {labeled:,} labels: the paper's comparisons", "", f"`python {shlex.join(sys.argv)}`", ""]
    page += [f"{settings.model} on {this_device()}, {steps} pseudo-labeled images; noise of students: {noise}."]
    page += [f"The seeds ({', '.join(str(lab.settings.seed) for lab in labs)}) decide initial weights, order and noise; sd is over seeds."]
    for name in asked:
        question, rows = COMPARISONS[name]
        page += [
            "",
            f"## `{name}`: {question}",
            "",
            *table(list(rows), [lab.settings.seed for lab in labs], [result[name] for result in results]),
        ]
    return "\n".join(page) + "\n"


def main() -> None:
    """Train what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--compare", nargs="+", choices=list(COMPARISONS), default=list(COMPARISONS)[:5], help="by default all but rounds")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--scale", choices=list(SCALES), default="cpu")
    parser.add_argument("--model", help="a network of timm in place of the scale's")
    parser.add_argument("--epochs", type=float, help="passes over the labeled images in place of the scale's")
    parser.add_argument("--out", type=Path, help="write the page to this file too")
    arguments = parser.parse_args()
    settings = SCALES[arguments.scale] | {name: value for name in ("model", "epochs") if (value := getattr(arguments, name))}
    labs = [Lab(arguments.data, Store(arguments.store), TrainSettings(**settings, seed=seed)) for seed in arguments.seeds]
    page = report(arguments.compare, labs)
    print(page, end="")
    if arguments.out:
        arguments.out.write_text(page, "utf-8")


if __name__ == "__main__":
    main()
