"""Make a training set of pseudo-labels: the images that the teacher is confident about, the same number of each class.

    python examples/balance_labels.py STORE CORPUS TEST

CORPUS is what label_a_pool.py made, such as flowers@gen-1. The images of TEST, labeled or not, are left out with their near-duplicates.
"""

import sys

from nst_data import BalanceSettings, Store, balance, open_source

if len(sys.argv) != 4:
    sys.exit(__doc__)
store, corpus, test = sys.argv[1:]
settings = BalanceSettings(min_confidence=0.3, per_class="auto")
edition = balance(Store(store), corpus, settings, exclude=[open_source(test)])
counts = edition.manifest.counts
print(f"{edition.ref}: {counts.copies} entries from {counts.unique} of {counts.labeled} images")
print(", ".join(f"{images} dropped: {reason}" for reason, images in counts.dropped.items() if images))
