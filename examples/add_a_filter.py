"""Add a filter of your own to a selection: here, drop images that are too small.

    python examples/add_a_filter.py STORE/corpora/NAME/gen-1 sides.csv selected.parquet

sides.csv is yours, with the columns `key` (as in the labels) and `side_px`. A filter is a reason and a Narwhals expression, which is the
same on Polars and on Spark. A row keeps its first reason. If the expression is null, as for an image that is not in the table, the row is
kept.
"""

import sys
from pathlib import Path

import narwhals as nw
import polars as pl

from nst_data import most_confident, reject, reject_unsure


def judged(labels: pl.LazyFrame, sides: pl.LazyFrame) -> pl.LazyFrame:
    """All rows. `reason` says why one is out, and is null for one that is in."""
    rows = labels.join(sides.select("key", "side_px"), on="key", how="left", validate="m:1")
    rows = reject(rows, "too_small", nw.col("side_px") < 64)
    rows = reject_unsure(rows, min_confidence=0.3)
    return most_confident(rows, per_class=1000)


def main(generation: Path, sides: Path, output: Path) -> None:
    """Print how many rows went for each reason, and write those that are left."""
    rows = judged(pl.scan_parquet(generation / "pseudo_labels" / "*.parquet"), pl.scan_csv(sides))
    for reason, count in rows.group_by("reason").len().sort("reason").collect().iter_rows():
        print(f"{reason or 'selected'}: {count:,}")
    rows.filter(pl.col("reason").is_null()).drop("reason").sort("id").sink_parquet(output)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
