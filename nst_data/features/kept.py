"""Listing and removing the features in a store, finished or partial: they are a cache, recomputed when missing."""

import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nst_data.errors import NstError, UsageError
from nst_data.features.features import FOLDER, RECORD_FILE, Features, features_ref
from nst_data.features.under_way import WORK, remote_run_of
from nst_data.progress import Progress, terminal_progress
from nst_data.store.file_tree import StoredFile
from nst_data.store.files import discard
from nst_data.store.mirror import Mirror
from nst_data.store.store import Store
from nst_data.tables.shards import wait_for_claims

_MIN_DIGITS = 4
_NAME = re.compile(r"[0-9a-f]{32}")
_REF = re.compile(rf"{FOLDER}@[0-9a-fA-F]+")


@dataclass(frozen=True)
class StoredFeatures:
    """The features in one folder of a store. If the store is remote, `mirror` is given, and `files` lists the remote files."""

    folder: Path
    mirror: Mirror | None = field(default=None, repr=False)
    files: Sequence[StoredFile] = field(default=(), repr=False)

    @property
    def ref(self) -> str:
        """`features@` and the first digits of the folder's name, as `remove_features` accepts."""
        return features_ref(self.folder)

    @property
    def is_finished(self) -> bool:
        """Whether all features have been computed."""
        return (self.folder / RECORD_FILE).is_file()

    @property
    def location(self) -> str:
        """The folder or URL of the features, for messages."""
        return Features(self.folder, self.mirror).location

    @property
    def features(self) -> Features | None:
        """The features, if they are finished and their record is readable."""
        features = Features(self.folder, self.mirror)
        try:
            return features if features.about else None
        except NstError:
            return None

    @property
    def shards(self) -> int:
        """The number of completed shards of unfinished features."""
        if self.mirror is not None:
            return sum("/shards/" in file.name for file in self.files)
        return len(list((self.folder / WORK / "shards").glob("[!.]*")))

    @property
    def bytes(self) -> int:
        """Their size on disk, or in the remote store."""
        total = sum(file.size for file in self.files)
        if self.mirror is not None:
            return total
        for folder, _, names in os.walk(self.folder):  # skips folders that another process deletes meanwhile
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    total += Path(folder, name).stat().st_size
        return total


def list_features(store: Store) -> list[StoredFeatures]:
    """All features in a store, sorted by folder name; for a remote store this takes two listings."""
    if store.mirror is not None:
        files = store.mirror.refresh_features()
        return [StoredFeatures(store.root / FOLDER / name, store.mirror, files[name]) for name in sorted(files) if _NAME.fullmatch(name)]
    return [
        StoredFeatures(folder) for folder in sorted((store.root / FOLDER).glob("*")) if _NAME.fullmatch(folder.name) and folder.is_dir()
    ]


def is_features_ref(ref: str) -> bool:
    """Whether a reference is `features@DIGEST`, with any number of digits; no version has such a reference."""
    return _REF.fullmatch(ref) is not None


def remove_features(store: Store, ref: str, *, progress: Progress | None = None) -> Path:
    """Delete features, finished or partial. They are computed again when needed.

    Args:
        store: The store that has the features.
        ref: `features@DIGEST`, with at least four digits, enough to identify them.
        progress: How progress is shown; by default lines on standard error.

    Returns:
        The folder that was deleted.

    Raises:
        UsageError: No features, or several, match the reference.
        NstError: A process on any machine is computing them.
    """
    stored, digits = list_features(store), ref.partition("@")[2].lower()
    matches = [features for features in stored if features.folder.name.startswith(digits)]
    available = "there are: " + (", ".join(features.ref for features in matches or stored) or "none")
    if len(digits) < _MIN_DIGITS:
        raise UsageError(f"{ref}: expected {FOLDER}@ and at least {_MIN_DIGITS} digits, found {len(digits)}; {available}")
    if len(matches) != 1:
        raise UsageError(f"{ref}: expected one of the features in the store {store.location}, found {len(matches)}; {available}")
    features, is_finished, report = matches[0], matches[0].is_finished, (progress or terminal_progress()).say
    run = None if store.mirror is None else remote_run_of(store.mirror, features.folder)
    if run is None:
        wait_for_claims(features.folder / WORK, ref, report)
    else:
        run.check_not_in_use(ref, report)
    discard(features.folder)  # before the remote files, since files found only on this machine would be uploaded again
    if run is not None:
        if is_finished:
            run.mirror.discard_version(run.mirror.name_of(features.folder))
        run.discard()
        discard(run.mirror.root / run.name)
    return features.folder
