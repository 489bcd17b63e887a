"""Features that are being computed: their shards as they come, and the end.

In a folder they grow at their place, with what only their making needs in `.work`. In a store at an address they are made as versions are:
`runs/features/DIGEST/request.json` says that they are under way, shards go to their place with a note each, `features.json` comes last.
Processes that are asked for the same features join, and a shard has the same bytes whoever writes it. Where machines of different kinds
write one shard at once, and differ in its last bits, it is written again. A process whose work was finished or removed by others, and
perhaps begun anew, is told so before it writes another shard.
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
from nst_data.features.features import ABOUT, TABLE, About, FeaturesRequest, folder_of, ref_of, schema
from nst_data.store.files import discard, fsync_tree, place_once, replacing, write_text
from nst_data.store.mirror import REQUEST, Mirror
from nst_data.store.places import READ
from nst_data.store.remote_run import RemoteRun
from nst_data.store.store import Store
from nst_data.tables.shards import ShardPlan, Shards, parquet_writer

WORK = ".work"
_ROWS_PER_GROUP = 1_000


@dataclass(frozen=True)
class FeaturesUnderWay:
    """Features that any number of processes compute. `run` is what of them is at the address of the store, if it has one."""

    request: FeaturesRequest
    place: Path
    shards: Shards
    dimensions: int
    run: RemoteRun | None = None

    @property
    def build(self) -> Path:
        """The folder that they grow in."""
        return self.shards.build

    def at_work(self) -> AbstractContextManager[Any]:
        """While this lasts, processes of other machines know that this one is at work."""
        return nullcontext() if self.run is None else self.run.worker()

    def share_reading(self) -> None:
        """Have what was noted of the source before its first image was read, by whichever machine."""
        if self.run is not None:
            self.run.remembered_files(self.build / READ)

    def write(self, shard: int, rows: Sequence[pa.Table], errors: list[dict[str, Any]]) -> None:
        """A whole shard: tables with the columns of `schema`."""
        kind = schema(self.dimensions)
        table = pa.concat_tables([kind.empty_table(), *rows])
        with replacing(self.build / self.shards.plan.file(shard), self.shards.parts) as file, parquet_writer(file, kind) as writer:
            writer.write_table(table, row_group_size=_ROWS_PER_GROUP)
        self.shards.write_note(shard, file.sealed, np.array([table.num_rows]), errors)

    def seal(self, machine: dict[str, Any]) -> None:
        """Say that nothing is missing any more. At an address another process may have said so before: then its features stand.

        Raises NotReadyError where a shard that is there is being written again.
        """
        files, counts = self.shards.finish(["images"])
        about = About(
            request=self.request,
            images=counts.labeled,
            errors=counts.errors,
            dimensions=self.dimensions,
            files=files,
            machine=machine,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        fsync_tree(self.build)
        write_text(self.build / ABOUT, json.dumps(about.model_dump(mode="json"), indent=2) + "\n")
        if self.run is None:
            discard(self.shards.work)
            return
        brought = {self.shards.plan.file(shard) for shard in range(len(self.shards.plan))}
        if self.run.mirror.publish(self.place, self.build, brought, partial(self.shards.check_are_as_in, files)):
            self.place.parent.mkdir(parents=True, exist_ok=True)
            place_once(self.build, self.place)
        self.run.discard()


def begin(store: Store, request: FeaturesRequest, rows: int, rows_per_shard: int, dimensions: int) -> FeaturesUnderWay:
    """Features to compute, or to go on with. Raises NstError where others have finished them, or removed them, this moment."""
    place, plan = folder_of(store, request), ShardPlan(rows, rows_per_shard, TABLE)
    if store.mirror is None:
        (place / WORK).mkdir(parents=True, exist_ok=True)
        return FeaturesUnderWay(request, place, Shards(place, place / WORK, plan), dimensions)
    run = _joined(store.mirror, request, place)
    folder = store.mirror.root / run.name
    return FeaturesUnderWay(request, place, Shards(folder / "build", folder / "work", plan, run), dimensions, run)


def run_of(mirror: Mirror, place: Path) -> RemoteRun:
    """Where features are made that will be at a place."""
    return RemoteRun(mirror, f"runs/{mirror.name_of(place)}")


def _joined(mirror: Mirror, request: FeaturesRequest, place: Path) -> RemoteRun:
    run = run_of(mirror, place)
    mirror.refresh_version(mirror.name_of(place))  # this machine may have some that were removed meanwhile
    if not mirror.refresh_run(run.name):
        asked = {"request": request.model_dump(mode="json"), "begun": secrets.token_hex(8)}  # removed and begun anew it is another one
        run.claim(json.dumps(asked, indent=2))
        if not mirror.refresh_run(run.name):
            raise NstError(f"{ref_of(place)}: was finished or removed by another process; rerun this command")
    begun = (mirror.root / run.name / REQUEST).read_bytes()
    return RemoteRun(mirror, run.name, hashlib.sha256(begun).hexdigest(), begun)
