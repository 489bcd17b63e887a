"""Features from a network with trained weights, and the simplest classifier on them.

In: a source of images and the name of a model. Out: `nst_data.features`, one vector an image from before the network's classifier;
a linear probe, which is the weights of a new last layer.
"""
