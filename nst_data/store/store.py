"""The folder with corpora, teachers and runs: which versions exist, and where a new one goes."""

import copy
import difflib
import logging
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from numbers import Integral
from pathlib import Path
from typing import Self

from nst_data.errors import NstError, UsageError
from nst_data.hub.reference import HubReference
from nst_data.safe_names import find_lookalike
from nst_data.store.file_tree import FileTree
from nst_data.store.files import check_same_disk, clear_abandoned, discard, move_unless_exists, write_text
from nst_data.store.indexes import INDEXES_FOLDER, Indexes
from nst_data.store.inputs import Input
from nst_data.store.manifest import MANIFEST_NAME, Kind, Request, read_manifest, read_request, with_article
from nst_data.store.mirror import REQUEST, Mirror
from nst_data.store.ownership import check_not_in_use, ownership_path
from nst_data.store.remote_run import RemoteRun
from nst_data.store.staging import Staging
from nst_data.store.version import Number, Version
from nst_data.utf8_names import check_utf8

__all__ = ["Number", "Staging", "Store", "Version", "check_name"]

_log = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_FOLDER_BY_KIND = {"generation": "corpora", "edition": "corpora", "review": "corpora", "teacher": "teachers"}
_KIND_FOLDERS = ("corpora", "teachers")
_REQUESTED_FIELDS = ("part", "image_column", "label_column")  # what users may request of a source
_MAX_NAMED_CHILDREN = 3  # how many of a version's children an error names
PULLS_FOLDER = "pulls"  # the folder in runs/ for versions being pulled from the Hub


