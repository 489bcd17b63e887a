"""`nst lineage`: everything a version was made from, directly or indirectly, back to the first teacher, in the store and on the Hub."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from nst_data.arguments import with_checked_arguments
from nst_data.errors import NstError
from nst_data.hub.repository import Repository
from nst_data.sharing.public_form import hub_links
from nst_data.sharing.pull import find_remote_version
from nst_data.sharing.remote_manifest import manifest_at
from nst_data.store.inputs import Input, is_model_role
from nst_data.store.manifest import Manifest
from nst_data.store.metrics import Metrics
from nst_data.store.places import read_places
from nst_data.store.store import Store
from nst_data.store.version import VERSION_REF, Version


@dataclass
class LineageNode:
    """One input in a lineage tree: a version with inputs of its own, or a source, which is a leaf.

    `place` is `owner/name@revision` on the Hub. `note` says why the lineage cannot be followed further; with `is_repeated`, the node's
    inputs are shown where it first occurs.
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
        """The node as JSON values, without empty ones."""
        values = {name: value for name, value in vars(self).items() if name != "inputs" and value not in ("", None, False)}
        return values | ({"inputs": [node.as_json() for node in self.inputs]} if self.inputs else {})


@with_checked_arguments
def lineage(store: Store, version: Version | str) -> LineageNode:
    """Everything a version was made from, directly or indirectly, back to the first teacher.

    Args:
        store: The store in which versions are looked up first.
        version: A version of the store, its `name@gen-N`, or `owner/name@version` on the Hub.

    Returns:
        The tree: each node has a `role`, a `ref` and its own `inputs`.

    Raises:
        NstError: There is no such version.
    """
    reference = version if isinstance(version, str) else version.ref
    local = _LocalVersions(candidate for candidate in store.versions() if candidate.is_readable)
    walk = _TreeBuilder(local, follows_links="/" in reference)
    if "/" not in reference:
        opened = store.open(version)
        return walk.version_node("", opened.manifest, opened)
    repository, revision, _, manifest = find_remote_version(reference)
    return walk.version_node("", manifest, local.get(manifest.digest, f"{manifest.name}@{manifest.version}"), f"{repository.id}@{revision}")


class _LocalVersions:
    """The versions of a store by digest and, if several names have the same content, by name."""

    def __init__(self, versions: Iterable[Version]) -> None:
        self._by_digest: dict[str, list[Version]] = {}
        for version in versions:
            self._by_digest.setdefault(version.manifest.digest, []).append(version)

    def get(self, digest: str, ref: str) -> Version | None:
        """The version with this digest and name, else the first with this digest, else None."""
        versions = self._by_digest.get(digest, [])
        return next((version for version in versions if version.ref == ref), versions[0] if versions else None)


class _TreeBuilder:
    """Builds the tree. With `follows_links`, set for a Hub reference, repositories named in downloaded manifests are queried too."""

    def __init__(self, local_versions: "_LocalVersions", follows_links: bool) -> None:
        self._here, self._follows_links, self._seen = local_versions, follows_links, set[str]()

    def version_node(self, role: str, manifest: Manifest, version: Version | None, place: str | None = None) -> LineageNode:
        """The node of a version and of everything it was made from; the inputs of a version that already occurred are not repeated."""
        if version is not None:
            place = places[-1].ref if (places := read_places(version.local_folder)) else place
        node = LineageNode(role, f"{manifest.name}@{manifest.version}", manifest.kind, manifest.digest, manifest.created[:10], place)
        if version is not None and manifest.kind == "teacher":
            node.top1 = Metrics.read_if_valid(version.local_folder).test_top1
        if manifest.digest in self._seen:
            node.is_repeated = bool(manifest.request.inputs.by_role)
            return node
        self._seen.add(manifest.digest)
        links_by_role = hub_links(manifest)
        # sources that an edition shares with its generation are shown with the generation
        node.inputs = [
            self._input_node(input_role, entry, links_by_role.get(input_role))
            for input_role, entry in sorted(manifest.request.inputs.by_role.items())
        ]
        return node

    def _input_node(self, role: str, entry: Input, place: str | None) -> LineageNode:
        if version := self._here.get(entry.digest, entry.ref):
            return self.version_node(role, version.manifest, version, place)
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
            return self._remote_node(role, entry, repo, entry.revision or revision, place) or node
        except NstError as error:
            node.note = str(error)
            return node

    def _remote_node(self, role: str, entry: Input, repo: str, revision: str, place: str) -> LineageNode | None:
        """The node of a version that exists only on the Hub; None for a model that nst did not make."""
        manifest = manifest_at(Repository.from_id(repo, "model" if is_model_role(role) else "dataset"), revision)
        return (
            self.version_node(role, manifest, self._here.get(manifest.digest, f"{manifest.name}@{manifest.version}"), place)
            if manifest
            else None
        )
