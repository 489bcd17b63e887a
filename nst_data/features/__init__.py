"""Image features: a network's output before its classifier, computed once per image and kept in the store.

Input: the rows of a source, from `nst_train.features`. Output: parquet shards with `id`, `key`, `image_hash` and `features`, stored under
the digest of model, settings and source, and a matrix for code that compares, picks or classifies images.
"""
