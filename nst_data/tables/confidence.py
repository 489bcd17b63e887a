"""How confident labels are: bins of equal width over [0, 1], and how many labels lie in each."""

import polars as pl

from nst_data.tables.histogram import BINS, Histogram


def confidence_bin(confidence: pl.Expr, bins: int = BINS) -> pl.Expr:
    """The number, from 0, of the bin that a confidence lies in (int32); null for what is no number in [0, 1].

    Bin m holds (m/bins, (m+1)/bins], the first one 0 too (Guo et al. 2017, section 2), so that a filter which keeps confidences above
    a bound drops whole bins.
    """
    value = confidence.cast(pl.Float64)  # exact, and so is its product with a small integer: all float32 fall on the right side
    return pl.when(value.is_between(0, 1)).then((value * bins).ceil().clip(lower_bound=1).cast(pl.Int32) - 1)


def count_by_confidence(labels: pl.LazyFrame) -> pl.LazyFrame:
    """`bin` (int32) and `images`: the rows in each bin that has any."""
    return labels.group_by(bin=confidence_bin(pl.col("confidence"))).agg(images=pl.len())


def histogram(counted: pl.DataFrame) -> Histogram:
    """The whole of `count_by_confidence`, empty bins too."""
    images = dict(counted.iter_rows())
    return Histogram(tuple(images.get(number, 0) for number in range(BINS)), images.get(None, 0))
