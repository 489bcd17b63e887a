"""A linear probe as a teacher: a frozen trained network, with a last layer fitted on the features of labeled images."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from nst_data.cards import cards
from nst_data.cards.described import Described
from nst_data.progress import Progress
from nst_data.sources import Source, labels_in
from nst_data.store.counts import ProbeCounts, TeacherCounts
from nst_data.store.manifest import PROBE_SAMPLE
from nst_data.store.staging import Staging
from nst_data.store.store import Store
from nst_train.batches.batches import readable_images
from nst_train.features.backbone import Embedder, create_backbone, last_layer
from nst_train.features.embed import embed_with
from nst_train.features.linear_probe import STRENGTHS, choose_folds, fit
from nst_train.networks.models import count_parameters, create_network, save_teacher, training_data_config
from nst_train.noise_settings import Noise
from nst_train.seeds import derive_seed, seed_network
from nst_train.settings import EmbedSettings, RunSettings, TrainSettings
from nst_train.training.readable import check_classes, find_unreadable_images
from nst_train.training.warm_start import load_start_weights


def fit_probe(
    store: Store,
    staging: Staging,
    settings: TrainSettings,
    labeled: Source,
    run: RunSettings,
    progress: Progress,
    machine: dict[str, Any],
    since: float,
    reviewed: int = 0,
) -> None:
    """Fit the last layer and seal the whole network as a teacher. The features of the images are kept in the store.

    Raises NstError if the network does not end in a single linear layer.
    """
    faults = find_unreadable_images(store, staging, "labeled", labeled, run, progress)
    images, names = readable_images(labeled, faults), labeled.class_names or []
    empty = check_classes(labeled, images, faults, progress)
    seed_network(derive_seed(settings.seed, "initial weights"))
    network = create_network(settings.model_copy(update={"noise": Noise.none()}), len(names))
    if settings.start:
        load_start_weights(network, settings, store, names, progress)
    entry = staging.request.inputs.by_role["initial_weights"]
    backbone = create_backbone(network, len(names), settings.model, training_data_config(network, settings))
    features = embed_with(store, Embedder(backbone, entry), labeled, EmbedSettings(precision=settings.precision), run, progress)
    rows = features.rows()["id"].to_numpy()
    is_read = np.isin(rows, images.rows)
    labels = labels_in(labeled)[rows[is_read]].astype(np.int64)
    if (sample := staging.request.settings.get(PROBE_SAMPLE)) is not None:
        progress.say(
            f"{staging.ref}: fitting the last layer on {len(labels):,} images, seeking its strength on {min(sample, len(labels)):,} of them"
        )
    is_searched = sample is not None or choose_folds(labels) > 0
    task_context = progress.task(f"fit {staging.ref}", len(STRENGTHS), "strengths") if is_searched else nullcontext()
    with task_context as task:
        probe = fit(features.matrix()[is_read], labels, len(names), settings.seed, settings.class_weights, sample=sample, task=task)
    layer = last_layer(network, len(names), settings.model)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(probe.weight))
        layer.bias.copy_(torch.from_numpy(probe.bias))
    files = save_teacher(network.eval(), staging.build, names, settings)
    counts = TeacherCounts(
        parameters=count_parameters(network),
        steps=0,
        labeled=len(images),
        unreadable=len(faults),
        classes_without_images=empty,
        reviewed=reviewed,
        probe=ProbeCounts(strength=probe.strength, folds=probe.folds),
    )
    staging.add_seconds(since)
    manifest = staging.build_manifest(files, names, counts, machine)
    cards.write_model_card(Described(staging.build, staging.target, manifest))
    staging.seal(manifest)
