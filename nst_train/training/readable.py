"""What a training checks of its labeled and validation images before the first step: which are unreadable, and which have changed."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nst_data.prefetch import cpus_of_this_process
from nst_data.progress import Progress
from nst_data.sources import Source, labels_in
from nst_data.sources.changes import HASH, ReadRecord
from nst_data.sources.stamps import digest_of
from nst_data.sources.unreadable import check_readable, describe_lost_classes, lost_class_error, lost_classes
from nst_data.store.files import atomic_write
from nst_data.store.indexes import Indexes
from nst_data.store.manifest import installed_packages, json_digest
from nst_data.store.store import Staging, Store, Version
from nst_train.batches.batches import LabeledImages, find_unreadable
from nst_train.device import this_process
from nst_train.settings import RunSettings

_DIGEST_BYTES = 32
_MIN_IMAGES_FOR_PROGRESS = 10_000  # decoding this many takes long enough to show progress


def check_unchanged(staged: Version | Staging, sources: Mapping[str, Source], progress: Progress, update_record: bool = True) -> None:
    """Raises NstError if images that were trained on now have other bytes under the same names and sizes.

    With `update_record` False, nothing is written.
    """
    if not this_process().is_main_process:
        return
    is_sealed = isinstance(staged, Version)
    for role, source in sources.items():
        reading = ReadRecord(staged.folder if isinstance(staged, Version) else staged.build, role)
        remedy = f"`store.remove({staged.ref!r})` and train again" + (", or ask for another `generation` N" if is_sealed else "")
        reading.check_unchanged(
            source,
            reading.stored_hashes(),
            f"{staged.ref} was {'made' if is_sealed else 'begun'}",
            remedy,
            progress,
            update_record=update_record,
        )
        if update_record and not is_sealed:
            reading.record_stamps(source)


def find_unreadable_images(
    store: Store, staging: Staging, role: str, source: Source, run: RunSettings, progress: Progress, shapes: bool = False
) -> dict[str, str]:
    """The rows that cannot be decoded, each with a line of the reason. One process finds them, once; a resumed training reuses the result.

    With `shapes`, those are included that the evaluation transform cannot resize, as they are too elongated. If all images could be
    decoded before and no file was written since, they are not read again. Raises NstError if none can be decoded, or fewer than the run
    allows.
    """
    name, noun = "unreadable" if role == "labeled" else f"unreadable_{role}", f"{role} images"
    with this_process().main_process_first():
        if (staging.work / f"{name}.json").exists():
            faults = staging.get_or_store(name, {})
        else:
            cache = _CachedHashes.for_source(store.indexes, source, shapes)
            hashes, faults = cache.load(), dict[str, str]()
            if hashes is None:
                hashes = np.zeros(len(source), HASH)
                check_progress = progress if len(source) >= _MIN_IMAGES_FOR_PROGRESS else Progress()
                with check_progress.task(f"check {noun}", len(source), "images") as task:
                    faults = find_unreadable(source, run.decode_threads or cpus_of_this_process(), hashes, task, shapes)
                # before the result is remembered, so that the check is repeated when the images are back
                check_readable(source.location, len(source), len(faults), run.max_unreadable, next(iter(faults.values()), ""), noun)
                if not faults:
                    cache.save(hashes)
            if line := duplicate_warning(source, hashes):
                progress.say_once(f"warning: {line}")
            ReadRecord(staging.build, role).store_hashes(hashes)
            faults = staging.get_or_store(name, faults)
    for line in list(faults.values())[:3]:
        progress.say_once(f"skipped, unreadable: {line}")
    if len(faults) > 3:
        progress.say_once(f"{source.location}: skipping {len(faults):,} of {len(source):,} {noun} (unreadable)")
    return faults


@dataclass(frozen=True)
class _CachedHashes:
    """Hashes of the images of a source whose images could all be decoded, for the current files and this machine's packages."""

    indexes: Indexes
    images: int
    name: str | None

    @classmethod
    def for_source(cls, indexes: Indexes, source: Source, shapes: bool = False) -> Self:
        """The entry for a source, with `shapes` of images of which none is too elongated; none if a rewritten file would go unnoticed."""
        stamps = source.stamps()
        if not stamps.all() or not (len(stamps) or source.revision):
            return cls(indexes, len(source), None)
        name = json_digest([source.images_fingerprint, digest_of(stamps), dict(installed_packages()), *["shapes"] * shapes])
        return cls(indexes.alone, len(source), f"{name}.hashes")  # packages may lack a decoder on another machine

    def load(self) -> NDArray[np.void] | None:
        """Shape (images,), dtype HASH; None if they are not known."""
        file = self.indexes.find(self.name) if self.name else None
        try:
            content = file.read_bytes() if file else b""
        except OSError:
            return None
        digest, hashes = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        is_intact = digest == hashlib.sha256(hashes).digest() and len(hashes) == self.images * HASH.itemsize
        return np.frombuffer(hashes, HASH) if is_intact else None  # otherwise damaged: decode again

    def save(self, hashes: NDArray[np.void]) -> None:
        """Store the hashes."""
        if self.name:
            content = hashes.tobytes()
            self.indexes.save(self.name, partial(_write_bytes, content=hashlib.sha256(content).digest() + content))


