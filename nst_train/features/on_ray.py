"""Features computed by the workers of a Ray cluster."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from nst_data.features.under_way import FeaturesInProgress, start_features
from nst_data.progress import Progress, Task
from nst_data.sources import Source
from nst_data.store.files import clear_abandoned, temporary_path
from nst_data.store.leases import register_worker, remove_dead_leases
from nst_data.store.store import Store
from nst_train.cluster.job import SourceAddress, describe_missing_teacher, portable_model
from nst_train.cluster.workers import open_workers
from nst_train.features.backbone import load_backbone
from nst_train.features.embedding import Embedding, EmbeddingInfo
from nst_train.settings import EmbedRunSettings, EmbedSettings

_MARKER = "runs/seen-by-workers"
Fill = Callable[[FeaturesInProgress, Task], None]


@dataclass(frozen=True)
class EmbedJob:
    """Features to compute, as names and addresses."""

    store: str
    marker: str  # a folder in the store, or a file at its address; a node that sees it has the same store
    model: str
    settings: EmbedSettings
    run: EmbedRunSettings
    data: SourceAddress

    def describe_missing(self) -> str:
        """Whether this machine lacks the store, the source or a local model."""
        mirror = Store(self.store).mirror
        if not (Path(self.marker).is_dir() if mirror is None else mirror.tree.stat(self.marker)):
            return f"does not see the store {self.store}; put it on a file system that all nodes share, or on s3://"
        return self.data.describe_missing() or describe_missing_teacher(self.model)

    def open(self, threads: int) -> "EmbedWork":
        """Open the source and the model."""
        store, settings = Store(self.store), self.settings
        run = self.run.model_copy(update={"decode_threads": self.run.decode_threads or threads})
        data, embedder = self.data.open(store.indexes), load_backbone(self.model, store, settings.image_size, settings.crop_pct)
        return EmbedWork(store, Embedding.create(embedder, data, settings, run))


@dataclass(frozen=True)
class EmbedWork:
    """Features as computed by a worker."""

    store: Store
    embedding: Embedding

    @property
    def about(self) -> EmbeddingInfo:
        """The request and what is recorded with it."""
        return self.embedding.about

    def fill(self, shard: int) -> Iterator[int]:
        """Compute one shard. Yields the number of rows done since the last yield."""
        about, data = self.about, self.embedding.data
        under_way = start_features(self.store, about.request, len(data), about.request.settings["rows_per_shard"], about.dimensions)
        under_way.shards.claim(shard)
        return self.embedding.fill(under_way, [shard])


@contextmanager
def embedding_on_ray(
    store: Store, model: str, data: Source, settings: EmbedSettings, run: EmbedRunSettings, progress: Progress
) -> Iterator[tuple[EmbeddingInfo, Fill]]:
    """The request, as described by the workers (only they load the network), and a function that has them write the missing shards."""
    shards = -(-len(data) // settings.rows_per_shard)
    data.store_listing(store.indexes)  # for the workers
    with _place_marker(store) as marker:
        job = EmbedJob(store.location, marker, str(portable_model(model)), settings, run, SourceAddress.from_source(data))
        with open_workers(job, run, shards, progress) as workers:

            def fill(under_way: FeaturesInProgress, task: Task) -> None:
                for step in workers.fill(under_way.shards.missing(), under_way.shards.is_done):
                    task.advance(under_way.shards.plan.size(step.shard) if step.is_by_others else step.rows)

            yield workers.about, fill


@contextmanager
def _place_marker(store: Store) -> Iterator[str]:
    """Provide the `EmbedJob.marker` of a store while open. Also deletes markers left by killed processes of this machine."""
    if store.mirror is not None:
        remove_dead_leases(store.mirror.tree, _MARKER)
        with register_worker(store.mirror.tree, _MARKER) as lease:
            yield lease.name
        return
    store.root.mkdir(parents=True, exist_ok=True)
    clear_abandoned(store.root)
    folder = temporary_path(store.root / f".seen-by-workers.{secrets.token_hex(4)}")
    folder.mkdir()
    try:
        yield str(folder)
    finally:
        with suppress(FileNotFoundError):  # a process on another machine with the same name may have considered it abandoned
            folder.rmdir()
