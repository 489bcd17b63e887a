"""Algorithm 1, step 2: soft labels of an un-noised teacher for every image of a pool.

In: a classifier, a pool and `LabelSettings`. Out: a sealed generation; each image is in `pseudo_labels` or, with its reason, in `errors`.
"""