class Store:
    """Corpora, teachers and runs in a folder, or at `s3://bucket/prefix`, in which case `root` is this machine's copy."""

    def __init__(self, root: Path | str) -> None:
        if platform.system() == "Windows":
            raise NstError("nst runs on Linux and macOS; on Windows run it in WSL, the Windows Subsystem for Linux")
        if not isinstance(root, str | Path):
            raise UsageError(f"expected the folder of a store or s3://BUCKET/PREFIX, found {root!r}")
        tree = FileTree.parse(str(root))
        self.mirror = None if tree is None else Mirror(tree)
        self.root = Path(root).absolute() if self.mirror is None else self.mirror.root
        if self.mirror is None and self.root.exists() and not self.root.is_dir():
            raise UsageError(f"{root}: expected the folder of a store or s3://BUCKET/PREFIX, found a file")
        check_utf8(str(self.root))
        self.reuses = False

    def with_reuse(self) -> Self:
        """The same store, but a version that is requested by number is reused if it exists under another name."""
        store = copy.copy(self)
        store.reuses = True
        return store

    def __repr__(self) -> str:
        return f"Store({self.location!r})"

    @property
    def address(self) -> str | None:
        """The address of a store on `s3://`; None for a folder."""
        return self.mirror.tree.address if self.mirror else None

    @property
    def location(self) -> str:
        """The store's address, or the path of its folder."""
        return self.address or str(self.root)

    def refresh(self, name: str | None = None) -> None:
        """Check again what is at the address of the store, for one name or all; does nothing for a folder."""
        if self.mirror is not None:
            self.mirror.refresh(name)

    def versions(self, name: str | None = None) -> list[Version]:
        """List the sealed versions.

        Args:
            name: Only versions of this name. An invalid name, such as a path in a manifest from the Hub, finds nothing.

        Returns:
            The versions sorted by name and number, the newest of a name last.
        """
        if name is not None and not _NAME.fullmatch(name):
            return []
        self.refresh(name)
        sealed = [
            Version(folder, self.mirror)
            for kind_folder in _KIND_FOLDERS
            for place in (self.root / kind_folder).glob("*")
            if name in (None, place.name)  # exact spelling: a case-insensitive file system would open another
            for folder in place.glob("*")
            if Number.is_valid(folder.name) and (folder / MANIFEST_NAME).is_file()
        ]
        return sorted(sealed, key=lambda version: (version.name, version.number.sort_key))

    def unfinished(self) -> list[str]:
        """References of the versions in progress."""
        self.refresh()
        kind_folders = [self.root / "runs" / kind_folder for kind_folder in (*_KIND_FOLDERS, PULLS_FOLDER)]
        return sorted(
            f"{folder.parent.name}@{folder.name}"
            for kind_folder in kind_folders
            for folder in kind_folder.glob("*/*")
            if Number.is_valid(folder.name)
        )

    def describe_progress(self, ref: str) -> str:
        """The progress of an unfinished version, such as `3 shards` or `step 1,200`; empty if nothing is saved yet."""
        name, _, number = ref.partition("@")
        for work in (self.root / "runs" / kind_folder / name / number / "work" for kind_folder in _KIND_FOLDERS):
            if steps := [int(folder.name.removeprefix("step-")) for folder in work.glob("checkpoints/step-*")]:
                return f"step {max(steps):,}"
            if shards := len(list(work.glob("shards/[!.]*"))):
                return f"{shards:,} shard{'s' * (shards > 1)}"
        return ""

    def open(self, ref: str | Version, *kinds: Kind) -> Version:
        """Open a version by its reference.

        Args:
            ref: `name@gen-N`, `name@gen-N.K` or `name@review-N`; a bare `name` means its newest version. A `Version` is returned as it is.
            kinds: Allowed kinds: generation, edition, review, teacher; by default any.

        Returns:
            The version; its `manifest` has counts, settings and what it was made from, its `folder` the files.

        Raises:
            UsageError: There is no such version of these kinds.
        """
        if isinstance(ref, Version):
            if kinds and ref.manifest.kind not in kinds:
                raise UsageError(f"{ref.ref}: expected {_kinds_phrase(kinds)}, found {_kinds_phrase([ref.manifest.kind])}")
            return ref
        if not isinstance(ref, str):
            raise UsageError(f"expected a version or its name, found {ref!r}")
        name, separator, number = ref.partition("@")
        if HubReference.parse_repository(name):
            raise UsageError(f"{ref}: expected a version in the store {self.location}; `pull(store, {ref!r})` downloads one from the Hub")
        check_name(name)
        if name == "features" and number and not Number.is_valid(number):
            raise UsageError(f"{ref}: expected a version, found features; `remove_features(store, {ref!r})` deletes them")
        requested_number = Number.parse(number) if separator else None
        matches = [version for version in self.versions(name) if not kinds or version.manifest.kind in kinds]
        if requested_number is not None:
            matches = [version for version in matches if version.number == requested_number]
        if matches:
            return matches[-1]
        if requested_number is not None and requested_number.edition is not None and kinds == ("generation",):
            raise UsageError(
                f"{ref}: expected a generation in the store {self.location}; {ref} is an edition; name "
                f"{name}@{Number(requested_number.generation)}"
            )
        same_name = self.versions(name)
        same_kind = [version for version in same_name if version.manifest.kind in kinds]
        existing = ", ".join(f"{version.ref} ({version.manifest.kind})" for version in same_kind or same_name)
        suitable = [version.ref for version in self.versions() if version.is_readable and version.manifest.kind in kinds]
        if other := next((entry for entry in same_name if entry.number == requested_number), None):
            siblings = [
                entry.ref for entry in same_name if entry.manifest.kind in kinds and entry.number.generation == other.number.generation
            ]
            advice = "".join(f"; choose {' or '.join(refs[-3:])}" for refs in [siblings or _similar_refs(name, suitable)] if refs)
            raise UsageError(
                f"{ref}: expected {_kinds_phrase(kinds)} in the store {self.location}, found {_kinds_phrase([other.manifest.kind])}{advice}"
            )
        if not self.versions():
            raise UsageError(
                f"{ref}: expected {_kinds_phrase(kinds)} in the store {self.location}, which has no versions; name another with `store`"
            )
        raise UsageError(
            f"{ref}: expected {_kinds_phrase(kinds)} in the store {self.location}; "
            + (f"there is {existing}" if existing else f"there is nothing called {name!r}")
            + (f"; choose {' or '.join(_similar_refs(name, suitable)[-3:])}" if suitable and not same_kind else "")
            + (", `store.versions()` shows what there is" if not existing and not suitable else "")
        )

    def stagings(self, name: str) -> list[Staging]:
        """The versions of a name that are in progress."""
        return [staging for kind_folder in _KIND_FOLDERS for staging in self._read_stagings(f"{kind_folder}/{name}")]

    @property
    def indexes(self) -> Indexes:
        """Cached indexes of tar files and listings of addresses; a store at an address shares them with other machines."""
        return Indexes(self.root / INDEXES_FOLDER, self.mirror.tree if self.mirror else None)

    def find_or_stage(
        self,
        request: Request,
        name: str,
        generation: int | None = None,
        edition: int | None = None,
        first_generation: int = 1,
        earlier_requests: Sequence[Request] = (),
    ) -> Version | Staging:
        """Find or start the version for a request: sealed already, in progress, or new at the next free number.

        `generation` (with `edition`, for an edition) requests a number; it is an error if other settings took it.
        An edition without a generation is the first of a new one; `first_generation` is the first generation of a name.
        `earlier_requests` are other forms of the same request: a version made from one of them is found too.
        Raises UsageError for a name or number that no version can have, NstError if a damaged version is in its place.
        """
        check_name(name)
        _check_number("generation", generation, 0)
        _check_number("edition", edition, 1)
        generation, edition = (None if number is None else int(number) for number in (generation, edition))
        self.check_name_available(name, request.kind)
        for kind_folder in _KIND_FOLDERS:
            for folder in (self.root / kind_folder / name, self.root / "runs" / kind_folder / name):
                clear_abandoned(folder)
        # listed only once, so that two concurrent calls find each other's version or take the same number;
        # stagings first: one that is sealed between the two listings is in both, never in neither
        all_stagings, all_versions = self.stagings(name), self.versions(name)
        stagings = [
            entry
            for entry in all_stagings
            if _matches_request(entry.request.kind, Number.parse(entry.folder.name), request, generation, edition)
        ]
        versions = [entry for entry in all_versions if _matches_request(entry.manifest.kind, entry.number, request, generation, edition)]
        digests = [form.digest for form in (request, *earlier_requests)]
        for digest, version in product(digests, versions):
            if version.manifest.request.digest == digest:
                self._delete_run(self._run_folder(request.kind, name, version.number))
                _log.info("%s already exists: request %s", version.ref, digest[:12])
                return version
        for digest, staging in product(digests, stagings):
            if staging.request.digest == digest:
                _log.info("%s resumes in %s: request %s", staging.ref, staging.folder, digest[:12])
                return staging
        existing: list[Version | Staging] = [*versions, *stagings]
        if generation is None:  # the next free number is above all existing ones, of either kind
            existing = [*all_versions, *all_stagings]
            existing = [entry for entry in existing if _number_of(entry).is_review == (request.kind == "review")]
        number = self._next_number(request, existing, generation, edition, first_generation)
        if (target := self.version_folder(request.kind, name, str(number))).is_dir():
            read_manifest(target)  # raises for a damaged version, which would block sealing in the end
        _log.info("%s@%s is new: request %s%s", name, number, request.digest[:12], _newest_difference([*versions, *stagings], request))
        return self._create_staging(request, name, number)

    def number_taken_message(self, holder: Version | Staging, request: Request) -> str:
        """The error message for a requested number that other settings or inputs took."""
        if isinstance(holder, Staging):
            other, state, children = holder.request, "is unfinished and was started", list[str]()
        else:
            other, state, children = holder.manifest.request, "exists", self.children(holder)
        remainder = f" and {len(children) - _MAX_NAMED_CHILDREN:,} more" if len(children) > _MAX_NAMED_CHILDREN else ""
        children_text = (
            f", and {', '.join(children[:_MAX_NAMED_CHILDREN])}{remainder} {'were' if len(children) > 1 else 'was'} made from it"
            if children
            else ""
        )
        remedy = "" if children else f", or `store.remove({holder.ref!r})` first"
        return (
            f"{holder.ref} {state} with other settings ({_describe_difference(other, request)}){children_text}; choose another name or "
            f"number{remedy}"
        )

    def other_unfinished(self, staging: Staging) -> list[str]:
        """For a new version, a line about each unfinished one of its name that was started with other settings or images."""
        stagings = self.stagings(staging.target.parent.name) if staging.fresh else []
        return [
            f"{other.ref} is unfinished and was started with other settings ({_describe_difference(other.request, staging.request)}), "
            f"so this is {staging.ref}; `store.remove({other.ref!r})` discards the unfinished one"
            for other in stagings
            if other.request.kind == staging.request.kind and other.request.digest != staging.request.digest
        ]

    def remove(self, ref: str | Version, say: Callable[[str], None] = lambda _: None) -> Path:
        """Delete a version, sealed or in progress.

        Args:
            ref: The version, or its `name@gen-N`, `name@gen-N.K` or `name@review-N`.
            say: Called with a line about what is being waited for.

        Returns:
            The deleted folder.

        Raises:
            UsageError: It is not a version of the store, or its number is not given.
            InUseError: It is being made.
            NstError: Something else in the store was made from it.
        """
        if not isinstance(ref, str | Version):
            raise UsageError(f"expected a version or its name, found {ref!r}")
        ref = ref if isinstance(ref, str) else ref.ref
        name, separator, number = ref.partition("@")
        check_name(name)
        if not separator:  # elsewhere a bare name means the newest version; a deletion must not guess
            example = f"{ref}@DIGEST" if ref == "features" else f"{ref}@gen-1"
            raise UsageError(f"{ref}: expected a version with its number, as in {example}")
        run = [self.root / "runs" / kind_folder / name / str(Number.parse(number)) for kind_folder in (*_KIND_FOLDERS, PULLS_FOLDER)]
        self.refresh(name)
        for folder in run:
            if folder.is_dir():
                check_not_in_use(ref, folder / "owner", folder / "worker", ownership_path(folder), report=say)
                if self.mirror is not None and folder.parent.parent.name != PULLS_FOLDER:
                    remote = RemoteRun(self.mirror, self.mirror.name_of(folder))
                    remote.check_not_in_use(ref, say)
                    remote.discard()
                discard(folder)
                return folder
        if self.mirror is not None and ref in self.leftovers(name):
            for kind_folder in _KIND_FOLDERS:
                RemoteRun(self.mirror, f"runs/{kind_folder}/{name}/{number}").discard()
            return self.root / "runs" / name / number
        damaged = [version for version in self.versions(name) if str(version.number) == number and not version.is_readable]
        version = damaged[0] if damaged else self.open(ref)
        children = self.children(version)
        if children:
            raise NstError(f"{version.ref} is the parent of {', '.join(children)}; remove {'those' if len(children) > 1 else 'that'} first")
        if self.mirror is not None:
            self.mirror.discard_version(self.mirror.name_of(version.local_folder))
        discard(version.local_folder)
        return version.local_folder

    def children(self, version: Version) -> list[str]:
        """References of what was made from a version, sealed or in progress: it cannot be removed while there are any."""
        readable = [other for other in self.versions() if other.is_readable]
        requests = [(other.ref, other.manifest.request) for other in readable]
        requests += [
            (staging.ref, staging.request)
            for kind_folder in _KIND_FOLDERS
            for staging in self._read_stagings(f"{kind_folder}/*", strict=False)
        ]
        digest = version.manifest.digest if version.is_readable else None  # versions of other stores may have the same name
        same_content_refs = {other.ref for other in readable if other.manifest.digest == digest}

        def is_parent(entry: Input) -> bool:
            if digest is None:
                return entry.ref == version.ref
            return entry.digest == digest and (entry.ref == version.ref or entry.ref not in same_content_refs)

        def is_child(request: Request) -> bool:
            return any(map(is_parent, request.inputs.by_role.values()))

        return [child for child, request in requests if is_child(request)]

    def leftovers(self, name: str | None = None) -> dict[str, tuple[int, int]]:
        """Files at the address that belong to no version, left by killed writers: (files, bytes) by `name@version`."""
        by_ref = self.mirror.leftovers(name) if self.mirror is not None else {}
        return {ref: (len(files), sum(file.size for file in files)) for ref, files in by_ref.items()}

    def install_version(self, build: Path, target: Path) -> Version:
        """Move a version that came from elsewhere to its place; if another one is there by now, return that one."""
        version = Version(target, self.mirror)
        if self.mirror is None:
            move_unless_exists(build, target)
            return version
        name, request = self.mirror.name_of(target), read_manifest(build).request.model_dump_json(indent=2)
        run = RemoteRun(self.mirror, f"runs/{name}")
        if run.claim(request) or run.is_claimed_by(request):  # claimed by a copy that was killed
            if self.mirror.publish(target, build):
                move_unless_exists(build, target)
            run.discard()
        if not self.mirror.refresh_version(name):
            raise NstError(f"{version.ref} was just created in {self.location} by another command; run this one again")
        return version

    def version_folder(self, kind: Kind, name: str, version: str) -> Path:
        """The folder of a version, whether it exists or not."""
        return self.root / _FOLDER_BY_KIND[kind] / check_name(name) / str(Number.parse(version))

    def _run_folder(self, kind: Kind, name: str, number: Number) -> Path:
        return self.root / "runs" / _FOLDER_BY_KIND[kind] / name / str(number)

    def _delete_run(self, run: Path) -> None:
        """Delete the work that was left by a process that was killed after it sealed the version."""
        if self.mirror is not None and self.mirror.tree.files(self.mirror.name_of(run)):
            RemoteRun(self.mirror, self.mirror.name_of(run)).discard()
        discard(run)

    def _read_stagings(self, pattern: str, strict: bool = True) -> Iterator[Staging]:
        """If `strict`, raises NstError for one that cannot be read; otherwise leaves it out."""
        for folder in sorted((self.root / "runs").glob(f"{pattern}/*")):
            if not Number.is_valid(folder.name):
                continue
            try:
                yield self._read_staging(folder)
            except FileNotFoundError:  # sealed a moment ago, or partly cleaned up
                discard(folder)
            except NstError:
                if strict:
                    raise

    def _read_staging(self, folder: Path) -> Staging:
        try:
            request = read_request(folder / REQUEST)
        except ValueError:  # damaged, or of a later nst
            ref = f"{folder.parent.name}@{folder.name}"
            raise NstError(
                f"{ref} is unfinished, and its {REQUEST} in {folder} cannot be read: it is damaged, or was written by a later nst; "
                f"upgrade nst, or `store.remove({ref!r})` discards what is unfinished"
            ) from None
        return Staging(folder, self.root / _FOLDER_BY_KIND[request.kind] / folder.parent.name / folder.name, request, mirror=self.mirror)

    def _next_number(
        self, request: Request, taken: list[Version | Staging], generation: int | None, edition: int | None, first_generation: int
    ) -> Number:
        is_edition = request.kind == "edition"
        if (edition if is_edition else generation) is not None:
            for holder in taken:
                raise NstError(self.number_taken_message(holder, request))
            assert generation is not None
            return Number(generation, edition, request.kind == "review")
        numbers = [_number_of(holder) for holder in taken]
        if is_edition and generation is not None:
            return Number(generation, 1 + max((number.edition or 0 for number in numbers), default=0))
        return Number(
            1 + max((number.generation for number in numbers), default=first_generation - 1),
            1 if is_edition else None,
            request.kind == "review",
        )

    def _create_staging(self, request: Request, name: str, number: Number) -> Staging:
        folder = self._run_folder(request.kind, name, number)
        check_same_disk(folder.parent, self.version_folder(request.kind, name, str(number)).parent)  # not after hours of work
        folder.parent.mkdir(parents=True, exist_ok=True)
        temp_folder = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            for subfolder in ("build", "work"):
                (temp_folder / subfolder).mkdir()
            text = request.model_dump_json(indent=2)
            write_text(temp_folder / REQUEST, text)
            if self.mirror is not None and not RemoteRun(self.mirror, self.mirror.name_of(folder)).claim(text):
                self.mirror.refresh(name)
                if not folder.is_dir():  # sealed or removed just now
                    raise NstError(f"{name}@{number} was just created by another command; run this one again")
                return self._staging_if_same(folder, request)
            if move_unless_exists(temp_folder, folder):
                return replace(self._read_staging(folder), fresh=True)
            return self._staging_if_same(folder, request)  # another process staged this number first
        finally:
            shutil.rmtree(temp_folder, ignore_errors=True)

    def _staging_if_same(self, folder: Path, request: Request) -> Staging:
        staging = self._read_staging(folder)
        if staging.request.digest != request.digest:
            raise NstError(f"{staging.ref} was just created by another command with other settings; run this one again")
        return staging

    def check_name_available(self, name: str, kind: Kind) -> None:
        """Raise NstError if the name is used by the other kind, corpora or teachers, or if an existing name differs only in case."""
        names = [place.name for base in (self.root, self.root / "runs") for place in (base / _FOLDER_BY_KIND[kind]).glob("*")]
        if similar := find_lookalike(name, names):
            raise NstError(
                f"{name!r} and {similar!r}, which is in {self.location}, are one name on file systems that do not distinguish case; "
                f"use {similar!r}, or choose another"
            )
        other_kind = "teachers" if _FOLDER_BY_KIND[kind] == "corpora" else "corpora"
        folders = (folder for base in (self.root, self.root / "runs") for folder in (base / other_kind / name).glob("*"))
        if any(Number.is_valid(folder.name) for folder in folders):
            raise NstError(f"{name!r} already names {other_kind} in {self.location}; names are unique across kinds, choose another")


