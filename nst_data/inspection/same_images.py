"""Look up what another version says about a few images, in place instead of with a join."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from nst_data.store.manifest import is_anonymous
from nst_data.store.version import Version
from nst_data.tables.label_tables import collect, scan_labels


def read_columns_by_hash(
    pool_rows: Mapping[str, int], viewed: Version, other: Version, columns: Sequence[str]
) -> dict[str, tuple[Any, ...]]:
    """Some `columns` of another version by `image_hash`, without images that it lacks.

    `pool_rows` maps each hash to its row in the pool of `viewed`. If both versions label the same pool, only row groups around these rows
    are read.
    """
    if viewed.ref != other.ref and (is_anonymous(viewed.manifest) or is_anonymous(other.manifest)):
        return {}  # anonymous versions have row numbers in place of hashes
    pools = [version.manifest.request.inputs.pool for version in (viewed, other)]
    condition = pl.col("image_hash").is_in(list(pool_rows))
    if pool_rows and pools[0] and pools[1] and pools[0].digest == pools[1].digest:
        numbers = list(pool_rows.values())
        condition &= pl.col("id").is_between(min(numbers), max(numbers)) & pl.col("id").is_in(numbers)
    (table,) = collect(other.ref, scan_labels(other).filter(condition).select("image_hash", *columns))
    return {row[0]: row[1:] for row in reversed(table.rows())}
