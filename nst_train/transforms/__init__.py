"""Transforms from encoded bytes to network inputs: the one for evaluation, and the noised one for training.

In: the bytes of an image and a seed. Out: pixels as uint8 or float tensors, which depend only on the bytes, the settings and the seed.
"""
