"""Make a training set without images of your choice: here, dark ones.

    python examples/leave_images_out.py STORE CORPUS POOL

POOL is the folder that was labeled as CORPUS, such as flowers@gen-1. The dark ones are excluded by a list of images, which the lineage of
the edition names. add_a_filter.py shows filters that work on the table of labels.
"""

import sys
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from nst_data import BalanceSettings, Store, balance, open_source

if len(sys.argv) != 4:
    sys.exit(__doc__)
store, corpus, pool = Store(sys.argv[1]), sys.argv[2], Path(sys.argv[3]).absolute()
keys = pl.read_parquet(store.open(corpus).folder / "pseudo_labels")["key"]  # of a folder: the paths in it
dark = [str(pool / key) for key in keys if np.asarray(Image.open(pool / key)).mean() < 60]
dropped = store.root / "dark.txt"
dropped.write_text("\n".join(dark))
settings = BalanceSettings(per_class="auto", exact_overlap_only=True)  # only these images, not others that look like them
edition = balance(store, corpus, settings, exclude=[open_source(dropped)] if dark else [])
print(f"{edition.ref}: {edition.manifest.counts.unique} images, {len(dark)} dark ones are left out")
