"""Accuracy of a classifier on labeled images, with its own clean transform."""

import json
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from nst_data import cards
from nst_data.described import Described
from nst_data.errors import NstError
from nst_data.files import write_text
from nst_data.progress import Progress
from nst_data.sources import Source, match_classes
from nst_data.store import Store, Version
from nst_train.device import this_process
from nst_train.inference import Computation, batches_of, choose_computation, predict
from nst_train.settings import ReadSettings
from nst_train.teachers import Classifier, Teacher, load_classifier

METRICS = "metrics.json"


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
        """Count a batch of `images`, of which some can be read."""
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
    """`top1` and, above five classes, `top5` as fractions; `nll` in nats; `images` scored and `errors` that could not be read.

    The source's classes are matched by name and may be some of the classifier's. Raises NstError for others.
    """
    assert source.labels is not None, "evaluation needs labels"
    run, progress, teacher = run or ReadSettings(), progress or Progress(), Teacher.of(classifier)
    columns = match_classes(source.class_names or [], classifier.class_names, source.location, subset=True)
    computation = choose_computation(teacher, None, "fp32", compile_network=False)
    with progress.task("evaluate", len(source), "images") as task:
        result = score(teacher, computation, source, range(len(source)), columns, run.decode_threads, task.advance)
    if not result.images:
        raise NstError(f"{source.location}: none of its {len(source)} images could be read")
    return result.as_metrics(len(classifier.class_names))


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


def measure(
    store: Store, teacher: Version, source: Source, name: str, run: ReadSettings | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Evaluate a teacher of the store and keep the result as `name` in its metrics.json and card; done once for each source."""
    metrics = read_metrics(teacher)
    known = metrics.get(name)
    state = this_process()
    state.wait_for_everyone()  # all have looked before one writes: else one might wait for a process that has already gone on
    if known and known["fingerprint"] == source.fingerprint:
        return known
    if state.is_main_process:
        classifier, _ = load_classifier(teacher.ref, store, exact=True)
        result = evaluate(classifier, source, run, progress)
        metrics[name] = result | {"source": source.location, "fingerprint": source.fingerprint}
        write_text(teacher.folder / METRICS, json.dumps(metrics, indent=2) + "\n")
        own = cards.write_model_card(Described.of(teacher), metrics)
        if own.problem and progress:
            progress.say(f"{teacher.folder / 'README.md'}: {own.problem}")
    state.wait_for_everyone()
    return read_metrics(teacher)[name]


def read_metrics(teacher: Version) -> dict[str, dict[str, Any]]:
    """What was measured of a teacher, by name."""
    path = teacher.folder / METRICS
    metrics: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return metrics
