"""A labeling from start to end, in this process or by the workers of a cluster."""

import time
from collections.abc import Mapping
from contextlib import ExitStack

from nst_data.labeled_version import LabeledVersion
from nst_data.progress import Progress
from nst_data.sources import Source
from nst_data.store.files import format_size, space_warning
from nst_data.store.store import Staging, Version
from nst_train.labeling.begin import record_images
from nst_train.labeling.labeling import NoAnswerError
from nst_train.labeling.on_ray import labeling_on_ray
from nst_train.labeling.plan import Plan
from nst_train.labeling.prepared import PreparedTeacher

_ROW_BYTES = 100  # key, hashes and numbers


def run_labeling(prepared: PreparedTeacher, staging: Staging, plan: Plan, sources: Mapping[str, Source]) -> Version:
    """Label what is missing of a version and seal it; `sources` maps roles to the sources whose images are read."""
    record_images(staging, sources, prepared.run, prepared.progress)
    since, run = time.monotonic(), prepared.run
    with ExitStack() as stack:
        with staging.discard_on_error():
            labeling = (
                prepared.labeling(staging, plan) if run.engine == "local" else stack.enter_context(labeling_on_ray(prepared, staging, plan))
            )
        _report_size(labeling.version, labeling.teacher_counts["top_k"], prepared.progress)
        try:
            return labeling.version.label_and_seal(labeling, since, run.retry_errors)
        except NoAnswerError:
            staging.discard()
            raise


def _report_size(version: LabeledVersion, top_k: int | None, progress: Progress) -> None:
    staging, plan, classes = version.staging, version.shards.plan, len(version.class_names)
    needed_bytes = plan.rows * ((2 * classes if top_k is None else 6 * top_k) + _ROW_BYTES)
    images, shards = f"{plan.rows:,} image{'s' * (plan.rows > 1)}", f"{len(plan):,} shard{'s' * (len(plan) > 1)}"
    progress.say(f"{staging.ref}: {images} in {shards}, {format_size(needed_bytes)} on disk{space_warning(staging.folder, needed_bytes)}")
