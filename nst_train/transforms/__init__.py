"""Encoded bytes to what a network sees: the evaluation transform, and the noised one of training.

In: the bytes of an image and a seed. Out: pixels as uint8 or float tensors. An image depends on its bytes, the settings and the seed.
"""
