"""`nst embed`: the features of every image of a source, shard by shard."""

from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np

from nst_data.arguments import with_checked_arguments
from nst_data.errors import NstError
from nst_data.features.features import Features, features_folder, features_ref, find_features
from nst_data.features.under_way import FeaturesInProgress, start_features
from nst_data.progress import Progress, Task, terminal_progress
from nst_data.sources import Source
from nst_data.sources.changes import HASH, ReadRecord
from nst_data.sources.unreadable import check_readable
from nst_data.store.files import is_writable
from nst_data.store.staging import NotReadyError
from nst_data.store.store import Store, Version
from nst_train.features.backbone import Embedder, load_backbone
from nst_train.features.embedding import Embedding, EmbeddingInfo
from nst_train.features.on_ray import embedding_on_ray
from nst_train.settings import EmbedRunSettings, EmbedSettings, ReadSettings


@with_checked_arguments
def embed(
    store: Store,
    model: Version | str,
    data: Source,
    settings: EmbedSettings | None = None,
    *,
    run: ReadSettings | None = None,
    progress: Progress | None = None,
) -> Features:
    """Compute the features of every image of a source: the network's pooled output before its classifier. They are kept in the store.

    Features that exist already, including those of a killed run, are not computed again. Any number of processes may run this at once, on
    any number of machines if the store is on s3://; files that others computed are downloaded when they are first read.

    Args:
        store: The store that holds the features.
        model: A teacher of the store or its `name@gen-N`, a timm name, `hf-hub:OWNER/NAME`, OWNER/NAME for transformers or
            `local-dir:FOLDER`; models that are not in the store are used with their published weights.
        data: The images; any labels are ignored.
        settings: Settings that determine the features.
        run: How images are read and who computes: `EmbedRunSettings(engine="ray")` for the workers of a cluster. Changes no result.
        progress: How progress is shown; by default as lines on standard error.

    Returns:
        `matrix()` has shape (images, dimensions) in float32; `rows()` has the key of each image, `errors()` the unreadable images.

    Raises:
        UsageError: The model does not exist.
        NstError: The network does not end in a linear layer, or too many images cannot be read.
    """
    settings, progress = settings or EmbedSettings(), progress or terminal_progress()
    name = model if isinstance(model, str) else store.open(model, "teacher").ref
    if isinstance(run, EmbedRunSettings) and run.engine == "ray":
        with embedding_on_ray(store, name, data, settings, run, progress) as (about, fill):
            return _find_or_compute(store, about, data, settings, run, progress, fill)
    return embed_with(store, load_backbone(name, store, settings.image_size, settings.crop_pct), data, settings, run, progress)


def embed_with(
    store: Store,
    embedder: Embedder,
    data: Source,
    settings: EmbedSettings,
    run: ReadSettings | None,
    progress: Progress,
    scratch: Path | None = None,
) -> Features:
    """Same as `embed`, with a loaded backbone. If features are missing and the store is read-only, they go to the folder `scratch`."""
    run = run or ReadSettings()
    embedding = Embedding.create(embedder, data, settings, run)

    def fill(under_way: FeaturesInProgress, task: Task) -> None:
        with closing(embedding.fill(under_way, under_way.shards.take())) as row_counts:
            for rows in row_counts:
                task.advance(rows)

    if scratch is not None and not is_writable(store.root) and find_features(store, embedding.about.request) is None:
        store = Store(scratch)
    return _find_or_compute(store, embedding.about, data, settings, run, progress, fill)


def _find_or_compute(
    store: Store,
    about: EmbeddingInfo,
    data: Source,
    settings: EmbedSettings,
    run: ReadSettings,
    progress: Progress,
    fill: Callable[[FeaturesInProgress, Task], None],
) -> Features:
    """The features of a request: existing ones, or those that `fill` computes until no shard is missing."""
    request = about.request
    place, event = features_folder(store, request), "these features were computed"
    if existing := find_features(store, request):
        remedy = f"`remove_features(store, {features_ref(place)!r})` and embed again"
        ReadRecord(place, "source").check_unchanged(data, _ids_and_hashes(existing), event, remedy, progress)
        progress.say(f"{data.location}: features of {existing.about.images:,} images are there already: {existing.location}")
        return existing
    try:
        under_way = start_features(store, request, len(data), settings.rows_per_shard, about.dimensions)
        ReadRecord(under_way.build, "source").record_stamps(data)
        under_way.share_source_notes()
        with under_way.as_worker():
            is_sealed = False
            while not is_sealed:
                _fill_missing(under_way, data, progress, fill)
                _check_readable(under_way, data, run.max_unreadable)
                with suppress(NotReadyError):  # another machine has started to rewrite a shard
                    under_way.seal(about.machine)
                    is_sealed = True
    except (FileNotFoundError, NstError):
        if existing := find_features(store, request):  # another process was computing them too and has finished
            return existing
        raise
    finished = find_features(store, request)
    if finished is None:
        raise NstError(f"{features_ref(place)}: was removed by another process just now; rerun this command")
    return finished


def _fill_missing(
    under_way: FeaturesInProgress, data: Source, progress: Progress, fill: Callable[[FeaturesInProgress, Task], None]
) -> None:
    """Fill until no shard is missing. If two machines write different bytes for a shard, neither is kept, and it is missing again."""
    plan = under_way.shards.plan
    while missing := under_way.shards.missing():
        completed = plan.rows - sum(map(plan.size, missing))
        with progress.task(f"embed {data.location}", plan.rows, "images", completed) as task:
            fill(under_way, task)


def _check_readable(under_way: FeaturesInProgress, data: Source, max_unreadable: float) -> None:
    """Raises NstError if too many images cannot be read; their shards will be recomputed once they can."""
    unread = list(under_way.shards.unread_images())
    try:
        check_readable(
            data.location, len(data), sum(len(faults) for _, faults in unread), max_unreadable, under_way.shards.describe_first_unread()
        )
    except NstError:
        for shard, errors in unread:
            if errors:
                under_way.shards.reopen(shard)
        raise


def _ids_and_hashes(features: Features) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    rows = features.rows()
    hashes = np.array([bytes.fromhex(image_hash) for image_hash in rows["image_hash"].to_pylist()], dtype="S16").view(HASH)
    yield rows["id"].to_numpy(), hashes
