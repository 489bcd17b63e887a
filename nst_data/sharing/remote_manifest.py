"""Read the manifest of a version on the Hub, and validate it before anything in it is used."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic_core import PydanticSerializationError

from nst_data.errors import NstError, UsageError
from nst_data.hub.repository import RepoKind, Repository, TooLargeError
from nst_data.safe_names import fold_name
from nst_data.store.manifest import MANIFEST_NAME, Kind, Manifest, content_digest, parse_manifest
from nst_data.store.places import METRICS_NAME, PLACES_NAME, READ_FOLDER
from nst_data.store.store import check_name
from nst_data.store.version import Number

_UNSEALED_NAMES = (MANIFEST_NAME, PLACES_NAME, METRICS_NAME, READ_FOLDER)
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d")
# an adapter_config.json, for example, would make transformers load whatever it names
_TEACHER_FILE = re.compile(r"config\.json|preprocessor_config\.json|[A-Za-z0-9][A-Za-z0-9_.-]*\.safetensors(\.index\.json)?", re.ASCII)
_CORPUS_FILE = re.compile(r"([A-Za-z0-9_]+/)?[A-Za-z0-9][A-Za-z0-9_.-]*\.(parquet|safetensors|json|txt)", re.ASCII)


class UntrustedError(NstError):
    """A manifest on the Hub is damaged, malicious or from a later version of nst."""


def repo_kind(kind: Kind) -> RepoKind:
    """The type of repository for a kind of version: teachers are models, everything else is a dataset."""
    return "model" if kind == "teacher" else "dataset"


def manifest_at(repository: Repository, commit: str) -> Manifest | None:
    """The manifest at a commit, marked as pulled; None if the repository has none of nst's.

    Raises UntrustedError for a manifest that cannot be trusted.
    """
    try:
        text = repository.read_text(MANIFEST_NAME, commit)
    except TooLargeError as error:
        raise UntrustedError(str(error)) from None
    if text is None:
        return None
    try:
        manifest = parse_manifest(text, f"{repository.id}@{commit[:12]}: {MANIFEST_NAME}")
        check_remote_manifest(manifest, repository)
        manifest.model_dump_json()
    except NstError as error:
        raise UntrustedError(str(error)) from None
    except PydanticSerializationError:
        raise UntrustedError(f"{repository.id}: its manifest is nested too deeply; nothing was kept") from None
    return manifest.marked_as_pulled()


def check_remote_manifest(manifest: Manifest, repository: Repository) -> None:
    """Raise NstError for a downloaded manifest with anything that nst does not write, such as names that lead out of the store."""
    try:
        check_name(manifest.name)
        number = Number.parse(manifest.version)
        is_number = str(number) == manifest.version and number.is_review == (manifest.kind == "review")
    except UsageError:
        is_number = False
    pattern = _TEACHER_FILE if manifest.kind == "teacher" else _CORPUS_FILE
    foreign_name = next(
        (name for name in manifest.files if not pattern.fullmatch(name) or fold_name(name.partition("/")[0]) in _UNSEALED_NAMES), None
    )
    first, second = _find_colliding_names(manifest.files)
    if not is_number:
        problem = f"the name {manifest.name[:40]!r} and version {manifest.version[:40]!r}"
    elif repo_kind(manifest.kind) != repository.kind:
        problem = f"a {manifest.kind} in a {repository.kind} repository"
    elif foreign_name is not None:
        problem = f"the file name {foreign_name[:80]!r}"
    elif first != second:
        problem = f"the names {first[:80]!r} and {second[:80]!r}, which are one on some disks"
    elif not all(text.isprintable() for text in _iter_strings(manifest.model_dump())):
        problem = "a name that holds control characters"
    elif not _DATE.match(manifest.created):
        problem = "no date"
    elif content_digest(manifest.request, manifest.files, manifest.class_names) != manifest.digest:
        problem = "a digest that is not that of its settings, inputs and files"
    else:
        return
    raise NstError(f"{repository.id}: its manifest has {problem}, which nst does not write: damaged or malicious; nothing was kept")


def _find_colliding_names(files: Iterable[str]) -> tuple[str, str]:
    """Two names of files or folders that differ only in case; two empty strings if there are none."""
    seen: dict[str, str] = {}
    for name in files:
        for path in (name.partition("/")[0], name):
            if seen.setdefault(fold_name(path), path) != path:
                return seen[fold_name(path)], path
    return "", ""


def _iter_strings(value: Any) -> Iterator[str]:  # noqa: ANN401 - any JSON value
    """All strings in a value, including keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from (str(key), *_iter_strings(item))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _iter_strings(item)
