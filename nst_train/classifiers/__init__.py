"""Load teachers by name and run them: images in, logits out, in batches of one size.

Input: one or more teacher names (store, timm, transformers, Hub, folder). Output: a classifier with its class names and preprocessing, and
a temperature if one was fitted.
"""
