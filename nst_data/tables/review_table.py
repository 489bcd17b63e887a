"""The answers in a frozen review, by image hash."""

from typing import Literal, get_args

import polars as pl

from nst_data.errors import NstError
from nst_data.store.version import Number, Version
from nst_data.tables.label_tables import check_label_range, translate_table_errors
from nst_data.tables.shards import table_files

REVIEW = "review"  # the table of a review
ANSWERED = "answered"  # the table, in an edition drawn with a review, of images to which people gave a class
Excluded = Literal["none of these", "unusable"]
EXCLUDED: tuple[Excluded, ...] = get_args(Excluded)
RANDOM = "random"  # `picked_by` of images that were drawn uniformly
# why an edition leaves out images that people have answered, by `excluded`: those with a class are trained on as labeled ones
REASONS: dict[Excluded | None, str] = {None: ANSWERED, "none of these": "none_of_these", "unusable": "unusable"}
_COLUMNS: dict[str, type[pl.DataType]] = {
    "image_hash": pl.String,
    "key": pl.String,
    "label": pl.Int64,
    "excluded": pl.String,
    "picked_by": pl.String,
    "seen_in": pl.String,
}


def is_of_edition(seen_in: str | None) -> bool:
    """Whether images that were picked there represent only a selection, not a whole pool."""
    return sample_rank(seen_in) < 0


def sample_rank(seen_in: str | None) -> int:
    """The rank of a random draw: an image counts for its draw of the highest rank.

    A whole pool's draws rank above an edition's, and among them those of the newest generation highest, as its pool may have grown.
    """
    number = (seen_in or "").partition("@")[2]
    if not Number.is_valid(number):
        return 0
    parsed = Number.parse(number)
    return -1 if parsed.edition is not None else 1 + parsed.generation


def read_review(version: Version) -> pl.DataFrame:
    """The rows: `image_hash`, `key`, `label` (int64, an index into the review's class names, or null), `excluded`, `picked_by`, `seen_in`.

    Raises NstError if the table is damaged.
    """
    with translate_table_errors(version.ref):
        tables = [pl.read_parquet(file, columns=list(_COLUMNS), glob=False) for file in table_files(version.folder, REVIEW)]
        rows = pl.concat(tables).select(pl.col(name).cast(dtype) for name, dtype in _COLUMNS.items())
    if rows["image_hash"].n_unique() != rows.height or (rows["label"].is_null() != rows["excluded"].is_in(list(EXCLUDED))).any():
        raise NstError(f"{version.ref}: expected one answer for each image, a class or why it has none; the table was changed elsewhere")
    check_label_range(rows["label"].drop_nulls(), version.manifest.class_names, version.ref)
    return rows


def hashes_by_reason(version: Version) -> dict[str, frozenset[str]]:
    """The hashes of the images that an edition leaves out because of a review, by reason."""
    rows = read_review(version)
    excluded = pl.col("excluded")
    return {
        reason: frozenset(rows.filter(excluded.is_null() if answer is None else excluded == answer)["image_hash"])
        for answer, reason in REASONS.items()
    }
