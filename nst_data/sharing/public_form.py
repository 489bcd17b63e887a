"""The public form of a version: its manifest without local paths, with the locations of its inputs on the Hub."""

from typing import Any

import pyarrow.parquet as pq

from nst_data.cards.described import Described
from nst_data.cards.published import public_name, public_ref, public_setting
from nst_data.hub.reference import HubReference
from nst_data.store.inputs import Input, is_model_role
from nst_data.store.manifest import Manifest, content_digest
from nst_data.store.metrics import Metrics
from nst_data.store.places import read_places
from nst_data.store.store import Store
from nst_data.store.version import Version
from nst_data.tables.label_tables import translate_table_errors


def published_manifest(version: Version, store: Store, anonymous_repo: str | None = None) -> Manifest:
    """A version's manifest as others may see it: paths shortened to names, and inputs with their locations on the Hub.

    `anonymous_repo` is the repository to which it is pushed without keys and hashes: input labels are then linked only to locations that
    omit these too. The digest is the version's own, unless its settings contained a path that counts: an earlier nst did not name
    the content of folders.
    """
    manifest = version.manifest
    by_digest = {candidate.manifest.digest: candidate for candidate in store.versions() if candidate.is_readable}

    def publish_entry(role: str, entry: Input) -> Input:
        sources = entry.sources and tuple(map(public_name, entry.sources))
        entry = entry.model_copy(update={"ref": public_ref(entry), "sources": sources, "pulled": False})
        if anonymous_repo is not None and not is_model_role(role):
            places = read_places(by_digest[entry.digest].folder) if entry.digest in by_digest else []
            place = max(
                (candidate for candidate in places if candidate.anonymous),
                key=lambda candidate: candidate.repo == anonymous_repo,
                default=None,
            )
            return entry.model_copy(update={"repo": place and place.ref, "revision": place and place.commit})
        if entry.repo is None and entry.digest in by_digest:
            lineage = by_digest[entry.digest].lineage
            entry = entry.model_copy(update={"repo": lineage.repo, "revision": lineage.revision})
        return entry

    inputs, settings = manifest.request.inputs.map_entries(publish_entry), public_setting("settings", manifest.request.settings)
    request = manifest.request.model_copy(update={"settings": settings, "inputs": inputs})
    digest = content_digest(request, manifest.files, manifest.class_names)
    return manifest.model_copy(update={"request": request, "digest": digest})


def hub_links(manifest: Manifest) -> dict[str, str]:
    """`owner/name@revision` by role, for inputs that are on the Hub."""
    refs = {}
    for role, entry in manifest.request.inputs.by_role.items():
        if entry.repo:
            refs[role] = entry.repo
        elif entry.revision and (
            reference := (HubReference.parse_repository if is_model_role(role) else HubReference.parse_dataset)(entry.ref)
        ):
            refs[role] = f"{reference.repo}@{entry.revision}"
    return refs


def public_metrics(version: Version, anonymous: bool = False) -> Metrics:
    """A teacher's metrics as others may see them; with `anonymous`, without the images on which they were measured."""
    hidden = {"modified", "stamp", *(("source", "fingerprint") if anonymous else ())}
    metrics: dict[str, Any] = Metrics.read(version.folder).model_dump()
    visible = {name: {key: value for key, value in metric.items() if key not in hidden} for name, metric in metrics.items()}
    return Metrics(public_setting("metrics", visible))


def find_absolute_key(version: Version) -> str | None:
    """A key that is an absolute path, as lists of images may have; None if the first keys of a version hold no such path."""
    described = Described.from_version(version)
    for file in [] if version.manifest.kind == "teacher" else described.files(described.table)[:1]:
        with translate_table_errors(version.ref), pq.ParquetFile(file) as parquet:
            keys = parquet.read_row_group(0, columns=["key"])["key"].to_pylist() if parquet.num_row_groups else []
        return next((key for key in keys if key and key.startswith("/")), None)
    return None
