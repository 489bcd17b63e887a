"""Select a training set from a generation's labels, step by step, and report what happened to the rows.

    python examples/select_pseudo_labels.py STORE/corpora/NAME/gen-1 selected.parquet

`nst balance` does this with more settings and keeps a record. Here each step is a function from lazy frame to lazy frame: leave one
out, put your own between them (add_a_filter.py), or look at the frame. Nothing is computed before a result is needed.
"""

import sys
from pathlib import Path

import polars as pl

from nst_data import add_copies, most_confident, reject_duplicates, reject_unsure

PER_CLASS = 1000


def judged(labels: pl.LazyFrame) -> pl.LazyFrame:
    """All rows. `reason` says why one is out, and is null for one that is in."""
    rows = reject_duplicates(labels)
    rows = reject_unsure(rows, min_confidence=0.3)
    return most_confident(rows, PER_CLASS)


def main(generation: Path, output: Path) -> None:
    """Print how many rows went for each reason, and write those that are left with their `copies`."""
    rows = judged(pl.scan_parquet(generation / "pseudo_labels" / "*.parquet"))
    for reason, count in rows.group_by("reason").len().sort("reason").collect().iter_rows():
        print(f"{reason or 'selected'}: {count:,}")
    selected = rows.filter(pl.col("reason").is_null()).drop("reason")
    add_copies(selected, PER_CLASS, seed=0).sort("id").sink_parquet(output)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
