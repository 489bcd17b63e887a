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
from nst_data.safe_names import mistaken_for
from nst_data.store.file_tree import FileTree
from nst_data.store.files import check_one_disk, clear_abandoned, discard, place_once, write_text
from nst_data.store.indexes import FOLDER, Indexes
from nst_data.store.inputs import Input
from nst_data.store.manifest import MANIFEST_NAME, Kind, Request, read_manifest, read_request, with_article
from nst_data.store.mirror import REQUEST, Mirror
from nst_data.store.ownership import beside, check_nobody_at_work
from nst_data.store.remote_run import RemoteRun
from nst_data.store.staging import Staging
from nst_data.store.version import Number, Version
from nst_data.utf8_names import check_utf8

__all__ = ["Number", "Staging", "Store", "Version", "check_name"]

_log = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_ROOM = {"generation": "corpora", "edition": "corpora", "review": "corpora", "teacher": "teachers"}
_ROOMS = ("corpora", "teachers")
_ASKED = ("part", "image_column", "label_column")  # what users may request of a source
_NAMED = 3  # how many of a version's children an error names
PULLS = "pulls"  # the folder in runs/ for versions being pulled from the Hub


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

    def reusing(self) -> Self:
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
            for room in _ROOMS
            for place in (self.root / room).glob("*")
            if name in (None, place.name)  # exact spelling: a case-insensitive file system would open another
            for folder in place.glob("*")
            if Number.is_one(folder.name) and (folder / MANIFEST_NAME).is_file()
        ]
        return sorted(sealed, key=lambda version: (version.name, version.number.order))

    def unfinished(self) -> list[str]:
        """References of the versions in progress."""
        self.refresh()
        rooms = [self.root / "runs" / room for room in (*_ROOMS, PULLS)]
        return sorted(f"{folder.parent.name}@{folder.name}" for room in rooms for folder in room.glob("*/*") if Number.is_one(folder.name))

    def how_far(self, ref: str) -> str:
        """The progress of an unfinished version, such as `3 shards` or `step 1,200`; empty if nothing is saved yet."""
        name, _, number = ref.partition("@")
        for work in (self.root / "runs" / room / name / number / "work" for room in _ROOMS):
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
                raise UsageError(f"{ref.ref}: expected {_either(kinds)}, found {_either([ref.manifest.kind])}")
            return ref
        if not isinstance(ref, str):
            raise UsageError(f"expected a version or its name, found {ref!r}")
        name, at, number = ref.partition("@")
        if HubReference.of_repository(name):
            raise UsageError(f"{ref}: expected a version in the store {self.location}; `pull(store, {ref!r})` downloads one from the Hub")
        check_name(name)
        if name == "features" and number and not Number.is_one(number):
            raise UsageError(f"{ref}: expected a version, found features; `remove_features(store, {ref!r})` deletes them")
        wanted = Number.parse(number) if at else None
        matches = [version for version in self.versions(name) if not kinds or version.manifest.kind in kinds]
        if wanted is not None:
            matches = [version for version in matches if version.number == wanted]
        if matches:
            return matches[-1]
        if wanted is not None and wanted.edition is not None and kinds == ("generation",):
            raise UsageError(
                f"{ref}: expected a generation in the store {self.location}; {ref} is an edition; name {name}@{Number(wanted.generation)}"
            )
        same_name = self.versions(name)
        same_kind = [version for version in same_name if version.manifest.kind in kinds]
        existing = ", ".join(f"{version.ref} ({version.manifest.kind})" for version in same_kind or same_name)
        suitable = [version.ref for version in self.versions() if version.is_readable and version.manifest.kind in kinds]
        if other := next((entry for entry in same_name if entry.number == wanted), None):
            siblings = [
                entry.ref for entry in same_name if entry.manifest.kind in kinds and entry.number.generation == other.number.generation
            ]
            advice = "".join(f"; choose {' or '.join(refs[-3:])}" for refs in [siblings or _nearly_of_name(name, suitable)] if refs)
            raise UsageError(
                f"{ref}: expected {_either(kinds)} in the store {self.location}, found {_either([other.manifest.kind])}{advice}"
            )
        if not self.versions():
            raise UsageError(
                f"{ref}: expected {_either(kinds)} in the store {self.location}, which has no versions; name another with `store`"
            )
        raise UsageError(
            f"{ref}: expected {_either(kinds)} in the store {self.location}; "
            + (f"there is {existing}" if existing else f"there is nothing called {name!r}")
            + (f"; choose {' or '.join(_nearly_of_name(name, suitable)[-3:])}" if suitable and not same_kind else "")
            + (", `store.versions()` shows what there is" if not existing and not suitable else "")
        )

    def stagings(self, name: str) -> list[Staging]:
        """The versions of a name that are in progress."""
        return [staging for room in _ROOMS for staging in self._all_stagings(f"{room}/{name}")]

    @property
    def indexes(self) -> Indexes:
        """Cached indexes of tar files and listings of addresses; a store at an address shares them with other machines."""
        return Indexes(self.root / FOLDER, self.mirror.tree if self.mirror else None)

    def begin(
        self,
        request: Request,
        name: str,
        generation: int | None = None,
        edition: int | None = None,
        first: int = 1,
        earlier: Sequence[Request] = (),
    ) -> Version | Staging:
        """Find or start the version for a request: sealed already, in progress, or new at the next free number.

        `generation` (with `edition`, for an edition) requests a number; it is an error if other settings took it.
        An edition without a generation is the first of a new one; `first` is the first generation of a name.
        `earlier` are other forms of the same request: a version made from one of them is found too.
        Raises UsageError for a name or number that no version can have, NstError if a damaged version is in its place.
        """
        check_name(name)
        _check_number("generation", generation, 0)
        _check_number("edition", edition, 1)
        generation, edition = (None if number is None else int(number) for number in (generation, edition))
        self.check_name_is_free_for(name, request.kind)
        for room in _ROOMS:
            for folder in (self.root / room / name, self.root / "runs" / room / name):
                clear_abandoned(folder)
        # listed only once, so that two concurrent calls find each other's version or take the same number;
        # stagings first: one that is sealed between the two listings is in both, never in neither
        all_stagings, all_versions = self.stagings(name), self.versions(name)
        stagings = [
            entry for entry in all_stagings if _is_asked(entry.request.kind, Number.parse(entry.folder.name), request, generation, edition)
        ]
        versions = [entry for entry in all_versions if _is_asked(entry.manifest.kind, entry.number, request, generation, edition)]
        digests = [form.digest for form in (request, *earlier)]
        for digest, version in product(digests, versions):
            if version.manifest.request.digest == digest:
                self._clear_away(self._run_folder(request.kind, name, version.number))
                _log.info("%s is there already: request %s", version.ref, digest[:12])
                return version
        for digest, staging in product(digests, stagings):
            if staging.request.digest == digest:
                _log.info("%s goes on in %s: request %s", staging.ref, staging.folder, digest[:12])
                return staging
        taken: list[Version | Staging] = [*versions, *stagings]
        if generation is None:  # the next free number is above all existing ones, of either kind
            taken = [*all_versions, *all_stagings]
            taken = [entry for entry in taken if _number_of(entry).is_review == (request.kind == "review")]
        number = self._number(request, taken, generation, edition, first)
        if (target := self.target(request.kind, name, str(number))).is_dir():
            read_manifest(target)  # raises for a damaged version, which would block sealing in the end
        _log.info("%s@%s is new: request %s%s", name, number, request.digest[:12], _nearest([*versions, *stagings], request))
        return self._stage(request, name, number)

    def why_taken(self, holder: Version | Staging, request: Request) -> str:
        """The error message for a requested number that other settings or inputs took."""
        if isinstance(holder, Staging):
            other, state, children = holder.request, "is unfinished and was started", list[str]()
        else:
            other, state, children = holder.manifest.request, "exists", self.children(holder)
        more = f" and {len(children) - _NAMED:,} more" if len(children) > _NAMED else ""
        were = f", and {', '.join(children[:_NAMED])}{more} {'were' if len(children) > 1 else 'was'} made from it" if children else ""
        remedy = "" if children else f", or `store.remove({holder.ref!r})` first"
        return f"{holder.ref} {state} with other settings ({_difference(other, request)}){were}; choose another name or number{remedy}"

    def unfinished_beside(self, staging: Staging) -> list[str]:
        """For a new version, a line about each unfinished one of its name that was started with other settings or images."""
        stagings = self.stagings(staging.target.parent.name) if staging.fresh else []
        return [
            f"{other.ref} is unfinished and was started with other settings ({_difference(other.request, staging.request)}), "
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
            AtWorkError: It is being made.
            NstError: Something else in the store was made from it.
        """
        if not isinstance(ref, str | Version):
            raise UsageError(f"expected a version or its name, found {ref!r}")
        ref = ref if isinstance(ref, str) else ref.ref
        name, at, number = ref.partition("@")
        check_name(name)
        if not at:  # elsewhere a bare name means the newest version; a deletion must not guess
            example = f"{ref}@DIGEST" if ref == "features" else f"{ref}@gen-1"
            raise UsageError(f"{ref}: expected a version with its number, as in {example}")
        run = [self.root / "runs" / room / name / str(Number.parse(number)) for room in (*_ROOMS, PULLS)]
        self.refresh(name)
        for folder in run:
            if folder.is_dir():
                check_nobody_at_work(ref, folder / "owner", folder / "worker", beside(folder), say=say)
                if self.mirror is not None and folder.parent.parent.name != PULLS:
                    remote = RemoteRun(self.mirror, self.mirror.name_of(folder))
                    remote.check_nobody_at_work(ref, say)
                    remote.discard()
                discard(folder)
                return folder
        if self.mirror is not None and ref in self.leftovers(name):
            for room in _ROOMS:
                RemoteRun(self.mirror, f"runs/{room}/{name}/{number}").discard()
            return self.root / "runs" / name / number
        damaged = [version for version in self.versions(name) if str(version.number) == number and not version.is_readable]
        version = damaged[0] if damaged else self.open(ref)
        children = self.children(version)
        if children:
            raise NstError(f"{version.ref} is the parent of {', '.join(children)}; remove {'those' if len(children) > 1 else 'that'} first")
        if self.mirror is not None:
            self.mirror.discard_version(self.mirror.name_of(version.place))
        discard(version.place)
        return version.place

    def children(self, version: Version) -> list[str]:
        """References of what was made from a version, sealed or in progress: it cannot be removed while there are any."""
        readable = [other for other in self.versions() if other.is_readable]
        requests = [(other.ref, other.manifest.request) for other in readable]
        requests += [(staging.ref, staging.request) for room in _ROOMS for staging in self._all_stagings(f"{room}/*", are_all_wanted=False)]
        digest = version.manifest.digest if version.is_readable else None  # versions of other stores may have the same name
        alike = {other.ref for other in readable if other.manifest.digest == digest}

        def is_parent(entry: Input) -> bool:
            if digest is None:
                return entry.ref == version.ref
            return entry.digest == digest and (entry.ref == version.ref or entry.ref not in alike)

        def is_child(request: Request) -> bool:
            return any(map(is_parent, request.inputs.by_role.values()))

        return [child for child, request in requests if is_child(request)]

    def leftovers(self, name: str | None = None) -> dict[str, tuple[int, int]]:
        """Files at the address that belong to no version, left by killed writers: (files, bytes) by `name@version`."""
        by_ref = self.mirror.leftovers(name) if self.mirror is not None else {}
        return {ref: (len(files), sum(file.size for file in files)) for ref, files in by_ref.items()}

    def place(self, build: Path, target: Path) -> Version:
        """Move a version that came from elsewhere to its place; if another one is there by now, return that one."""
        version = Version(target, self.mirror)
        if self.mirror is None:
            place_once(build, target)
            return version
        name, request = self.mirror.name_of(target), read_manifest(build).request.model_dump_json(indent=2)
        run = RemoteRun(self.mirror, f"runs/{name}")
        if run.claim(request) or run.is_claimed_by(request):  # claimed by a copy that was killed
            if self.mirror.publish(target, build):
                place_once(build, target)
            run.discard()
        if not self.mirror.refresh_version(name):
            raise NstError(f"{version.ref} was just created in {self.location} by another command; run this one again")
        return version

    def target(self, kind: Kind, name: str, version: str) -> Path:
        """The folder of a version, whether it exists or not."""
        return self.root / _ROOM[kind] / check_name(name) / str(Number.parse(version))

    def _run_folder(self, kind: Kind, name: str, number: Number) -> Path:
        return self.root / "runs" / _ROOM[kind] / name / str(number)

    def _clear_away(self, run: Path) -> None:
        """Delete the work that was left by a process that was killed after it sealed the version."""
        if self.mirror is not None and self.mirror.tree.files(self.mirror.name_of(run)):
            RemoteRun(self.mirror, self.mirror.name_of(run)).discard()
        discard(run)

    def _all_stagings(self, where: str, are_all_wanted: bool = True) -> Iterator[Staging]:
        """Raises NstError for one that cannot be read, unless not all are wanted."""
        for folder in sorted((self.root / "runs").glob(f"{where}/*")):
            if not Number.is_one(folder.name):
                continue
            try:
                yield self._read_staging(folder)
            except FileNotFoundError:  # sealed a moment ago, or partly cleaned up
                discard(folder)
            except NstError:
                if are_all_wanted:
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
        return Staging(folder, self.root / _ROOM[request.kind] / folder.parent.name / folder.name, request, mirror=self.mirror)

    def _number(self, request: Request, taken: list[Version | Staging], generation: int | None, edition: int | None, first: int) -> Number:
        is_edition = request.kind == "edition"
        if (edition if is_edition else generation) is not None:
            for holder in taken:
                raise NstError(self.why_taken(holder, request))
            assert generation is not None
            return Number(generation, edition, request.kind == "review")
        numbers = [_number_of(holder) for holder in taken]
        if is_edition and generation is not None:
            return Number(generation, 1 + max((number.edition or 0 for number in numbers), default=0))
        return Number(
            1 + max((number.generation for number in numbers), default=first - 1), 1 if is_edition else None, request.kind == "review"
        )

    def _stage(self, request: Request, name: str, number: Number) -> Staging:
        folder = self._run_folder(request.kind, name, number)
        check_one_disk(folder.parent, self.target(request.kind, name, str(number)).parent)  # not after hours of work
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            for part in ("build", "work"):
                (fresh / part).mkdir()
            text = request.model_dump_json(indent=2)
            write_text(fresh / REQUEST, text)
            if self.mirror is not None and not RemoteRun(self.mirror, self.mirror.name_of(folder)).claim(text):
                self.mirror.refresh(name)
                if not folder.is_dir():  # sealed or removed just now
                    raise NstError(f"{name}@{number} was just created by another command; run this one again")
                return self._same_or_error(folder, request)
            if place_once(fresh, folder):
                return replace(self._read_staging(folder), fresh=True)
            return self._same_or_error(folder, request)  # another process staged this number first
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def _same_or_error(self, folder: Path, request: Request) -> Staging:
        staging = self._read_staging(folder)
        if staging.request.digest != request.digest:
            raise NstError(f"{staging.ref} was just created by another command with other settings; run this one again")
        return staging

    def check_name_is_free_for(self, name: str, kind: Kind) -> None:
        """Raise NstError if the name is used by the other kind, corpora or teachers, or if an existing name differs only in case."""
        names = [place.name for room in (self.root, self.root / "runs") for place in (room / _ROOM[kind]).glob("*")]
        if similar := mistaken_for(name, names):
            raise NstError(
                f"{name!r} and {similar!r}, which is in {self.location}, are one name on file systems that do not distinguish case; "
                f"use {similar!r}, or choose another"
            )
        other_kind = "teachers" if _ROOM[kind] == "corpora" else "corpora"
        folders = (folder for room in (self.root, self.root / "runs") for folder in (room / other_kind / name).glob("*"))
        if any(Number.is_one(folder.name) for folder in folders):
            raise NstError(f"{name!r} already names {other_kind} in {self.location}; names are unique across kinds, choose another")


def check_name(name: str) -> str:
    """Return the name if it is safe as a folder and as a Hub repository. Raises UsageError otherwise."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"name {name!r}: expected letters, digits, '.', '_' and '-' (at most 96, beginning with a letter or digit)")
    return name


def _check_number(setting: str, number: object, lowest: int) -> None:
    if number is not None and (not isinstance(number, Integral) or isinstance(number, bool) or number < lowest):
        raise UsageError(f"`{setting}`: expected a whole number of at least {lowest}, found {number!r}")


def _number_of(version: Version | Staging) -> Number:
    return Number.parse(version.ref.partition("@")[2])


def _is_asked(kind: Kind, number: Number, request: Request, generation: int | None, edition: int | None) -> bool:
    return kind == request.kind and generation in (None, number.generation) and edition in (None, number.edition)


def _nearest(others: Sequence[Version | Staging], request: Request) -> str:
    """How the newest of the other versions differs from the request, for the log."""
    if not others:
        return ""
    newest = others[-1]
    other = newest.request if isinstance(newest, Staging) else newest.manifest.request
    return f"; {newest.ref} differs: {_difference(other, request)}"


def _difference(existing: Request, requested: Request) -> str:
    """The first few settings and inputs in which two requests differ, for a message."""
    old, new = existing.spelled_out, requested.spelled_out
    same_paths = {name for name in old if name not in existing.identity} & {name for name in new if name not in requested.identity}
    names = sorted((old.keys() | new.keys()) - same_paths)
    changes = [f"{name}: {old.get(name)!r} instead of {new.get(name)!r}" for name in names if old.get(name) != new.get(name)]
    old_inputs, new_inputs = existing.inputs.by_role, requested.inputs.by_role
    for role in sorted(old_inputs.keys() | new_inputs.keys()):
        left, right = old_inputs.get(role), new_inputs.get(role)
        if (left and left.digest) != (right and right.digest):
            changes.append(f"{role}: {_change(left, right)}")
    return "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else "")


def _change(left: Input | None, right: Input | None) -> str:
    """How two inputs with different digests differ: if they were requested in the same way, the source has changed."""
    if left and right and left.ref == right.ref:
        for name in _ASKED:
            old, new = getattr(left, name), getattr(right, name)
            if old != new:
                return f"{left.ref}, {name.replace('_', ' ')}: {old or 'none'} instead of {new or 'none'}"
        return f"{left.ref} has changed since"
    return f"{left.ref if left else 'none'} instead of {right.ref if right else 'none'}, with different content"


def _nearly_of_name(name: str, refs: Sequence[str]) -> Sequence[str]:
    """Of some versions those whose name is spelled nearly so; all, where none is."""
    matches = difflib.get_close_matches(name, sorted({ref.partition("@")[0] for ref in refs}), n=1)
    return [ref for ref in refs if ref.partition("@")[0] in matches] or refs


def _either(kinds: Sequence[Kind]) -> str:
    return with_article(" or ".join(kinds) or "version")
