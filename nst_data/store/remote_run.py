"""A version under way in a store at an address: what of its making other machines, or this one after a kill, go on from."""

import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

from nst_data.errors import NstError
from nst_data.store.file_tree import MissingError
from nst_data.store.files import hash_file, replacing
from nst_data.store.leases import Lease, check_nobody_at_work, leased, present
from nst_data.store.mirror import AT_ONCE, REQUEST, Mirror, seal_of

_UPLOADS = 5
_LOGS = {"metrics.jsonl": "build/metrics.jsonl", "summary.csv": "build/summary.csv", "seconds.json": "work/seconds.json"}


@dataclass(frozen=True)
class RemoteRun:
    """A version, or features, under way in a store at an address; `name` is its folder there, as in `runs/corpora/flowers/gen-1`.

    What its making leaves is below `work` in a folder that names the request: a process that others took for dead, whose version was
    removed and begun anew with other settings, writes nowhere else. `asked` is the request that this process works at; by default the one
    that this machine has, which is another one where a second process of it has begun anew.
    """

    mirror: Mirror
    name: str
    digest: str = ""
    asked: bytes | None = None

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
        return f"{self._version}/{seal_of(self._version)}"

    def claim(self, request: str) -> bool:
        """Take the number for a request; False where another one has it. What was left there by removed ones is deleted."""
        tree = self.mirror.tree
        tree.check_creates_once()
        left = [one.name for name in (self.name, self._version) for one in tree.files(name)]
        if self._seal in left or not tree.create(self._request, request.encode()):
            return False
        if tree.stat(self._seal) is not None:  # by one who was at work when this one looked, and has cleared up since
            tree.remove([self._request])
            return False
        tree.remove([name for name in left if name != self._request])
        return True

    def is_claimed_by(self, request: str) -> bool:
        """Whether the number belongs to this very request."""
        return self.mirror.tree.read_if_there(self._request) == request.encode()

    def discard(self) -> None:
        """Delete what is left of it, and the files at its place where it is not sealed."""
        tree = self.mirror.tree
        left, placed = ([one.name for one in tree.files(name)] for name in (self.name, self._version))
        tree.remove([self._request])  # from now on nobody joins, and what others begin was not listed
        tree.remove([name for name in left if name != self._request])
        if tree.stat(self._seal) is None:
            tree.remove(placed)

    def owned(self, what: str, say: Callable[[str], None]) -> AbstractContextManager[Lease]:
        """While this lasts no process of any machine owns it too. Raises AtWorkError."""
        return leased(self.mirror.tree, f"{self.name}/owner", what, say)

    def worker(self) -> AbstractContextManager[Lease]:
        """While this lasts `check_nobody_at_work` finds this process."""
        return present(self.mirror.tree, f"{self.name}/worker")

    def check_nobody_at_work(self, what: str, say: Callable[[str], None]) -> None:
        """Raises AtWorkError where a process of any machine is at work on it."""
        check_nobody_at_work(self.mirror.tree, what, [f"{self.name}/owner", f"{self.name}/worker"], say)

    def bring_notes(self) -> None:
        """Have here the notes of all shards that are done anywhere. Raises NstError where the version was sealed or removed meanwhile."""
        tree, folder = self.mirror.tree, self.mirror.root / self.name / "work" / "shards"
        there = {one.name.rpartition("/")[2]: one.name for one in tree.files(f"{self._work}/shards")}
        here = {name for name in os.listdir(folder) if name[0] != "."}
        for name in here.difference(there):  # made again by another machine, for images that can be read by now
            (folder / name).unlink(missing_ok=True)

        def bring(name: str) -> None:
            with suppress(MissingError):  # it was just taken back, to be made again
                tree.download(there[name], folder / name)

        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(bring, there.keys() - here))
        self._check_current()

    def bring_note(self, name: str) -> None:
        """Have here the note of one shard if it is done anywhere, and none if not. Raises NstError as `bring_notes` does."""
        here = self.mirror.root / self.name / "work" / "shards" / name
        try:
            self.mirror.tree.download(f"{self._work}/shards/{name}", here)
        except MissingError:
            here.unlink(missing_ok=True)
            self._check_current()

    def _check_current(self) -> None:
        """Raises NstError where it was sealed or removed, or is another one's by now."""
        text = self.mirror.tree.read_if_there(self._request)
        if text is None or text != ((self.mirror.root / self.name / REQUEST).read_bytes() if self.asked is None else self.asked):
            raise NstError(f"{self._version}: was sealed or removed by another process; rerun this command")

    def keep_shard(self, file: str, note: str, content: bytes) -> bytes | None:
        """Bring a shard to its place in the version, then say that it is done; the note that stood there first, from another machine.

        Machines of other kinds may compute other last bits. Where two have written one shard, and not the same, it is made again. What
        is at the shard's place is never overwritten: a slow upload may end after others have sealed the version.
        """
        self._check_current()
        tree, name = self.mirror.tree, f"{self._work}/shards/{note}"
        shard, place = self.mirror.root / self.name / "build" / file, f"{self._version}/{file}"
        if (first := tree.read_if_there(name)) is not None:
            return first
        for _ in range(_UPLOADS):
            if tree.upload_new(shard, place) or self._are_same(shard, place):
                break
            self._check_current()
            if (first := tree.read_if_there(name)) is not None:
                return first
            tree.remove([place])  # of a killed process, or from before the shard was to be made again
        else:
            raise NstError(f"{tree.at(place)}: another process keeps writing this shard; rerun this command when it has ended")
        if tree.create(name, content):
            return None
        if tree.read_if_there(name) != content:
            tree.remove([name])
        return content

    def _are_same(self, shard: Path, place: str) -> bool:
        found, own = self.mirror.tree.stat(place), hash_file(shard)
        with suppress(MissingError):
            return found is not None and found.size == own.bytes and self.mirror.tree.sha256(found) == own.sha256
        return False

    def bring_shards(self, files: Iterable[str]) -> None:
        """Have shards here that other machines have brought to their place."""
        build = self.mirror.root / self.name / "build"
        missing = [file for file in files if not (build / file).exists()]
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(lambda file: self.mirror.tree.download(f"{self._version}/{file}", build / file), missing))

    def reopen_shard(self, note: str) -> None:
        """Say that a shard is to be made again."""
        self.mirror.tree.remove([f"{self._work}/shards/{note}"])

    def remembered(self, name: str, value: bytes) -> bytes:
        """The small file of work that somebody wrote first, or `value`, written now."""
        file = f"{self._work}/{name}"
        return value if self.mirror.tree.create(file, value) else self.mirror.tree.read(file)

    def remembered_files(self, folder: Path) -> None:
        """Have the small files of a folder here as those have them who came first."""
        for path in sorted(folder.glob("[!.]*")):  # others are being written
            content = path.read_bytes()
            if (first := self.remembered(path.name, content)) != content:
                with replacing(path) as file:
                    file.write(first)

    def keep_training(self) -> None:
        """Have the checkpoints and logs of a training there too, as far as this machine has them; earlier checkpoints are deleted."""
        tree, folder = self.mirror.tree, self.mirror.root / self.name
        self._check_current()
        work = folder / "work"
        here = [path.relative_to(work).as_posix() for path in work.glob("checkpoints/[!.]*/*") if path.is_file()]
        there = {one.name.removeprefix(f"{self._work}/") for one in tree.files(f"{self._work}/checkpoints")}
        for name, file in _LOGS.items():
            if (folder / file).is_file():
                tree.upload(folder / file, f"{self._work}/{name}")
        for name in sorted(here, key=lambda name: (name.rpartition("/")[2] == "position.json", name)):  # it says that all are there
            if name not in there:
                tree.upload(work / name, f"{self._work}/{name}")
        newest = max((_step(name) for name in here), default="")
        earlier = {name for name in there if _step(name) <= newest}  # another machine, which took this one for dead, may have come further
        tree.remove([f"{self._work}/{name}" for name in sorted(earlier.difference(here))])

    def bring_training(self) -> None:
        """Have the newest checkpoint and the logs of a training here, where another machine came further than this one."""
        tree, folder = self.mirror.tree, self.mirror.root / self.name
        checkpoints = folder / "work" / "checkpoints"
        here = max((path.parent.name for path in checkpoints.glob("step-*/position.json")), default="")
        found = [one.name for one in tree.files(f"{self._work}/checkpoints")]
        newest = max((name.split("/")[-2] for name in found if name.endswith("/position.json")), default="")
        if newest <= here:
            return
        fresh = checkpoints / f".{newest}.brought"
        shutil.rmtree(fresh, ignore_errors=True)
        for name in [name for name in found if name.split("/")[-2] == newest]:
            tree.download(name, fresh / name.rpartition("/")[2])
        for name, file in _LOGS.items():
            if tree.stat(f"{self._work}/{name}"):
                tree.download(f"{self._work}/{name}", folder / file)
        shutil.rmtree(checkpoints / newest, ignore_errors=True)
        fresh.rename(checkpoints / newest)


def _step(checkpoint: str) -> str:
    """The folder of a checkpoint's file, whose name says its step: names are in the order of steps."""
    return checkpoint.split("/")[1]
