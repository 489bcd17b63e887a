"""A version of labels from staging to sealing, whatever the labels come from: filled shard by shard, by any number of processes."""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from nst_data.cards import cards
from nst_data.progress import Progress, Task
from nst_data.sources import Source
from nst_data.sources.changes import ReadRecord, hashes_in
from nst_data.sources.unreadable import check_readable, is_over_limit
from nst_data.store.counts import Counts, LabelCounts
from nst_data.store.staging import NotReadyError
from nst_data.store.store import Staging, Version
from nst_data.tables.shards import Shards


class Labeler(Protocol):
    """Provides the labels of a version in progress: a teacher that predicts them, or a column that was written elsewhere."""

    def fill(self, task: Task, since: float) -> None:
        """Write the missing shards until none are left. `since` is when this work started."""

    def read_again(self) -> None:
        """Mark shards to be written again because some of their images could not be read."""

    def counts(self, counts: LabelCounts) -> Counts:
        """The counts for the manifest, given those of the table. Raises NstError if they show that the result is worthless."""


@dataclass(frozen=True)
class LabeledVersion:
    """A version in progress, the shards of its table, and the pool being labeled.

    `verb` is the action shown in the progress bar; `machine` records what labels can depend on besides settings and packages.
    """

    staging: Staging
    shards: Shards
    pool: Source
    class_names: list[str]
    verb: str
    machine: dict[str, Any]
    progress: Progress
    max_unreadable: float

    def label_and_seal(self, labeler: Labeler, since: float, retry_errors: bool = False) -> Version:
        """Label what is missing, then seal. A completed shard is missing again while a process rewrites it for images now readable.

        If an earlier run failed to read too many images, these are read first. Raises NstError if too many cannot be read.
        """
        if any(self.has_too_many_unreadable(shard, len(unreadable)) for shard, unreadable in self.shards.unread_images()):
            labeler.read_again()
        self._write_missing_shards(labeler, since)
        if retry_errors:
            labeler.read_again()
        while True:
            if self.shards.missing():
                self._write_missing_shards(labeler, time.monotonic())
            with suppress(NotReadyError):  # another process that retries unreadable images has started to rewrite a shard
                return self._seal(labeler)

    def has_too_many_unreadable(self, shard: int, n_unreadable: int) -> bool:
        """Whether this many unreadable images are too many for a shard."""
        return is_over_limit(self.shards.plan.size(shard), n_unreadable, self.max_unreadable)

    def _write_missing_shards(self, labeler: Labeler, since: float) -> None:
        plan = self.shards.plan
        n_labeled = plan.rows - sum(plan.size(shard) for shard in self.shards.missing())
        with self.progress.task(f"{self.verb} {self.staging.ref}", plan.rows, "images", n_labeled) as task:
            labeler.fill(task, since)

    def _seal(self, labeler: Labeler) -> Version:
        try:
            files, rows = self.shards.finish(self.class_names)
        except FileNotFoundError:
            if not self.shards.missing():
                raise
            raise NotReadyError from None
        if self.staging.remote_run is not None and self.staging.request.kind == "edition":  # its copies are counted from its table
            self.staging.remote_run.download_shards(files)
        counts, n_unreadable = labeler.counts(rows), rows.errors - rows.no_answer
        location = f"{self.staging.ref}: {self.pool.location}"
        check_readable(location, self.shards.plan.rows, n_unreadable, self.max_unreadable, self.shards.describe_first_unread())
        manifest = self.staging.build_manifest(files, self.class_names, counts, self.machine)
        cards.write_dataset_card(self.staging, manifest)
        return self.staging.seal(manifest, partial(self.shards.check_unchanged, files))


def check_unchanged(
    staged: Version | Staging, sources: Mapping[str, Source], remedy: str, progress: Progress, compare: bool = True
) -> None:
    """Record which images are read for a version that is being started; `sources` maps roles to their sources, including the pool.

    Raises NstError with the `remedy` if images that were read for the version have different bytes now, under the same names and sizes.
    """
    is_sealed = isinstance(staged, Version)
    folder = staged.folder if isinstance(staged, Version) else staged.build
    for role, source in sources.items():
        record, created = ReadRecord(folder, role), None
        if isinstance(staged, Version) and role == "pool":
            created = staged.manifest.created
        if compare:
            hashes = hashes_in(folder) if role == "pool" else record.stored_hashes()
            record.check_unchanged(source, hashes, f"{staged.ref} was {'made' if is_sealed else 'begun'}", remedy, progress, created)
        if not is_sealed:
            record.record_stamps(source)
