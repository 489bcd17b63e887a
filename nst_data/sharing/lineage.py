"""`nst lineage`: what a version was made from, and that from what, back to the first teacher; in the store and on the Hub."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from nst_data.arguments import with_checked_arguments
from nst_data.errors import NstError
from nst_data.hub.repository import Repository
from nst_data.sharing.public_form import links
from nst_data.sharing.pull import find
from nst_data.sharing.remote_manifest import manifest_at
from nst_data.store.inputs import Input, is_of_model
from nst_data.store.manifest import Manifest
from nst_data.store.metrics import Metrics
from nst_data.store.places import places_of
from nst_data.store.store import Store
from nst_data.store.version import VERSION_REF, Version


@dataclass
class LineageNode:
    """One thing that something was made from: a version with what it was made from itself, or a source, which ends a branch.

    `place` is `owner/name@revision` on the Hub. `note` says what cannot be followed and why; `is_repeated` that its branches stand above.
    """

    role: str
    ref: str
    kind: str
    digest: str
    created: str = ""
    place: str | None = None
    top1: float | None = None
    note: str = ""
    is_repeated: bool = False
    inputs: list["LineageNode"] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values, what is empty left out."""
        values = {name: value for name, value in vars(self).items() if name != "inputs" and value not in ("", None, False)}
        return values | ({"inputs": [one.as_json() for one in self.inputs]} if self.inputs else {})


@with_checked_arguments
def lineage(store: Store, version: Version | str) -> LineageNode:
    """What a version was made from, and that from what, back to the first teacher.

    Args:
        store: Where versions are looked for first.
        version: A version of the store, its `name@gen-N`, or `owner/name@version` on the Hub.

    Returns:
        The tree: each node has the `role` and `ref` of what it stands for, and its own `inputs`.

    Raises:
        NstError: There is no such version.
    """
    reference = version if isinstance(version, str) else version.ref
    here = _Here(one for one in store.versions() if one.is_readable)
    walk = _Walk(here, follows_links="/" in reference)
    if "/" not in reference:
        opened = store.open(version)
        return walk.version("", opened.manifest, opened)
    repository, revision, _, manifest = find(reference)
    return walk.version("", manifest, here.get(manifest.digest, f"{manifest.name}@{manifest.version}"), f"{repository.id}@{revision}")


class _Here:
    """Versions of a store by their digest and, where several names have equal content, by the name that is asked for."""

    def __init__(self, versions: Iterable[Version]) -> None:
        self._by_digest: dict[str, list[Version]] = {}
        for version in versions:
            self._by_digest.setdefault(version.manifest.digest, []).append(version)

    def get(self, digest: str, ref: str) -> Version | None:
        """The version with this digest and this name, else the first with this digest."""
        found = self._by_digest.get(digest, [])
        return next((one for one in found if one.ref == ref), found[0] if found else None)


class _Walk:
    """`follows_links`: a Hub reference was asked for, and repositories that manifests of the Hub name are asked too."""

    def __init__(self, here: "_Here", follows_links: bool) -> None:
        self._here, self._follows_links, self._seen = here, follows_links, set[str]()

    def version(self, role: str, manifest: Manifest, version: Version | None, place: str | None = None) -> LineageNode:
        """A version and all that it was made from; what was shown before is not shown again."""
        if version is not None:
            place = places[-1].ref if (places := places_of(version.place)) else place
        node = LineageNode(role, f"{manifest.name}@{manifest.version}", manifest.kind, manifest.digest, manifest.created[:10], place)
        if version is not None and manifest.kind == "teacher":
            node.top1 = Metrics.read_if_sound(version.place).test_top1
        if manifest.digest in self._seen:
            node.is_repeated = bool(manifest.request.inputs.by_role)
            return node
        self._seen.add(manifest.digest)
        on_the_hub = links(manifest)
        # what sources an edition shares with its generation stands there
        node.inputs = [self._input(one, entry, on_the_hub.get(one)) for one, entry in sorted(manifest.request.inputs.by_role.items())]
        return node

    def _input(self, role: str, entry: Input, place: str | None) -> LineageNode:
        if version := self._here.get(entry.digest, entry.ref):
            return self.version(role, version.manifest, version, place)
        is_version = entry.repo is not None or VERSION_REF.fullmatch(entry.ref) is not None or role.startswith("teacher")
        node = LineageNode(role, entry.ref, "version" if is_version else "source", entry.digest, place=place)
        if not is_version:
            return node
        if place is None:
            node.note = "neither in this store nor on the Hub, as far as is known"
            return node
        if entry.pulled and not self._follows_links:
            node.note = f"named by a downloaded manifest, not followed: `lineage(store, {place!r})`"
            return node
        repo, _, revision = place.partition("@")
        try:
            return self._remote(role, entry, repo, entry.revision or revision, place) or node
        except NstError as error:
            node.note = str(error)
            return node

    def _remote(self, role: str, entry: Input, repo: str, revision: str, place: str) -> LineageNode | None:
        """A version that only the Hub has; None for a model that nst did not make."""
        manifest = manifest_at(Repository.named(repo, "model" if is_of_model(role) else "dataset"), revision)
        return (
            self.version(role, manifest, self._here.get(manifest.digest, f"{manifest.name}@{manifest.version}"), place)
            if manifest
            else None
        )
