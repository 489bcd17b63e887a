"""The shards of an edition on this disk, and what was made of each beside it, in a folder of its own."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nst_data.store.files import fsync_tree, place_once

Wanted = Callable[[int], Sequence[int]]


@dataclass(frozen=True)
class ShardFolders:
    """Shards that are all here. `prepare(folder, shard)` makes what is wanted of one in its folder, which appears when all is there."""

    folder: Path
    prepare: Callable[[Path, int], None]

    def place(self, shard: int) -> Path:
        """The folder of a shard, where it is here."""
        return self.folder / f"{shard:05d}"

    def wait_for(self, shard: int) -> Path:
        """The folder of a shard, once it is here."""
        return self.place(shard)

    @contextmanager
    def kept(self, start: int, wanted: Wanted) -> Iterator[Callable[[int], None]]:
        """While this lasts, the shards wanted at the position that was reached are here; what is given tells that position."""
        yield lambda position: None

    def add(self, shard: int) -> None:
        """Prepare a shard; another process may have done so."""
        self.folder.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".part.", dir=self.folder))
        try:
            self.prepare(part, shard)
            fsync_tree(part)
            place_once(part, self.place(shard))
        finally:
            shutil.rmtree(part, ignore_errors=True)
