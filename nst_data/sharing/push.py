"""`nst push`: upload a complete version to the Hub, under a tag that never moves.

One commit adds the version's folder, and the tag is created last: until then nothing can be read under the version's name.
"""

import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nst_data.arguments import with_checked_arguments
from nst_data.cards import cards
from nst_data.cards.described import Described
from nst_data.cards.label_pictures import CONFIDENCE, write_pictures
from nst_data.cards.own_text import own_text
from nst_data.cards.published import Published
from nst_data.cards.rights import input_licenses
from nst_data.errors import NstError, UsageError
from nst_data.hub.quiet import quiet
from nst_data.hub.repository import Repository
from nst_data.progress import Progress, terminal_progress
from nst_data.sharing.anonymous import anonymous_copy, without_sources
from nst_data.sharing.croissant import CROISSANT, croissant
from nst_data.sharing.eval_results import EVAL_RESULTS, eval_results
from nst_data.sharing.public_form import find_absolute_key, hub_links, public_metrics, published_manifest
from nst_data.sharing.remote_manifest import UntrustedError, manifest_at, repo_kind
from nst_data.store.files import clear_abandoned, temporary_path, write_text
from nst_data.store.manifest import MANIFEST_NAME, Manifest, is_anonymous
from nst_data.store.metrics import Metrics
from nst_data.store.places import METRICS_NAME, PLACES_NAME, Place, read_places, record_place
from nst_data.store.store import Store
from nst_data.store.version import Number, Version

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

CARD = "README.md"
_NST_FILES = (
    MANIFEST_NAME,
    METRICS_NAME,
    EVAL_RESULTS,
    "metrics.jsonl",
    "summary.csv",
)  # files of a version other than tables and pictures
_SHARD = re.compile(r"(errors|pseudo_labels|balanced|answered|review)/train-\d{5,}-of-\d{5,}\.parquet")
_SUITE_PICTURES = "reliability|severity|epsilon|corruptions|perturbations"
_PICTURE = re.compile(rf"(confidence|class_counts|look|training_curves|generations|[\w.-]*({_SUITE_PICTURES}))\.png")
_NST_CROISSANT_MARK = '"name": "nst '  # marks a croissant.json that nst wrote
_UPLOAD_BATCH_SIZE = 8  # files uploaded concurrently


@dataclass(frozen=True)
class PushSettings:
    """The user's choices for a repository: who may see it, and what its card says about the pool."""

    public: bool = False
    anonymous: bool = False
    license: str | None = None
    pool_source: str | None = None