def _write_bytes(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)


def warn_of_overlap(staging: Staging, validation: Source, progress: Progress) -> None:
    """Report how many validation images are also labeled images, by their bytes: scores on these do not tell which weights are best."""
    labeled, scored = (ReadRecord(staging.build, role).known_hashes() for role in ("labeled", "validation"))
    if shared := int(np.isin(scored, labeled).sum()):
        progress.say(
            f"warning: {validation.location}: {shared:,} of {len(scored):,} validation images are among the labeled ones, "
            "so they do not tell which weights do best on new images; use others"
        )


def duplicate_warning(source: Source, hashes: NDArray[np.void]) -> str | None:
    """A warning if images of different classes have the same bytes. `hashes` holds the hash of each row, 0 for rows that were not read."""
    labels, names = labels_in(source), source.class_names or []
    read_rows = np.flatnonzero(hashes != np.zeros(1, HASH))
    halves = hashes[read_rows].view("<u8").reshape(-1, 2)
    order = read_rows[np.lexsort((labels[read_rows], halves[:, 1], halves[:, 0]))]
    is_repeated = hashes[order[1:]] == hashes[order[:-1]]
    pairs = np.flatnonzero(is_repeated & (labels[order[1:]] != labels[order[:-1]]))
    images = len({hashes[order[pair]].tobytes() for pair in pairs.tolist()})
    if not images:
        return None
    first, second = (f"{source.key(row)!r} of {names[labels[row]]!r}" for row in map(int, order[pairs[0] : pairs[0] + 2]))
    stand = f"{images:,} image{'s stand' if images > 1 else ' stands'}"
    return f"{source.location}: {stand} in two or more classes with the same bytes, such as {first} and {second}; remove the wrong ones"


def check_classes(source: Source, labeled: LabeledImages, faults: Mapping[str, str], progress: Progress) -> list[str]:
    """The classes without any labeled image. Raises NstError for a class whose images exist but cannot be read."""
    labels, names, readable = labels_in(source), source.class_names or [], set(labeled.labels.tolist())
    for row, reason in faults.items():
        label = int(labels[int(row)])
        if label not in readable:
            raise lost_class_error(source.location, int((labels == label).sum()), names[label], reason)
    if empty := [name for label, name in enumerate(names) if label not in readable]:
        shown = ", ".join(empty[:5]) + ", ..." * (len(empty) > 5)
        have = "have" if len(empty) > 1 else "has"
        progress.say(f"{source.location}: {len(empty):,} of its {len(names):,} classes {have} no images: {shown}")
    return [*empty, *source.empty_classes]


def report_lost_classes(source: Source, faults: Mapping[str, str], progress: Progress) -> None:
    """Report the classes of which no validation image can be read."""
    lost_rows = np.fromiter(map(int, faults), np.int64, count=len(faults))
    if classes := lost_classes(labels_in(source), source.class_names or [], lost_rows):
        progress.say(f"{source.location}: {describe_lost_classes(classes)}")
