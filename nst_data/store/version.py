"""Sealed versions in their folders, and their numbers. Sealed files are never written again."""

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

from nst_data.errors import NstError, UsageError
from nst_data.store.files import hash_file
from nst_data.store.inputs import Input
from nst_data.store.manifest import MANIFEST_NAME, Manifest, SealedFile, content_digest, is_anonymous, read_manifest
from nst_data.store.mirror import Mirror, extra_file_message
from nst_data.store.places import may_be_pulled, read_places

_NUMBER = re.compile(r"(?:gen-(\d+)(?:\.(\d+))?|review-(\d+))")
VERSION_REF = re.compile(r"[^@/:]+@(?:gen-\d+(?:\.\d+)?|review-\d+)")  # name@version in a store


def is_review_ref(ref: str) -> bool:
    """Whether a reference, in the store or on the Hub, refers to a review."""
    return ref.rpartition("@")[2].startswith("review-") and Number.is_valid(ref.rpartition("@")[2])


@dataclass(frozen=True)
class Number:
    """A version number: a generation, an edition of a generation, or a review, whose own number is `generation`."""

    generation: int
    edition: int | None = None
    is_review: bool = False

    def __str__(self) -> str:
        if self.is_review:
            return f"review-{self.generation}"
        return f"gen-{self.generation}" + ("" if self.edition is None else f".{self.edition}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a number such as `gen-2`, `gen-2.1` or `review-2`. Raises UsageError if it is invalid."""
        match = _NUMBER.fullmatch(text)
        if not match:
            raise UsageError(f"version {text!r}: expected gen-N or gen-N.K, or review-N of a review, as in gen-2 or gen-2.1")
        if match[3] is not None:
            return cls(int(match[3]), is_review=True)
        return cls(int(match[1]), None if match[2] is None else int(match[2]))

    @staticmethod
    def is_valid(text: str) -> bool:
        """Whether a text is a version number."""
        return _NUMBER.fullmatch(text) is not None

    @property
    def sort_key(self) -> tuple[bool, int, int]:
        """The sort key of a name's versions: reviews first, so that the newest version has labels if any of them does."""
        return not self.is_review, self.generation, -1 if self.edition is None else self.edition


@dataclass(frozen=True)
class Version:
    """A sealed version in its folder. In a store at an address, given by `mirror`, `local_folder` may contain only the manifest."""

    local_folder: Path
    mirror: Mirror | None = field(default=None, compare=False, repr=False)

    @property
    def folder(self) -> Path:
        """The folder with all its files; those of a store at an address are downloaded first."""
        if self.mirror is not None:
            self.mirror.download_version(self.local_folder)
        return self.local_folder

    @property
    def location(self) -> str:
        """Where it is, for messages: its folder, or its address."""
        return str(self.local_folder) if self.mirror is None else self.mirror.tree.address_of(self.mirror.name_of(self.local_folder))

    @property
    def name(self) -> str:
        """Its name, without the number."""
        return self.local_folder.parent.name

    def refresh(self) -> None:
        """Download the newest files next to the sealed ones, such as the metrics, if the store is at an address."""
        if self.mirror is not None:
            self.mirror.refresh_version(self.mirror.name_of(self.local_folder))

    def publish_unsealed(self, *names: str) -> None:
        """Upload files that were written next to the sealed ones, such as the metrics, if the store is at an address."""
        if self.mirror is not None:
            self.mirror.publish_unsealed(self.local_folder, [name for name in names if (self.local_folder / name).is_file()])

    @cached_property
    def manifest(self) -> Manifest:
        """The version's `nst.json`. If it came from the Hub, its inputs are marked as `pulled`: nothing is opened because they name it."""
        manifest = read_manifest(self.local_folder)
        return manifest.marked_as_pulled() if may_be_pulled(self.local_folder) else manifest

    @property
    def is_readable(self) -> bool:
        """Whether this nst can read its manifest."""
        try:
            return bool(self.manifest)
        except NstError:
            return False

    @property
    def ref(self) -> str:
        """name@version."""
        return f"{self.name}@{self.local_folder.name}"

    @property
    def lineage(self) -> Input:
        """The entry for this version in the manifest of what is made from it."""
        entry = Input(ref=self.ref, digest=self.manifest.digest)
        places = [place for place in read_places(self.local_folder) if not place.anonymous]
        return entry.model_copy(update={"repo": places[-1].ref, "revision": places[-1].commit}) if places else entry

    @property
    def number(self) -> Number:
        """The version number, parsed from the folder's name."""
        return Number.parse(self.local_folder.name)

    def verify(self) -> list[str]:
        """Recompute every checksum; for a store at an address, of the files there and of those already on this machine.

        Returns:
            The problems found, one line each; empty for an intact version.
        """
        problems = self.mirror.find_damage(self.local_folder) if self.mirror is not None else []
        problems = problems or self._find_local_damage()
        if content_digest(self.manifest.request, self.manifest.files, self.manifest.class_names) != self.manifest.digest:
            problems.append(f"{MANIFEST_NAME}: digest does not match settings, inputs and files")
        return problems

    def _find_local_damage(self) -> list[str]:
        problems, folder, files = [], self.local_folder.resolve(), self.manifest.files
        location = "" if self.mirror is None else f" in the copy on this machine, {self.local_folder}, which may be deleted"
        for name, sealed in files.items():
            path = self.local_folder / name
            if not path.resolve().is_relative_to(folder):
                problems.append(f"{name}: leaves the version's folder")
            elif not path.is_file():
                problems += [f"{name}: missing"] if self.mirror is None else []
            elif difference := _file_problem(path, sealed):
                problems.append(f"{name}: {difference}{location}")
        tables = [self.local_folder / table for table in {Path(name).parent for name in files} - {Path()}]
        paths = [path for table in tables if table.is_dir() for path in table.iterdir()]
        unexpected = {path.relative_to(self.local_folder).as_posix() for path in paths if path.name[0] != "."} - files.keys()
        return problems + [extra_file_message(name) + location for name in sorted(unexpected)]


def _file_problem(path: Path, sealed: SealedFile) -> str:
    """What is wrong with a file; empty if nothing is. Raises PermissionError if this process may not read it."""
    try:
        actual = hash_file(path)
    except PermissionError:
        raise
    except OSError as error:  # a disk that fails
        return f"cannot be read ({error.strerror})"
    return (
        "" if actual == sealed else f"sha256 {actual.sha256[:12]}, {actual.bytes} bytes; sealed {sealed.sha256[:12]}, {sealed.bytes} bytes"
    )


def check_not_anonymous(version: Version, advice: str) -> None:
    """Raise UsageError for a version that was published without naming its images: it has row numbers in place of their hashes.

    `advice` says what to do with the version it was made from.
    """
    if is_anonymous(version.manifest):
        raise UsageError(f"{version.ref}: is anonymous and does not name its images; {advice} the version it was made from")