@with_checked_arguments
def push(
    store: Store,
    version: Version | str,
    repo: str,
    *,
    tag: str | None = None,
    public: bool = False,
    anonymous: bool = False,
    license: str | None = None,
    pool_source: str | None = None,
    progress: Progress | None = None,
) -> Place:
    """Upload a version to the Hub, in one commit under a tag that never moves.

    If the tag already has the same content, its files and the tag stay; if card, metrics or links have changed since, the main branch is
    updated, unless it has a later version.

    Args:
        store: The store with the version and its inputs.
        version: A version, or its `name@gen-N`.
        repo: `owner/name`: a dataset for labels, a model for a teacher; created if it does not exist.
        tag: Its name there; by default the version's number.
        public: Allow a public repository; otherwise a new one is private.
        anonymous: Omit keys and source names, and replace image hashes by row numbers: a hash reveals who holds an image.
        license: For the card, such as `cc-by-4.0`; by default the one in the existing card.
        pool_source: For the card: where the pool's images come from.
        progress: How progress is shown; by default lines on standard error.

    Returns:
        Its location: repository, tag and commit.

    Raises:
        UsageError: The repository is public, or the arguments contradict each other.
        NstError: The tag has other content, the version is damaged, or the Hub refuses; the next push skips files that are already
            uploaded.
    """
    version, progress = store.open(version), progress or terminal_progress()
    settings = PushSettings(public, anonymous, license, pool_source)
    repository, tag = Repository.from_id(repo, repo_kind(version.manifest.kind)), check_tag(tag or str(version.number))
    if settings.anonymous and is_anonymous(version.manifest):
        raise UsageError(f"`anonymous`: {version.ref} already holds no keys and no hashes; remove `anonymous`")
    if settings.anonymous and version.manifest.kind == "review":
        raise UsageError(
            f"`anonymous`: {version.ref} identifies its images only by their hashes; remove `anonymous`. "
            "Frozen with `anonymous`, a review does not name its reviewers"
        )
    if not settings.anonymous and (key := find_absolute_key(version)):
        progress.say(
            f"warning: {version.ref}: keys of its images are absolute paths, such as {key!r}, which others will see; "
            "push with `anonymous`, or label a list with relative paths"
        )
    with quiet("huggingface_hub.utils"), _published_form(store, version, repository.id, settings, progress) as form:
        _ensure_repository(repository, settings, progress)
        outgoing = _VersionPush(repository, form, version, tag, settings, _input_links(store, version, form.manifest), progress)
        commit = repository.tags().get(tag)
        if commit is not None:
            place = _place_if_same(repository, tag, commit, form.manifest)
            progress.say(f"{place.ref} already exists: same content")
            outgoing.update_main(commit)
        else:
            commit = outgoing.commit()
            if not repository.tag(tag, commit):  # another process was faster, or a failed attempt did succeed
                commit = repository.tags().get(tag)
                if commit is None:
                    raise NstError(
                        f"{repository.id}: the Hub refuses the tag {tag} and has none of that name; push again, or with `tag` NAME"
                    )
            place = _place_if_same(repository, tag, commit, form.manifest)
    record_place(version.folder, place)
    version.publish_unsealed(PLACES_NAME)
    return place


def sort_parents_first(versions: Iterable[Version]) -> list[Version]:
    """Sort versions by creation time, for pushing: a version links to its inputs if they are on the Hub before it."""
    return sorted(versions, key=lambda version: (version.manifest.created, version.number.sort_key))


def is_pushed(version: Version, repo_id: str, tag: str | None = None) -> bool:
    """Whether the store records that a version is in the repository under the tag; the Hub is not queried."""
    return any((place.repo, place.tag) == (repo_id, tag or str(version.number)) for place in read_places(version.local_folder))


