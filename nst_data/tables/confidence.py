"""The confidence of labels: bins of equal width over [0, 1], and the number of labels in each."""

import polars as pl

from nst_data.tables.histogram import BINS, Histogram


def confidence_bin(confidence: pl.Expr, bins: int = BINS) -> pl.Expr:
    """The index, from 0, of the bin that contains a confidence (int32); null if it is not a number in [0, 1].

    Bin m holds (m/bins, (m+1)/bins], and the first one also 0 (Guo et al. 2017, section 2), so that a filter that keeps confidences above
    a threshold drops whole bins.
    """
    value = confidence.cast(pl.Float64)  # exact, and so is its product with a small integer: every float32 falls into the right bin
    return pl.when(value.is_between(0, 1)).then((value * bins).ceil().clip(lower_bound=1).cast(pl.Int32) - 1)


def count_by_confidence(labels: pl.LazyFrame) -> pl.LazyFrame:
    """`bin` (int32) and `images`: the number of rows in each nonempty bin."""
    return labels.group_by(bin=confidence_bin(pl.col("confidence"))).agg(images=pl.len())


def histogram_from_counts(counts: pl.DataFrame) -> Histogram:
    """The histogram from the result of `count_by_confidence`, including empty bins."""
    images = dict(counts.iter_rows())
    return Histogram(tuple(images.get(number, 0) for number in range(BINS)), images.get(None, 0))
