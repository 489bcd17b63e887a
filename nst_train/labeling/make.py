"""A labeling from start to end, in this process or by the workers of a cluster."""

import time
from collections.abc import Mapping
from contextlib import ExitStack

from nst_data.labeled_version import LabeledVersion
from nst_data.progress import Progress
from nst_data.sources import Source
from nst_data.store.files import disk_use, space_warning
from nst_data.store.store import Staging, Version
from nst_train.labeling.begin import note_images
from nst_train.labeling.labeling import NoAnswerError
from nst_train.labeling.on_ray import on_ray
from nst_train.labeling.plan import Plan
from nst_train.labeling.prepared import Prepared

_ROW_BYTES = 100  # key, hashes and numbers


def make(prepared: Prepared, staging: Staging, plan: Plan, read: Mapping[str, Source]) -> Version:
    """Label what is missing of a version and seal it; `read` maps roles to the sources whose images are read."""
    note_images(staging, read, prepared.run, prepared.progress)
    since, run = time.monotonic(), prepared.run
    with ExitStack() as stack:
        with staging.refusable():
            labeling = prepared.labeling(staging, plan) if run.engine == "local" else stack.enter_context(on_ray(prepared, staging, plan))
        _say_size(labeling.version, labeling.teacher_counts["top_k"], prepared.progress)
        try:
            return labeling.version.make(labeling, since, run.retry_errors)
        except NoAnswerError:
            staging.discard()
            raise


def _say_size(version: LabeledVersion, top_k: int | None, progress: Progress) -> None:
    staging, plan, classes = version.staging, version.shards.plan, len(version.class_names)
    needed_bytes = plan.rows * ((2 * classes if top_k is None else 6 * top_k) + _ROW_BYTES)
    images, shards = f"{plan.rows:,} image{'s' * (plan.rows > 1)}", f"{len(plan):,} shard{'s' * (len(plan) > 1)}"
    progress.say(f"{staging.ref}: {images} in {shards}, {disk_use(needed_bytes)} on disk{space_warning(staging.folder, needed_bytes)}")
