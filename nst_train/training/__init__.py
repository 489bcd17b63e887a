"""Algorithm 1, steps 1 and 3: a network trained on labeled and pseudo-labeled images, with checkpoints to go on from.

In: a labeled source, an edition or none, and `TrainSettings`. Out: a sealed teacher with its averaged weights, metrics and curves.
"""
