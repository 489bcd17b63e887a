"""Accuracy of a classifier on labeled images, with its own clean transform."""

import json
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from nst_data import cards
from nst_data.errors import NstError
from nst_data.files import write_text
from nst_data.progress import Progress
from nst_data.sources import Source, match_classes
from nst_data.store import Store, Version
from nst_train.device import this_process
from nst_train.inference import batches_of, choose_computation, predict
from nst_train.settings import ReadSettings
from nst_train.teachers import Classifier, Teacher, load_classifier

METRICS = "metrics.json"


def evaluate(classifier: Classifier, source: Source, run: ReadSettings | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """`top1` and, above five classes, `top5` as fractions; `nll` in nats; `images` scored and `errors` that could not be read.

    The source's classes are matched by name and may be some of the classifier's. Raises NstError for others.
    """
    assert source.labels is not None, "evaluation needs labels"
    run, progress, teacher = run or ReadSettings(), progress or Progress(), Teacher.of(classifier)
    columns = match_classes(source.class_names or [], classifier.class_names, source.location, subset=True)
    computation = choose_computation(teacher, None, "fp32", compile_network=False)
    batches = batches_of(source, computation.batch_size)
    correct = {"top1": 0, "top5": 0}
    nll, scored, errors = 0.0, 0, 0
    with progress.task("evaluate", len(source), "images") as task:
        for batch, prediction in predict(teacher, computation, batches, hashes=False, threads=run.decode_threads):
            rows = np.array([batch.rows[position].id for position in prediction.images.readable], dtype=np.int64)
            labels, log_probs = torch.from_numpy(columns[source.labels[rows]]), prediction.log_probs
            ranked = log_probs.topk(min(5, log_probs.shape[1]), dim=1).indices == labels[:, None]
            correct["top1"] += int(ranked[:, 0].sum())
            correct["top5"] += int(ranked.any(dim=1).sum())
            nll += float(F.nll_loss(log_probs, labels, reduction="sum"))
            scored += len(rows)
            errors += len(batch.rows) - len(rows)
            task.advance(len(batch.rows))
    if not scored:
        raise NstError(f"{source.location}: none of its {len(source)} images could be read")
    accuracies = {name: hits / scored for name, hits in correct.items() if name == "top1" or len(classifier.class_names) > 5}
    return {**accuracies, "nll": nll / scored, "images": scored, "errors": errors}


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
        manifest = teacher.manifest
        cards.write_model_card(teacher.folder, teacher.ref, manifest.request, manifest.class_names, manifest.counts, metrics)
    state.wait_for_everyone()
    return read_metrics(teacher)[name]


def read_metrics(teacher: Version) -> dict[str, dict[str, Any]]:
    """What was measured of a teacher, by name."""
    path = teacher.folder / METRICS
    metrics: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return metrics
