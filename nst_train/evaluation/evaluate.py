"""Accuracy of a classifier on labeled images, with its own clean transform, and what a teacher's metrics.json keeps of any suite."""

import json
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from nst_data.cards import cards
from nst_data.cards.described import Described
from nst_data.progress import Progress
from nst_data.sources import Source
from nst_data.store.files import write_text
from nst_data.store.ownership import beside, owned
from nst_data.store.places import METRICS
from nst_data.store.store import Store, Version
from nst_data.store.version import read_metrics
from nst_train.classifiers.inference import Computation, batches_of, predict
from nst_train.classifiers.teachers import Classifier, Teacher, load_classifier
from nst_train.device import agreed_text, this_process
from nst_train.evaluation.accuracy import Accuracy
from nst_train.evaluation.measuring import Effort, Suite
from nst_train.evaluation.outcomes import check_answers
from nst_train.evaluation.plots import write_plots
from nst_train.evaluation.trials import Candidate
from nst_train.evaluation_settings import CLEAN
from nst_train.settings import ReadSettings

_IN_FULL_ONLY = ("classes", "confusions")  # what `nst evaluate --json` has beside what is recorded


@dataclass
class Score:
    """Counts over images; those of several processes add up."""

    top1: int = 0
    top5: int = 0
    nll: float = 0.0
    images: int = 0
    errors: int = 0

    @property
    def numbers(self) -> list[float]:
        """All of them."""
        return [float(value) for value in astuple(self)]

    @classmethod
    def of_numbers(cls, numbers: Sequence[float]) -> Self:
        """The reverse of `numbers`."""
        top1, top5, nll, images, errors = numbers
        return cls(int(top1), int(top5), nll, int(images), int(errors))

    def add(self, log_probs: Float[Tensor, "readable classes"], labels: Int[Tensor, " readable"], images: int) -> None:
        """Count a batch of `images`, of which some can be read. Raises NstError as `check_answers` does."""
        check_answers(log_probs)
        ranked = log_probs.topk(min(5, log_probs.shape[1]), dim=1).indices == labels[:, None]
        self.top1 += int(ranked[:, 0].sum())
        self.top5 += int(ranked.any(dim=1).sum())
        self.nll += float(F.nll_loss(log_probs, labels, reduction="sum"))
        self.images += len(labels)
        self.errors += images - len(labels)

    def as_metrics(self, classes: int) -> dict[str, Any]:
        """`top1` and, above five classes, `top5` as fractions; `nll` in nats an image; `images` and `errors`."""
        top5 = {"top5": self.top5 / self.images} if classes > 5 else {}
        return {"top1": self.top1 / self.images, **top5, "nll": self.nll / self.images, "images": self.images, "errors": self.errors}


def evaluate(classifier: Classifier, source: Source, run: ReadSettings | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """`top1` and, above five classes, `top5` as fractions; `nll` in nats; `ece`; `images` scored and `errors` that could not be read.

    The source's classes are matched by name and may be some of the classifier's. Raises NstError for others, and where no image could
    be read.
    """
    effort = Effort(run=run or ReadSettings(), progress=progress or Progress())
    result = Accuracy(CLEAN, source).measure(Candidate("", classifier, ""), effort).result
    return {name: value for name, value in result.items() if not isinstance(value, list | dict)}


def score(
    teacher: Teacher,
    computation: Computation,
    source: Source,
    rows: range,
    columns: NDArray[np.int64],
    threads: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Score:
    """Count what the teacher gets right on some rows of a source whose class i is its class columns[i]."""
    assert source.labels is not None, "scores need labels"
    result = Score()
    batches = batches_of(source, computation.batch_size, rows)
    for batch, prediction in predict(teacher, computation, batches, hashes=False, threads=threads):
        readable = np.array([batch.rows[position].id for position in prediction.images.readable], dtype=np.int64)
        result.add(prediction.log_probs, torch.from_numpy(columns[source.labels[readable]]), len(batch.rows))
        advance(len(batch.rows))
    return result


def kept_outcomes(store: Store) -> Path:
    """The folder of a store where outcomes are kept, by the digest of what they follow from. It may be deleted at any time."""
    return store.root / "evaluations"


def load_candidate(name: str, store: Store) -> Candidate:
    """A classifier by name, with the transform of its own code, exactly. See `teachers.load_classifier`."""
    classifier, entry = load_classifier(name, store, exact=True)
    return Candidate(name, classifier, entry.digest)


def measure(
    store: Store,
    teacher: Version,
    data: Source | Suite,
    name: str,
    run: ReadSettings | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate a teacher of the store and keep the result as `name` in its metrics.json and card; done once for each suite on its data.

    A labeled source stands for the suite `clean` on it.
    """
    suite = Accuracy(CLEAN, data) if isinstance(data, Source) else data
    known = read_metrics(teacher).get(name)
    kind = "modified" if known and "modified" in known else "stamp"  # as an earlier nst kept it
    stamp = _stamp(suite, kind)
    this_process().wait_for_everyone()  # all have looked before one writes: else one might wait for a process that has already gone on
    if known and known["fingerprint"] == suite.identity and known.get(kind, stamp) == stamp:
        return known
    effort = Effort(kept_outcomes(store), run or ReadSettings(), progress or Progress())
    return record(teacher, suite, name, suite.measure(load_candidate(teacher.ref, store), effort).result, progress)


def _stamp(suite: Suite, kind: str = "stamp") -> str:
    """The stamp of a suite with one source, of its files' times: one whose images changed at their size is measured again."""
    source = getattr(suite, "source", None)
    return agreed_text(getattr(source, kind)) if isinstance(source, Source) else ""


def record(teacher: Version, suite: Suite, name: str, result: dict[str, Any], progress: Progress | None = None) -> dict[str, Any]:
    """Keep what was measured as `name` in a teacher's metrics.json, card and pictures; of several processes the first writes."""
    state, stamp = this_process(), _stamp(suite)
    if state.is_main_process:
        shown = {key: value for key, value in result.items() if key not in _IN_FULL_ONLY}
        kind = {} if suite.name == CLEAN else {"suite": suite.name}
        with owned(beside(teacher.folder), teacher.ref, wait=True):  # of two that record at once none loses what the other wrote
            metrics, times = read_metrics(teacher), {"stamp": stamp} if stamp else {}
            metrics[name] = kind | shown | {"source": suite.location, "fingerprint": suite.identity} | times
            write_text(teacher.folder / METRICS, json.dumps(metrics, indent=2) + "\n")
            write_plots(teacher.folder, suite.name, {teacher.ref: result}, name)
            own = cards.write_model_card(Described.of(teacher), metrics)
        if own.problem and progress:
            progress.say(f"{teacher.folder / 'README.md'}: {own.problem}")
    state.wait_for_everyone()
    return read_metrics(teacher)[name]
