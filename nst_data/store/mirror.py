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
from nst_data.progress import terminal_progress
from nst_data.store.file_tree import FileTree, StoredFile
from nst_data.store.files import clear_old_downloads, discard, hash_file, move_unless_exists, write_text
from nst_data.store.manifest import MANIFEST_NAME, SealedFile, read_manifest
from nst_data.store.places import METRICS_NAME, PLACES_NAME, READ_FOLDER

REQUEST = "request.json"
FEATURES, FEATURES_NAME = "features", "features.json"
TRANSFER_THREADS = 8
_REPORTED_BYTES = 2**24
_KIND_FOLDERS = ("corpora", "teachers")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*", re.ASCII)
_ALWAYS_MIRRORED = (MANIFEST_NAME, METRICS_NAME, PLACES_NAME, FEATURES_NAME)  # the files of each version that are always mirrored
_FILES_ADAPTER = TypeAdapter(dict[str, SealedFile])


def seal_name(version: str) -> str:
    """The name of the file that is written last in a version, or in features."""
    return FEATURES_NAME if version.startswith(f"{FEATURES}/") else MANIFEST_NAME


def extra_file_message(name: str) -> str:
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
        self.root = _mirrors_folder() / _folder_name(tree.address)
        self._complete_versions: set[str] = set()  # versions all of whose files were here when this process looked

    def __repr__(self) -> str:
        return f"Mirror({self.tree.address!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Mirror, (self.tree,)

    def name_of(self, folder: Path) -> str:
        """The name in the store of a folder below `root`."""
        return folder.relative_to(self.root).as_posix()

    def refresh(self, name: str | None = None) -> None:
        """Mirror the manifest of each version and the request of each version in progress, for one name or all."""
        with ThreadPoolExecutor(TRANSFER_THREADS) as threads:
            for top in [*_KIND_FOLDERS, *(f"runs/{kind_folder}" for kind_folder in _KIND_FOLDERS)]:
                local_names = {one.name for one in (self.root / top).glob("[!.]*")}
                names = [name] if name is not None else sorted(local_names.union(self._list_folders(top)))
                numbers = list(threads.map(lambda one, top=top: self._list_folders(f"{top}/{one}"), names))
                version_paths = [
                    f"{top}/{one}/{number}" for one, name_numbers in zip(names, numbers, strict=True) for number in name_numbers
                ]
                for one, name_numbers in zip(names, numbers, strict=True):
                    self._delete_except(f"{top}/{one}", name_numbers)
                list(threads.map(self.refresh_run if top.startswith("runs/") else self.refresh_version, version_paths))

    def refresh_features(self) -> dict[str, list[StoredFile]]:
        """Mirror the records of all features that are finished at the address.

        Returns:
            The files of all features, finished or in progress, by the names of their folders; this takes two listings.
        """
        files_by_name: dict[str, list[StoredFile]] = {}
        for top in (FEATURES, f"runs/{FEATURES}"):
            for entry in self.tree.files(top):
                name = entry.name.removeprefix(f"{top}/").partition("/")[0]
                if _PLAIN_NAME.fullmatch(name):
                    files_by_name.setdefault(name, []).append(entry)
        local_only = {
            entry.name for entry in (self.root / FEATURES).glob("[!.]*") if not self._etags_path(f"{FEATURES}/{entry.name}").is_file()
        }
        direct = {
            name: [entry for entry in files if entry.name.rpartition("/")[0] == f"{FEATURES}/{name}"]
            for name, files in files_by_name.items()
        }
        finished = {
            name: files for name, files in direct.items() if f"{FEATURES}/{name}/{FEATURES_NAME}" in {entry.name for entry in files}
        }
        self._delete_except(FEATURES, finished.keys() | local_only)  # see `publish_local_features`
        self._delete_except(f"runs/{FEATURES}", files_by_name.keys() - finished.keys())
        with ThreadPoolExecutor(TRANSFER_THREADS) as threads:
            list(threads.map(lambda name: self.refresh_version(f"{FEATURES}/{name}", finished[name]), finished))
        return files_by_name

    def refresh_version(self, version: str, listing: Iterable[StoredFile] | None = None) -> bool:
        """Mirror the small files of a version that may have changed; return whether it is sealed. `listing` is a listing of its files."""
        files = {file.name.rpartition("/")[2]: file for file in (self.tree.children(version)[1] if listing is None else listing)}
        place, seal = self.root / version, seal_name(version)
        known_etags = self._known_etags(version)
        if seal not in files or self._was_replaced(version, known_etags.get(seal), files[seal]):
            if (place / seal).is_file():
                discard(place)
            self._etags_path(version).unlink(missing_ok=True)
            known_etags = {}
        if seal not in files:
            return False
        outdated = [
            file
            for name, file in files.items()
            if (name in _ALWAYS_MIRRORED or known_etags.get("") == "whole") and known_etags.get(name) != file.etag
        ]
        for file in sorted(outdated, key=lambda one: one.name.endswith(seal)):  # the manifest last: it marks the rest as present
            self.tree.download(file.name, self.root / file.name)
        self._save_etags(version, known_etags | {file.name.rpartition("/")[2]: file.etag for file in outdated})
        return True

    def _was_replaced(self, version: str, known_etag: str | None, manifest: StoredFile) -> bool:
        """Whether the version there differs from the one here, as it was removed and made again elsewhere."""
        place = self.root / version / seal_name(version)
        return place.is_file() and known_etag != manifest.etag and self.tree.read(manifest.name) != place.read_bytes()

    def leftovers(self, name: str | None = None) -> dict[str, list[StoredFile]]:
        """Files that belong to no version, sealed or in progress, by `name@version`: left by a writer that was killed or came too late."""
        files_by_ref: dict[str, list[StoredFile]] = {}
        for top in [*_KIND_FOLDERS, *(f"runs/{kind_folder}" for kind_folder in _KIND_FOLDERS)]:
            for folder in [name] if name is not None else self._list_folders(top):
                for number in self._list_folders(f"{top}/{folder}"):
                    version = f"{top}/{folder}/{number}".removeprefix("runs/")
                    is_under_way = (self.root / "runs" / version / REQUEST).is_file()
                    if not is_under_way and (top.startswith("runs/") or not (self.root / version / MANIFEST_NAME).is_file()):
                        files_by_ref.setdefault(f"{folder}@{number}", []).extend(self.tree.files(f"{top}/{folder}/{number}"))
        return {ref: files for ref, files in files_by_ref.items() if files}

    def _list_folders(self, top: str) -> list[str]:
        """Names of the folders directly in `top`, without those that could lead out of it, which nst never writes."""
        return [name for name in self.tree.children(top)[0] if _PLAIN_NAME.fullmatch(name)]

    def download_version(self, folder: Path) -> None:
        """Download all files of a sealed version and verify those in its manifest. Raises NstError if one is missing or damaged."""
        version = self.name_of(folder)
        was_brought = self._known_etags(version).get("") == "whole"
        if not (folder / seal_name(version)).is_file() or (was_brought and version in self._complete_versions):
            return
        sealed = self._sealed_files(version, folder)
        if was_brought and all((folder / name).is_file() for name in sealed):  # scratch disks lose files that nobody reads
            self._complete_versions.add(version)
            return
        files = [file for file in self.tree.files(version) if not file.name.endswith(f"/{seal_name(version)}")]
        below = {file.name.removeprefix(f"{version}/"): file for file in files}
        below = {
            name: file for name, file in below.items() if all(map(_PLAIN_NAME.fullmatch, name.split("/")))
        }  # no path leads out of the folder
        if missing := sorted(sealed.keys() - below.keys()):
            raise NstError(
                f"{self.tree.address_of(version)}: lacks {len(missing):,} of its {len(sealed):,} files, such as {missing[0]}; it is damaged"
            )
        read_names = {name for name in below if name.startswith(f"{READ_FOLDER}/") and (folder / name).is_file()}
        to_download = {
            name: file for name, file in below.items() if name not in read_names and not self._is_intact(folder / name, sealed.get(name))
        }
        if to_download:
            for kind_folder in (*_KIND_FOLDERS, FEATURES):  # files are only downloaded to these, never made there
                clear_old_downloads(self.root / kind_folder)
        size = sum(file.size for file in to_download.values())
        progress = terminal_progress()
        if size > _REPORTED_BYTES:
            progress.say(f"{self.tree.address_of(version)}: brings {len(to_download):,} files, {size / 2**20:,.0f} MB, to this machine")
            free = shutil.disk_usage(self.root).free
            if size > free:
                raise NstError(
                    f"{self.tree.address_of(version)}: takes {size / 1e9:,.1f} GB, {self.root} has {free / 1e9:,.1f} GB left; make room"
                )
        with ThreadPoolExecutor(TRANSFER_THREADS) as threads:
            list(threads.map(lambda one: self._download_file(version, folder, one, sealed.get(one)), to_download))
        direct = {name: file.etag for name, file in below.items() if "/" not in name}
        self._save_etags(version, self._known_etags(version) | direct | {"": "whole"})

    def download_source_states(self, folder: Path) -> None:
        """Download what is recorded about the sources of a sealed version, unless it is here."""
        for file in self.tree.files(f"{self.name_of(folder)}/{READ_FOLDER}"):
            name = file.name.rpartition("/")[2]
            if _PLAIN_NAME.fullmatch(name) and not (folder / READ_FOLDER / name).is_file():
                self.tree.download(file.name, folder / READ_FOLDER / name)

    def publish(self, folder: Path, build: Path, uploaded: Container[str] = (), check: Callable[[], None] = lambda: None) -> bool:
        """Upload a version that was built here and seal it; return False if another one was sealed there before.

        `build` has the manifest and all files except those `uploaded` there already. Raises NstError if a file is in neither place, and
        whatever `check` raises just before sealing.
        """
        version = self.name_of(folder)
        sealed, seal = self._sealed_files(version, build), seal_name(version)
        if self.tree.stat(f"{version}/{seal}") is not None:
            return False
        remote_sizes = {file.name.removeprefix(f"{version}/"): file.size for file in self.tree.files(version)}
        local_files = {path.relative_to(build).as_posix(): path for path in build.rglob("*") if path.is_file() and path.name[0] != "."}
        local_files.pop(seal)
        already_remote = {name for name, file in sealed.items() if name in uploaded and remote_sizes.get(name) == file.bytes}
        if missing := sorted(sealed.keys() - local_files.keys() - already_remote):
            raise NstError(
                f"{self.tree.address_of(version)}: {missing[0]} is missing there and on this machine; run the same command again"
            )
        with ThreadPoolExecutor(TRANSFER_THREADS) as threads:
            list(
                threads.map(
                    lambda name: self.tree.upload(local_files[name], f"{version}/{name}"), sorted(local_files.keys() - already_remote)
                )
            )
        check()
        if self.tree.create(f"{version}/{seal}", (build / seal).read_bytes(), is_unique=True):
            return True
        if self.tree.stat(f"{version}/{seal}") is None:
            raise NstError(
                f"{self.tree.address_of(version)}: its {seal} was refused, and nothing is sealed there; run the same command again"
            )
        return False

    def publish_local_features(self, folder: Path) -> None:
        """Upload complete features that only this machine has: an earlier nst kept them locally."""
        version = self.name_of(folder)
        seal = folder / seal_name(version)
        if not seal.is_file() or self._etags_path(version).is_file() or self.tree.stat(f"{version}/{seal.name}") is not None:
            return
        try:
            sealed = self._sealed_files(version, folder)
        except (ValueError, KeyError, TypeError):  # damaged: computed again
            return
        if all(self._is_intact(folder / name, file) for name, file in sealed.items()):
            size = sum(file.bytes for file in sealed.values()) / 2**20
            terminal_progress().say(f"{self.tree.address_of(version)}: uploads features that only this machine has, {size:,.0f} MB")
            self.publish(folder, folder)

    def publish_unsealed(self, folder: Path, names: Iterable[str]) -> None:
        """Upload files next to the sealed ones that were written here: a version's card, pictures, metrics, places on the Hub."""
        version, known_etags = self.name_of(folder), self._known_etags(self.name_of(folder))
        for name in names:
            self.tree.upload(folder / name, f"{version}/{name}")
        etags = {file.name.rpartition("/")[2]: file.etag for file in self.tree.children(version)[1]}
        self._save_etags(version, {**known_etags, **{name: etags[name] for name in names}})

    def find_damage(self, folder: Path) -> list[str]:
        """What differs at the address from what was sealed, one line each. Files are read in full, once, and none is kept here."""
        version, problems, files = self.name_of(folder), [], read_manifest(folder).files
        remote_files = {file.name.removeprefix(f"{version}/"): file for file in self.tree.files(version)}
        for name, sealed in files.items():
            remote_file = remote_files.get(name)
            if remote_file is None:
                problems.append(f"{name} is missing at {self.tree.address_of(version)}")
            elif remote_file.size != sealed.bytes or self.tree.sha256(remote_file) != sealed.sha256:
                problems.append(f"{name} has other content at {self.tree.address_of(version)}")
        tables = tuple({f"{table}/" for name in files if (table := name.rpartition("/")[0])})
        return problems + [
            extra_file_message(name)
            for name in remote_files
            if name.startswith(tables) and name not in files and name.rpartition("/")[2][0] != "."
        ]

    def discard_version(self, version: str) -> None:
        """Delete a sealed version."""
        self.tree.remove([f"{version}/{seal_name(version)}"])  # from now on it is not a version
        self.tree.remove([file.name for file in self.tree.files(version)])
        self._etags_path(version).unlink(missing_ok=True)

    def refresh_run(self, run: str) -> bool:
        """Mirror the request of a version in progress; return whether there is one."""
        place, version = self.root / run, run.removeprefix("runs/")
        text = self.tree.read_if_exists(f"{run}/{REQUEST}")
        if text is None or (self.root / version / seal_name(version)).is_file():  # sealed, and partly cleaned up
            if (place / REQUEST).is_file():
                discard(place)
            return False
        if (place / REQUEST).is_file():
            if (place / REQUEST).read_bytes() == text:
                return True
            discard(place)  # removed there and started again
        place.parent.mkdir(parents=True, exist_ok=True)
        temp_folder = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
        try:
            for subfolder in ("build", "work"):
                (temp_folder / subfolder).mkdir()
            write_text(temp_folder / REQUEST, text.decode())
            move_unless_exists(temp_folder, place)
        finally:
            shutil.rmtree(temp_folder, ignore_errors=True)
        return True

    def _delete_except(self, top: str, retained: Container[str]) -> None:
        """Delete here the versions of a name that no longer exist at the address."""
        mark = REQUEST if top.startswith("runs/") else seal_name(f"{top}/")
        for folder in (self.root / top).glob("[!.]*"):  # hidden ones are being made
            is_gone = folder.name not in retained and (folder / mark).is_file()
            if is_gone and self.tree.stat(f"{top}/{folder.name}/{mark}") is None:  # one may have appeared since the listing
                discard(folder)

    def _download_file(self, version: str, folder: Path, name: str, sealed: SealedFile | None) -> None:
        self.tree.download(f"{version}/{name}", folder / name)
        if sealed is not None and hash_file(folder / name) != sealed:
            (folder / name).unlink()
            raise NstError(
                f"{self.tree.address_of(version)}: {name} does not match its manifest: damaged on the server or in transit; "
                "try again, else remove all of it and make it again"
            )

    def _sealed_files(self, version: str, folder: Path) -> Mapping[str, SealedFile]:
        """The sealed files of a version, read from its manifest in a folder, or of features, read from their record."""
        if version.startswith(f"{FEATURES}/"):
            return _FILES_ADAPTER.validate_python(json.loads((folder / FEATURES_NAME).read_text("utf-8"))["files"])
        return read_manifest(folder).files

    def _is_intact(self, path: Path, sealed: SealedFile | None) -> bool:
        return sealed is not None and path.is_file() and path.stat().st_size == sealed.bytes and hash_file(path) == sealed

    def _etags_path(self, version: str) -> Path:
        return self.root / ".etags" / f"{version.replace('/', '+')}.json"

    def _known_etags(self, version: str) -> dict[str, str]:
        """The etags that the files of a version had when they were downloaded; the name "" maps to "whole" once all of them were."""
        if not (self.root / version / seal_name(version)).is_file():
            return {}
        try:
            etags: dict[str, str] = json.loads(self._etags_path(version).read_text("utf-8"))
            return etags
        except (OSError, ValueError):
            return {}

    def _save_etags(self, version: str, etags: Mapping[str, str]) -> None:
        self._etags_path(version).parent.mkdir(parents=True, exist_ok=True)
        write_text(self._etags_path(version), json.dumps(dict(etags)))


def _mirrors_folder() -> Path:
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
