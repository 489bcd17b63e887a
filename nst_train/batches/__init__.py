"""Labeled and pseudo-labeled images side by side: the batch of a step as a function of (seed, step).

In: a labeled source, an edition with its soft labels, transforms. Out: training batches, prepared by workers.
"""
