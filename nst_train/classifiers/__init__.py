"""Names to teachers that answer: images in, logits out, in batches of one size.

In: a teacher's name (store, timm, transformers, Hub, folder) or several. Out: a classifier with class names, its preprocessing, and a
temperature where one was fitted.
"""
