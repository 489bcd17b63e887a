"""Features that are being computed: writing their shards, and finishing them.

In a local store, shards are written to their final folder, with temporary files in `.work`. In a remote store, features are made as
versions are: `runs/features/DIGEST/request.json` says that they are in progress, each shard is uploaded to its place along with a note,
and `features.json` comes last. Processes that are asked for the same features join in; a shard has the same bytes whoever writes it. If
machines of different kinds write the same shard at once and differ in the last bits, it is written again. If others finished, removed or
restarted the features meanwhile, a process is told so before it writes another shard.
"""

import datetime
import hashlib
import json
import secrets
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nst_data.errors import NstError
from nst_data.features.features import RECORD_FILE, TABLE, FeaturesRecord, FeaturesRequest, features_folder, features_ref, features_schema
from nst_data.store.files import atomic_write, discard, fsync_tree, move_unless_exists, write_text
from nst_data.store.mirror import REQUEST, Mirror
from nst_data.store.places import READ_FOLDER
from nst_data.store.remote_run import RemoteRun
from nst_data.store.store import Store
from nst_data.tables.shards import ShardPlan, Shards, parquet_writer

WORK = ".work"
_ROWS_PER_GROUP = 1_000


@dataclass(frozen=True)
class FeaturesInProgress:
    """Features that any number of processes compute together. `run` is the work in the remote store, if the store is remote."""

    request: FeaturesRequest
    place: Path
    shards: Shards
    dimensions: int
    run: RemoteRun | None = None

    @property
    def build(self) -> Path:
        """The folder to which shards are written."""
        return self.shards.build

    def as_worker(self) -> AbstractContextManager[Any]:
        """Within this context, other machines can see that this process is working."""
        return nullcontext() if self.run is None else self.run.register_worker()

    def share_source_notes(self) -> None:
        """Use the notes on the source taken before its first image was read, by whichever machine came first."""
        if self.run is not None:
            self.run.replace_by_first_stored(self.build / READ_FOLDER)

    def write(self, shard: int, rows: Sequence[pa.Table], errors: list[dict[str, Any]]) -> None:
        """Write a whole shard from tables with the columns of `features_schema`."""
        table_schema = features_schema(self.dimensions)
        table = pa.concat_tables([table_schema.empty_table(), *rows])
        with (
            atomic_write(self.build / self.shards.plan.file(shard), self.shards.temp_folder) as file,
            parquet_writer(file, table_schema) as writer,
        ):
            writer.write_table(table, row_group_size=_ROWS_PER_GROUP)
        self.shards.write_note(shard, file.sealed, np.array([table.num_rows]), errors)

    def seal(self, machine: dict[str, Any]) -> None:
        """Mark the features as complete. If another process has already done so in a remote store, its features are kept.

        Raises NotReadyError if an existing shard is being written again.
        """
        files, counts = self.shards.finish(["images"])
        record = FeaturesRecord(
            request=self.request,
            images=counts.labeled,
            errors=counts.errors,
            dimensions=self.dimensions,
            files=files,
            machine=machine,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        fsync_tree(self.build)
        write_text(self.build / RECORD_FILE, json.dumps(record.model_dump(mode="json"), indent=2) + "\n")
        if self.run is None:
            discard(self.shards.work)
            return
        shard_files = {self.shards.plan.file(shard) for shard in range(len(self.shards.plan))}
        if self.run.mirror.publish(self.place, self.build, shard_files, partial(self.shards.check_unchanged, files)):
            self.place.parent.mkdir(parents=True, exist_ok=True)
            move_unless_exists(self.build, self.place)
        self.run.discard()


def start_features(store: Store, request: FeaturesRequest, rows: int, rows_per_shard: int, dimensions: int) -> FeaturesInProgress:
    """Start or resume computing features. Raises NstError if another process has just finished or removed them."""
    place, plan = features_folder(store, request), ShardPlan(rows, rows_per_shard, TABLE)
    if store.mirror is None:
        (place / WORK).mkdir(parents=True, exist_ok=True)
        return FeaturesInProgress(request, place, Shards(place, place / WORK, plan), dimensions)
    run = _join_run(store.mirror, request, place)
    folder = store.mirror.root / run.name
    return FeaturesInProgress(request, place, Shards(folder / "build", folder / "work", plan, run), dimensions, run)


def remote_run_of(mirror: Mirror, place: Path) -> RemoteRun:
    """The remote run in which the features at a place are made."""
    return RemoteRun(mirror, f"runs/{mirror.name_of(place)}")


def _join_run(mirror: Mirror, request: FeaturesRequest, place: Path) -> RemoteRun:
    run = remote_run_of(mirror, place)
    mirror.refresh_version(mirror.name_of(place))  # this machine may have features that were removed meanwhile
    if not mirror.refresh_run(run.name):
        record = {"request": request.model_dump(mode="json"), "begun": secrets.token_hex(8)}  # tells restarted runs apart
        run.claim(json.dumps(record, indent=2))
        if not mirror.refresh_run(run.name):
            raise NstError(f"{features_ref(place)}: was finished or removed by another process; rerun this command")
    request_bytes = (mirror.root / run.name / REQUEST).read_bytes()
    return RemoteRun(mirror, run.name, hashlib.sha256(request_bytes).hexdigest(), request_bytes)
