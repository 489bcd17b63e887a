"""The version that an edition was made from."""

from nst_data.store.manifest import EditionManifest
from nst_data.store.store import Store, Version


def parent_of(version: Version, store: Store) -> Version | None:
    """The version whose rows an edition has: the generation it was drawn from, or the edition it is like. None if not in the store."""
    manifest = version.manifest
    entry = manifest.request.inputs.parent if isinstance(manifest, EditionManifest) else None
    if entry is None:
        return None
    for candidate in store.versions(entry.ref.partition("@")[0]):
        if candidate.ref == entry.ref and candidate.is_readable and candidate.manifest.digest == entry.digest:
            return candidate
    return None
