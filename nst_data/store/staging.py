"""Versions in progress: staged in `runs/`, sealed by one rename."""

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nst_data.errors import NstError
from nst_data.store.counts import Counts
from nst_data.store.files import discard, fsync_tree, move_unless_exists, write_text
from nst_data.store.manifest import MANIFEST_NAME, Manifest, Request, SealedFile, create_manifest
from nst_data.store.mirror import Mirror
from nst_data.store.ownership import Sign, hold_ownership, register_worker
from nst_data.store.remote_run import RemoteRun
from nst_data.store.version import Version

_log = logging.getLogger(__name__)


class NotReadyError(Exception):
    """Something that was about to be sealed is being written again."""


@dataclass(frozen=True)
class Staging:
    """A version in progress: `build` becomes the version's folder, `work` holds what is needed only to make it."""

    folder: Path
    target: Path
    request: Request
    fresh: bool = False
    mirror: Mirror | None = None

    @contextmanager
    def discard_on_error(self, has_work: Callable[["Staging"], bool] = lambda _: False) -> Iterator[None]:
        """Leave nothing behind on an NstError, unless an earlier run already did work here or `has_work` says that this one did."""
        try:
            yield
        except NstError:
            if self.fresh and not has_work(self):
                self.discard()
            raise

    def discard(self) -> None:
        """Delete it, also at the address of a store that has one."""
        if self.remote_run is not None:
            self.remote_run.discard()
        discard(self.folder)

    @property
    def remote_run(self) -> RemoteRun | None:
        """Its counterpart in a store at an address; None if the store is a folder."""
        return None if self.mirror is None else RemoteRun(self.mirror, self.mirror.name_of(self.folder), self.request.digest)

    @property
    def build(self) -> Path:
        """The folder that will be moved to the version's place as a whole."""
        return self.folder / "build"

    @property
    def work(self) -> Path:
        """The folder of checkpoints, logs and shard notes; deleted after sealing."""
        return self.folder / "work"

    @property
    def ref(self) -> str:
        """The name@version that this will become."""
        return f"{self.target.parent.name}@{self.target.name}"

    def get_or_store(self, name: str, value: dict[str, Any]) -> dict[str, Any]:
        """The value stored under this name earlier in this work, or else `value`, stored now; concurrent processes all get the first."""
        if (stored := self.get_stored(name)) is not None:
            return stored
        path = self.work / f"{name}.json"
        if self.remote_run is not None:
            value = json.loads(self.remote_run.get_or_store(path.name, json.dumps(value).encode()))
        first, temp_folder = self.work / f".{name}.first", Path(tempfile.mkdtemp(prefix=f".{name}.", dir=self.work))
        write_text(temp_folder / "value.json", json.dumps(value))
        move_unless_exists(temp_folder, first)  # if another process was first, its value stands
        shutil.rmtree(temp_folder, ignore_errors=True)
        text = (first / "value.json").read_text("utf-8")
        write_text(path, text)
        content: dict[str, Any] = json.loads(text)
        return content

    def get_stored(self, name: str) -> dict[str, Any] | None:
        """The value that `get_or_store` stored under this name on this machine, or None."""
        path = self.work / f"{name}.json"
        return json.loads(path.read_text("utf-8")) if path.exists() else None

    def run_as_worker(self, build_version: Callable[[], Version]) -> Version:
        """The result of `build_version`, which any number of processes may run.

        If it fails after another process sealed the version, returns that version.
        """
        try:
            with ExitStack() as stack:
                stack.enter_context(register_worker(self.folder / "worker"))
                if self.remote_run is not None:
                    stack.enter_context(self.remote_run.register_worker())
                return build_version()
        except Exception as error:
            if version := self.sealed_by_another():
                self.discard()  # including late notes of this process
                return version
            if not isinstance(error, NstError) and not self.folder.is_dir():  # `discard_on_error` deletes it too, with an NstError
                raise NstError(f"{self.ref} was removed while this process was working on it; rerun this command") from None
            raise

    @contextmanager
    def hold_ownership(self, report: Callable[[str], None]) -> Iterator[Sign]:
        """Own this while the block runs. Raises InUseError, or NstError if the version is sealed or removed meanwhile."""
        try:
            with ExitStack() as stack:
                sign = stack.enter_context(hold_ownership(self.folder / "owner", self.ref, report))
                if self.remote_run is not None:
                    sign.lease = stack.enter_context(self.remote_run.hold_ownership(self.ref, report))
                yield sign
        except FileNotFoundError:
            if self.folder.is_dir():
                raise
            raise NstError(f"{self.ref} was sealed or removed by another process; rerun this command") from None

    def sealed_by_another(self) -> Version | None:
        """The sealed version if another process has sealed it meanwhile, otherwise None."""
        if self.mirror is not None:
            self.mirror.refresh_version(self.mirror.name_of(self.target))
        if not (self.target / MANIFEST_NAME).is_file():
            return None
        if self.version.manifest.request.digest != self.request.digest:
            raise NstError(f"{self.ref} was sealed by another process with other settings; rerun this command")
        return self.version

    @property
    def version(self) -> Version:
        """The version that this becomes once it is sealed."""
        return Version(self.target, self.mirror)

    def add_seconds(self, since: float) -> float:
        """Add the time since `since` (time.monotonic) to the work on this version over all attempts; return the current time."""
        now = time.monotonic()
        write_text(self.work / "seconds.json", json.dumps(self.seconds + now - since))
        return now

    @property
    def seconds(self) -> float:
        """Seconds of work recorded in this attempt and earlier ones; a kill loses the time since the last `add_seconds`."""
        path = self.work / "seconds.json"
        return float(json.loads(path.read_text("utf-8"))) if path.exists() else 0.0

    def build_manifest(
        self, files: dict[str, SealedFile], class_names: list[str], counts: Counts, machine: dict[str, Any] | None = None
    ) -> Manifest:
        """The manifest of what was built, from which cards are rendered and which `seal` writes."""
        name, version = self.target.parent.name, self.target.name
        return create_manifest(name, version, self.request, files, class_names, counts, self.seconds, machine or {})

    def _uploaded_shards(self) -> set[str]:
        """The shards that are at the address already, according to their notes."""
        notes = {path.stem for path in (self.work / "shards").glob("[!.]*.json")}
        tables = "balanced" if self.request.kind == "edition" else "pseudo_labels"
        return {f"{tables}/train-{note}-of-{len(notes):05d}.parquet" for note in notes}

    def seal(self, manifest: Manifest, check: Callable[[], None] = lambda: None) -> Version:
        """Write the manifest and move the folder to its place. If another process was first, its version stands.

        `check` is called just before that, and may raise NotReadyError.
        """
        try:
            write_text(self.build / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n", self.work)
            for abandoned in self.build.rglob(".*.tmp"):  # left by a killed writer
                abandoned.unlink(missing_ok=True)
            fsync_tree(self.build)
            self.target.parent.mkdir(parents=True, exist_ok=True)
            if self.mirror is None:
                check()
            if self.mirror is None or self.mirror.publish(self.target, self.build, self._uploaded_shards(), check):
                move_unless_exists(self.build, self.target)
        except OSError:
            if self.sealed_by_another() is None:
                raise
        _log.info("%s is sealed in %s", self.ref, self.target)
        self.sealed_by_another()  # if another process was first, it must be the same version
        self.discard()
        return self.version
