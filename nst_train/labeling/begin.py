"""The start of a labeling: find or stage its version, and check that the images are the ones it was started on."""

import re
from collections.abc import Mapping

from nst_data.errors import NstError
from nst_data.labeled_version import check_unchanged
from nst_data.progress import Progress
from nst_data.reuse import reuse
from nst_data.sources import Source, what_changed
from nst_data.sources.listing import read_listing, write_listing
from nst_data.sources.unreadable import check_readable
from nst_data.store.counts import EditionCounts, GenerationCounts
from nst_data.store.manifest import Request
from nst_data.store.store import Number, Staging, Store, Version
from nst_train.settings import LabelRunSettings

_COMMIT = re.compile(r"@[0-9a-f]{40}")
_LISTING = "pool.arrow"  # in the work folder of a version: the pool that it was started on


def find_or_stage(
    store: Store,
    request: Request,
    corpus: str,
    generation: int | None,
    sources: Mapping[str, Source],
    limit: int | None,
    run: LabelRunSettings,
    progress: Progress,
) -> Version | Staging:
    """The requested version, sealed or in progress; `sources` maps roles to the sources whose images are read, including the pool.

    Raises NstError if the pool or a teacher has changed since the start, or too many images of the pool are missing.
    """
    pool = sources["pool"]
    for line in pool.remarks():
        progress.say_once(line)
    _check_missing_files(pool, limit, run.max_unreadable)
    for staging in store.stagings(corpus):
        check_inputs_unchanged(staging, request, pool)
    edition = 1 if request.kind == "edition" and generation is not None else None

    def check(version: Version) -> None:
        remedy = f"`store.remove({version.ref!r})` and label again, or ask for another `generation` N"
        check_unchanged(version, sources, remedy, progress, run.rank_and_size[0] == 0)

    number = None if generation is None else Number(generation, edition)
    status = reuse(store, request, corpus, number, progress, check)
    staged = store.find_or_stage(request, corpus, generation, edition)
    if isinstance(staged, Version):
        check(staged)
        _report_existing(store, staged, status, run, progress)
    else:
        for line in store.other_unfinished(staged):
            progress.say(line)
    return staged


def record_images(staging: Staging, sources: Mapping[str, Source], run: LabelRunSettings, progress: Progress) -> None:
    """Record the images that a labeling is started on. Raises NstError if it was started on others with the same names and sizes."""
    check_unchanged(staging, sources, f"`store.remove({staging.ref!r})` and label again", progress, run.rank_and_size[0] == 0)
    if not (staging.work / _LISTING).exists():
        write_listing(staging.work / _LISTING, sources["pool"].listing())


def _check_missing_files(pool: Source, limit: int | None, max_unreadable: float) -> None:
    """Reject missing files early: with its images back, the pool would be a different one, and the work done so far useless."""
    rows = min(len(pool), limit or len(pool))
    missing, first = pool.empty_files(rows)
    check_readable(pool.location, rows, missing, max_unreadable, f"{first!r}, which is empty or missing")


def check_inputs_unchanged(staging: Staging, request: Request, pool: Source) -> None:
    """Raises NstError if the same labeling was started with inputs that have changed since but keep their names."""
    listing_path = staging.work / _LISTING  # if it does not exist, nothing was done yet
    changed_role = _changed_role(staging.request, request) if listing_path.exists() else None
    if changed_role is not None:
        change = what_changed(read_listing(listing_path), pool.listing()) if changed_role == "pool" else "its weights are others"
        raise NstError(
            f"{request.inputs.by_role[changed_role].ref}: the {changed_role} has changed since {staging.ref} was started: {change}; "
            f"restore it and rerun, or `store.remove({staging.ref!r})` and label again"
        )


def _changed_role(started: Request, requested: Request) -> str | None:
    """The role of the pool or teacher that has changed, if both requests ask for the same labeling of inputs with the same names."""
    old_inputs, new_inputs = started.inputs.by_role, requested.inputs.by_role
    if (started.kind, started.settings, old_inputs.keys()) != (requested.kind, requested.settings, new_inputs.keys()):
        return None
    if any(_COMMIT.sub("", old_inputs[role].ref) != _COMMIT.sub("", new_inputs[role].ref) for role in new_inputs):
        return None
    return next((role for role, entry in new_inputs.items() if entry.digest != old_inputs[role].digest), None)


def _report_existing(store: Store, version: Version, status: str, run: LabelRunSettings, progress: Progress) -> None:
    """Report a finished version. Raises NstError if it has no label, because an earlier nst sealed it without a readable image."""
    match version.manifest.counts:
        case EditionCounts(errors=lost, unique=labels):
            errors = lost or 0
        case GenerationCounts(errors=errors, labeled=labels):
            pass
    they, them = ("it", "it") if errors == 1 else ("they", "them")
    remedy = f"once {they} can be read, `store.remove({version.ref!r})` and rerun to label {them}"
    if errors and (children := store.children(version)):  # so it cannot be removed
        verb = "were" if len(children) > 1 else "was"
        remedy = f"once {they} can be read, label the pool under another name to have {them}, "
        remedy += f"since {', '.join(children)} {verb} made from {version.ref}"
    if not labels:
        raise NstError(f"{version.ref} exists but has no labels, since none of its {errors:,} images could be read; {remedy}")
    unreadable = f"{errors:,} unreadable image{'s are' if errors > 1 else ' is'} missing from it"
    sealed = "`retry_errors` does nothing to a sealed version; " if run.retry_errors else ""
    left_out = f"; {unreadable}: {sealed}{remedy}" if errors else ""
    progress.say(f"{version.ref} {status}: same teacher, images and settings{left_out}")
