"""Features of images: what a network makes of each before its classifier, computed once and kept in the store.

In: the rows of a source, from `nst_train.features`. Out: parquet shards with `id`, `key`, `image_hash` and `features`, found by the
digest of model, settings and source; a matrix for what compares, picks or classifies images.
"""
