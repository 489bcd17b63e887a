"""The un-noised teacher over a pool: soft labels, shard by shard (Algorithm 1, step 2)."""

import time
from collections.abc import Iterator

import numpy as np
import torch

from nst_data import cards
from nst_data.images import phash
from nst_data.manifest import Input, Request
from nst_data.progress import Progress
from nst_data.pseudo_labels import ShardPlan, ShardRows, finish, missing_shards, write_shard
from nst_data.schema import pseudo_labels_schema
from nst_data.sources import Source
from nst_data.store import Staging, Store, Version
from nst_train.clean_batches import CleanBatch, clean_batches
from nst_train.device import DEFAULT_THREADS, set_threads, this_device, this_process
from nst_train.models import Classifier, is_in_store, load_classifier, teacher_input
from nst_train.noise import clean_transform
from nst_train.settings import LabelSettings, RunSettings


def label(
    store: Store,
    corpus: str,
    teacher: str,
    pool: Source,
    settings: LabelSettings | None = None,
    generation: int | None = None,
    run: RunSettings | None = None,
    progress: Progress | None = None,
) -> Version:
    """Label every image of `pool` with `teacher` into a sealed generation of `corpus`.

    What was labeled before, also by a run that was killed, is not labeled again. Each image ends in `pseudo_labels` or, with the
    reason, in `errors`. Under `torchrun` the processes share the shards; the bytes are the same for any number of them.
    """
    settings, run, progress = settings or LabelSettings(), run or RunSettings(), progress or Progress()
    classifier, lineage = (None, teacher_input(teacher, store)) if is_in_store(teacher, store) else load_classifier(teacher, store)
    state = this_process()
    with state.main_process_first():
        staging = store.begin(_request(settings, lineage, pool), corpus, generation)
    if isinstance(staging, Version):
        return staging
    since = time.monotonic()
    classifier = classifier or load_classifier(teacher, store)[0]
    plan = ShardPlan(len(pool), settings.rows_per_shard)
    machine = staging.remembered("machine", {"threads": DEFAULT_THREADS, "decoder": "pillow", "device": this_device().type})
    set_threads(machine["threads"])
    megabytes = len(pool) * (2 * len(classifier.class_names) + 100) / 2**20  # a float16 a class; key, hashes and numbers
    shards = f"{len(plan):,} shard" + ("s" if len(plan) > 1 else "")
    progress.say(f"{staging.ref}: {len(pool):,} images in {shards}, {f'about {megabytes:,.0f}' if megabytes > 1 else 'under 1'} MB on disk")
    _label_shards(staging, plan, classifier, pool, settings, run, progress, since)
    state.wait_for_everyone()
    if state.is_main_process:
        files, counts = finish(staging.build, staging.work, plan, classifier.class_names)
        counts["teacher_parameters"] = classifier.parameters
        cards.write_generation_card(staging, classifier.class_names, counts)
        staging.seal(files, classifier.class_names, counts, machine)
    state.wait_for_everyone()
    return Version(staging.target)


def _request(settings: LabelSettings, teacher: Input, pool: Source) -> Request:
    inputs = {"teacher": teacher, "pool": Input(ref=pool.location, digest=pool.fingerprint)}
    return Request(kind="generation", settings=settings.for_request(), inputs=inputs)


def _label_shards(
    staging: Staging,
    plan: ShardPlan,
    classifier: Classifier,
    pool: Source,
    settings: LabelSettings,
    run: RunSettings,
    progress: Progress,
    since: float,
) -> None:
    """Label the missing shards that fall to this process. Batches begin anew with each shard."""
    state = this_process()
    missing = missing_shards(staging.work, plan)
    mine = [shard for shard in missing if shard % state.num_processes == state.process_index]  # also where another began earlier
    spans = [(shard, *span) for shard in mine for span in _spans(*plan.bounds(shard), settings.batch_size)]
    schema = pseudo_labels_schema(classifier.class_names)
    network = classifier.network.to(this_device()).eval()
    shape, transform = classifier.data_config["input_size"], clean_transform(classifier.data_config)
    batches = clean_batches(pool, [span[1:] for span in spans], transform, shape, run.decode_threads, hashes=True)
    rows = ShardRows()
    with torch.inference_mode(), progress.task(f"label {staging.ref}", *_amount(plan, missing, mine)) as task:
        for (shard, _, stop), batch in zip(spans, batches, strict=True):
            _label_batch(network, batch, rows)
            task.advance(len(batch.images))
            if stop == plan.bounds(shard)[1]:
                write_shard(staging.build, staging.work, plan, shard, rows, schema)
                if state.is_main_process:
                    since = staging.add_seconds(since)
                rows = ShardRows()


def _amount(plan: ShardPlan, missing: list[int], mine: list[int]) -> tuple[int, str, int]:
    """(images of this process and of shards that are done, unit, images that are done)."""
    size = {shard: plan.bounds(shard)[1] - plan.bounds(shard)[0] for shard in range(len(plan))}
    done = sum(size.values()) - sum(size[shard] for shard in missing)
    return done + sum(size[shard] for shard in mine), "images", done


def _spans(start: int, stop: int, batch_size: int) -> Iterator[tuple[int, int]]:
    for first in range(start, stop, batch_size):
        yield first, min(first + batch_size, stop)


def _label_batch(network: torch.nn.Module, batch: CleanBatch, rows: ShardRows) -> None:
    probs = network(batch.pixels.to(this_device())).float().softmax(dim=1)  # softmax in float32
    confidences, labels = probs.max(dim=1)
    readable = batch.readable
    images = [batch.images[position] for position in readable]
    rows.ids += [image.row.id for image in images]
    rows.keys += [image.row.key for image in images]
    rows.hashes += [image.hash for image in images]
    rows.labels.append(labels.cpu().numpy()[readable])
    rows.confidences.append(confidences.cpu().numpy()[readable])
    rows.probs.append(probs.half().cpu().numpy()[readable])
    thumbnails = [image.thumbnail for image in images if image.thumbnail is not None]
    rows.phashes.append(phash(np.stack(thumbnails) if thumbnails else np.empty((0, 32, 32), np.uint8)))
    rows.errors += [{"id": image.row.id, "key": image.row.key, "reason": image.reason} for image in batch.images if image.pixels is None]
