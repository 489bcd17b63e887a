"""How good labels are, and what changed from one labeling to the next.

In: the labels of one version or two, and labeled images where the truth is known. Out: accuracy by confidence, calibration error,
confusions, labels that changed. Nothing is written.
"""
