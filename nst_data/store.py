"""Versions on disk: staged in `runs/`, sealed by one rename, opened, listed, verified. What is sealed is never written again."""

import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from nst_data.errors import NstError, UsageError
from nst_data.files import fsync_folder, fsync_tree, hash_file, write_text
from nst_data.manifest import MANIFEST_NAME, Kind, Manifest, Request, SealedFile, content_digest, make_manifest, read_manifest

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_VERSION = re.compile(r"gen-(\d+)(?:\.(\d+))?")
_ROOM = {"generation": "corpora", "edition": "corpora", "teacher": "teachers"}


@dataclass(frozen=True)
class Number:
    """A version number: a generation, or an edition of a generation."""

    generation: int
    edition: int | None = None

    def __str__(self) -> str:
        return f"gen-{self.generation}" + ("" if self.edition is None else f".{self.edition}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """`gen-2` or `gen-2.1`."""
        match = _VERSION.fullmatch(text)
        if not match:
            raise UsageError(f"version {text!r}: expected gen-N or gen-N.K, as in gen-2 or gen-2.1")
        return cls(int(match[1]), None if match[2] is None else int(match[2]))

    @property
    def _order(self) -> tuple[int, int]:
        return self.generation, -1 if self.edition is None else self.edition


@dataclass(frozen=True)
class Version:
    """A sealed version in its folder."""

    folder: Path

    @cached_property
    def manifest(self) -> Manifest:
        """The version's `nst.json`."""
        return read_manifest(self.folder)

    @property
    def is_readable(self) -> bool:
        """Whether its manifest can be read by this nst."""
        try:
            return bool(self.manifest)
        except NstError:
            return False

    @property
    def ref(self) -> str:
        """name@version."""
        return f"{self.folder.parent.name}@{self.folder.name}"

    @property
    def number(self) -> Number:
        """The version number, from the folder's name."""
        return Number.parse(self.folder.name)

    def verify(self) -> list[str]:
        """Recompute every checksum; the list of what does not hold is empty for a sound version."""
        problems = []
        for name, sealed in self.manifest.files.items():
            path = self.folder / name
            if not path.resolve().is_relative_to(self.folder.resolve()):
                problems.append(f"{name}: leaves the version's folder")
            elif not path.is_file():
                problems.append(f"{name}: missing")
            elif (found := hash_file(path)) != sealed:
                problems.append(
                    f"{name}: sha256 {found.sha256[:12]}, {found.bytes} bytes; sealed {sealed.sha256[:12]}, {sealed.bytes} bytes"
                )
        for table in {Path(name).parent for name in self.manifest.files} - {Path()}:
            strays = {path.relative_to(self.folder).as_posix() for path in (self.folder / table).iterdir()} - self.manifest.files.keys()
            problems += [f"{name}: was not there when the version was sealed" for name in sorted(strays)]
        if content_digest(self.manifest.request, self.manifest.files, self.manifest.class_names) != self.manifest.digest:
            problems.append(f"{MANIFEST_NAME}: digest does not match settings, inputs and files")
        return problems


@dataclass(frozen=True)
class Staging:
    """A version under way: `build` becomes the version's folder, `work` holds what only its making needs."""

    folder: Path
    target: Path
    request: Request
    fresh: bool = False

    @contextmanager
    def refusable(self) -> Iterator[None]:
        """While input is still being checked: an NstError leaves nothing behind, unless an earlier run already did work here."""
        try:
            yield
        except NstError:
            if self.fresh:
                _discard(self.folder)
            raise

    @property
    def build(self) -> Path:
        """The folder that will be moved to its place, whole."""
        return self.folder / "build"

    @property
    def work(self) -> Path:
        """Checkpoints, logs and shard notes; gone after sealing."""
        return self.folder / "work"

    @property
    def ref(self) -> str:
        """The name@version that this will be."""
        return f"{self.target.parent.name}@{self.target.name}"

    def remembered(self, name: str, value: dict[str, Any]) -> dict[str, Any]:
        """What was written under this name when the work began, or `value`, written now; of several processes all get the first's."""
        path = self.work / f"{name}.json"
        if not path.exists():
            mine = self.work / f".{name}.{platform.node()}.{os.getpid()}.json"
            write_text(mine, json.dumps(value))
            with suppress(FileExistsError):  # another process came first: its value stands
                os.link(mine, path)
            mine.unlink()
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return content

    def sealed_by_another(self) -> Version | None:
        """The version, where another process that worked at it has sealed it meanwhile."""
        if not (self.target / MANIFEST_NAME).is_file():
            return None
        if Version(self.target).manifest.request.digest != self.request.digest:
            raise NstError(f"{self.ref} was sealed meanwhile with other settings; run this command again")
        return Version(self.target)

    def add_seconds(self, since: float) -> float:
        """Count the time since `since` (time.monotonic) as work on this version, over all attempts; gives the time of now."""
        now = time.monotonic()
        write_text(self.work / "seconds.json", json.dumps(self.seconds + now - since))
        return now

    @property
    def seconds(self) -> float:
        """Seconds of work that were counted, in this attempt and in those before; a kill loses what came after the last count."""
        path = self.work / "seconds.json"
        return float(json.loads(path.read_text("utf-8"))) if path.exists() else 0.0

    def seal(self, files: dict[str, SealedFile], class_names: list[str], counts: dict[str, Any], machine: dict[str, Any]) -> Version:
        """Write the manifest and move the folder to its place. Another process may have done so: then its version stands."""
        manifest = make_manifest(self.target.parent.name, self.target.name, self.request, files, class_names, counts, self.seconds, machine)
        try:
            write_text(self.build / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n", self.work)
            for abandoned in self.build.rglob(".*.tmp"):  # a writer that was killed left it
                abandoned.unlink(missing_ok=True)
            fsync_tree(self.build)
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self.build.rename(self.target)
        except OSError:
            if self.sealed_by_another() is None:
                raise
        fsync_folder(self.target.parent)
        _discard(self.folder)
        return Version(self.target)


class Store:
    """The folder with corpora, teachers and runs."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).absolute()

    def versions(self, name: str | None = None) -> list[Version]:
        """Sealed versions, by name and number."""
        found = [
            Version(folder)
            for room in ("corpora", "teachers")
            for folder in (self.root / room).glob(f"{name or '*'}/gen-*")
            if _VERSION.fullmatch(folder.name) and (folder / MANIFEST_NAME).is_file()
        ]
        return sorted(found, key=lambda version: (version.folder.parent.name, version.number._order))

    def unfinished(self) -> list[str]:
        """References of the versions under way."""
        return sorted(f"{folder.parent.name}@{folder.name}" for folder in (self.root / "runs").glob("*/*/gen-*"))

    def open(self, ref: str, *kinds: Kind) -> Version:
        """The version that `name@version` names, or the newest of `name`; of one of the given kinds."""
        name, _, number = ref.partition("@")
        check_name(name)
        wanted = Number.parse(number) if number else None
        of_kind = [version for version in self.versions(name) if not kinds or version.manifest.kind in kinds]
        if wanted is not None:
            of_kind = [version for version in of_kind if version.number == wanted]
        if of_kind:
            return of_kind[-1]
        there = ", ".join(f"{version.ref} ({version.manifest.kind})" for version in self.versions(name))
        sort = " or ".join(kinds) or "version"
        sort = f"an {sort}" if sort.startswith("e") else f"a {sort}"
        raise UsageError(
            f"{ref}: expected {sort} in the store {self.root}; "
            + (f"there is {there}" if there else f"there is nothing called {name!r}, `nst list` shows what there is")
        )

    def stagings(self, name: str) -> list[Staging]:
        """The versions of a name that are under way."""
        return [staging for room in set(_ROOM.values()) for staging in self._all_stagings(f"{room}/{name}")]

    @property
    def indexes(self) -> Path:
        """Where it is kept what lies where in tar files."""
        return self.root / "runs" / "indexes"

    def begin(
        self, request: Request, name: str, generation: int | None = None, edition: int | None = None, first: int = 1
    ) -> Version | Staging:
        """The version that this request asks for: sealed already, under way, or new at the next free number.

        `generation` (with `edition`, for an edition) asks for a number; one that other settings took is an error.
        An edition without a generation is the first of a new one; `first` is the first generation of a name.
        """
        check_name(name)
        self._check_name_is_free_for(name, request.kind)
        # stagings first: one that is sealed between the two looks is in both, never in neither
        stagings = list(self._stagings(name, request.kind, generation, edition))
        versions = list(self._candidates(name, request.kind, generation, edition))
        for version in versions:
            if version.manifest.request.digest == request.digest:
                _discard(self._run_folder(request.kind, name, version.number))
                return version
        for staging in stagings:
            if staging.request.digest == request.digest:
                return staging
        if generation is None:  # the next free one is above all that there are, of either kind
            versions, stagings = self.versions(name), self.stagings(name)
        number = self._number(request, [*versions, *stagings], generation, edition, first)
        return self._stage(request, name, number)

    def remove(self, ref: str) -> Path:
        """Delete a sealed or unfinished version that nothing else in the store was made from."""
        name, _, number = ref.partition("@")
        check_name(name)
        run = [self.root / "runs" / room / name / str(Number.parse(number)) for room in ("corpora", "teachers")] if number else []
        for folder in run:
            if folder.is_dir():
                _discard(folder)
                return folder
        damaged = [version for version in self.versions(name) if str(version.number) == number and not version.is_readable]
        version = damaged[0] if damaged else self.open(ref)
        requests = [(other.ref, other.manifest.request) for other in self.versions() if other.is_readable]
        requests += [(staging.ref, staging.request) for staging in self._all_stagings("*/*")]
        children = [child for child, request in requests if version.ref in {one.ref for one in request.inputs.values()}]
        if children:
            raise NstError(f"{version.ref}: {', '.join(children)} was made from it; remove that first")
        _discard(version.folder)
        return version.folder

    def _run_folder(self, kind: Kind, name: str, number: Number) -> Path:
        return self.root / "runs" / _ROOM[kind] / name / str(number)

    def _candidates(self, name: str, kind: Kind, generation: int | None, edition: int | None) -> Iterator[Version]:
        for version in self.versions(name):
            if version.manifest.kind == kind and _asked(version.number, generation, edition):
                yield version

    def _stagings(self, name: str, kind: Kind, generation: int | None, edition: int | None) -> Iterator[Staging]:
        for staging in self._all_stagings(f"{_ROOM[kind]}/{name}"):
            if staging.request.kind == kind and _asked(Number.parse(staging.folder.name), generation, edition):
                yield staging

    def _all_stagings(self, where: str) -> Iterator[Staging]:
        for folder in sorted((self.root / "runs").glob(f"{where}/gen-*")):
            try:
                yield self._read_staging(folder)
            except FileNotFoundError:  # sealed a moment ago, or half cleared away
                _discard(folder)

    def _read_staging(self, folder: Path) -> Staging:
        request = Request.model_validate_json((folder / "request.json").read_text("utf-8"))
        return Staging(folder, self.root / _ROOM[request.kind] / folder.parent.name / folder.name, request)

    def _number(self, request: Request, taken: list[Version | Staging], generation: int | None, edition: int | None, first: int) -> Number:
        is_edition = request.kind == "edition"
        if (edition if is_edition else generation) is not None:
            for holder in taken:
                other = holder.request if isinstance(holder, Staging) else holder.manifest.request
                raise NstError(
                    f"{holder.ref} is taken by other settings ({_difference(other, request)}); "
                    f"take another name, leave the number out for the next free one, or `nst remove {holder.ref}` first"
                )
            assert generation is not None
            return Number(generation, edition)
        numbers = [Number.parse(holder.ref.partition("@")[2]) for holder in taken]
        if is_edition and generation is not None:
            return Number(generation, 1 + max((number.edition or 0 for number in numbers), default=0))
        return Number(1 + max((number.generation for number in numbers), default=first - 1), 1 if is_edition else None)

    def _stage(self, request: Request, name: str, number: Number) -> Staging:
        folder = self._run_folder(request.kind, name, number)
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        for part in ("build", "work"):
            (fresh / part).mkdir()
        write_text(fresh / "request.json", request.model_dump_json(indent=2))
        try:
            fresh.rename(folder)
        except OSError:  # another process staged this number first
            shutil.rmtree(fresh)
            return self._same_or_error(folder, request)
        return replace(self._read_staging(folder), fresh=True)

    def _same_or_error(self, folder: Path, request: Request) -> Staging:
        staging = self._read_staging(folder)
        if staging.request.digest != request.digest:
            raise NstError(f"{staging.ref} was just taken by another command with other settings; run this one again")
        return staging

    def _check_name_is_free_for(self, name: str, kind: Kind) -> None:
        other = "teachers" if _ROOM[kind] == "corpora" else "corpora"
        if any(any((room / other / name).glob("gen-*")) for room in (self.root, self.root / "runs")):
            raise NstError(f"{name!r} already names {other} in {self.root}; names are unique across kinds, choose another")


def _discard(folder: Path) -> None:
    """Delete a folder; killed half-way, what is left has a name that nothing looks for."""
    if not folder.is_dir():
        return
    doomed = Path(tempfile.mkdtemp(prefix=".discarded.", dir=folder.parent))
    with suppress(FileNotFoundError):  # another process discards it too
        folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def check_name(name: str) -> str:
    """A name that is safe as a folder and as a Hub repository. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"name {name!r}: expected letters, digits, '.', '_' and '-' (at most 96, beginning with a letter or digit)")
    return name


def _asked(number: Number, generation: int | None, edition: int | None) -> bool:
    return generation in (None, number.generation) and edition in (None, number.edition)


def _difference(there: Request, asked: Request) -> str:
    """The first few settings and inputs in which two requests differ, for a person."""
    changes = [
        f"{key}: {there.settings.get(key)!r} there, {asked.settings.get(key)!r} asked"
        for key in sorted(there.settings.keys() | asked.settings.keys())
        if there.settings.get(key) != asked.settings.get(key)
    ]
    for role in sorted(there.inputs.keys() | asked.inputs.keys()):
        left, right = there.inputs.get(role), asked.inputs.get(role)
        if (left and left.digest) != (right and right.digest):
            changes.append(f"{role}: {left.ref if left else 'none'} there, {right.ref if right else 'none'} asked, with other content")
    return "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else "")
