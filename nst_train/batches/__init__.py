"""Joint batches of labeled and pseudo-labeled images: the batch of a step is a function of (seed, step).

Input: a labeled source, an edition with its soft labels, transforms. Output: training batches, prepared by workers.
"""
