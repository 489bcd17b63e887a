"""Self-contained editions that stay on the Hub or at a URL: their metadata, and their shards one by one."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nst_data.errors import NstError, UsageError
from nst_data.hub.quiet import quiet
from nst_data.hub.repository import MAX_TEXT_BYTES, Repository
from nst_data.progress import Progress
from nst_data.self_contained.edition import SelfContainedEdition
from nst_data.self_contained.shard_folders import Prepare
from nst_data.self_contained.shard_window import DamagedShardError, ShardWindow
from nst_data.sharing.pull import find_remote_version
from nst_data.sources.range_file import RangeFile
from nst_data.store.file_tree import FileTree, MissingFileError
from nst_data.store.files import PID_NAMESPACE, hash_file
from nst_data.store.inputs import Input
from nst_data.store.manifest import MANIFEST_NAME, EditionManifest, content_digest, parse_manifest

T = TypeVar("T")

_SHARD_NAME = "shard.parquet"


@dataclass(frozen=True)
class StreamedEdition(SelfContainedEdition):
    """An edition on the Hub at a commit, or at a URL; only its manifest is local. `location` is `owner/name@tag`, or the URL."""

    tree: FileTree
    repository: Repository | None = None
    commit: str | None = None
    _count_threads: ClassVar[int] = 8

    @classmethod
    def open(cls, reference: str, progress: Progress | None = None) -> Self:
        """Open the edition named by `owner/name[@version]` or by a URL such as `s3://bucket/store/corpora/flowers/gen-1.1`.

        Raises UsageError if it has no images, NstError if the server fails or there is no edition.
        """
        tree = FileTree.parse(reference)
        if tree is not None:
            edition = cls(tree.address, "restore it", "", _read_manifest(tree), pa.schema([]), tree)
        else:
            repository, tag, commit, manifest = find_remote_version(reference, "edition")
            tree = FileTree(f"hf://datasets/{repository.id}@{commit}")
            place = f"{repository.id}@{tag}"
            edition = cls(place, "tell its owner", "", EditionManifest.from_manifest(manifest), pa.schema([]), tree, repository, commit)
            if "@" not in reference:
                (progress or Progress()).say(f"{repository.id}: the newest edition is {tag}")
        if not edition.files:
            raise NstError(f"{edition.location}: expected parquet files in balanced/, found none in its manifest")
        with edition._open_shard(edition.files[0]) as parquet:
            edition = replace(edition, schema=parquet.schema_arrow)
        if "image" not in edition.schema.names:
            raise UsageError(
                f"`stream` {edition.location}: this edition holds no images "
                "(`balance(..., BalanceSettings(embed_images=True))` makes one that does); "
                "remove `stream`: it is small and pulled, its images come from `pool`"
            )
        return edition

    @property
    def ref(self) -> str:
        """name@version, as in a store."""
        return f"{self.manifest.name}@{self.manifest.version}"

    @property
    def lineage(self) -> Input:
        """The edition as an input in the manifests of what is made from it, just as if it had been pulled."""
        on_hub = {"repo": self.location, "revision": self.commit} if self.repository else {}
        return Input(ref=self.ref, digest=self.manifest.digest, **on_hub)

    def shards(self, work: Path, prepare: Prepare, starts: NDArray[np.int64], max_shards: int, process: int, processes: int) -> ShardWindow:
        """A window of a few shards at a time, downloaded as they are needed; each machine has its own."""
        window = ShardWindow(work / f"stream-{PID_NAMESPACE}", prepare, starts, self.location, process, processes)
        window.reset()
        needed = sum(sorted((self.manifest.files[name].bytes for name in self.files), reverse=True)[:max_shards])
        present, free = (path.stat().st_size for path in window.folder.rglob("*") if path.is_file()), shutil.disk_usage(window.folder).free
        if needed > free + sum(present):
            raise NstError(
                f"{self.location}: up to {needed / 1e9:,.1f} GB of its shards are kept in {window.folder} at once, "
                f"{free / 1e9:,.1f} GB are left there"
            )
        return window

    def shard_path(self, shard: int, folder: Path) -> Path:
        """The shard file, next to the columns prepared from it."""
        return folder / _SHARD_NAME

    def fetch_shard(self, shard: int, folder: Path) -> Path:
        """Download a shard. If its bytes do not match the manifest, it is deleted and NstError is raised."""
        name = self.files[shard]
        if self.repository is None or self.commit is None:
            self.tree.download(name, folder / name)
        else:
            with quiet("huggingface_hub.utils"):
                self.repository.download(name, self.commit, folder)
        path = folder / name
        if hash_file(path) != self.manifest.files[name]:
            path.unlink()
            raise DamagedShardError(
                f"{self.location}: {name} does not match its manifest: damaged on the server or in transit; "
                "it was not used; run the same command again"
            )
        path.rename(folder / _SHARD_NAME)
        for subfolder in [child for child in folder.iterdir() if child.is_dir()]:  # created by the download
            shutil.rmtree(subfolder)
        return folder / _SHARD_NAME

    def _shard_size(self, name: str) -> tuple[int, int]:
        return self._read_with_retries(partial(super()._shard_size, name))

    @contextmanager
    def _open_shard(self, name: str) -> Iterator[pq.ParquetFile]:
        """Open a shard over the network, which reads only the requested parts."""

        def open_file() -> pq.ParquetFile:
            # pre_buffer off: Arrow's own threads may still be reading when the program exits, which aborts it
            return pq.ParquetFile(RangeFile(self.tree, name, self.manifest.files[name].bytes), pre_buffer=False)

        try:
            with self._read_with_retries(open_file) as parquet:
                yield parquet
        except (pa.ArrowException, KeyError) as error:
            text = str(error).partition("\n")[0]
            raise NstError(f"{self.location}: {name}: expected a shard of an edition, found damage ({text})") from None

    def _read_with_retries(self, call: Callable[[], T]) -> T:
        return self.repository.read_with_retries(call) if self.repository else call()


def _read_manifest(tree: FileTree) -> EditionManifest:
    """Read the manifest of an edition at a URL, marked as pulled so that none of the locations it names is opened."""
    try:
        text = tree.read(MANIFEST_NAME, 0, MAX_TEXT_BYTES + 1)
    except MissingFileError:
        raise NstError(f"{tree.address}: expected the folder of an edition with {MANIFEST_NAME}, found none") from None
    if len(text) > MAX_TEXT_BYTES:
        raise NstError(f"{tree.address_of(MANIFEST_NAME)}: has more than {MAX_TEXT_BYTES / 2**20:,.0f} MB, which no manifest of nst has")
    manifest = parse_manifest(text.decode(errors="replace"), tree.address_of(MANIFEST_NAME))
    if manifest.kind != "edition":
        raise UsageError(f"{tree.address}: expected an edition, found a {manifest.kind}")
    if content_digest(manifest.request, manifest.files, manifest.class_names) != manifest.digest:
        raise NstError(f"{tree.address_of(MANIFEST_NAME)}: its digest is not that of its settings, inputs and files; it is damaged")
    return EditionManifest.from_manifest(manifest.marked_as_pulled())
