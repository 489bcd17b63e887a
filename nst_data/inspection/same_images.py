"""What another version says of the same images: of a few, looked up where they lie, not joined."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from nst_data.store.manifest import is_anonymous
from nst_data.store.version import Version
from nst_data.tables.label_tables import collect, scan_labels


def said_of(images: Mapping[str, int], shown: Version, other: Version, columns: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Some `columns` of another version by `image_hash`, without those that it lacks.

    `images` gives the number of each hash in the pool of `shown`: where both label one pool, only the row groups around these are read.
    """
    if shown.ref != other.ref and (is_anonymous(shown.manifest) or is_anonymous(other.manifest)):
        return {}  # numbers of rows stand for hashes
    pools = [version.manifest.request.inputs.pool for version in (shown, other)]
    wanted = pl.col("image_hash").is_in(list(images))
    if images and pools[0] and pools[1] and pools[0].digest == pools[1].digest:
        numbers = list(images.values())
        wanted &= pl.col("id").is_between(min(numbers), max(numbers)) & pl.col("id").is_in(numbers)
    (found,) = collect(other.ref, scan_labels(other).filter(wanted).select("image_hash", *columns))
    return {row[0]: row[1:] for row in reversed(found.rows())}
