"""A store at an address, as mirrored on this machine: manifests and requests always, the files of a version on demand.

On an object store nothing is renamed. A version exists once its `nst.json` does, which is written last and only if there is none; a number
belongs to whoever first writes `runs/.../request.json`. Shards go to their place in the version as soon as they are done, each with a note
in `runs/.../work/shards`. Downloads are verified against the checksums of the manifest. Features are stored like versions:
in `features/DIGEST`, with `features.json` as the manifest, and made below `runs/features/DIGEST`.

The folder on this machine is `NST_MIRRORS` or `~/.local/share/nst/stores`, with a folder for each address. Besides copies it holds what
exists only on this machine: answers given on the review page until they are frozen, and what unfinished work needs.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Container, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from nst_data.errors import NstError, UsageError
from nst_data.progress import on_this_terminal
from nst_data.store.file_tree import FileTree, StoredFile
from nst_data.store.files import clear_old_downloads, discard, hash_file, place_once, write_text
from nst_data.store.manifest import MANIFEST_NAME, SealedFile, read_manifest
from nst_data.store.places import METRICS, PLACES, READ

REQUEST = "request.json"
FEATURES, FEATURES_NAME = "features", "features.json"
AT_ONCE = 8
_SAID_BYTES = 2**24
_ROOMS = ("corpora", "teachers")
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*", re.ASCII)
_SMALL = (MANIFEST_NAME, METRICS, PLACES, FEATURES_NAME)  # the files of each version that are always mirrored
_FILES = TypeAdapter(dict[str, SealedFile])


def seal_of(version: str) -> str:
    """The name of the file that is written last in a version, or in features."""
    return FEATURES_NAME if version.startswith(f"{FEATURES}/") else MANIFEST_NAME


def was_not_there(name: str) -> str:
    """The line that reports a file which appeared among the sealed ones."""
    return f"{name}: was not there when the version was sealed"


class Mirror:
    """The store at `tree` and its mirror below `root`.

    Names of versions are their paths in the store, such as `corpora/flowers/gen-1`. Features count as versions named `features/DIGEST`.
    """

    def __init__(self, tree: FileTree) -> None:
        if not tree.address.startswith("s3://"):
            raise UsageError(f"{tree.address}: expected a store in a folder or on s3://; other addresses are for pools and labeled sets")
        self.tree = tree
        self.root = _mirrors() / _folder_name(tree.address)
        self._seen_whole: set[str] = set()  # versions all of whose files were here when this process looked

    def __repr__(self) -> str:
        return f"Mirror({self.tree.address!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Mirror, (self.tree,)

    def name_of(self, folder: Path) -> str:
        """The name in the store of a folder below `root`."""
        return folder.relative_to(self.root).as_posix()

    def refresh(self, name: str | None = None) -> None:
        """Mirror the manifest of each version and the request of each version in progress, for one name or all."""
        with ThreadPoolExecutor(AT_ONCE) as threads:
            for top in [*_ROOMS, *(f"runs/{room}" for room in _ROOMS)]:
                here = {one.name for one in (self.root / top).glob("[!.]*")}
                names = [name] if name is not None else sorted(here.union(self._folders(top)))
                numbers = list(threads.map(lambda one, top=top: self._folders(f"{top}/{one}"), names))
                found = [f"{top}/{one}/{number}" for one, of_name in zip(names, numbers, strict=True) for number in of_name]
                for one, of_name in zip(names, numbers, strict=True):
                    self._drop_all_but(f"{top}/{one}", of_name)
                list(threads.map(self.refresh_run if top.startswith("runs/") else self.refresh_version, found))

    def refresh_features(self) -> dict[str, list[StoredFile]]:
        """Mirror the records of all features that are finished at the address.

        Returns:
            The files of all features, finished or in progress, by the names of their folders; this takes two listings.
        """
        found: dict[str, list[StoredFile]] = {}
        for top in (FEATURES, f"runs/{FEATURES}"):
            for one in self.tree.files(top):
                name = one.name.removeprefix(f"{top}/").partition("/")[0]
                if _PLAIN.fullmatch(name):
                    found.setdefault(name, []).append(one)
        alone = {one.name for one in (self.root / FEATURES).glob("[!.]*") if not self._notes(f"{FEATURES}/{one.name}").is_file()}
        direct = {name: [one for one in files if one.name.rpartition("/")[0] == f"{FEATURES}/{name}"] for name, files in found.items()}
        finished = {name: files for name, files in direct.items() if f"{FEATURES}/{name}/{FEATURES_NAME}" in {one.name for one in files}}
        self._drop_all_but(FEATURES, finished.keys() | alone)  # see `publish_alone`
        self._drop_all_but(f"runs/{FEATURES}", found.keys() - finished.keys())
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(lambda name: self.refresh_version(f"{FEATURES}/{name}", finished[name]), finished))
        return found

    def refresh_version(self, version: str, direct: Iterable[StoredFile] | None = None) -> bool:
        """Mirror the small files of a version that may have changed; return whether it is sealed. `direct` is a listing of its files."""
        files = {one.name.rpartition("/")[2]: one for one in (self.tree.children(version)[1] if direct is None else direct)}
        place, seal = self.root / version, seal_of(version)
        known = self._known(version)
        if seal not in files or self._is_other(version, known.get(seal), files[seal]):
            if (place / seal).is_file():
                discard(place)
            self._notes(version).unlink(missing_ok=True)
            known = {}
        if seal not in files:
            return False
        wanted = [one for name, one in files.items() if (name in _SMALL or known.get("") == "whole") and known.get(name) != one.etag]
        for one in sorted(wanted, key=lambda one: one.name.endswith(seal)):  # the manifest last: it marks the rest as present
            self.tree.download(one.name, self.root / one.name)
        self._remember(version, known | {one.name.rpartition("/")[2]: one.etag for one in wanted})
        return True

    def _is_other(self, version: str, known: str | None, manifest: StoredFile) -> bool:
        """Whether the version there differs from the one here, as it was removed and made again elsewhere."""
        place = self.root / version / seal_of(version)
        return place.is_file() and known != manifest.etag and self.tree.read(manifest.name) != place.read_bytes()

    def leftovers(self, name: str | None = None) -> dict[str, list[StoredFile]]:
        """Files that belong to no version, sealed or in progress, by `name@version`: left by a writer that was killed or came too late."""
        found: dict[str, list[StoredFile]] = {}
        for top in [*_ROOMS, *(f"runs/{room}" for room in _ROOMS)]:
            for one in [name] if name is not None else self._folders(top):
                for number in self._folders(f"{top}/{one}"):
                    version = f"{top}/{one}/{number}".removeprefix("runs/")
                    is_under_way = (self.root / "runs" / version / REQUEST).is_file()
                    if not is_under_way and (top.startswith("runs/") or not (self.root / version / MANIFEST_NAME).is_file()):
                        found.setdefault(f"{one}@{number}", []).extend(self.tree.files(f"{top}/{one}/{number}"))
        return {ref: files for ref, files in found.items() if files}

    def _folders(self, top: str) -> list[str]:
        """Names of the folders directly in `top`, without those that could lead out of it, which nst never writes."""
        return [name for name in self.tree.children(top)[0] if _PLAIN.fullmatch(name)]

    def bring(self, place: Path) -> None:
        """Download all files of a sealed version and verify those in its manifest. Raises NstError if one is missing or damaged."""
        version = self.name_of(place)
        was_brought = self._known(version).get("") == "whole"
        if not (place / seal_of(version)).is_file() or (was_brought and version in self._seen_whole):
            return
        sealed = self._sealed(version, place)
        if was_brought and all((place / name).is_file() for name in sealed):  # scratch disks lose files that nobody reads
            self._seen_whole.add(version)
            return
        files = [one for one in self.tree.files(version) if not one.name.endswith(f"/{seal_of(version)}")]
        below = {one.name.removeprefix(f"{version}/"): one for one in files}
        below = {name: one for name, one in below.items() if all(map(_PLAIN.fullmatch, name.split("/")))}  # no path leads out of the folder
        if missing := sorted(sealed.keys() - below.keys()):
            raise NstError(
                f"{self.tree.at(version)}: lacks {len(missing):,} of its {len(sealed):,} files, such as {missing[0]}; it is damaged"
            )
        here = {name for name in below if name.startswith(f"{READ}/") and (place / name).is_file()}
        wanted = {name: one for name, one in below.items() if name not in here and not self._is_here(place / name, sealed.get(name))}
        if wanted:
            for room in (*_ROOMS, FEATURES):  # files are only downloaded to these, never made there
                clear_old_downloads(self.root / room)
        size = sum(one.size for one in wanted.values())
        progress = on_this_terminal()
        if size > _SAID_BYTES:
            progress.say(f"{self.tree.at(version)}: brings {len(wanted):,} files, {size / 2**20:,.0f} MB, to this machine")
            free = shutil.disk_usage(self.root).free
            if size > free:
                raise NstError(f"{self.tree.at(version)}: takes {size / 1e9:,.1f} GB, {self.root} has {free / 1e9:,.1f} GB left; make room")
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(lambda one: self._bring_file(version, place, one, sealed.get(one)), wanted))
        direct = {name: one.etag for name, one in below.items() if "/" not in name}
        self._remember(version, self._known(version) | direct | {"": "whole"})

    def bring_reading(self, place: Path) -> None:
        """Download what is recorded about the sources of a sealed version, unless it is here."""
        for one in self.tree.files(f"{self.name_of(place)}/{READ}"):
            name = one.name.rpartition("/")[2]
            if _PLAIN.fullmatch(name) and not (place / READ / name).is_file():
                self.tree.download(one.name, place / READ / name)

    def publish(self, place: Path, build: Path, brought: Container[str] = (), check: Callable[[], None] = lambda: None) -> bool:
        """Upload a version that was built here and seal it; return False if another one was sealed there before.

        `build` has the manifest and all files except those `brought` there already. Raises NstError if a file is in neither place, and
        whatever `check` raises just before sealing.
        """
        version = self.name_of(place)
        sealed, seal = self._sealed(version, build), seal_of(version)
        if self.tree.stat(f"{version}/{seal}") is not None:
            return False
        there = {one.name.removeprefix(f"{version}/"): one.size for one in self.tree.files(version)}
        here = {path.relative_to(build).as_posix(): path for path in build.rglob("*") if path.is_file() and path.name[0] != "."}
        here.pop(seal)
        is_there = {name for name, one in sealed.items() if name in brought and there.get(name) == one.bytes}
        if lost := sorted(sealed.keys() - here.keys() - is_there):
            raise NstError(f"{self.tree.at(version)}: {lost[0]} is missing there and on this machine; run the same command again")
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(lambda name: self.tree.upload(here[name], f"{version}/{name}"), sorted(here.keys() - is_there)))
        check()
        if self.tree.create(f"{version}/{seal}", (build / seal).read_bytes(), is_unique=True):
            return True
        if self.tree.stat(f"{version}/{seal}") is None:
            raise NstError(f"{self.tree.at(version)}: its {seal} was refused, and nothing is sealed there; run the same command again")
        return False

    def publish_alone(self, place: Path) -> None:
        """Upload complete features that only this machine has: an earlier nst kept them locally."""
        version = self.name_of(place)
        seal = place / seal_of(version)
        if not seal.is_file() or self._notes(version).is_file() or self.tree.stat(f"{version}/{seal.name}") is not None:
            return
        try:
            sealed = self._sealed(version, place)
        except (ValueError, KeyError, TypeError):  # damaged: computed again
            return
        if all(self._is_here(place / name, one) for name, one in sealed.items()):
            size = sum(one.bytes for one in sealed.values()) / 2**20
            on_this_terminal().say(f"{self.tree.at(version)}: uploads features that only this machine has, {size:,.0f} MB")
            self.publish(place, place)

    def publish_beside(self, place: Path, names: Iterable[str]) -> None:
        """Upload files next to the sealed ones that were written here: a version's card, pictures, metrics, places on the Hub."""
        version, known = self.name_of(place), self._known(self.name_of(place))
        for name in names:
            self.tree.upload(place / name, f"{version}/{name}")
        etags = {one.name.rpartition("/")[2]: one.etag for one in self.tree.children(version)[1]}
        self._remember(version, {**known, **{name: etags[name] for name in names}})

    def damage(self, place: Path) -> list[str]:
        """What differs at the address from what was sealed, one line each. Files are read in full, once, and none is kept here."""
        version, problems, files = self.name_of(place), [], read_manifest(place).files
        there = {one.name.removeprefix(f"{version}/"): one for one in self.tree.files(version)}
        for name, sealed in files.items():
            found = there.get(name)
            if found is None:
                problems.append(f"{name} is missing at {self.tree.at(version)}")
            elif found.size != sealed.bytes or self.tree.sha256(found) != sealed.sha256:
                problems.append(f"{name} has other content at {self.tree.at(version)}")
        tables = tuple({f"{table}/" for name in files if (table := name.rpartition("/")[0])})
        return problems + [
            was_not_there(name) for name in there if name.startswith(tables) and name not in files and name.rpartition("/")[2][0] != "."
        ]

    def discard_version(self, version: str) -> None:
        """Delete a sealed version."""
        self.tree.remove([f"{version}/{seal_of(version)}"])  # from now on it is not a version
        self.tree.remove([one.name for one in self.tree.files(version)])
        self._notes(version).unlink(missing_ok=True)

    def refresh_run(self, run: str) -> bool:
        """Mirror the request of a version in progress; return whether there is one."""
        place, version = self.root / run, run.removeprefix("runs/")
        text = self.tree.read_if_there(f"{run}/{REQUEST}")
        if text is None or (self.root / version / seal_of(version)).is_file():  # sealed, and partly cleaned up
            if (place / REQUEST).is_file():
                discard(place)
            return False
        if (place / REQUEST).is_file():
            if (place / REQUEST).read_bytes() == text:
                return True
            discard(place)  # removed there and started again
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
        try:
            for part in ("build", "work"):
                (fresh / part).mkdir()
            write_text(fresh / REQUEST, text.decode())
            place_once(fresh, place)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return True

    def _drop_all_but(self, top: str, numbers: Container[str]) -> None:
        """Delete here the versions of a name that no longer exist at the address."""
        mark = REQUEST if top.startswith("runs/") else seal_of(f"{top}/")
        for folder in (self.root / top).glob("[!.]*"):  # hidden ones are being made
            gone = folder.name not in numbers and (folder / mark).is_file()
            if gone and self.tree.stat(f"{top}/{folder.name}/{mark}") is None:  # one may have appeared since the listing
                discard(folder)

    def _bring_file(self, version: str, place: Path, name: str, sealed: SealedFile | None) -> None:
        self.tree.download(f"{version}/{name}", place / name)
        if sealed is not None and hash_file(place / name) != sealed:
            (place / name).unlink()
            raise NstError(
                f"{self.tree.at(version)}: {name} does not match its manifest: damaged on the server or in transit; "
                "try again, else remove all of it and make it again"
            )

    def _sealed(self, version: str, folder: Path) -> Mapping[str, SealedFile]:
        """The sealed files of a version, read from its manifest in a folder, or of features, read from their record."""
        if version.startswith(f"{FEATURES}/"):
            return _FILES.validate_python(json.loads((folder / FEATURES_NAME).read_text("utf-8"))["files"])
        return read_manifest(folder).files

    def _is_here(self, path: Path, sealed: SealedFile | None) -> bool:
        return sealed is not None and path.is_file() and path.stat().st_size == sealed.bytes and hash_file(path) == sealed

    def _notes(self, version: str) -> Path:
        return self.root / ".etags" / f"{version.replace('/', '+')}.json"

    def _known(self, version: str) -> dict[str, str]:
        """The etags that the files of a version had when they were downloaded; the name "" maps to "whole" once all of them were."""
        if not (self.root / version / seal_of(version)).is_file():
            return {}
        try:
            known: dict[str, str] = json.loads(self._notes(version).read_text("utf-8"))
            return known
        except (OSError, ValueError):
            return {}

    def _remember(self, version: str, known: Mapping[str, str]) -> None:
        self._notes(version).parent.mkdir(parents=True, exist_ok=True)
        write_text(self._notes(version), json.dumps(dict(known)))


def _mirrors() -> Path:
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return Path(os.environ.get("NST_MIRRORS") or data / "nst" / "stores").absolute()


def _folder_name(address: str) -> str:
    """A readable folder name that is unique per address and server."""
    server = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or _profile_endpoint()
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", address.partition("://")[2])[:60]
    return f"{plain}-{hashlib.sha256(f'{server} {address}'.encode()).hexdigest()[:8]}"


def _profile_endpoint() -> str:
    """The endpoint that the profile in `~/.aws/config` sets; empty if none."""
    try:
        from botocore.exceptions import BotoCoreError
        from botocore.session import Session
    except ImportError:  # reading the store reports the missing extra
        return ""
    try:
        return str(Session().get_scoped_config().get("endpoint_url") or "")
    except BotoCoreError:  # no such profile: reading the store reports it
        return ""
