"""A version in progress in a store at an address: the work from which other machines, or this one after a kill, resume."""

import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

from nst_data.errors import NstError
from nst_data.store.file_tree import MissingFileError
from nst_data.store.files import atomic_write, hash_file
from nst_data.store.leases import Lease, check_not_in_use, hold_lease, register_worker
from nst_data.store.mirror import REQUEST, TRANSFER_THREADS, Mirror, seal_name

_MAX_UPLOADS = 5
_LOGS = {"metrics.jsonl": "build/metrics.jsonl", "summary.csv": "build/summary.csv", "seconds.json": "work/seconds.json"}


@dataclass(frozen=True)
class RemoteRun:
    """A version, or features, in progress in a store at an address; `name` is its folder there, such as `runs/corpora/flowers/gen-1`.

    Its work is below `work` in a folder named after the request's digest: a process that others took for dead, whose version was
    removed and started again with other settings, writes nowhere else. `own_request` is the request that this process works on; by default
    the one on this machine, which may be a different one if a second process on it has started again.
    """

    mirror: Mirror
    name: str
    digest: str = ""
    own_request: bytes | None = None

    @property
    def _work(self) -> str:
        return f"{self.name}/work/{self.digest[:16]}"

    @property
    def _version(self) -> str:
        return self.name.removeprefix("runs/")

    @property
    def _request(self) -> str:
        return f"{self.name}/{REQUEST}"

    @property
    def _seal(self) -> str:
        return f"{self._version}/{seal_name(self._version)}"

    def claim(self, request: str) -> bool:
        """Claim the number for a request; return False if another request has it. What removed versions left there is deleted."""
        tree = self.mirror.tree
        tree.check_conditional_put()
        leftovers = [file.name for name in (self.name, self._version) for file in tree.files(name)]
        if self._seal in leftovers or not tree.create(self._request, request.encode()):
            return False
        if tree.stat(self._seal) is not None:  # by a process that was at work during the listing, and has cleaned up since
            tree.remove([self._request])
            return False
        tree.remove([name for name in leftovers if name != self._request])
        return True

    def is_claimed_by(self, request: str) -> bool:
        """Whether the number belongs to exactly this request."""
        return self.mirror.tree.read_if_exists(self._request) == request.encode()

    def discard(self) -> None:
        """Delete what is left of the work, and the files at the version's place if it is not sealed."""
        tree = self.mirror.tree
        leftovers, placed = ([file.name for file in tree.files(name)] for name in (self.name, self._version))
        tree.remove([self._request])  # from now on nobody joins, and what others start was not listed
        tree.remove([name for name in leftovers if name != self._request])
        if tree.stat(self._seal) is None:
            tree.remove(placed)

    def hold_ownership(self, subject: str, report: Callable[[str], None]) -> AbstractContextManager[Lease]:
        """Own the work, across all machines, while the block runs. Raises InUseError if a living process owns it."""
        return hold_lease(self.mirror.tree, f"{self.name}/owner", subject, report)

    def register_worker(self) -> AbstractContextManager[Lease]:
        """Let `check_not_in_use` find this process while the block runs."""
        return register_worker(self.mirror.tree, f"{self.name}/worker")

    def check_not_in_use(self, subject: str, report: Callable[[str], None]) -> None:
        """Raise InUseError if a process of any machine is working on it."""
        check_not_in_use(self.mirror.tree, subject, [f"{self.name}/owner", f"{self.name}/worker"], report)

    def download_notes(self) -> None:
        """Download the notes of all shards that are done. Raises NstError if the version was sealed or removed meanwhile."""
        tree, folder = self.mirror.tree, self.mirror.root / self.name / "work" / "shards"
        remote_notes = {file.name.rpartition("/")[2]: file.name for file in tree.files(f"{self._work}/shards")}
        local_notes = {name for name in os.listdir(folder) if name[0] != "."}
        for name in local_notes.difference(remote_notes):  # another machine makes it again, for images that can be read by now
            (folder / name).unlink(missing_ok=True)

        def fetch_note(name: str) -> None:
            with suppress(MissingFileError):  # it was just removed, to make the shard again
                tree.download(remote_notes[name], folder / name)

        with ThreadPoolExecutor(TRANSFER_THREADS) as threads:
            list(threads.map(fetch_note, remote_notes.keys() - local_notes))
        self._check_current()

    def download_note(self, name: str) -> None:
        """Download the note of one shard if it is done, otherwise delete the local one. Raises NstError as `download_notes` does."""
        path = self.mirror.root / self.name / "work" / "shards" / name
        try:
            self.mirror.tree.download(f"{self._work}/shards/{name}", path)
        except MissingFileError:
            path.unlink(missing_ok=True)
            self._check_current()

    def _check_current(self) -> None:
        """Raise NstError if the version was sealed or removed, or belongs to another request by now."""
        text = self.mirror.tree.read_if_exists(self._request)
        if text is None or text != (
            (self.mirror.root / self.name / REQUEST).read_bytes() if self.own_request is None else self.own_request
        ):
            raise NstError(f"{self._version}: was sealed or removed by another process; rerun this command")

    def upload_shard(self, file: str, note: str, content: bytes) -> bytes | None:
        """Upload a shard to its place in the version, then mark it as done. Returns the note to keep if another machine's came first.

        Different kinds of machines may compute different last bits. If two machines wrote different notes for a shard, it is made again.
        A file at the shard's place is never overwritten: a slow upload may end after others have sealed the version.
        """
        self._check_current()
        tree, name = self.mirror.tree, f"{self._work}/shards/{note}"
        shard, place = self.mirror.root / self.name / "build" / file, f"{self._version}/{file}"
        if (first_note := tree.read_if_exists(name)) is not None:
            return first_note
        for _ in range(_MAX_UPLOADS):
            if tree.upload_new(shard, place) or self._has_same_content(shard, place):
                break
            self._check_current()
            if (first_note := tree.read_if_exists(name)) is not None:
                return first_note
            tree.remove([place])  # left by a killed process, or from before the shard was reopened
        else:
            raise NstError(f"{tree.address_of(place)}: another process keeps writing this shard; rerun this command when it has ended")
        if tree.create(name, content):
            return None
        if tree.read_if_exists(name) != content:
            tree.remove([name])
        return content

    def _has_same_content(self, shard: Path, place: str) -> bool:
        remote, local = self.mirror.tree.stat(place), hash_file(shard)
        with suppress(MissingFileError):
            return remote is not None and remote.size == local.bytes and self.mirror.tree.sha256(remote) == local.sha256
        return False

    def download_shards(self, files: Iterable[str]) -> None:
        """Download shards that other machines have uploaded and that are missing here."""
        build = self.mirror.root / self.name / "build"
        missing = [file for file in files if not (build / file).exists()]
        with ThreadPoolExecutor(TRANSFER_THREADS) as threads:
            list(threads.map(lambda file: self.mirror.tree.download(f"{self._version}/{file}", build / file), missing))

    def reopen_shard(self, note: str) -> None:
        """Mark a shard to be made again."""
        self.mirror.tree.remove([f"{self._work}/shards/{note}"])

    def get_or_store(self, name: str, value: bytes) -> bytes:
        """The content of a small work file: what was written first, or else `value`, written now."""
        file = f"{self._work}/{name}"
        return value if self.mirror.tree.create(file, value) else self.mirror.tree.read(file)

    def replace_by_first_stored(self, folder: Path) -> None:
        """Replace the small files of a local folder with those that were written first."""
        for path in sorted(folder.glob("[!.]*")):  # hidden ones are being written
            content = path.read_bytes()
            if (first_content := self.get_or_store(path.name, content)) != content:
                with atomic_write(path) as file:
                    file.write(first_content)

    def upload_training(self) -> None:
        """Upload this machine's checkpoints and logs of a training; earlier checkpoints are deleted there."""
        tree, folder = self.mirror.tree, self.mirror.root / self.name
        self._check_current()
        work = folder / "work"
        local = [path.relative_to(work).as_posix() for path in work.glob("checkpoints/[!.]*/*") if path.is_file()]
        remote = {entry.name.removeprefix(f"{self._work}/") for entry in tree.files(f"{self._work}/checkpoints")}
        for name, file in _LOGS.items():
            if (folder / file).is_file():
                tree.upload(folder / file, f"{self._work}/{name}")
        for name in sorted(local, key=lambda name: (name.rpartition("/")[2] == "position.json", name)):  # it marks a checkpoint as complete
            if name not in remote:
                tree.upload(work / name, f"{self._work}/{name}")
        newest = max((_step_folder(name) for name in local), default="")
        earlier = {
            name for name in remote if _step_folder(name) <= newest
        }  # another machine, which took this one for dead, may have got further
        tree.remove([f"{self._work}/{name}" for name in sorted(earlier.difference(local))])

    def download_training(self) -> None:
        """Download the newest checkpoint and the logs of a training if another machine got further than this one."""
        tree, folder = self.mirror.tree, self.mirror.root / self.name
        checkpoints = folder / "work" / "checkpoints"
        local_step = max((path.parent.name for path in checkpoints.glob("step-*/position.json")), default="")
        remote_files = [entry.name for entry in tree.files(f"{self._work}/checkpoints")]
        newest = max((name.split("/")[-2] for name in remote_files if name.endswith("/position.json")), default="")
        if newest <= local_step:
            return
        temp_folder = checkpoints / f".{newest}.brought"
        shutil.rmtree(temp_folder, ignore_errors=True)
        for name in [name for name in remote_files if name.split("/")[-2] == newest]:
            tree.download(name, temp_folder / name.rpartition("/")[2])
        for name, file in _LOGS.items():
            if tree.stat(f"{self._work}/{name}"):
                tree.download(f"{self._work}/{name}", folder / file)
        shutil.rmtree(checkpoints / newest, ignore_errors=True)
        temp_folder.rename(checkpoints / newest)


def _step_folder(checkpoint: str) -> str:
    """The folder of a checkpoint's file, named after its step; these names sort by step."""
    return checkpoint.split("/")[1]
