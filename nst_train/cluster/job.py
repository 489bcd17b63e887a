"""What a worker of a cluster is told to do, and the worker itself. Imports neither torch nor Ray."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from nst_data.errors import NstError
from nst_data.sources import Source, open_source
from nst_data.sources.addresses import is_address
from nst_data.sources.patterns import is_pattern, matching
from nst_data.sources.streamed import StreamedParquet
from nst_data.store.indexes import Indexes
from nst_data.store.manifest import installed_packages
from nst_train.waiting import wait_passively
from nst_train.zero_shot_settings import ZeroShot

_FOLDER = "local-dir:"


class Work(Protocol):
    """A job, opened: what one worker does of it."""

    @property
    def about(self) -> Any:  # noqa: ANN401 - the job's own
        """What its driver has to know, and all workers agree on."""

    def fill(self, shard: int) -> Iterator[int]:
        """Write one shard, whole or not at all; gives how many rows more are done."""


class Job(Protocol):
    """Work for any number of workers, as names and addresses that each of them opens by itself."""

    def lacking(self) -> str:
        """What this machine lacks for it, such as `lacks the pool /data/pool`; empty where a quick look finds nothing amiss."""

    def open(self, threads: int) -> Work:
        """Open all of it here. Raises NstError where something is not there, or is another thing than the driver has."""


class Worker:
    """A process of the cluster that has opened a job once and fills the shards that it is given."""

    def __init__(self, job: Job, threads: int, has_gpu: bool) -> None:
        wait_passively()  # this and the GPUs are read when torch is imported
        if not has_gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self._job, self._threads = job, threads
        self._work: Work | None = None

    def open(self) -> Any:  # noqa: ANN401 - the job's own
        """What the driver has to know."""
        self._work = self._job.open(self._threads)
        return self._work.about

    def fill(self, shard: int) -> Iterator[int]:
        """Write one shard."""
        assert self._work is not None, "opened first"
        yield from self._work.fill(shard)

    def ask(self, method: str) -> Any:  # noqa: ANN401 - the work's own
        """What else the work can do."""
        return getattr(self._work, method)()


@dataclass(frozen=True)
class PlaceOfImages:
    """Where a source is, for a worker that opens it anew."""

    location: str
    image_column: str | None
    stream: bool
    digest: str
    stamp: str = ""  # at an address, where it is the same on each machine

    @classmethod
    def of(cls, source: Source) -> Self:
        """That of an open one."""
        stamp = source.stamp if is_address(source.location) else ""
        return cls(source.location, source.image_column, isinstance(source, StreamedParquet), source.fingerprint, stamp)

    def lacking(self) -> str:
        """What a quick look at this machine finds amiss; of what is not a local path nothing."""
        there = Path(self.location)
        if not there.is_absolute() or there.exists() or (is_pattern(self.location) and _matches(self.location)):
            return ""
        return f"lacks the pool {self.location}"

    def open(self, indexes: Indexes | Path) -> Source:
        """Open it. Raises NstError where it holds other images here."""
        how: dict[str, Any] = {"image_column": self.image_column, "stream": self.stream, "indexes": indexes}
        source = open_source(self.location, digest=self.digest, stamp=self.stamp, **how)
        if source.fingerprint != self.digest or self.stamp not in ("", source.stamp):
            raise NstError(
                f"the pool {self.location} has different files than where the command was started ({len(source):,} images); "
                "give all nodes the same files"
            )
        return source


def folder_lacking(model: str | ZeroShot) -> str:
    """What this machine lacks of a model that lies in a folder."""
    name = str(model)
    return f"lacks the teacher {name}" if name.startswith(_FOLDER) and not Path(name.removeprefix(_FOLDER)).is_dir() else ""


def as_anywhere(model: str | ZeroShot) -> str | ZeroShot:
    """A model as it is named in another working folder, with the words of its classes in place of the files that hold them."""
    name = str(model)
    if name.startswith(_FOLDER):
        name = f"{_FOLDER}{Path(name.removeprefix(_FOLDER)).absolute()}"
    if isinstance(model, str):
        return name
    return ZeroShot(model=name, class_names={key: list(words) for key, words in model.synonyms.items()}, prompts=list(model.templates))


def look_around(job: Job, packages: Mapping[str, str]) -> str:
    """What the machine of this process lacks for a job; empty where a quick look finds nothing amiss."""
    here = installed_packages()
    for name in dict.fromkeys([*here, *packages]):
        if here.get(name) != packages.get(name):
            found, expected = (f"{name} {one[name]}" if name in one else f"no {name}" for one in (here, packages))
            return f"has {found} where the driver has {expected}; equal bytes need equal packages"
    return job.lacking()


def _matches(pattern: str) -> bool:
    try:
        return bool(matching(pattern))
    except NstError:
        return False
