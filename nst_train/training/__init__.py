"""Algorithm 1, steps 1 and 3: train a network on labeled and pseudo-labeled images, with checkpoints to resume from.

Input: a labeled source, optionally an edition, and `TrainSettings`. Output: a sealed teacher with averaged weights, metrics and curves.
"""
