"""`nst copy`: copy a version from one store into another, verifying every checksum; stores may be folders or at addresses."""

from collections.abc import Sequence
from pathlib import Path

from nst_data.arguments import with_checked_arguments
from nst_data.errors import NstError
from nst_data.progress import Progress, terminal_progress
from nst_data.sharing.pull import check_space, find_existing
from nst_data.store.copying import copy_file, copy_verified
from nst_data.store.files import discard, fsync_tree, hash_file, write_text
from nst_data.store.manifest import Kind
from nst_data.store.ownership import hold_ownership, ownership_path
from nst_data.store.store import PULLS_FOLDER, Store
from nst_data.store.version import Version


@with_checked_arguments
def copy(
    store: Store, version: Version | str, destination: Store, *, kinds: Sequence[Kind] = (), progress: Progress | None = None
) -> Version:
    """Copy a sealed version into another store, under the same name and number. If interrupted, the same call resumes.

    Its inputs are not copied.

    Args:
        store: The store that holds the version.
        version: The version, or its `name@gen-N`, `name@gen-N.K` or `name@review-N`; a name alone means its newest one.
        destination: The store to copy it to.
        kinds: The allowed kinds, of generation, edition, review, teacher; by default any.
        progress: How progress is shown; by default lines on standard error.

    Returns:
        The version in the other store, where it may already have existed.

    Raises:
        UsageError: There is no such version.
        NstError: A file does not match its checksum (nothing is kept then), the number is taken there, or the disk is too full.
    """
    progress, version = progress or terminal_progress(), store.open(version, *kinds)
    manifest, name = version.manifest, version.name
    run = destination.root / "runs" / PULLS_FOLDER / name / version.local_folder.name
    run.parent.mkdir(parents=True, exist_ok=True)
    with hold_ownership(ownership_path(run), version.ref, progress.say, wait=True):
        existing = find_existing(destination, name, manifest)
        if existing is not None:
            discard(run)
            progress.say(f"{existing.ref} already exists in {destination.location}: same content")
            return existing
        check_space(destination, manifest, run)
        _prepare_run(run, manifest.digest)
        total = sum(sealed.bytes for sealed in manifest.files.values())
        with progress.task(f"copy {version.ref}", total, "bytes") as task:
            for file, sealed in manifest.files.items():
                target = run / "build" / file
                if not (target.is_file() and hash_file(target) == sealed) and not copy_verified(version.folder / file, target, sealed):
                    discard(run)
                    raise NstError(f"{version.ref}: {file} does not match its manifest; nothing was kept; restore it and copy again")
                task.advance(sealed.bytes)
        for path in [path for path in version.folder.rglob("*") if path.is_file() and path.name[0] != "."]:
            file = path.relative_to(version.folder).as_posix()
            if file not in manifest.files:
                copy_file(path, run / "build" / file)
        fsync_tree(run / "build")
        target = destination.version_folder(manifest.kind, name, manifest.version)
        target.parent.mkdir(parents=True, exist_ok=True)
        copied = destination.install_version(run / "build", target)
        discard(run)
    if copied.manifest.digest != manifest.digest:
        raise NstError(f"{copied.ref} was created in {destination.location} meanwhile with different content")
    return copied


def _prepare_run(run: Path, digest: str) -> None:
    """Keep the files already copied if they belong to this version; otherwise start from scratch."""
    mark = run / "digest"
    if not mark.is_file() or mark.read_text("utf-8") != digest:
        discard(run)
        (run / "build").mkdir(parents=True)
        write_text(mark, digest)
