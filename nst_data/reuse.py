"""Reuse versions made earlier under another name: the same settings and inputs give the same version."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from nst_data.cards import cards
from nst_data.cards.described import Described
from nst_data.errors import NstError
from nst_data.progress import Progress
from nst_data.store.copying import copy_file, copy_verified
from nst_data.store.files import discard, fsync_tree, write_text
from nst_data.store.manifest import MANIFEST_NAME, Manifest, Request, content_digest, json_digest
from nst_data.store.ownership import hold_ownership, ownership_path
from nst_data.store.places import PLACES_NAME, may_be_pulled
from nst_data.store.store import PULLS_FOLDER, Number, Store, Version
from nst_data.store.version import VERSION_REF

ALREADY_EXISTS = "already exists"
_NOT_COPIED = (MANIFEST_NAME, PLACES_NAME, "README.md")  # files that each name has its own copy of


@dataclass(frozen=True)
class ReusableVersions:
    """The versions of a store, looked up by what was requested instead of by name. Versions from the Hub are not included."""

    store: Store

    @cached_property
    def versions(self) -> list[Version]:
        """The versions that may be reused."""
        return [version for version in self.store.versions() if version.is_readable and not may_be_pulled(version.local_folder)]

    def find(self, request: Request) -> Version | None:
        """A version made by an equivalent request; None if there is none."""
        form = self._equivalence_key(request)
        return next((version for version in self.versions if self._equivalence_key(version.manifest.request) == form), None)

    def data_digest(self, digest: str) -> str:
        """A digest of the content of the version with this digest; the digest itself if the store has no such version."""
        return self._data_digests.get(digest, digest)

    @cached_property
    def _data_digests(self) -> dict[str, str]:
        return {version.manifest.digest: _data_digest(version.manifest) for version in self.versions}

    def _equivalence_key(self, request: Request) -> str:
        """Equal for requests of the same work. The version a training starts from is ignored as a setting: its weights are an input."""
        inputs = {role: self.data_digest(entry.digest) for role, entry in request.inputs.by_role.items()}
        settings = request.identity
        if "initial_weights" in inputs and VERSION_REF.fullmatch(str(settings.get("start"))):
            del settings["start"]
        return json_digest({"kind": request.kind, "settings": settings, "inputs": inputs})


def reuse(
    store: Store,
    request: Request,
    name: str,
    number: Number | None,
    progress: Progress,
    check: Callable[[Version], None],
) -> str:
    """Reuse a version made under another name for the one requested, if the store comes from `Store.with_reuse`.

    Files share disk space if possible. Does nothing if the requested version exists or is in progress, or if no equivalent version exists.
    If that is damaged or, as `check` reports by raising NstError, its images have changed since, the version is made from scratch.

    Returns:
        How the version came to exist, for use in a message.
    """
    if not store.reuses or number is None or _exists(store, request, name, number):
        return ALREADY_EXISTS
    existing = ReusableVersions(store).find(request)
    if existing is None:
        return ALREADY_EXISTS
    ref, run = f"{name}@{number}", store.root / "runs" / PULLS_FOLDER / name / str(number)
    try:
        check(existing)
    except NstError:
        progress.say(f"{ref} is not reused from {existing.ref}, whose images have changed since")
        return ALREADY_EXISTS
    run.parent.mkdir(parents=True, exist_ok=True)
    with hold_ownership(ownership_path(run), ref, progress.say, wait=True):
        discard(run)
        if _exists(store, request, name, number):
            return ALREADY_EXISTS
        try:
            if not _build_copy(existing, request, name, number, store, progress):
                progress.say(f"warning: {existing.ref} is damaged, so {ref} is made again")
                return ALREADY_EXISTS
            target = store.version_folder(request.kind, name, str(number))
            target.parent.mkdir(parents=True, exist_ok=True)
            store.install_version(run / "build", target)
        finally:
            discard(run)
    return f"is reused from {existing.ref}"


def _exists(store: Store, request: Request, name: str, number: Number) -> bool:
    target = store.version_folder(request.kind, name, str(number))
    return (
        target.is_dir()
        or any(version.number == number for version in store.versions(name))
        or any(staging.target == target for staging in store.stagings(name))
    )


def _build_copy(existing: Version, request: Request, name: str, number: Number, store: Store, progress: Progress) -> bool:
    """Build the version in a staging folder from the other version's files; False if one of these is not as it was sealed."""
    folder, build = existing.folder, store.root / "runs" / PULLS_FOLDER / name / str(number) / "build"
    build.mkdir(parents=True)
    old_manifest = existing.manifest
    with progress.task(f"copy {existing.ref}", sum(sealed.bytes for sealed in old_manifest.files.values()), "bytes") as task:
        for file, sealed in old_manifest.files.items():
            if not copy_verified(folder / file, build / file, sealed, hard_link=True):
                return False
            task.advance(sealed.bytes)
    for path in [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]:
        file = path.relative_to(folder).as_posix()
        if file not in old_manifest.files and file not in _NOT_COPIED:
            with suppress(FileNotFoundError):  # being rewritten at this moment
                copy_file(path, build / file)
    digest = content_digest(request, old_manifest.files, old_manifest.class_names)
    manifest = old_manifest.model_copy(update={"name": name, "version": str(number), "request": request, "digest": digest})
    cards.write_card(Described(build, store.version_folder(request.kind, name, str(number)), manifest))
    write_text(build / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n")
    fsync_tree(build)
    return True


def _data_digest(manifest: Manifest) -> str:
    """A digest that is equal for versions with the same content."""
    hashes = {file: sealed.sha256 for file, sealed in manifest.files.items()}
    return json_digest({"kind": manifest.kind, "class_names": manifest.class_names, "files": hashes})
