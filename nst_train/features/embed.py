"""`nst embed`: the features of every image of a source, shard by shard."""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from nst_data.arguments import with_checked_arguments
from nst_data.errors import NstError
from nst_data.features.features import Features, FeaturesRequest, FeaturesUnderWay, begin, find, folder_of, schema
from nst_data.progress import Progress, on_this_terminal
from nst_data.sources import Row, Source
from nst_data.sources.changes import HASH, Reading
from nst_data.sources.unreadable import check_readable
from nst_data.store.store import Store, Version
from nst_train.classifiers.inference import Computation, Prediction, choose_computation, predict
from nst_train.features.backbone import Embedder, load_backbone
from nst_train.settings import EmbedSettings, ReadSettings

_SHAPING = ("input_size", "interpolation", "mean", "std", "crop_pct")


@dataclass(frozen=True)
class _Batch:
    shard: int
    rows: list[Row]
    is_last: bool


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
    """Compute the features of every image of a source: what the network makes of it before its classifier. They are kept in the store.

    What was computed before, also by a run that was killed, is not computed again. Any number of processes may run this at once.

    Args:
        store: Where the features are kept.
        model: A teacher of the store or its `name@gen-N`, a timm name, `hf-hub:OWNER/NAME`, OWNER/NAME of transformers or
            `local-dir:FOLDER`; all but the store's with their published weights.
        data: Images, whose labels are not read.
        settings: What shapes the features.
        run: How images are read; changes no result.
        progress: What a person sees of it; by default lines on standard error.

    Returns:
        `matrix()` has shape (images, dimensions) in float32, `rows()` the key of each image, `errors()` those that could not be read.

    Raises:
        UsageError: There is no such model.
        NstError: The network ends in something else than a linear layer, or too many images cannot be read.
    """
    settings, progress = settings or EmbedSettings(), progress or on_this_terminal()
    name = model if isinstance(model, str) else store.open(model, "teacher").ref
    return embed_by(store, load_backbone(name, store, settings.image_size, settings.crop_pct), data, settings, run, progress)


def embed_by(
    store: Store, embedder: Embedder, data: Source, settings: EmbedSettings, run: ReadSettings | None, progress: Progress
) -> Features:
    """As `embed`, with a backbone that is loaded already."""
    run, backbone = run or ReadSettings(), embedder.backbone
    computation = choose_computation(backbone, settings.batch_size, settings.precision, False)
    shaping = {**_shape_of(embedder), "precision": computation.precision, "rows_per_shard": settings.rows_per_shard}
    shaping["batch_size"] = computation.batch_size
    request = FeaturesRequest(model=embedder.entry, source=data.lineage, settings=shaping)
    found = find(store, request)
    reading, said = Reading(folder_of(store, request), "source"), "these features were computed"
    remedy = f"remove {folder_of(store, request)} and run this again"
    if found is not None:
        reading.check(data, _hashes(found), said, remedy, progress)
        progress.say(f"{data.location}: features of {found.about.images:,} images are there already: {found.folder}")
        return found
    under_way = begin(store, request, len(data), settings.rows_per_shard, backbone.dimensions)
    reading.begin(data)
    try:
        _fill(under_way, embedder, data, computation, run, progress)
        _check_readable(under_way, data, run.max_unreadable)
        return under_way.seal(dataclasses.asdict(computation))
    except FileNotFoundError:
        if found := find(store, request):  # another process was at it too and has finished
            return found
        raise


def _check_readable(under_way: FeaturesUnderWay, data: Source, most: float) -> None:
    """Raises NstError where too many images cannot be read; their shards are computed again once they can."""
    unread = list(under_way.shards.unread())
    try:
        check_readable(data.location, len(data), sum(len(one) for _, one in unread), most, under_way.shards.first_unread())
    except NstError:
        for shard, errors in unread:
            if errors:
                under_way.shards.reopen(shard)
        raise


def _shape_of(embedder: Embedder) -> dict[str, Any]:
    """How images are prepared; the network's own values where the settings are silent."""
    (preprocessing,) = embedder.backbone.preprocessings
    return {
        name: value for name, value in vars(preprocessing).items() if name in ("input_size", "interpolation", "mean", "std", "crop_pct")
    }


def _hashes(features: Features) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    rows = features.rows()
    hashes = np.array([bytes.fromhex(one) for one in rows["image_hash"].to_pylist()], dtype="S16").view(HASH)
    yield rows["id"].to_numpy(), hashes


def _fill(
    under_way: FeaturesUnderWay, embedder: Embedder, data: Source, computation: Computation, run: ReadSettings, progress: Progress
) -> None:
    shards, kind = under_way.shards, schema(under_way.dimensions)
    done = shards.plan.rows - sum(shards.plan.size(shard) for shard in shards.missing())
    rows: list[pa.Table] = []
    errors: list[dict[str, Any]] = []
    with progress.task(f"embed {data.location}", shards.plan.rows, "images", done) as task:
        batches = _batches(under_way, data, computation.batch_size)
        for batch, prediction in predict(embedder.backbone, computation, batches, threads=run.decode_threads):
            rows.append(_table(batch, prediction, kind))
            errors += [{"id": batch.rows[at].id, "key": batch.rows[at].key, "reason": why} for at, why in prediction.images.reasons]
            shards.show_life(batch.shard)
            task.advance(len(batch.rows))
            if batch.is_last:
                under_way.write(batch.shard, rows, errors)
                rows, errors = [], []


def _batches(under_way: FeaturesUnderWay, data: Source, batch_size: int) -> Iterator[_Batch]:
    """Batches begin anew with each shard, so that bytes do not depend on who computes which."""
    for shard in under_way.shards.take():
        start, stop = under_way.shards.plan.bounds(shard)
        source = data.rows(range(start, stop))
        for first in range(start, stop, batch_size):
            yield _Batch(shard, list(itertools.islice(source, batch_size)), first + batch_size >= stop)


def _table(batch: _Batch, prediction: Prediction, kind: pa.Schema) -> pa.Table:
    readable = [batch.rows[position] for position in prediction.images.readable]
    values = prediction.log_probs.float().numpy().reshape(-1)
    dimensions = kind.field("features").type.list_size
    columns = {
        "id": pa.array([row.id for row in readable], pa.int64()),
        "key": pa.array([row.key for row in readable], pa.string()),
        "image_hash": pa.array(prediction.images.hashes, pa.string()),
        "features": pa.FixedSizeListArray.from_arrays(pa.array(values, pa.float32()), dimensions),
    }
    return pa.table(columns).cast(kind)
