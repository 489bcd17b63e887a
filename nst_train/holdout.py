"""Held-out images for processes that run together, and models that may have seen them."""

import functools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from nst_data.progress import Progress
from nst_data.selection.holdout import hold_out, holdout_folder
from nst_data.sources import Source
from nst_data.sources.changes import ReadRecord
from nst_data.sources.hashing import image_hashes
from nst_data.store.manifest import EditionManifest
from nst_data.store.store import Store, Version
from nst_train.device import this_process
from nst_train.teacher_names import is_in_store

_MAX_COMPARED = 5_000


def hold_out_across_processes(
    labeled: Source, share: float, seed: int, store: Store, progress: Progress, writes: bool = True
) -> tuple[Source, Source]:
    """(images that stay labeled, held-out images), as in `hold_out`; the processes of one run read the images once."""
    with this_process().main_process_first():
        return hold_out(labeled, share=share, seed=seed, kept=holdout_folder(store), writes=writes, progress=progress)


def warn_of_leaks(models: Iterable[str], store: Store, labeled: Source, progress: Progress) -> None:
    """Warn about models of the store that were trained on labeled images other than those left after a holdout: possibly on held-out ones.

    This includes their teachers, and the models they started from, as far as the store has their manifests.
    """
    for name, version, ancestors in _models_with_ancestors(models, store):
        if suspect := next((ancestor for ancestor in ancestors if _labeled_digest(ancestor) not in (None, labeled.fingerprint)), None):
            subject, possessive = (
                (name, "whose") if suspect.ref == version.ref else (f"{name} descends from {suspect.ref}, which", f"and {name}'s")
            )
            progress.say(
                f"warning: {subject} was not trained on just the labeled images that are not held out; it may have seen held-out ones, "
                f"{possessive} score is then too high"
            )


def warn_if_trained_on(models: Iterable[str], store: Store, scored: Source, progress: Progress) -> None:
    """Warn about models of the store that were trained on images they are evaluated on, or that descend from such a model.

    Images are compared by their bytes (a sample of them for a large source), for networks that were trained in this store. With several
    processes, only the main one checks.
    """
    if not this_process().is_main_process:
        return
    hashes = functools.cache(lambda: _sample_hashes(scored))
    for name, version, ancestors in _models_with_ancestors(models, store):
        lineage = list(ancestors)
        overlaps = [(one, len(scored)) for one in lineage if _labeled_digest(one) == scored.fingerprint]
        for one in lineage if not overlaps else []:
            if one.mirror is not None:
                one.mirror.download_source_states(one.local_folder)
            if len(trained_hashes := ReadRecord(one.local_folder, "labeled").known_hashes()):
                overlaps.append((one, int(np.isin(hashes(), trained_hashes).sum())))
        trained, n_overlapping = max(overlaps, key=lambda one: one[1], default=(version, 0))
        if n_overlapping:
            images = "these images" if n_overlapping == len(scored) else f"{n_overlapping:,} of the {len(hashes()):,} images"
            images += " that were compared" if n_overlapping < len(scored) and len(hashes()) < len(scored) else ""
            descends = "" if trained.ref == version.ref else f" (through {trained.ref})"
            progress.say(f"warning: {name} was trained on {images}{descends}; its score does not tell how it does on new ones")


def _sample_hashes(source: Source) -> NDArray[np.bytes_]:
    """The 16 bytes of the `image_hash` of some evenly spread images of a source."""
    rows = np.linspace(0, len(source) - 1, min(len(source), _MAX_COMPARED), dtype=np.int64)
    hashes = [bytes.fromhex(hashed) for _, hashed in image_hashes(source.rows(rows)) if hashed]
    return np.array(hashes, "S16")


def warn_if_not_excluded(edition: Version, store: Store, labeled: Source, held_out: Source, progress: Progress) -> None:
    """Warn if an edition may contain held-out images, because it was drawn without excluding them or all labeled images.

    For an edition that was labeled again (`label_like`), the one it takes its images from is checked; nothing is reported if that is gone.
    """
    by_digest, inputs = _versions_by_digest(store), EditionManifest.from_manifest(edition.manifest).request.inputs
    while inputs.like is not None:
        if (version := by_digest.get(inputs.like.digest)) is None:
            return
        inputs = EditionManifest.from_manifest(version.manifest).request.inputs
    if not {entry.digest for entry in inputs.excluded.values()} & {labeled.images_fingerprint, held_out.images_fingerprint}:
        progress.say(
            f"warning: {edition.ref} was drawn without excluding {labeled.location}: held-out images that are also in the pool are "
            "trained on, and the score on them is then too high; draw an edition that excludes them"
        )


def _models_with_ancestors(models: Iterable[str], store: Store) -> Iterator[tuple[str, Version, Iterator[Version]]]:
    """Each of the models that is in the store, with its version, and an iterator over that and its ancestors in the store."""
    names = [model for model in dict.fromkeys(models) if is_in_store(model, store)]
    by_digest = _versions_by_digest(store) if names else {}
    for name in names:
        version = store.open(name, "teacher")
        yield name, version, _lineage(version, by_digest)


def _versions_by_digest(store: Store) -> dict[str, Version]:
    return {version.manifest.digest: version for version in store.versions() if version.is_readable}


def _labeled_digest(version: Version) -> str | None:
    entry = version.manifest.request.inputs.by_role.get("labeled")
    return entry.digest if version.manifest.kind == "teacher" and entry is not None else None


def _lineage(version: Version, versions_by_digest: Mapping[str, Version]) -> Iterator[Version]:
    """A version and its ancestors in the store, nearest first, without repetition."""
    visited = {version.manifest.digest: version}
    queue = deque(visited.values())
    while queue:
        yield (ancestor := queue.popleft())
        for entry in ancestor.manifest.request.inputs.by_role.values():
            if entry.digest in versions_by_digest and entry.digest not in visited:
                visited[entry.digest] = versions_by_digest[entry.digest]
                queue.append(versions_by_digest[entry.digest])
