"""How good labels are, and what changed from one labeling to the next.

Input: the labels of one or two versions, and labeled images for which the truth is known. Output: accuracy by confidence, calibration
error, confusions and changed labels. Nothing is written.
"""
