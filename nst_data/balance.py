"""Selection: filters that give each dropped row its reason, the most confident images per class, copies for classes that lack images.

Section 3.1 of the paper: confidence above 0.3, at most 130,000 per class with the highest confidence, classes with fewer
duplicated up to it. Where the paper duplicates "at random", copies here are spread evenly, so that those of a class
differ by at most one. Every function takes a lazy frame and returns a lazy frame.
"""

import hashlib
from collections.abc import Collection

import polars as pl

from nst_data.settings import BalanceSettings

REASONS = ("held_out", "near_held_out", "duplicate", "low_confidence", "over_quota")
_PRIME = 2**31 - 1


def judge(
    labels: pl.LazyFrame, settings: BalanceSettings, held_out: Collection[str] = (), near_held_out: Collection[str] = ()
) -> pl.LazyFrame:
    """Add `duplicates` (int32) and `reason` (string): why a row is dropped, null for a row that is selected.

    `held_out` are the hashes of images that must not be trained on, such as the test set's, `near_held_out` those of the pool's
    images that look like one of them (section 3.1).
    """
    return (
        labels.with_columns(duplicates=pl.len().over("image_hash").cast(pl.Int32))
        .with_columns(reason=_reason(settings, held_out, near_held_out))
        .sort(pl.col("confidence").cast(pl.Float64), "image_hash", "id", descending=[True, False, False])
        .with_columns(reason=_over_quota(settings))
    )


def _reason(settings: BalanceSettings, held_out: Collection[str], near_held_out: Collection[str]) -> pl.Expr:
    confidence = pl.col("confidence").cast(pl.Float64)  # float64: 0.3 as float32 lies above 0.3
    confident = (confidence.is_not_nan() & (confidence > settings.min_confidence)).fill_null(False)
    return (
        pl.when(pl.col("image_hash").is_in(sorted(held_out)))
        .then(pl.lit("held_out"))
        .when(pl.col("image_hash").is_in(sorted(near_held_out)))
        .then(pl.lit("near_held_out"))
        .when(pl.col("id") != pl.col("id").min().over("image_hash"))
        .then(pl.lit("duplicate"))
        .when(~confident)
        .then(pl.lit("low_confidence"))
        .otherwise(pl.lit(None, dtype=pl.String))
    )


def _over_quota(settings: BalanceSettings) -> pl.Expr:
    """In a frame with the highest confidence first, ties by hash and then id, so that no folder comes first."""
    kept = pl.col("reason").is_null()
    rank = pl.col("id").cum_count().over("label", kept)
    return pl.when(kept & (rank > settings.per_class)).then(pl.lit("over_quota")).otherwise(pl.col("reason"))


def add_copies(selected: pl.LazyFrame, settings: BalanceSettings) -> pl.LazyFrame:
    """Add `copies` (int32): how often each selected row stands in the training set; they sum to the quota in each class.

    Copies of a class differ by at most one; who gets one more is decided by a seeded order of `image_hash`.
    """
    quota, rows = settings.per_class, pl.len().over("label")
    odd = pl.col("id").cum_count().over("label") <= quota % rows
    in_seeded_order = selected.sort(_seeded(settings.seed), "image_hash", "id")
    return in_seeded_order.with_columns(copies=(quota // rows + odd.cast(pl.Int64)).cast(pl.Int32))


def _seeded(seed: int) -> pl.Expr:
    """A pseudo-random int64 per `image_hash` and seed: a*x + b mod a prime, which no engine overflows."""
    digest = hashlib.sha256(f"copies {seed}".encode()).digest()
    a, b = (1 + int.from_bytes(part, "big") % (_PRIME - 1) for part in (digest[:8], digest[8:16]))
    x = pl.col("image_hash").str.slice(0, 7).str.to_integer(base=16)
    return (x * a + b) % _PRIME
