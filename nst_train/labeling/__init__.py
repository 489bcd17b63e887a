"""Algorithm 1, step 2: soft labels of an un-noised teacher for every image of a pool.

Input: a classifier, a pool and `LabelSettings`. Output: a sealed generation; each image is in `pseudo_labels` or, with a reason, `errors`.
"""
