"""List the versions in a repository of the Hub by its tags, without downloading data."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from nst_data.errors import NstError
from nst_data.hub.repository import Repository, TooLargeError
from nst_data.sharing.remote_manifest import UntrustedError, manifest_at
from nst_data.store.manifest import Manifest
from nst_data.store.metrics import Metrics
from nst_data.store.places import METRICS_NAME
from nst_data.store.version import Number

_THREADS = 8


@dataclass(frozen=True)
class RemoteVersion:
    """One tag of a repository.

    `manifest` is None if it is not a version of nst or, with a `problem`, cannot be trusted. `top1` is the accuracy on test images.
    """

    tag: str
    commit: str
    manifest: Manifest | None
    top1: float | None = None
    problem: str = ""

    @property
    def teachers(self) -> list[str]:
        """References of the teachers that labeled it."""
        return [entry.ref for _, entry in sorted(self.manifest.request.inputs.teachers.items())] if self.manifest else []

    @property
    def bytes(self) -> int:
        """Total size of its sealed files."""
        return sum(sealed.bytes for sealed in self.manifest.files.values()) if self.manifest else 0

    def as_json(self) -> dict[str, Any]:
        """The version as JSON values."""
        record: dict[str, Any] = {"tag": self.tag, "commit": self.commit}
        if self.manifest:
            record |= {name: getattr(self.manifest, name) for name in ("name", "version", "kind", "digest", "created")}
            record |= {"counts": self.manifest.counts.model_dump(), "teachers": self.teachers, "bytes": self.bytes, "test_top1": self.top1}
        if self.problem:
            record["problem"] = self.problem
        return record


def remote_versions(repo_id: str) -> list[RemoteVersion]:
    """All tags of a dataset or model: versions in order, then other tags. Raises NstError if the Hub has no such repository."""
    repository = Repository.from_id(repo_id).resolve_kind()
    tags = repository.tags()

    def inspect_tag(tag: str) -> RemoteVersion:
        manifest, metrics, problem = None, None, ""
        try:
            manifest = manifest_at(repository, tags[tag])
            metrics = repository.read_text(METRICS_NAME, tags[tag]) if manifest is not None and manifest.kind == "teacher" else None
        except (UntrustedError, TooLargeError) as error:
            problem = str(error)
        return RemoteVersion(tag, tags[tag], manifest, _test_top1(metrics), problem)

    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(inspect_tag, sorted(tags, key=_tag_sort_key)))


def _tag_sort_key(tag: str) -> tuple[bool, tuple[int, ...], str]:
    return (False, Number.parse(tag).sort_key, tag) if Number.is_valid(tag) else (True, (), tag)


def _test_top1(metrics: str | None) -> float | None:
    with contextlib.suppress(NstError):
        return Metrics.parse(metrics or "{}", METRICS_NAME).test_top1
    return None
