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
from nst_train.clean_batches import clean_batches
from nst_train.device import this_device, this_process
from nst_train.models import Classifier, load_classifier
from nst_train.noise import clean_transform
from nst_train.settings import RunSettings

BATCH_SIZE = 256
METRICS = "metrics.json"


def evaluate(classifier: Classifier, source: Source, run: RunSettings | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """`top1` and, above five classes, `top5` as fractions; `nll` in nats; `images` scored and `errors` that could not be read.

    The source's classes are matched by name and may be some of the classifier's. Raises NstError for others.
    """
    assert source.labels is not None, "evaluation needs labels"
    run, progress = run or RunSettings(), progress or Progress()
    columns = match_classes(source.class_names or [], classifier.class_names, source.location, subset=True)
    device = this_device()
    network = classifier.network.to(device).eval()
    correct = {"top1": 0, "top5": 0}
    nll, scored, errors = 0.0, 0, 0
    spans = [(start, min(start + BATCH_SIZE, len(source))) for start in range(0, len(source), BATCH_SIZE)]
    shape = classifier.data_config["input_size"]
    with torch.inference_mode(), progress.task("evaluate", len(source), "images") as task:
        for batch in clean_batches(source, spans, clean_transform(classifier.data_config), shape, run.decode_threads, hashes=False):
            rows = np.array([batch.images[position].row.id for position in batch.readable], dtype=np.int64)
            labels = torch.from_numpy(columns[source.labels[rows]]).to(device)
            logits = network(batch.pixels.to(device)).float()[batch.readable]
            ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            correct["top1"] += int(ranked[:, 0].sum())
            correct["top5"] += int(ranked.any(dim=1).sum())
            nll += float(F.cross_entropy(logits, labels, reduction="sum"))
            scored += len(rows)
            errors += len(batch.images) - len(rows)
            task.advance(len(batch.images))
    if not scored:
        raise NstError(f"{source.location}: none of its {len(source)} images could be read")
    accuracies = {name: hits / scored for name, hits in correct.items() if name == "top1" or len(classifier.class_names) > 5}
    return {**accuracies, "nll": nll / scored, "images": scored, "errors": errors}


def measure(
    store: Store, teacher: Version, source: Source, name: str, run: RunSettings | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Evaluate a teacher of the store and keep the result as `name` in its metrics.json and card; done once for each source."""
    metrics = read_metrics(teacher)
    known = metrics.get(name)
    state = this_process()
    state.wait_for_everyone()  # all have looked before one writes: else one might wait for a process that has already gone on
    if known and known["fingerprint"] == source.fingerprint:
        return known
    if state.is_main_process:
        classifier, _ = load_classifier(teacher.ref, store)
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