def check_tag(tag: str) -> str:
    """The tag, if git and the Hub accept it. Raises UsageError otherwise."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}", tag) or tag.endswith((".", ".lock")) or ".." in tag:
        raise UsageError(f"tag {tag!r}: expected ASCII letters, digits, '.', '_' and '-', beginning with a letter or digit, as in gen-1.1")
    if Number.is_valid(tag) and str(Number.parse(tag)) != tag:
        raise UsageError(f"tag {tag!r}: looks like a version number but is not one; expected {Number.parse(tag)}")
    return tag


@contextmanager
def _published_form(store: Store, version: Version, repo: str, settings: PushSettings, progress: Progress) -> Iterator[Version]:
    """The version in its published form, in a temporary folder: links to unchanged files, and rewritten copies of the others."""
    manifest = published_manifest(version, store, repo if settings.anonymous else None)
    pushes = store.root / "runs" / "pushes"
    pushes.mkdir(parents=True, exist_ok=True)
    clear_abandoned(pushes)
    top = temporary_path(pushes / f"{version.ref}.{secrets.token_hex(4)}")
    folder = top / version.name / version.local_folder.name
    folder.mkdir(parents=True)
    try:
        file_names = [path.name for path in version.folder.iterdir() if path.is_file() and path.name[0] != "." and path.name != PLACES_NAME]
        if settings.anonymous and manifest.kind == "teacher":
            manifest = without_sources(version, manifest, manifest.files)
        elif settings.anonymous:
            with progress.task(f"leave keys and hashes out of {version.ref}", len(manifest.files), "files") as task:
                manifest = anonymous_copy(version, manifest, folder, task.advance)
        # the user's own text in a card may reveal anything
        unlinked = {MANIFEST_NAME, METRICS_NAME} | ({CARD} if settings.anonymous else set())
        for name in {*file_names, *version.manifest.files} - unlinked:
            if not (folder / name).exists():
                (folder / name).parent.mkdir(exist_ok=True)
                _link_or_copy(folder / name, version.folder / name)
        write_text(folder / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n")
        if (metrics := public_metrics(version, settings.anonymous)).root:
            metrics.write(folder)
        yield Version(folder)
    finally:
        shutil.rmtree(top, ignore_errors=True)


def _link_or_copy(target: Path, source: Path) -> None:
    """Make a file available at `target`: as a link, or as a copy if the file system has no links."""
    try:
        target.symlink_to(source)
    except OSError:  # exFAT, FAT and some network disks
        shutil.copyfile(source, target)


def _ensure_repository(repository: Repository, settings: PushSettings, progress: Progress) -> None:
    """Create the repository if it does not exist; raise UsageError if it is more visible than the user allows."""
    is_private = repository.is_private()
    if is_private is None:
        repository.create(private=not settings.public)
    elif is_private and settings.public:
        progress.say(f"{repository.id} is private on the Hub and stays so; its settings page makes it public")
    elif not is_private and not settings.public:
        raise UsageError(f"{repository.id} is public on the Hub: anyone could see this; add `public`, or use another repository")


def _place_if_same(repository: Repository, tag: str, commit: str, manifest: Manifest) -> Place:
    existing = manifest_at(repository, commit)
    if existing is None or existing.digest != manifest.digest:
        content = f"content with digest {existing.digest[:12]}" if existing else "something that is no version of nst"
        raise NstError(
            f"{repository.id}: the tag {tag} names {content}, yours has digest {manifest.digest[:12]}; tags are never moved: "
            "give another name with `tag`, or use another repository"
        )
    return Place(repository.id, tag, commit, manifest.digest, is_anonymous(manifest), pulled=False)


@dataclass(frozen=True)
class _VersionPush:
    """A version being pushed: `form` is its published form, `version` the one in the store."""

    repository: Repository
    form: Version
    version: Version
    tag: str
    settings: PushSettings
    input_links: Mapping[str, str]
    progress: Progress

    def commit(self) -> str:
        """Upload all files in one commit on top of the current main branch, retrying if it moves. Returns the commit."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        repository, folder, manifest = self.repository, self.form.folder, self.form.manifest
        while True:
            parent, remote_names = repository.head()
            self._write_card(parent, remote_names)
            self._write_scores()
            files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
            adds = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
            _upload(repository, [add for add in adds if add.path_in_repo in manifest.files], manifest, self.progress)
            old_manifest = manifest_at(repository, parent) if MANIFEST_NAME in remote_names else None
            stale = [name for name in remote_names if name not in files and _belongs_to_nst(name, old_manifest)]
            operations: list[CommitOperationAdd | CommitOperationDelete] = [*adds, *(CommitOperationDelete(name) for name in stale)]
            commit = repository.commit(operations, f"{manifest.name} {manifest.version}", parent)
            if commit is not None:
                return commit

    def update_main(self, tagged_commit: str) -> None:
        """Update files on the main branch that are not sealed, for a version that is already tagged at `tagged_commit`."""
        parent, remote_names = self.repository.head()
        try:
            on_main = manifest_at(self.repository, parent) if MANIFEST_NAME in remote_names else None
        except UntrustedError:
            on_main = None
        if on_main is None:
            return
        manifest = self.form.manifest
        if on_main.digest == manifest.digest:
            self._write_card(parent, remote_names)
            extra = [CROISSANT] if (self.form.folder / CROISSANT).exists() else []
            changed = self._changed_files(parent, CARD, *extra, METRICS_NAME, MANIFEST_NAME)
        else:
            changed = self._changed_files(tagged_commit, METRICS_NAME, MANIFEST_NAME)
        if not changed:
            return
        if on_main.digest != manifest.digest and Number.parse(on_main.version).sort_key >= Number.parse(manifest.version).sort_key:
            self.progress.say(
                f"{', '.join(changed)} of {self.tag} changed, but main already shows the later {on_main.version}; not uploaded"
            )
            return
        self.commit()
        self.progress.say(f"updated on main: {', '.join(changed)}; tag {self.tag} is unchanged")

    def _changed_files(self, commit: str, *names: str) -> list[str]:
        """The given small files whose content in the repository at a commit differs."""
        texts = {name: path.read_bytes().decode() for name in names if (path := self.form.folder / name).exists()}
        return [name for name in names if texts.get(name) != self.repository.read_text(name, commit)]

    def _write_scores(self) -> None:
        """Write the scores for leaderboards of the Hub, if a benchmark was measured."""
        scores = eval_results(Metrics.read(self.form.folder)) if self.form.manifest.kind == "teacher" else None
        if scores is not None:
            path = self.form.folder / EVAL_RESULTS
            path.parent.mkdir(exist_ok=True)
            write_text(path, scores)

    def _write_card(self, parent: str, remote_names: list[str]) -> None:
        """Write the card, keeping what users wrote into the existing one."""
        manifest = self.form.manifest
        earlier = self.repository.read_text(CARD, parent) if CARD in remote_names else None
        details = (self.input_links, self.settings.license, self.settings.pool_source, is_anonymous(manifest), earlier or "")
        published = Published(self.repository.id, self.tag, *details)
        if manifest.kind == "teacher":
            card = cards.model_card(self.form, published, self.version.folder)
        else:
            if not (self.form.folder / CONFIDENCE).exists():  # the version was sealed without pictures
                write_pictures(Described.from_version(self.form, self.version.folder))
            card = cards.dataset_card(self.form, published, target=self.version.folder)
            if CROISSANT not in remote_names or _NST_CROISSANT_MARK in (
                self.repository.read_text(CROISSANT, parent) or ""
            ):  # else users wrote their own
                write_text(self.form.folder / CROISSANT, croissant(Described.from_version(self.form, self.version.folder), published))
        for right in input_licenses(Described.from_version(self.form, self.version.folder), published):
            if right.restriction:
                subject = " ".join(filter(None, [right.role, right.name]))
                self.progress.say(f"warning: {self.version.ref}: the {subject} is licensed {right.license}: {right.restriction}")
        if problem := own_text(published.earlier_card).problem:
            self.progress.say(f"{self.repository.id}: {problem}")
        write_text(self.form.folder / CARD, card)