def check_name(name: str) -> str:
    """Return the name if it is safe as a folder and as a Hub repository. Raises UsageError otherwise."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"name {name!r}: expected ASCII letters, digits, '.', '_' and '-' (at most 96, beginning with a letter or digit)")
    return name


def _check_number(setting: str, number: object, minimum: int) -> None:
    if number is not None and (not isinstance(number, Integral) or isinstance(number, bool) or number < minimum):
        raise UsageError(f"`{setting}`: expected a whole number of at least {minimum}, found {number!r}")


def _number_of(version: Version | Staging) -> Number:
    return Number.parse(version.ref.partition("@")[2])


def _matches_request(kind: Kind, number: Number, request: Request, generation: int | None, edition: int | None) -> bool:
    return kind == request.kind and generation in (None, number.generation) and edition in (None, number.edition)


def _newest_difference(existing: Sequence[Version | Staging], request: Request) -> str:
    """How the newest of the other versions differs from the request, for the log."""
    if not existing:
        return ""
    newest = existing[-1]
    other = newest.request if isinstance(newest, Staging) else newest.manifest.request
    return f"; {newest.ref} differs: {_describe_difference(other, request)}"


def _describe_difference(existing: Request, requested: Request) -> str:
    """The first few settings and inputs in which two requests differ, for a message."""
    old, new = existing.full_settings, requested.full_settings
    same_paths = {name for name in old if name not in existing.identity} & {name for name in new if name not in requested.identity}
    names = sorted((old.keys() | new.keys()) - same_paths)
    changes = [f"{name}: {old.get(name)!r} instead of {new.get(name)!r}" for name in names if old.get(name) != new.get(name)]
    old_inputs, new_inputs = existing.inputs.by_role, requested.inputs.by_role
    for role in sorted(old_inputs.keys() | new_inputs.keys()):
        left, right = old_inputs.get(role), new_inputs.get(role)
        if (left and left.digest) != (right and right.digest):
            changes.append(f"{role}: {_describe_change(left, right)}")
    return "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else "")


def _describe_change(left: Input | None, right: Input | None) -> str:
    """How two inputs with different digests differ: if they were requested in the same way, the source has changed."""
    if left and right and left.ref == right.ref:
        for name in _REQUESTED_FIELDS:
            old, new = getattr(left, name), getattr(right, name)
            if old != new:
                return f"{left.ref}, {name.replace('_', ' ')}: {old or 'none'} instead of {new or 'none'}"
        return f"{left.ref} has changed since"
    return f"{left.ref if left else 'none'} instead of {right.ref if right else 'none'}, with different content"


def _similar_refs(name: str, refs: Sequence[str]) -> Sequence[str]:
    """Of some versions those whose name is spelled nearly so; all, where none is."""
    matches = difflib.get_close_matches(name, sorted({ref.partition("@")[0] for ref in refs}), n=1)
    return [ref for ref in refs if ref.partition("@")[0] in matches] or refs


def _kinds_phrase(kinds: Sequence[Kind]) -> str:
    return with_article(" or ".join(kinds) or "version")
