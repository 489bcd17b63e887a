"""Open the pool that holds a version's images, at the location in its manifest unless the manifest was downloaded from the Hub."""

from nst_data.errors import NstError, UsageError
from nst_data.sources import Source, open_source
from nst_data.sources.opening import PathNotFoundError
from nst_data.store.indexes import Indexes
from nst_data.store.inputs import Input
from nst_data.store.version import Version

EDITION_HINT = "was built from it; pass its current location with `pool`"  # hint of the error when training on an edition


def check_pool_is_own(version: Version, hint: str) -> None:
    """Raise UsageError for a version that came from the Hub, or was drawn from one that did; `hint` is as in `open_labeled_pool`."""
    entry = version.manifest.request.inputs.pool
    if entry is not None and entry.pulled:
        raise UsageError(
            f"{version.ref}: its pool {entry.ref!r} comes from a downloaded manifest, which nst does not open. {version.ref} {hint}"
        )


def open_labeled_pool(
    version: Version, indexes: Indexes, hint: str, image_column: str | None = None, stream: bool = False, as_labeled: bool = True
) -> Source:
    """Open the pool named in a manifest. Error messages end with `hint`: what the pool is needed for, and how to name another.

    With `as_labeled`, a pool at an address is opened as it was listed for labeling if `indexes` has that listing, else as it is now.
    Raises UsageError for a version that came from the Hub, or was drawn from one that did: its paths and addresses are a stranger's.
    """
    entry = version.manifest.request.inputs.pool
    if entry is None:
        raise UsageError(f"{version.ref}: expected a generation or an edition, found a teacher, which has no pool")
    check_pool_is_own(version, hint)
    try:
        column, digest = image_column or entry.image_column, entry.digest if as_labeled else None
        return open_source(entry.ref, image_column=column, stream=stream, indexes=indexes, digest=digest)
    except PathNotFoundError:  # its suggestion of a similar name would mislead: the labeled images are often next to the pool
        raise NstError(f"{entry.ref}: no such file or folder. {version.ref} {hint}") from None
    except NstError as error:
        raise NstError(f"{error}. {version.ref} {hint}") from None


def pool_entry(entry: Input, pool: Source | None) -> Input:
    """The pool's lineage entry for what is drawn from a version: `pool`'s own if `entry` was pulled and is the same, else `entry`."""
    return pool.lineage if entry.pulled and pool is not None and pool.fingerprint == entry.digest else entry
