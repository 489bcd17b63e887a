"""Give every image of a pool soft labels, and look at them.

    python examples/label_a_pool.py STORE TEACHER POOL NAME

TEACHER is a version in the store, such as flowers-teacher@gen-0, or hf-hub:OWNER/NAME. POOL is a folder of images, tar or parquet files.
"""

import sys

import polars as pl

from nst_data import Store, open_source
from nst_train import label

if len(sys.argv) != 5:
    sys.exit(__doc__)
store, teacher, pool, name = sys.argv[1:]
corpus = label(Store(store), name, teacher, open_source(pool))
table = pl.read_parquet(corpus.folder / "pseudo_labels")
print(f"{corpus.ref}: {len(table)} images labeled, {corpus.manifest.counts.errors} could not be read")
print(table.sort("confidence").select("key", "label", "confidence").head(3))  # the least sure ones