def _upload(repository: Repository, additions: list["CommitOperationAdd"], manifest: Manifest, progress: Progress) -> None:
    """Upload the sealed files after verifying their checksums. Raises NstError for a file that has changed since it was sealed."""
    ref, total = f"{manifest.name}@{manifest.version}", sum(sealed.bytes for sealed in manifest.files.values())
    with progress.task(f"push {ref}", total, "bytes") as task:
        for start in range(0, len(additions), _UPLOAD_BATCH_SIZE):
            batch = additions[start : start + _UPLOAD_BATCH_SIZE]
            for add in batch:
                if add.upload_info.sha256.hex() != manifest.files[add.path_in_repo].sha256:
                    raise NstError(
                        f"{ref}: {add.path_in_repo} has changed since it was sealed; `store.open({ref!r}).verify()` shows all that changed"
                    )
            repository.upload(batch)
            task.advance(sum(manifest.files[add.path_in_repo].bytes for add in batch))


def _belongs_to_nst(name: str, old_manifest: Manifest | None) -> bool:
    """Whether a file of the repository belongs to an earlier version, rather than being something that users keep there."""
    is_known = name in _NST_FILES or any(form.fullmatch(name) for form in (_SHARD, _PICTURE))
    return is_known or (old_manifest is not None and name in old_manifest.files)


def _input_links(store: Store, version: Version, manifest: Manifest) -> dict[str, str]:
    """Locations of its inputs on the Hub and, for an edition whose generation is in the store, of the teachers too."""
    parent = Described.from_version(version).parent
    if parent is None:
        return hub_links(manifest)
    labeled_by = published_manifest(parent, store)
    return {role: place for role, place in hub_links(labeled_by).items() if role in labeled_by.request.inputs.teachers} | hub_links(
        manifest
    )
