"""A self-contained edition that stays on the Hub: what it is, and its shards one by one."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nst_data.errors import NstError, UsageError
from nst_data.hub.repository import Repository
from nst_data.progress import Progress
from nst_data.sharing.pull import find
from nst_data.store.files import hash_file
from nst_data.store.manifest import Input, Manifest

STREAMED = "stream"  # the setting of a training that says so: images come in another order than from disk
_TABLE = "balanced/"
_AT_ONCE = 8


class DamagedShardError(NstError):
    """A shard that is not what its manifest says: to fetch it again would not help."""


@dataclass(frozen=True)
class StreamedEdition:
    """An edition of the Hub at a commit; of it only the manifest is here."""

    repository: Repository
    tag: str
    commit: str
    manifest: Manifest
    schema: pa.Schema

    @classmethod
    def open(cls, reference: str, progress: Progress | None = None) -> Self:
        """The edition that `owner/name[@version]` means. Raises UsageError for one without images, NstError where the Hub fails."""
        edition = cls(*find(reference, "edition"), schema=pa.schema([]))
        if "@" not in reference:
            (progress or Progress()).say(f"{edition.repository.id}: the newest edition is {edition.tag}")
        if not edition.files:
            raise NstError(f"{edition.place}: expected parquet files in {_TABLE}, found none in its manifest")
        with edition._opened(edition.files[0]) as parquet:
            edition = replace(edition, schema=parquet.schema_arrow)
        if "image" not in edition.schema.names:
            raise UsageError(
                f"--stream {edition.place}: this edition holds no images (`nst balance --embed-images` makes one that does); "
                "remove --stream: it is small and pulled, its images come from --pool"
            )
        return edition

    @property
    def ref(self) -> str:
        """name@version, as it would be called in a store."""
        return f"{self.manifest.name}@{self.manifest.version}"

    @property
    def place(self) -> str:
        """`owner/name@tag`."""
        return f"{self.repository.id}@{self.tag}"

    @property
    def lineage(self) -> Input:
        """How it stands in the manifest of what is made from it: as the pulled one would."""
        return Input(ref=self.ref, digest=self.manifest.digest, repo=self.place, revision=self.commit)

    @cached_property
    def files(self) -> list[str]:
        """Its shards, in order."""
        return sorted(name for name in self.manifest.files if name.startswith(_TABLE) and name.endswith(".parquet"))

    def bytes_of(self, shards: int) -> int:
        """What so many of its largest shards take on disk."""
        return sum(sorted((self.manifest.files[name].bytes for name in self.files), reverse=True)[:shards])

    def sizes(self, progress: Progress | None = None) -> NDArray[np.int64]:
        """Images and entries (copies counted) of each shard, shape (shards, 2), int64.

        The manifest has them, or one column of each shard is read. Raises NstError where they are not what the manifest counts in all.
        """
        counts = self.manifest.counts
        try:
            known = [counts["shards"][name] for name in ("images", "entries")] if "shards" in counts else None
            sizes = np.array(known, np.int64).T if known else self._sizes_read(progress or Progress())
            is_sound = sizes.shape == (len(self.files), 2) and sizes.min() >= 0
            is_sound &= sizes.sum(axis=0).tolist() == [counts["unique"], counts["copies"]]
        except (TypeError, ValueError, KeyError, OverflowError):
            is_sound = False
        if not is_sound:
            raise NstError(f"{self.place}: its shards do not hold as many images and entries as its manifest says; it is damaged")
        return sizes

    def _sizes_read(self, progress: Progress) -> NDArray[np.int64]:
        def look(name: str) -> tuple[int, int]:
            with self._opened(name) as parquet:
                copies = parquet.read(["copies"], use_threads=False)["copies"]
                return len(copies), int(pc.sum(copies, min_count=0).as_py())

        found = []
        with progress.task(f"count {self.place}", len(self.files), "shards") as task, ThreadPoolExecutor(_AT_ONCE) as pool:
            for one in pool.map(lambda name: self.repository.asked(lambda: look(name)), self.files):
                found.append(one)
                task.advance(1)
        return np.array(found, np.int64)

    def download(self, shard: int, folder: Path) -> Path:
        """Bring a shard below `folder`. Raises NstError, and leaves it out, where its bytes are not those of the manifest."""
        name = self.files[shard]
        self.repository.download(name, self.commit, folder)
        path = folder / name
        if hash_file(path) != self.manifest.files[name]:
            path.unlink()
            raise DamagedShardError(
                f"{self.place}: {name} is not what its manifest says: it is damaged there or on the way; "
                "nothing of it was used, the same command tries again"
            )
        return path

    @contextmanager
    def _opened(self, name: str) -> Iterator[pq.ParquetFile]:
        """A shard where it is: what is read of it comes over the network."""
        from huggingface_hub import HfFileSystem

        place = f"datasets/{self.repository.id}@{self.commit}/{name}"

        def open_it() -> pq.ParquetFile:
            # in this thread: Arrow's own may still be at it when the program ends, which then aborts
            return pq.ParquetFile(HfFileSystem().open(place, "rb", cache_type="none"), pre_buffer=False)

        try:
            with self.repository.asked(open_it) as parquet:
                yield parquet
        except (pa.ArrowException, KeyError) as error:
            text = str(error).partition("\n")[0]
            raise NstError(f"{self.place}: {name}: expected a shard of an edition, found damage ({text})") from None
