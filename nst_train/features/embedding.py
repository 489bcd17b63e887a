"""Applies a backbone to the images of a source: shards to batches to features."""

import dataclasses
import itertools
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa

from nst_data.features.features import FeaturesRequest, features_schema
from nst_data.features.under_way import FeaturesInProgress
from nst_data.sources import Row, Source
from nst_data.tables.shards import ShardPlan
from nst_train.classifiers.inference import Computation, Prediction, choose_computation, predict
from nst_train.features.backbone import Embedder
from nst_train.networks.transformers_networks import TransformersClassifier
from nst_train.settings import EmbedSettings, ReadSettings


@dataclass(frozen=True)
class _Batch:
    shard: int
    rows: list[Row]
    is_last: bool


@dataclass(frozen=True)
class EmbeddingInfo:
    """The request for features, and what is recorded about them in addition to it."""

    request: FeaturesRequest
    dimensions: int
    machine: dict[str, Any]


@dataclass(frozen=True)
class Embedding:
    """A backbone applied to the images of a source."""

    embedder: Embedder
    data: Source
    computation: Computation
    about: EmbeddingInfo
    threads: int | None

    @classmethod
    def create(cls, embedder: Embedder, data: Source, settings: EmbedSettings, run: ReadSettings) -> Self:
        """Create an embedding, resolving what the settings leave open."""
        backbone = embedder.backbone
        computation = choose_computation(backbone, settings.batch_size, settings.precision, False)
        shaping = {**_preprocessing_settings(embedder), "precision": computation.precision, "rows_per_shard": settings.rows_per_shard}
        shaping["batch_size"] = computation.batch_size
        request = FeaturesRequest(model=embedder.entry, source=data.lineage, settings=shaping)
        about = EmbeddingInfo(request, backbone.dimensions, dataclasses.asdict(computation))
        return cls(embedder, data, computation, about, run.decode_threads)

    def fill(self, under_way: FeaturesInProgress, shards: Iterable[int]) -> Generator[int, None, None]:
        """Compute and write shards. Yields the number of rows done since the last yield."""
        kind = features_schema(under_way.dimensions)
        rows: list[pa.Table] = []
        errors: list[dict[str, Any]] = []
        batches = self._batches(under_way.shards.plan, shards)
        for batch, prediction in predict(self.embedder.backbone, self.computation, batches, threads=self.threads):
            rows.append(_table(batch, prediction, kind))
            errors += [
                {"id": batch.rows[row].id, "key": batch.rows[row].key, "reason": reason} for row, reason in prediction.images.reasons
            ]
            under_way.shards.refresh_claim(batch.shard)
            yield len(batch.rows)
            if batch.is_last:
                under_way.write(batch.shard, rows, errors)
                rows, errors = [], []

    def _batches(self, plan: ShardPlan, shards: Iterable[int]) -> Iterator[_Batch]:
        """Batches start over with each shard, so that the bytes do not depend on who computes which shard."""
        size = self.computation.batch_size
        for shard in shards:
            start, stop = plan.bounds(shard)
            source = self.data.rows(range(start, stop))
            for first in range(start, stop, size):
                yield _Batch(shard, list(itertools.islice(source, size)), first + size >= stop)


def _preprocessing_settings(embedder: Embedder) -> dict[str, Any]:
    """How images are preprocessed, with the network's own values for what the settings leave open."""
    (preprocessing,) = embedder.backbone.preprocessings
    names = ["input_size", "interpolation", "mean", "std", "crop_pct"]
    if isinstance(embedder.backbone.members[0].network, TransformersClassifier) and vars(preprocessing)["crop_mode"] == "squash":
        names.append("crop_mode")  # an earlier nst cropped these images; for timm networks the name alone determines it
    return {name: value for name, value in vars(preprocessing).items() if name in names}


def _table(batch: _Batch, prediction: Prediction, table_schema: pa.Schema) -> pa.Table:
    readable = [batch.rows[position] for position in prediction.images.readable]
    values = prediction.log_probs.float().numpy().reshape(-1)
    dimensions = table_schema.field("features").type.list_size
    columns = {
        "id": pa.array([row.id for row in readable], pa.int64()),
        "key": pa.array([row.key for row in readable], pa.string()),
        "image_hash": pa.array(prediction.images.hashes, pa.string()),
        "features": pa.FixedSizeListArray.from_arrays(pa.array(values, pa.float32()), dimensions),
    }
    return pa.table(columns).cast(table_schema)
