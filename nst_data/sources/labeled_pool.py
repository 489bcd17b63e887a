"""The pool that a version's images are in: where the user says, else where they were labeled, unless it was the Hub that said so."""

from nst_data.errors import NstError, UsageError
from nst_data.sources import Source, open_source
from nst_data.sources.opening import NotHereError
from nst_data.store.indexes import Indexes
from nst_data.store.inputs import Input
from nst_data.store.version import Version

OF_EDITION = "was built from it; pass its current location with `pool`"  # the hint where an edition is trained on


def check_pool_is_own(version: Version, hint: str) -> None:
    """Raises UsageError for a version that came from the Hub, or was drawn from one that did; `hint` is as for `open_labeled_pool`."""
    entry = version.manifest.request.inputs.pool
    if entry is not None and entry.pulled:
        raise UsageError(
            f"{version.ref}: its pool {entry.ref!r} comes from a downloaded manifest, which nst does not open. {version.ref} {hint}"
        )


def open_labeled_pool(
    version: Version, indexes: Indexes, hint: str, image_column: str | None = None, stream: bool = False, as_labeled: bool = True
) -> Source:
    """Open the pool that a manifest names. `hint` ends the error: what the pool is opened for, and how to name another.

    At an address it is opened `as_labeled`, if what was listed then is kept in `indexes`, or else as it is now.
    Raises UsageError for a version that came from the Hub, or was drawn from one that did: a path or an address in it is a stranger's.
    """
    entry = version.manifest.request.inputs.pool
    if entry is None:
        raise UsageError(f"{version.ref}: expected a generation or an edition, found a teacher, which has no pool")
    check_pool_is_own(version, hint)
    try:
        column, digest = image_column or entry.image_column, entry.digest if as_labeled else None
        return open_source(entry.ref, image_column=column, stream=stream, indexes=indexes, digest=digest)
    except NotHereError:  # what it says of names nearby is not meant: the labeled images often lie beside the pool
        raise NstError(f"{entry.ref}: no such file or folder. {version.ref} {hint}") from None
    except NstError as error:
        raise NstError(f"{error}. {version.ref} {hint}") from None


def pool_entry(entry: Input, pool: Source | None) -> Input:
    """A pool in the lineage of what is drawn from a version: as it stands there or, where the user has named the same, where that is."""
    return pool.lineage if entry.pulled and pool is not None and pool.fingerprint == entry.digest else entry
