"""A version under way in a store at an address: what of its making other machines, or this one after a kill, go on from."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass

from nst_data.errors import NstError
from nst_data.store.leases import Lease, check_nobody_at_work, leased, present
from nst_data.store.manifest import MANIFEST_NAME
from nst_data.store.mirror import AT_ONCE, REQUEST, Mirror

_CHECKPOINTS = "work/checkpoints"
_LOGS = ("build/metrics.jsonl", "build/summary.csv", "work/seconds.json")


@dataclass(frozen=True)
class RemoteRun:
    """A version under way in a store at an address; `name` is its folder there, as in `runs/corpora/flowers/gen-1`."""

    mirror: Mirror
    name: str

    def discard(self) -> None:
        """Delete what is left of it, and the files at its place where it is not sealed."""
        tree, version = self.mirror.tree, self.name.removeprefix("runs/")
        tree.remove([f"{self.name}/{REQUEST}"])  # from now on nobody joins
        tree.remove([one.name for one in tree.files(self.name)])
        if tree.stat(f"{version}/{MANIFEST_NAME}") is None:
            tree.remove([one.name for one in tree.files(version)])

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
        there = {one.name.rpartition("/")[2]: one.name for one in tree.files(f"{self.name}/work/shards")}
        here = {name for name in os.listdir(folder) if name[0] != "."}
        for name in here.difference(there):  # made again by another machine, for images that can be read by now
            (folder / name).unlink(missing_ok=True)
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(
                threads.map(lambda name: tree.download(name, self.mirror.root / name), [there[name] for name in there if name not in here])
            )
        if self.mirror.tree.stat(f"{self.name}/{REQUEST}") is None:
            raise NstError(f"{self.name.removeprefix('runs/')}: was sealed or removed by another process; rerun this command")

    def keep_shard(self, file: str, note: str, content: bytes) -> None:
        """Bring a shard to its place in the version, then say that it is done."""
        self.mirror.tree.upload(self.mirror.root / self.name / "build" / file, f"{self.name.removeprefix('runs/')}/{file}")
        self.mirror.tree.write(f"{self.name}/work/shards/{note}", content)

    def bring_shards(self, files: Iterable[str]) -> None:
        """Have shards here that other machines have brought to their place."""
        version, build = self.name.removeprefix("runs/"), self.mirror.root / self.name / "build"
        missing = [file for file in files if not (build / file).exists()]
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(lambda file: self.mirror.tree.download(f"{version}/{file}", build / file), missing))

    def reopen_shard(self, note: str) -> None:
        """Say that a shard is to be made again."""
        self.mirror.tree.remove([f"{self.name}/work/shards/{note}"])

    def remembered(self, name: str, value: bytes) -> bytes:
        """The small file of work that somebody wrote first, or `value`, written now."""
        file = f"{self.name}/work/{name}"
        return value if self.mirror.tree.create(file, value) else self.mirror.tree.read(file)

    def keep_training(self) -> None:
        """Have the checkpoints and logs of a training there too, as far as this machine has them; earlier checkpoints are deleted."""
        tree, folder = self.mirror.tree, self.mirror.root / self.name
        here = [path.relative_to(folder).as_posix() for path in (folder / _CHECKPOINTS).glob("[!.]*/*") if path.is_file()]
        there = {one.name.removeprefix(f"{self.name}/") for one in tree.files(f"{self.name}/{_CHECKPOINTS}")}
        for name in [name for name in _LOGS if (folder / name).is_file()]:
            tree.upload(folder / name, f"{self.name}/{name}")
        for name in sorted(here, key=lambda name: (name.rpartition("/")[2] == "position.json", name)):  # it says that all are there
            if name not in there:
                tree.upload(folder / name, f"{self.name}/{name}")
        tree.remove([f"{self.name}/{name}" for name in sorted(there.difference(here))])

    def bring_training(self) -> None:
        """Have the checkpoints and logs of a training here that another machine, or an earlier copy here, has left there."""
        tree, root = self.mirror.tree, self.mirror.root
        if (root / self.name / _CHECKPOINTS).is_dir():
            return
        found = [one.name for one in tree.files(f"{self.name}/{_CHECKPOINTS}")]
        whole = {name.rpartition("/")[0] for name in found if name.endswith("/position.json")}
        wanted = [name for name in found if name.rpartition("/")[0] in whole]
        logs = [f"{self.name}/{name}" for name in _LOGS]
        for name in [*[one for one in logs if wanted and tree.stat(one)], *wanted]:
            tree.download(name, root / name)
