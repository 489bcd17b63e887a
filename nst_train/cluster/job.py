"""The job of a cluster's workers, and the worker itself. Imports neither torch nor Ray."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from nst_data.errors import NstError
from nst_data.sources import Source, open_source
from nst_data.sources.addresses import is_address
from nst_data.sources.patterns import is_pattern, matching_files
from nst_data.sources.streamed import StreamedParquet
from nst_data.store.indexes import Indexes
from nst_data.store.manifest import installed_packages
from nst_train.waiting import wait_passively
from nst_train.zero_shot_settings import ZeroShot

_FOLDER = "local-dir:"


class Work(Protocol):
    """A job that a worker has opened."""

    @property
    def about(self) -> Any:  # noqa: ANN401 - the job's own
        """What the driver needs to know about the job, which must be the same for all workers."""

    def fill(self, shard: int) -> Iterator[int]:
        """Write one shard, whole or not at all, and yield numbers of rows as they are done."""


class Job(Protocol):
    """Work for any number of workers, as names and addresses that each worker opens."""

    def describe_missing(self) -> str:
        """What this machine lacks for the job, such as `lacks the pool /data/pool`; empty if a quick check finds nothing missing."""

    def open(self, threads: int) -> Work:
        """Open the job on this machine. Raises NstError if anything is missing or differs from what the driver has."""


class Worker:
    """A process of the cluster that opens a job once and fills the shards that it is given."""

    def __init__(self, job: Job, threads: int, has_gpu: bool) -> None:
        wait_passively()  # torch reads this setting and the visible GPUs when it is imported
        if not has_gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self._job, self._threads = job, threads
        self._work: Work | None = None

    def open(self) -> Any:  # noqa: ANN401 - the job's own
        """Open the job, and return what the driver needs to know."""
        self._work = self._job.open(self._threads)
        return self._work.about

    def fill(self, shard: int) -> Iterator[int]:
        """Write one shard, and yield numbers of rows as they are done."""
        assert self._work is not None, "opened first"
        yield from self._work.fill(shard)

    def ask(self, method: str) -> Any:  # noqa: ANN401 - the work's own
        """Call another method of the opened job."""
        return getattr(self._work, method)()


@dataclass(frozen=True)
class SourceAddress:
    """The location of a source, from which workers open it again."""

    location: str
    image_column: str | None
    stream: bool
    digest: str
    stamp: str = ""  # only of a remote address, where it is the same on all machines

    @classmethod
    def from_source(cls, source: Source) -> Self:
        """The place of an open source."""
        stamp = source.stamp if is_address(source.location) else ""
        return cls(source.location, source.image_column, isinstance(source, StreamedParquet), source.fingerprint, stamp)

    def describe_missing(self) -> str:
        """What a quick check finds missing on this machine; always empty unless the location is an absolute local path."""
        path = Path(self.location)
        if not path.is_absolute() or path.exists() or (is_pattern(self.location) and _has_match(self.location)):
            return ""
        return f"lacks the pool {self.location}"

    def open(self, indexes: Indexes | Path) -> Source:
        """Open the source. Raises NstError if it has other images on this machine."""
        options: dict[str, Any] = {"image_column": self.image_column, "stream": self.stream, "indexes": indexes}
        source = open_source(self.location, digest=self.digest, stamp=self.stamp, **options)
        if source.fingerprint != self.digest or self.stamp not in ("", source.stamp):
            raise NstError(
                f"the pool {self.location} has different files than where the command was started ({len(source):,} images); "
                "give all nodes the same files"
            )
        return source


def describe_missing_teacher(model: str | ZeroShot) -> str:
    """What this machine lacks of a model in a local folder; empty if nothing."""
    name = str(model)
    return f"lacks the teacher {name}" if name.startswith(_FOLDER) and not Path(name.removeprefix(_FOLDER)).is_dir() else ""


def portable_model(model: str | ZeroShot) -> str | ZeroShot:
    """A model name that works in any working folder, with class names and prompts in place of the files that contain them."""
    name = str(model)
    if name.startswith(_FOLDER):
        name = f"{_FOLDER}{Path(name.removeprefix(_FOLDER)).absolute()}"
    if isinstance(model, str):
        return name
    return ZeroShot(model=name, class_names={key: list(terms) for key, terms in model.synonyms.items()}, prompts=list(model.templates))


def check_machine(job: Job, packages: Mapping[str, str]) -> str:
    """What this process's machine lacks for a job, packages included; empty if a quick check finds nothing missing."""
    installed = installed_packages()
    for name in dict.fromkeys([*installed, *packages]):
        if installed.get(name) != packages.get(name):
            actual, expected = (f"{name} {versions[name]}" if name in versions else f"no {name}" for versions in (installed, packages))
            return f"has {actual} where the driver has {expected}; equal bytes need equal packages"
    return job.describe_missing()


def _has_match(pattern: str) -> bool:
    try:
        return bool(matching_files(pattern))
    except NstError:
        return False
