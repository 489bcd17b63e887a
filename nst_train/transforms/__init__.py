"""Transforms from encoded bytes to network inputs: the one for evaluation, and the noised one for training.

Input: the bytes of an image and a seed. Output: pixels as uint8 or float tensors, which depend only on the bytes, the settings and the
seed.
"""
