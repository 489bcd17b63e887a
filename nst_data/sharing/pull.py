"""`nst pull`: download a version from the Hub into the store, verifying each file against the checksum in its manifest.

Files are downloaded directly into the store, without a second copy in the Hub's cache. If interrupted, the same command resumes.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

from nst_data.arguments import with_checked_arguments
from nst_data.errors import NstError, UsageError
from nst_data.hub.quiet import quiet
from nst_data.hub.repository import Repository
from nst_data.progress import Progress, terminal_progress
from nst_data.sharing.remote_manifest import manifest_at
from nst_data.store.files import discard, fsync_tree, hash_file, write_text
from nst_data.store.manifest import MANIFEST_NAME, Kind, Manifest
from nst_data.store.metrics import Metrics
from nst_data.store.ownership import hold_ownership, ownership_path
from nst_data.store.places import METRICS_NAME, PLACES_NAME, Place, record_place
from nst_data.store.store import PULLS_FOLDER, Store, check_name
from nst_data.store.version import Number, Version

# files of a version that are not sealed
_UNSEALED_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.(md|png|csv|jsonl)|metrics\.json", re.ASCII)
_MAX_UNSEALED_BYTES = 64 * 2**20
_DOWNLOAD_THREADS = 8


def find_remote_version(reference: str, *kinds: Kind) -> tuple[Repository, str, str, Manifest]:
    """The version that `owner/name[@revision]` refers to: (repository, tag or commit, commit, manifest). Downloads only the manifest.

    Without a revision, this is the tag with the highest version number among the given kinds; for a branch, which moves, the commit
    replaces the tag. Raises NstError or UsageError.
    """
    parsed = Repository.parse(reference)
    if parsed is None:
        raise UsageError(
            f"{reference}: expected OWNER/NAME of the Hub, with @VERSION for another than the newest, as in alice/flowers@gen-1.1"
        )
    repository, revision = parsed
    if kinds == ("teacher",):
        repository = Repository(repository.id, "model")
    elif not kinds:
        repository = repository.resolve_kind()
    tags = repository.tags()
    if revision is None:
        revision = _newest_tag(tags, kinds)
        if revision is None:
            hint = f"; there is {', '.join(sorted(tags)[:10])}" if tags else ""
            expected = " or ".join(kinds) or "version"
            tag = "review-N" if kinds == ("review",) else "gen-N or gen-N.K"
            raise NstError(f"{repository.id}: expected a tag {tag} of a {expected}, found none{hint}; name a revision, or `adopt(...)` it")
    try:
        commit = tags.get(revision) or repository.commit_of(revision)
    except NstError as error:
        hint = f"; it has {', '.join(sorted(tags)[-10:])}" if tags else ""
        raise NstError(f"{error}{hint}") from None
    manifest = manifest_at(repository, commit)
    if manifest is None:
        raise NstError(
            f"{repository.id}@{revision}: expected a version of nst with {MANIFEST_NAME}, found none; "
            "`adopt(...)` imports pseudo-labels made elsewhere"
        )
    if kinds and manifest.kind not in kinds:
        raise UsageError(f"{repository.id}@{revision}: expected {' or '.join(kinds)}, found a {manifest.kind}; choose another version")
    return repository, revision if revision in tags else commit, commit, manifest


def _newest_tag(tags: Mapping[str, str], kinds: Sequence[Kind]) -> str | None:
    """The tag with the highest version number among those possible for these kinds, or None if there is none."""
    numbers = {tag: Number.parse(tag) for tag in tags if Number.is_valid(tag)}
    candidates = [tag for tag, number in numbers.items() if not kinds or _kinds_of(number) & set(kinds)]
    return max(candidates, key=lambda tag: numbers[tag].sort_key, default=None)


def _kinds_of(number: Number) -> set[Kind]:
    if number.is_review:
        return {"review"}
    return {"generation", "teacher"} if number.edition is None else {"edition"}


@with_checked_arguments
def pull(store: Store, reference: str, *, name: str | None = None, kinds: Sequence[Kind] = (), progress: Progress | None = None) -> Version:
    """Download a version from the Hub into the store, verifying each file's checksum. If interrupted, the same call resumes.

    Args:
        store: The store to add it to.
        reference: `owner/name@version`; without a version the newest.
        name: Its name in the store; by default the one in its manifest.
        kinds: The allowed kinds, of generation, edition, review, teacher; by default any.
        progress: How progress is shown; by default lines on standard error.

    Returns:
        The version in the store, where it may already have existed.

    Raises:
        UsageError: The reference names nothing of these kinds.
        NstError: A file does not match its checksum (nothing is kept then), the name is taken, or the Hub refuses.
    """
    progress = progress or terminal_progress()
    repository, revision, commit, manifest = find_remote_version(reference, *kinds)
    if "@" not in reference:
        progress.say(f"{repository.id}: the newest version is {revision}")
    name = check_name(name or manifest.name)
    folder = store.root / "runs" / PULLS_FOLDER / name / manifest.version
    folder.parent.mkdir(parents=True, exist_ok=True)
    sign = hold_ownership(
        ownership_path(folder), f"{name}@{manifest.version}", progress.say, wait=True
    )  # processes that waited find it in the store
    with sign, quiet("huggingface_hub.utils"):
        version = find_existing(store, name, manifest)
        place = Place(repository.id, revision, commit, manifest.digest, pulled=version is None)
        if version is None:
            _check_sizes(repository, commit, manifest)
            check_space(store, manifest, folder)
            version = _download(store, repository, commit, manifest, name, folder, replace(place, pulled=True), progress)
        else:
            discard(folder)
            progress.say(f"{version.ref} already exists: same content")
        record_place(version.local_folder, place)
        version.publish_unsealed(PLACES_NAME)
    return version


def find_existing(store: Store, name: str, manifest: Manifest) -> Version | None:
    """The version if the store already has it, else None. Raises NstError if other content, sealed or in progress, has its number."""
    store.check_name_available(name, manifest.kind)
    for version in store.versions(name):
        if str(version.number) == manifest.version:
            if version.is_readable and version.manifest.digest == manifest.digest:
                return version
            raise NstError(
                f"{version.ref} exists in {store.location} with different content; give the pulled one another name: "
                "`pull(store, 'OWNER/NAME@VERSION', name='NAME')`"
            )
    for staging in store.stagings(name):
        if staging.target.name == manifest.version and staging.request.digest != manifest.request.digest:
            raise NstError(f"{staging.ref} is in progress in {store.location} with different content; pull under another name: `name` NAME")
    return None


def _check_sizes(repository: Repository, commit: str, manifest: Manifest) -> None:
    """Raise NstError, before anything is downloaded, if file sizes on the Hub differ from the manifest."""
    sizes = repository.file_sizes(commit, recursive=True)
    for name, sealed in sorted(manifest.files.items()):
        if sizes.get(name) != sealed.bytes:
            problem = "is not there" if name not in sizes else f"has {sizes[name]:,} bytes, its manifest says {sealed.bytes:,}"
            raise NstError(f"{repository.id}@{commit[:12]}: {name} {problem}: damaged or malicious; nothing was kept")


def check_space(store: Store, manifest: Manifest, folder: Path) -> None:
    """Raise NstError if the disk has no room for the files that are not yet in `folder`."""
    existing = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    needed, free = sum(sealed.bytes for sealed in manifest.files.values()), shutil.disk_usage(store.root).free + existing
    if needed > free:
        raise NstError(
            f"{manifest.name}@{manifest.version} takes {needed / 1e9:,.1f} GB, {store.root} has {free / 1e9:,.1f} GB left; make room"
        )


def _download(
    store: Store, repository: Repository, commit: str, manifest: Manifest, name: str, folder: Path, place: Place, progress: Progress
) -> Version:
    if (folder / "commit").is_file() and (folder / "commit").read_text("utf-8") != f"{repository.id} {commit}":
        discard(folder)  # left over from another version of the same number
    build = folder / "build"
    build.mkdir(parents=True, exist_ok=True)
    write_text(folder / "commit", f"{repository.id} {commit}")
    total = sum(sealed.bytes for sealed in manifest.files.values())
    with progress.task(f"pull {name}@{manifest.version}", total, "bytes") as task, ThreadPoolExecutor(_DOWNLOAD_THREADS) as threads:
        files_by_future = {threads.submit(_fetch, repository, commit, build, file): file for file in sorted(manifest.files)}
        try:
            for future in as_completed(files_by_future):
                future.result()
                sealed = manifest.files[files_by_future[future]]
                if hash_file(build / files_by_future[future]) != sealed:
                    raise _DamagedError(files_by_future[future])
                task.advance(sealed.bytes)
        except BaseException as error:
            threads.shutdown(wait=True, cancel_futures=True)
            if not isinstance(error, _DamagedError):
                raise
            discard(folder)
            raise NstError(
                f"{repository.id}@{commit[:12]}: {error} does not match its manifest: damaged on the server or in transit; "
                "nothing was kept; pull it again"
            ) from None
    for file in _unsealed_files(repository, commit):
        _fetch(repository, commit, build, file)
    _delete_invalid_metrics(build)
    shutil.rmtree(build / ".cache", ignore_errors=True)
    write_text(build / MANIFEST_NAME, manifest.model_copy(update={"name": name}).model_dump_json(indent=2) + "\n")
    record_place(build, place)  # placed together with it: nothing is ever opened because a pulled manifest names it
    fsync_tree(build)
    target = store.version_folder(manifest.kind, name, manifest.version)
    target.parent.mkdir(parents=True, exist_ok=True)
    version = store.install_version(build, target)
    discard(folder)
    if version.manifest.digest != manifest.digest:
        raise NstError(f"{version.ref} was created meanwhile with different content; pull under another name: `name` NAME")
    return version


class _DamagedError(Exception):
    """A file does not match its checksum."""


def _fetch(repository: Repository, commit: str, folder: Path, file: str) -> None:
    repository.download(file, commit, folder)


def _unsealed_files(repository: Repository, commit: str) -> list[str]:
    """The card, pictures, metrics and logs of a version: small files with plain names."""
    sizes = repository.file_sizes(commit, recursive=True)
    files = [path for path in sizes if _UNSEALED_FILE.fullmatch(path) and path != PLACES_NAME]
    return sorted(files) if sum(sizes[path] for path in files) < _MAX_UNSEALED_BYTES else []


def _delete_invalid_metrics(folder: Path) -> None:
    """Remove the metrics file if it is not valid: metrics are not sealed, so no checksum covers it."""
    try:
        Metrics.read(folder)
    except NstError:
        (folder / METRICS_NAME).unlink()
